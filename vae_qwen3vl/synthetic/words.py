"""Words for questions about objects: things, categories and collections, in English and in Chinese.

Tables only. A name or category that is in no table has no Chinese here and is asked about in English alone.
"""

from __future__ import annotations

COLLECTIONS = {
    "ldraw": ("LDraw parts library", "LDraw 零件库"),
    "sweethome3d": ("Sweet Home 3D furniture library", "Sweet Home 3D 家具库"),
    "hubmap": ("HuBMAP reference organs", "HuBMAP 参考器官库"),
    "totalseg": ("TotalSegmentator organ surfaces", "TotalSegmentator 器官表面集"),
    "qshow": ("Quaternius models", "Quaternius 模型集"),
    "quaternius": ("Quaternius models", "Quaternius 模型集"),
    "kaykit": ("KayKit models", "KayKit 模型集"),
    "kenney": ("Kenney models", "Kenney 模型集"),
    "pmndrs": ("pmndrs models", "pmndrs 模型集"),
    "mmmm": ("mmmm voxel models", "mmmm 体素模型集"),
    "gazebo": ("Gazebo models", "Gazebo 模型集"),
    "aws": ("AWS RoboMaker models", "AWS RoboMaker 模型集"),
    "object_sim": ("object_sim objects", "object_sim 物体集"),
}
"""Source of a pack -> its name in both languages. Two mirrors of one maker have one name."""

MILLIMETRES = {"totalseg": 1.0, "hubmap": 1000.0, "object_sim": 1000.0, "ldraw": 0.4}
"""Source -> millimetres in a unit of its `extent`. CT is in mm, HuBMAP and simulators in m, an LDraw unit is 0.4 mm.

Game models have no units, and those of Gazebo, AWS and Sweet Home 3D mix several: they aren't asked about.
"""

PACKS = ("qshow", "kaykit", "kenney")
"""Sources whose category is the pack that a model was published in."""
TAGGED_PACKS = ("quaternius",)
"""Sources whose only tag is that pack."""
NO_CATEGORY = ("gazebo", "object_sim", "hubmap", "totalseg")
"""Sources that have one category for all."""

