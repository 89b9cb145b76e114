"""Names of anatomical structures as the records write them: their side, their system, their Chinese names.

Knows text only. What no table has gets no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIDES = {"left": "左", "right": "右"}
_SIDE_LETTERS = {"l": "left", "r": "right"}
_PAIRED = ("femur", "uterine tube", "ovary", "uterus", "quadriceps femoris", "main bronchus")
"""What follows `of left ...` where that side is the part's own: of a heart's left ventricle it isn't."""

SYSTEMS = {
    "circulatory": ("circulatory system", "循环系统"),
    "nervous": ("nervous system", "神经系统"),
    "respiratory": ("respiratory system", "呼吸系统"),
    "urinary": ("urinary system", "泌尿系统"),
    "digestive": ("digestive system", "消化系统"),
    "reproductive": ("reproductive system", "生殖系统"),
    "skeletal": ("skeletal system", "骨骼系统"),
    "muscular": ("muscular system", "肌肉系统"),
    "lymphatic": ("lymphatic system", "淋巴系统"),
    "endocrine": ("endocrine system", "内分泌系统"),
}

_SYSTEM_WORDS = {
    "circulatory": "artery arteries vein vena aorta aortic blood vasculature heart cardiac mitral tricuspid atrium "
    "interventricular coronary brachiocephalic celiac pulmonary-trunk pulmonary-valve pulmonary-artery "
    "papillary-muscle",
    "nervous": "nerve nerves spinal-cord dura-mater",
    "respiratory": "lung trachea bronchus larynx arytenoid corniculate epiglottic thyroid-cartilage pulmonary",
    "urinary": "kidney renal ureter ureteral urethra bladder calyx",
    "digestive": "liver stomach colon bowel duodenum duodenal pancreas pancreatic gallbladder biliary bile hepatic "
    "cystic "
    "esophageal gastric colic rectal",
    "reproductive": "uterus uterine ovary ovarian vagina cervicovaginal prostate prostatic ejaculatory deferent vas "
    "cervical-os",
    "skeletal": "femur tibia fibula patella rib vertebrae sacrum coccyx humerus hip bone costal-cartilages scapula "
    "clavicula",
    "muscular": "gluteus iliopsoas autochthon rectus-femoris muscles inferior-oblique inferior-rectus "
    "lateral-rectus "
    "medial-rectus superior-oblique superior-rectus levator-palpebrae",
    "lymphatic": "spleen splenic thymus tonsil",
    "endocrine": "adrenal suprarenal pancreas ovary",
}
_UNDECIDED = ("ligament", "enthesis", "tendon", "knee", "perichondular", "eye", "skin", "pelvis (whole", "pudendal")
"""A name with one of these has no system here: a joint's parts, say, belong to several."""

