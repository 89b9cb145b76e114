"""Which large class an object is of (furniture, vehicle, plant, building, part of the body), and what it is for.

By the record's name, category and source alone, and only where they decide. A name counts by its last word once words
that say which one of a kind it is are dropped: a dining table is a table, a table lamp is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vae_qwen3vl.synthetic.known_object import ANATOMY_SOURCES, KnownObject, thing_of
from vae_qwen3vl.synthetic.words import THINGS, VARIANT_WORDS


def _set(words: str, between: str | None = None) -> frozenset[str]:
    return frozenset(words.split(between))


_HEADS = {
    "is_furniture": "armchair bed bench bookcase bookshelf cabinet chair couch cupboard desk dresser nightstand "
    "ottoman shelf sideboard sofa stool table wardrobe",
    "is_vehicle": "airplane ambulance bicycle bike boat bus car firetruck helicopter jeep limousine motorcycle "
    "pickup plane sailboat ship spaceship suv tank taxi tractor train truck van",
    "is_plant": "bamboo bush cactus fern flower grass houseplant palm pine plant tree willow",
    "is_building": "barn building castle church cottage farmhouse hospital hotel house lighthouse skyscraper tavern "
    "temple tower watermill windmill",
}
_HEADS_OF = {kind: frozenset(words.split()) for kind, words in _HEADS.items()}
_OTHERWISE = _set(
    "armor aquarium barrel battle bed bird block cell counter doll dog elevator flower fish garden gas head hex "
    "hill hut ladder lamp light log mini mountain "
    "model part piece plastic power prop pot river rug shower street tank tea toy track transformed truck trunk turn "
    "turret waiting wall water wheel wreck"
)
"""Words that make something else of what a name ends with: a flower bed, a water tank, a bird house."""
_AMONG_LIVING = _set("fish horse shark whale deer cow pig cat dog sheep duck dolphin fox alpaca donkey elephant")
_NEVER = {  # groups of things that are certainly not of a class
    "is_furniture": ("living", "vehicle", "hand tool", "landscape", "street"),
    "is_vehicle": ("furniture", "building", "living", "hand tool", "container", "appliance", "landscape", "street"),
    "is_plant": ("furniture", "building", "vehicle", "hand tool", "container", "appliance", "landscape", "street"),
    "is_building": ("furniture", "living", "vehicle", "hand tool", "container", "appliance", "landscape", "street"),
}
_BRICKS = _set(
    "Arch,Bar,Baseplate,Bracket,Brick,Cone,Cylinder,Dish,Hinge,Hose,Panel,Plate,Slope,Technic,Tile,Turntable,Tyre,"
    "Wedge,Wheel",
    ",",
)
"""Categories of LDraw parts that are none of these, unless a word of theirs says so."""
_NO_CLASS = _set(
    "fish pack,cute fish pack,animals pack,dinosaurs pack,character (voxel),alien (voxel),"
    "modular sci fi guns pack,medieval weapons pack,Minifig Headwear,Animal",
    ",",
)
_SUSPECT = {
    "is_furniture": "bed bench cabinet chair chest closet couch cupboard desk drawer furniture lamp mirror seat "
    "shelf sofa stool table throne wardrobe belville scala homemaker",
    "is_vehicle": "aircraft airplane bicycle boat bogie bus car carriage cart cockpit cycle fuselage hovercraft "
    "hull jet motorcycle plane ship sled tank tractor trailer train truck vehicle wagon rider riding",
    "is_plant": "bamboo bush cactus carrot corn flower fruit grass leaf leaves palm pine plant seaweed stem tree "
    "vine",
    "is_building": "barn building castle fort garage house hut palace roof shed station tent tower wall",
}
_SUSPECTS = {kind: frozenset(words.split()) for kind, words in _SUSPECT.items()}
_BODY_WORDS = _set(
    "arm baby body bone boy brain child character clown ear eye face female figure finger foot girl hair "
    "hand head heart hip human hips kid knee knight leg legs liver man male men minifig mouth nose people person "
    "pirate skeleton skin skull stomach tail tooth torso woman women zombie limb rib spine wing"
)
_ORGANS = _set(
    "liver,spleen,stomach,pancreas,gallbladder,kidney,urinary bladder,prostate,uterus,ovary,heart,thymus,"
    "adrenal gland,colon,small bowel,duodenum,lung",
    ",",
)


def words_of(known: KnownObject) -> frozenset[str]:
    """Return all words of a record, plurals as singulars too."""
    texts = (known.name, known.category, *known.captions, *known.tags)
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return frozenset(words | {word.removesuffix("s") for word in words})


def head_of(known: KnownObject) -> str | None:
    """Return the noun that a record's name ends with; None for organs and toys, and where other words decide."""
    if known.source in (*ANATOMY_SOURCES, "ldraw"):
        return None
    words = [word for word in re.findall(r"[a-z]+", known.name.lower()) if len(word) > 1]
    words = [word for word in words if word not in VARIANT_WORDS]
    if not words or _OTHERWISE & set(words[:-1]):
        return None
    return words[-1]