_THINGS = {
    "furniture": "armchair 扶手椅, bathtub 浴缸, bed 床, bench 长凳, bookcase 书柜, bookshelf 书架, cabinet 柜子, "
    "carpet 地毯, chair 椅子, closet 衣橱, coffee table 茶几, corner sofa 转角沙发, couch 沙发, deck chair 躺椅, "
    "desk 书桌, desk lamp 台灯, drawer 抽屉, folding chair 折叠椅, kitchen cabinet 橱柜, lamp 灯, mirror 镜子, "
    "night stand 床头柜, nightstand 床头柜, pillow 枕头, shelf 架子, sofa 沙发, stool 凳子, table 桌子, "
    "toilet 马桶, "
    "wardrobe 衣柜, washbasin 洗手池, bathroom mirror 浴室镜, coat rack 衣帽架, bunk bed 双层床, curtain 窗帘",
    "building": "barn 谷仓, building 建筑, house 房屋, tower 塔, watch tower 瞭望塔, wall 墙, door 门, window 窗户, "
    "fence 栅栏, column 柱子, pillar 柱子, bridge 桥, fireplace 壁炉, castle 城堡, lighthouse 灯塔, windmill 风车, "
    "well 水井, gate 大门, garage door 车库门, tent 帐篷, staircase 楼梯, skyscraper 摩天大楼, hospital 医院",
    "living": "tree 树, palm tree 棕榈树, pine tree 松树, birch tree 桦树, willow 柳树, bush 灌木, grass 草, "
    "flower 花, "
    "plant 植物, houseplant 室内植物, cactus 仙人掌, bamboo 竹子, mushroom 蘑菇, apple 苹果, banana 香蕉, "
    "corn 玉米, "
    "carrot 胡萝卜, tomato 番茄, pumpkin 南瓜, watermelon 西瓜, lettuce 生菜, wheat 小麦, rice 水稻, coconut 椰子, "
    "avocado 牛油果, burger 汉堡, donut 甜甜圈, bread 面包, hot dog 热狗, pizza 披萨, cheese 奶酪, lemon 柠檬, "
    "pear 梨, grapes 葡萄, strawberry 草莓, pineapple 菠萝, cake 蛋糕, christmas tree 圣诞树, hedge 树篱, "
    "fish 鱼, horse 马, shark 鲨鱼, whale 鲸鱼, deer 鹿, cow 奶牛, pig 猪, cat 猫, dog 狗, sheep 绵羊, duck 鸭子, "
    "dolphin 海豚, fox 狐狸, alpaca 羊驼, donkey 驴, elephant 大象, egg 蛋, beet 甜菜",
    "vehicle": "car 汽车, truck 卡车, bus 公共汽车, taxi 出租车, ambulance 救护车, police car 警车, bicycle 自行车, "
    "scooter 滑板车, boat 船, train 火车, spaceship 宇宙飞船, airplane 飞机, tractor 拖拉机, fire truck 消防车, "
    "motorcycle 摩托车, suv 越野车, helicopter 直升机, van 厢式货车",
    "hand tool": "sword 剑, dagger 匕首, axe 斧头, hammer 锤子, shovel 铁锹, knife 刀, pistol 手枪, rifle 步枪, "
    "shotgun 霰弹枪, revolver 左轮手枪, spear 长矛, grenade 手榴弹, shield 盾牌, katana 武士刀, scissors 剪刀, "
    "fork 叉子, spoon 勺子, pickaxe 镐, screwdriver 螺丝刀, fishing rod 钓鱼竿, crossbow 弩, toothbrush 牙刷, "
    "key 钥匙, torch 火把, flashlight 手电筒, comb 梳子, umbrella 雨伞, flute 长笛, stapler 订书机",
    "container": "barrel 木桶, bowl 碗, bottle 瓶子, wine bottle 酒瓶, water bottle 水瓶, box 盒子, "
    "cardboard box 纸箱, "
    "crate 板条箱, cup 杯子, mug 马克杯, bucket 水桶, vase 花瓶, jar 罐子, pan 平底锅, pot 锅, trashcan 垃圾桶, "
    "backpack 背包, mailbox 邮箱, teapot 茶壶, frying pan 平底锅, plastic cup 塑料杯, coffee mug 咖啡杯",
    "appliance": "tv 电视机, computer 电脑, laptop 笔记本电脑, phone 电话, radio 收音机, camera 照相机, "
    "fridge 冰箱, "
    "refrigerator 冰箱, oven 烤箱, washing machine 洗衣机, dishwasher 洗碗机, microwave 微波炉, toaster 烤面包机, "
    "headphones 耳机, ceiling fan 吊扇, radiator 暖气片, keyboard 键盘, alarm clock 闹钟, binoculars 双筒望远镜",
    "landscape": "rock 岩石, mountain 山, hill 小山, crystal 水晶, asteroid 小行星, planet 行星, cloud 云, "
    "meteor 流星体",
    "street": "traffic light 交通信号灯, traffic sign 交通标志, streetlight 路灯, fire hydrant 消防栓, "
    "speed limit sign 限速标志, stop sign 停车标志, traffic cone 交通锥",
}


def _entries(text: str) -> list[tuple[str, str]]:
    pairs = [entry.rpartition(" ") for entry in text.split(", ")]
    return [(english, chinese) for english, _, chinese in pairs]


THINGS = {name: (group, chinese) for group, text in _THINGS.items() for name, chinese in _entries(text)}
"""Name of a thing -> its group and its Chinese name. Nothing belongs to two groups, so that a thing of one group is
certainly not one of another. Plants, animals and food are one group, for a pumpkin is a plant and food."""
_WITHOUT_ARTICLE = frozenset(("grass", "rice", "wheat", "corn", "bamboo", "bread", "cheese", "grapes"))
_PAIRS = frozenset(("scissors", "headphones", "binoculars"))


def with_article(thing: str) -> str:
    """Return an entry of `THINGS` as one says that something is it: `an axe`, `a pair of scissors`, `grass`."""
    if thing in _WITHOUT_ARTICLE:
        return thing
    return ("a pair of " if thing in _PAIRS else "an " if thing[0] in "aeiou" else "a ") + thing