_CHINESE = (
    "liver 肝脏, spleen 脾脏, stomach 胃, pancreas 胰腺, gallbladder 胆囊, duodenum 十二指肠, small bowel 小肠, "
    "colon 结肠, "
    "kidney 肾脏, ureter 输尿管, urinary bladder 膀胱, prostate 前列腺, uterus 子宫, ovary 卵巢, vagina 阴道, "
    "heart 心脏, "
    "aorta 主动脉, ascending aorta 升主动脉, descending aorta 降主动脉, arch of aorta 主动脉弓, "
    "inferior vena cava 下腔静脉, "
    "superior vena cava 上腔静脉, pulmonary artery 肺动脉, pulmonary trunk 肺动脉干, renal artery 肾动脉, "
    "renal vein 肾静脉, "
    "hepatic artery 肝动脉, hepatic vein 肝静脉, portal vein 门静脉, hepatic portal vein 肝门静脉, "
    "splenic artery 脾动脉, "
    "splenic vein 脾静脉, subclavian artery 锁骨下动脉, coronary artery 冠状动脉, coronary sinus 冠状窦, "
    "mitral valve 二尖瓣, tricuspid valve 三尖瓣, aortic valve 主动脉瓣, pulmonary valve 肺动脉瓣, "
    "interventricular septum 室间隔, cardiac atrium 心房, celiac trunk 腹腔干, brachiocephalic trunk 头臂干, "
    "superior mesenteric artery 肠系膜上动脉, inferior mesenteric artery 肠系膜下动脉, "
    "superior mesenteric vein 肠系膜上静脉, portal vein and splenic vein 门静脉和脾静脉, iliac artery 髂动脉, "
    "iliac vena 髂静脉, brachiocephalic vein 头臂静脉, internal iliac vein 髂内静脉, common iliac vein 髂总静脉, "
    "trachea 气管, larynx 喉, main bronchus 主支气管, thyroid cartilage 甲状软骨, epiglottic cartilage 会厌软骨, "
    "arytenoid cartilage 杓状软骨, corniculate cartilage 小角软骨, lung upper lobe 肺上叶, lung lower lobe 肺下叶, "
    "lung middle lobe 肺中叶, renal pelvis 肾盂, renal pyramid 肾锥体, renal papilla 肾乳头, renal column 肾柱, "
    "minor calyx 肾小盏, major calyx 肾大盏, hilum of kidney 肾门, outer cortex of kidney 肾外皮质, "
    "spinal cord 脊髓, "
    ""
    ""
    "optic nerve 视神经, dura mater 硬脑膜, thymus 胸腺, thymus lobe 胸腺叶, palatine tonsil 腭扁桃体, "
    "adrenal gland 肾上腺, femur 股骨, tibia 胫骨, fibula 腓骨, patella 髌骨, humerus 肱骨, sacrum 骶骨, "
    "coccyx 尾骨, "
    ""
    ""
    "hip 髋骨, costal cartilages 肋软骨, compact bone tissue 密质骨组织, trabecular bone tissue 松质骨组织, "
    "intervertebral discs 椎间盘, gluteus maximus 臀大肌, gluteus medius 臀中肌, gluteus minimus 臀小肌, "
    "iliopsoas 髂腰肌, "
    "rectus femoris 股直肌, inferior oblique 下斜肌, superior oblique 上斜肌, inferior rectus 下直肌, "
    "superior rectus 上直肌, lateral rectus 外直肌, medial rectus 内直肌, anterior cruciate ligament 前交叉韧带, "
    "posterior cruciate ligament 后交叉韧带, patellar ligament 髌韧带, tibial collateral ligament 胫侧副韧带, "
    "fibular collateral ligament 腓侧副韧带, knee 膝关节, common bile duct 胆总管, cystic duct 胆囊管, "
    "common hepatic duct 肝总管, hepatic duct 肝管, head of pancreas 胰头, body of pancreas 胰体, "
    "tail of pancreas 胰尾, "
    "neck of pancreas 胰颈, caudate lobe of liver 肝尾状叶, quadrate lobe of liver 肝方叶, "
    "falciform ligament 镰状韧带, "
    "porta hepatis 肝门, uterine cervix 子宫颈, body of uterus 子宫体, fundus of uterus 子宫底, "
    "deferent duct 输精管, "
    ""
    ""
    "skin of body 皮肤, ophthalmic artery 眼动脉, ophthalmic vein 眼静脉, uterine artery 子宫动脉, "
    "uterine vein 子宫静脉, cystic artery 胆囊动脉, carina of trachea 气管隆嵴, trigone of urinary bladder 膀胱三角"
)
CHINESE = {english: chinese for english, _, chinese in (entry.rpartition(" ") for entry in _CHINESE.split(", "))}