def _is_of(known: KnownObject, kind: str) -> bool | None:
    """Return whether an object is furniture, a vehicle, a plant, a building; None where the record does not say."""
    if known.source in ANATOMY_SOURCES:
        return False
    if head_of(known) in _HEADS_OF[kind]:
        return True
    words = words_of(known)
    if words & (_SUSPECTS[kind] | _HEADS_OF[kind]):
        return None
    thing = thing_of(known)
    if thing in _AMONG_LIVING:
        return False
    if thing is not None:
        return False if THINGS[thing][0] in _NEVER[kind] else None
    plain = known.category in _BRICKS if known.source == "ldraw" else False
    return False if plain or known.category in _NO_CLASS else None


def is_furniture(known: KnownObject) -> bool | None:
    """Furniture by the last word of the name; organs, plants, vehicles, tools and toy bricks are none."""
    return _is_of(known, "is_furniture")


def is_vehicle(known: KnownObject) -> bool | None:
    """A vehicle by the last word of the name; organs, furniture, plants, tools and toy bricks are none."""
    return _is_of(known, "is_vehicle")


def is_plant(known: KnownObject) -> bool | None:
    """A plant by the last word of the name; organs, furniture, vehicles, animals and toy bricks are none."""
    return _is_of(known, "is_plant")


def is_building(known: KnownObject) -> bool | None:
    """A building by the last word of the name; organs, furniture, plants, vehicles and toy bricks are none."""
    return _is_of(known, "is_building")


def is_body_part(known: KnownObject) -> bool | None:
    """What an anatomical source names; all else is none, unless a word of its record is one of the body."""
    if known.source in ANATOMY_SOURCES:
        return True if known.structure is not None else None
    return None if words_of(known) & _BODY_WORDS else False


def is_internal_organ(known: KnownObject) -> bool | None:
    """A whole organ by its name (`_ORGANS`); parts of organs, vessels, bones and muscles are not asked about."""
    if known.source in ANATOMY_SOURCES:
        return True if known.structure is not None and known.structure.base in _ORGANS else None
    return is_body_part(known)


CLASSES: Mapping[str, Callable[[KnownObject], bool | None]] = {
    rule.__name__: rule for rule in (is_furniture, is_vehicle, is_plant, is_building, is_body_part, is_internal_organ)
}