SHAPES = {"flat": "扁平", "rod-like": "细长", "compact": "紧凑"}
"""What the proportions of a bounding box are called."""
_VARIANTS = (
    "small large big tall long short round square open opened closed broken dead empty full filled old new red "
    "green "
    "blue yellow black white brown gold golden transformed simple medium tiny huge double single left right low "
    "high "
    "autumn animated decorated lvl level type color colour"
)
VARIANT_WORDS = frozenset(_VARIANTS.split())
"""Words that say which one of a kind a thing is: left out to find it among the things."""

CATEGORIES = dict(
    _entries(
        "Living room 客厅, Miscellaneous 杂项, Kitchen 厨房, Exterior 室外, Bedroom 卧室, Bathroom 浴室, "
        "Office 办公室, "
        "Characters 人物, Doors and windows 门窗, Lights 灯具, Vehicles 车辆, Staircases 楼梯, Medieval 中世纪, "
        "Nature 自然, Home and Buildings 家居与建筑, Characters and Animals 人物与动物, Space 太空, "
        "FPS 第一人称射击, real time strategy pack 即时战略包, nature pack 自然包, house interior pack 室内包, "
        "crops pack 农作物包, platformer game pack 平台游戏包, ultimate space pack 终极太空包, "
        "modular sci fi 模块化科幻, modular sci fi guns pack 模块化科幻枪械包, cyberpunk pack 赛博朋克包, "
        "platformer pack 平台游戏素材包, survival pack 生存包, cute fish pack 可爱鱼类包, "
        "medieval village pack 中世纪村庄包, modular dungeon pack 模块化地牢包, "
        "modular medieval buildings pack 模块化中世纪建筑包, street pack 街道包, "
        "medieval weapons pack 中世纪武器包, "
        "simple nature pack 简易自然包, animals pack 动物包, spaceships pack 飞船包, fish pack 鱼类包, "
        "dinosaurs pack 恐龙包, ships pack 船只包, mech pack 机甲包, tank pack 坦克包, "
        "Medieval Hexagon Pack 中世纪六边形包, Furniture Pack 家具包, Space Kit 太空套件, "
        "Platformer Kit 平台游戏套件, Castle Kit 城堡套件, Graveyard Kit 墓地套件, food 食物, vehicles 车辆, "
        "misc 杂项, nature 自然, architecture 建筑, characters 人物, furniture 家具, accessories 配饰, scenes 场景, "
        "bookstore 书店, hospital 医院, small-house 小房子, city object (voxel) 城市物体（体素）, "
        "character (voxel) 人物（体素）, alien (voxel) 外星人（体素）, vehicle (voxel) 车辆（体素）, "
        "environment (voxel) 环境（体素）, Brick 砖, Plate 板, Slope 斜面砖, Tile 光面板, Baseplate 底板, "
        "Wheel 车轮, "
        ""
        ""
        "Tyre 轮胎, Train 火车, Animal 动物, Minifig 小人仔, Minifig Accessory 小人仔配件, "
        "Minifig Headwear 小人仔头饰, "
        "Minifig Neckwear 小人仔颈饰, Minifig Hipwear 小人仔腰饰, Minifig Footwear 小人仔鞋类, Vehicle 车辆, "
        "Door 门, "
        ""
        ""
        "Container 容器, Hinge 铰链, Windscreen 挡风玻璃, Window 窗户, Panel 面板, Plant 植物, Boat 船, Bar 杆, "
        "Car 汽车, "
        "Wedge 楔形砖, Wing 机翼, Hose 软管, Support 支撑件, Bracket 支架, Arch 拱, Cylinder 圆柱, Roadsign 路标, "
        "Glass 玻璃, Cone 圆锥, Propeller 螺旋桨, Fence 栅栏, Flag 旗帜, Ladder 梯子, Turntable 转盘, Crane 起重机, "
        "Monorail 单轨列车, Plane 飞机, Rock 岩石, Dish 碟形件, Sphere 球体, Staircase 楼梯, Cockpit 驾驶舱, "
        "Conveyor 传送带, Antenna 天线, Magnet 磁铁, Tap 水龙头, Tractor 拖拉机, Exhaust 排气管, Winch 绞盘, "
        "Trailer 拖车, Electric 电气件, Figure 人偶, Figure Accessory 人偶配件"
    )
)
"""Category of a record -> the same in Chinese."""