_MISTAKEN = ("autochthon", "hip")
"""What the table of terms takes for rocks, and for a joint where the labels mean the bone."""
_WRONGLY_SAID = (
    (("rib ",), ("front", "forefront", "anterior", "lateral", "foremost")),
    (("kidney", "gallbladder", "spleen"), ("gland",)),
)
"""Of structures whose names begin so, the table has sentences with words that begin so, which are wrong."""
_LEVELS = {"c": "颈椎", "t": "胸椎", "l": "腰椎", "s": "骶椎"}
_MODELS = {  # words of HuBMAP's file names -> the organ
    "heart": ("heart", "心脏"),
    "kidney": ("kidney", "肾脏"),
    "liver": ("liver", "肝脏"),
    "prostate": ("prostate", "前列腺"),
    "ureter": ("ureter", "输尿管"),
    "knee": ("knee", "膝关节"),
    "ligaments knee": ("knee ligaments", "膝关节韧带"),
    "muscles knee": ("knee muscles", "膝部肌肉"),
    "pelvis": ("pelvis", "骨盆"),
    "spinal cord": ("spinal cord", "脊髓"),
    "vasculature": ("blood vessels", "血管系统"),
    "blood vasculature heart": ("blood vessels of the heart", "心脏血管"),
    "blood vasculature liver": ("blood vessels of the liver", "肝脏血管"),
    "blood vasculature eye": ("blood vessels of the eye", "眼部血管"),
    "blood vasculature kidney": ("blood vessels of the kidney", "肾脏血管"),
    "blood vasculature uterus": ("blood vessels of the uterus", "子宫血管"),
    "blood vasculature gallbladder": ("blood vessels of the gallbladder", "胆囊血管"),
    "blood vasculature spleen": ("blood vessels of the spleen", "脾脏血管"),
    "ligaments uterus ovaries": ("ligaments of the uterus and the ovaries", "子宫和卵巢的韧带"),
    "uterus": ("uterus", "子宫"),
    "biliary tree": ("biliary tree", "胆道"),
    "muscles eye": ("eye muscles", "眼外肌"),
    "nerves of eye": ("nerves of the eye", "眼部神经"),
    "larynx": ("larynx", "喉"),
    "pancreas": ("pancreas", "胰腺"),
    "urinary bladder": ("urinary bladder", "膀胱"),
    "fallopian tube": ("Fallopian tube", "输卵管"),
    "spleen": ("spleen", "脾脏"),
    "main bronchus": ("main bronchus", "主支气管"),
    "trachea": ("trachea", "气管"),
    "thymus": ("thymus", "胸腺"),
}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """An anatomical structure as a record names it."""

    base: str
    """Its name in small letters, without its side: `kidney`, `rib 9`."""
    named_side: str | None
    """The side in its name."""
    side: str | None
    """The side in its name or its key; None where there is none, or they disagree, or it is a parent's side."""

    @property
    def english(self) -> str:
        """Its name with its side first."""
        return f"{self.named_side} {self.base}" if self.named_side else self.base

    @property
    def chinese(self) -> str | None:
        """Its name in Chinese, if the tables have it."""
        side = SIDES.get(self.named_side or "", "")
        if rib := re.fullmatch(r"rib (\d+)", self.base):
            return f"{side}侧第{rib[1]}肋骨" if side else None
        if vertebra := re.fullmatch(r"vertebrae ([ctls])(\d+)", self.base):
            return f"第{vertebra[2]}{_LEVELS[vertebra[1]]}"
        name = CHINESE.get(self.base)
        return None if name is None else side + name

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that words of its name belong to, the one it is named for first."""
        if any(word in self.base for word in _UNDECIDED):
            return ()
        systems = [system for system in SYSTEMS if any(p.search(self.base) for p in _PATTERNS[system])]
        if touched := re.search(
            r"\b(?:surface|impression) of (.*)", self.base
        ):  # of the second; the first is beside it
            systems.sort(key=lambda system: not any(p.search(touched[1]) for p in _PATTERNS[system]))
        return tuple(systems)


_PATTERNS = {
    system: [re.compile(rf"\b{word.replace('-', ' ')}\b") for word in words.split()]
    for system, words in _SYSTEM_WORDS.items()
}


def structure_of(name: str, key: str = "") -> Structure | None:
    """Read the name of an organ's record; None for labels of a single case (`T710 renal`, `pul annulus`).

    Args:
        name: of the record.
        key: of the record: the file and the node in it, which ends in `_L` or `_R` for paired structures.
    """
    text = re.sub(r"\(whole organ\)", " ", name.lower())
    text = re.sub(r"(?<=[a-z]{3})1$", "", " ".join(text.split()))
    if re.search(r"\bt\d{3}\b|^pul |^organ |start$", text) or not text:
        return None
    words = text.split()
    if words[-1] in _SIDE_LETTERS:
        words[-1] = _SIDE_LETTERS[words[-1]]
    sides = [word for word in words if word in SIDES]
    place = words.index(sides[0]) if sides else -1
    own = len(sides) == 1 and (place in (0, len(words) - 1) or words[0] == "rib")
    base = " ".join(word for number, word in enumerate(words) if not (own and number == place))
    named = sides[0] if own else None
    of_paired = len(sides) == 1 and any(f"of {sides[0]} {part}" in text for part in _PAIRED)
    said = named or (sides[0] if of_paired else None)
    in_key = _side_of_key(key)
    if said and in_key and said != in_key:
        side = None
    else:
        side = said or (in_key if not sides else None)
    return Structure(base=base, named_side=named if side or not in_key else None, side=side)


def _side_of_key(key: str) -> str | None:
    """Return the side that a node's name states, unless its file states the other."""
    file, _, node = key.partition("#")
    sides = []
    for part in (node, file.rpartition("/")[2].partition(".")[0]):
        letters = {m.lower()[0] for m in re.findall(r"_(L|R|left|right|Left|Right)(?=_|$)", part)}
        sides.append(_SIDE_LETTERS[letters.pop()] if len(letters) == 1 else None)
    if sides[0] and sides[1] and sides[0] != sides[1]:
        return None
    return sides[0]