_USES = {
    "sitting on|坐": "armchair bench chair couch sofa stool corner-sofa deck-chair folding-chair",
    "sleeping in|睡觉": "bed bunk-bed",
    "putting things on, and for working or eating at|放东西、工作或吃饭": "table desk coffee-table",
    "keeping things in|存放东西": "cabinet bookcase bookshelf wardrobe closet cupboard drawer dresser shelf "
    "sideboard kitchen-cabinet box crate cardboard-box jar backpack barrel",
    "giving light|照明": "lamp desk-lamp streetlight torch flashlight candle lantern",
    "carrying people or goods on roads|在路上载人或运货": "car truck bus taxi van suv police-car ambulance "
    "fire-truck motorcycle bicycle bike jeep pickup",
    "travelling on water|在水上航行": "boat ship sailboat",
    "flying|飞行": "airplane helicopter plane",
    "drinking from|喝水": "cup mug coffee-mug plastic-cup",
    "holding liquids|装液体": "bottle wine-bottle water-bottle bucket teapot",
    "cooking in|烹饪": "pan frying-pan pot",
    "eating with|吃饭": "fork spoon",
    "cutting|切割": "knife scissors",
    "chopping|砍劈": "axe",
    "driving in nails|敲钉子": "hammer",
    "turning screws|拧螺丝": "screwdriver",
    "digging|挖掘": "shovel pickaxe",
    "fighting, as a weapon|作为武器战斗": "sword dagger pistol rifle shotgun revolver spear katana crossbow grenade",
    "protecting oneself in a fight|在战斗中保护自己": "shield",
    "brushing teeth|刷牙": "toothbrush",
    "opening locks|开锁": "key",
    "keeping off the rain|挡雨": "umbrella",
    "living or working in|居住或工作": "house building skyscraper",
    "keeping people or animals in or out|阻挡人或动物": "fence",
    "going up and down|上下楼": "staircase",
    "crossing a river or a road|过河或过路": "bridge",
    "throwing rubbish into|扔垃圾": "trashcan",
    "keeping food cold|冷藏食物": "fridge refrigerator",
    "washing clothes|洗衣服": "washing-machine",
    "heating food|加热食物": "oven microwave",
    "taking pictures|拍照": "camera",
    "watching programmes|看节目": "tv",
    "guiding traffic|指挥交通": "traffic-light traffic-sign stop-sign speed-limit-sign traffic-cone",
    "washing oneself|洗澡": "bathtub",
    "resting one's head on|枕着头": "pillow",
}
_USE_OF = {
    thing.replace("-", " "): tuple(use.split("|")) for use, things in _USES.items() for thing in things.split()
}
_WORK = {
    "heart": ("It pumps the blood through the body.", "它把血液输送到全身。"),
    "kidney": ("It filters the blood and makes urine.", "它过滤血液并产生尿液。"),
    "liver": ("It makes bile and processes what the blood brings from the gut.", "它分泌胆汁并处理来自肠道的物质。"),
    "lung": ("It takes oxygen from the air into the blood.", "它把空气中的氧气送入血液。"),
    "stomach": ("It digests food.", "它消化食物。"),
    "urinary bladder": ("It holds the urine.", "它储存尿液。"),
    "gallbladder": ("It stores bile.", "它储存胆汁。"),
    "colon": ("It takes water out of what is left of the food.", "它从食物残渣中吸收水分。"),
    "spleen": ("It filters the blood and helps against infections.", "它过滤血液并帮助抵抗感染。"),
    "pancreas": ("It makes juices for digestion, and insulin.", "它分泌消化液和胰岛素。"),
    "uterus": ("A child grows in it before it is born.", "胎儿在其中发育。"),
    "trachea": ("It leads air to the lungs.", "它把空气引向肺部。"),
    "ureter": ("It leads urine from the kidney to the bladder.", "它把尿液从肾脏引到膀胱。"),
    "spinal cord": ("It carries signals between the brain and the body.", "它在大脑和身体之间传递信号。"),
    "aorta": ("It carries blood from the heart to the body.", "它把血液从心脏送往全身。"),
}


def use_of(known: KnownObject) -> tuple[str, str] | None:
    """Return what an object is for, in English and in Chinese, by its name; None where the tables don't say."""
    if known.source in ANATOMY_SOURCES:
        return _WORK.get(known.structure.base) if known.structure is not None else None
    if known.source == "ldraw":
        if known.category in ("Brick", "Plate", "Slope", "Tile"):
            return "It is for building with toy bricks.", "它是用来拼搭积木的。"
        return None
    thing = thing_of(known) or head_of(known)
    use = _USE_OF.get(thing or "")
    return None if use is None else (f"It is for {use[0]}.", f"它是用来{use[1]}的。")