def organ_model(tags: Sequence[str]) -> tuple[str, str] | None:
    """Return the organ model of HuBMAP that a tag names (`VH F Kidney Left v1.0`), in both languages."""
    for tag in tags:
        words = re.sub(r"\bv[\d.]+\b", " ", tag.lower().replace("-", " ")).split()
        if "vh" not in words[:2] or len(words) < 3:
            continue
        words = words[words.index("vh") + 1 :]
        sex, words = {"f": ("female", "女性"), "m": ("male", "男性")}.get(words[0]), words[1:]
        side = None
        if words and (last := _SIDE_LETTERS.get(words[-1][0])) and words[-1] in (*SIDES, *_SIDE_LETTERS):
            side, words = last, words[:-1]
        model = _MODELS.get(" ".join(words))
        if sex is None or model is None:
            continue
        english = f"the {side} {model[0]}" if side else f"the {model[0]}"
        chinese = f"{sex[1]}参考人体的{SIDES.get(side or '', '')}{model[1]}"
        return f"{english} of the {sex[0]} reference body", chinese
    return None


def sentences_of(structure: Structure, terms: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the sentences written about a structure: those of its own side, or of a term without sides.

    A sentence that mentions the other side, or any side where the structure's is unknown, is left out, and so is one
    about a pair. Words that the table explains as something else have none (`_MISTAKEN`).
    """
    if structure.base in _MISTAKEN:
        return []
    fitting: list[str] = []
    for term, sentences in terms.items():
        words = term.lower().split()
        sides = [word for word in words if word in SIDES]
        base = " ".join(word for word in words if word not in SIDES)
        if base == structure.base and (not sides or sides == [structure.named_side]):
            texts = [re.sub(r"\s*Size: \w+\.$", "", text) for text in sentences]
            fitting += [text for text in texts if _fits(text, structure)]
    return list(dict.fromkeys(fitting))


def _fits(sentence: str, structure: Structure) -> bool:
    words = re.findall(r"[a-z]+", sentence.lower())
    sides = {word for word in words if word in SIDES}
    if len(words) < 4 or words[0] == "pair" or not sides <= {structure.named_side}:
        return False
    return not any(
        any(word.startswith(beginning) for word in words)
        for names, beginnings in _WRONGLY_SAID
        if structure.base.startswith(names)
        for beginning in beginnings
    )
