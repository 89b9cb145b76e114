"""Prompts that have nothing to do with an object, typed beside one all the same: in two languages and three sets.

Everyday prompts of `plain_prompts` are for training; here are those that people type to try a chat (greetings,
capitals, sums, poems, translations), and for `val` and `test` other templates about other words. Tables only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from vae_qwen3vl.synthetic.grammar import expand
from vae_qwen3vl.synthetic.plain_prompts import plain_prompts
from vae_qwen3vl.synthetic.wordings import LANGUAGES, WORDING_SETS

_ENGLISH: dict[str, tuple[Mapping[str, str], str]] = {
    "train": (
        {
            "country": "France|Italy|Japan|Brazil|Canada|Egypt|Poland|Sweden|India|Kenya|Peru|Greece",
            "sum": "12 plus 30|7 times 8|100 minus 45|15 + 27|9 * 6|48 / 4|3 plus 5",
            "topic": "spring|the sea|my cat|autumn|a rainy day|friendship|coffee|the night sky",
            "word": "good morning|thank you|water|friend|how are you|bread",
            "tongue": "French|Spanish|German|Italian",
            "fact": "the sky blue|the sea salty|ice slippery|leaves green",
            "person": "Einstein|Shakespeare|Napoleon|Mozart|Marie Curie",
            "task": "sort a list|reverse a string|read a file|add two numbers",
        },
        """
        [what is|what's|whats] the capital of <country>?
        [what is|what's|] <sum>?
        write [a|me a] [short|] poem [about <topic>|].
        [hello|hi|hey|good morning|good evening][!|]
        [hi|hello] there[!|]
        how are you [today|]?
        who are you?
        what can you do?
        tell me a joke.
        [how do you say|translate] <word> in <tongue>.
        why is <fact>?
        who was <person>?
        write a [python|Python] function to <task>.
        [thanks|thank you|thanks a lot][!|]
        what day is it today?
        what's the weather like?
        tell me a story about <topic>.
        give me a recipe for [pancakes|soup|pizza dough|rice pudding].
        [good bye|bye][!|]
        [ok|okay|great|nice][!|]
        help me write an email to my [boss|teacher|landlord].
        how many [days are in a year|minutes are in an hour|continents are there]?
        how many legs does [a spider|an octopus|a crab|an ant] have?
        what colo[u|]r is [the sky|a banana|snow|the Swedish flag]?
        what is [gold|bread|paper|honey] made of?
        how much [is a ticket to Paris|does a new car cost|does an elephant weigh]?
        who [invented the telephone|built the pyramids|made the first movie]?
        is [a whale|a bat|a spider|a penguin] [a mammal|an insect|a bird]?
        is it [raining|late|Monday] [today|already|]?
        what does this mean: "[time flies|no pain, no gain|break a leg]"?
        [what is|what's|] [the meaning of life|love|happiness|a verb|a noun|an atom]?
        give me [three|five] [tips|ideas] for [a party|a job interview|my garden|better sleep].
        what is the difference between [a cat and a dog|tea and coffee|a novel and a poem]?
        I feel [sad|great|tired|sick] today.
        where [is Berlin|is Mount Everest|do kangaroos live]?
        when [did the second world war end|was the moon landing|is Christmas]?
        summarise [Romeo and Juliet|the French revolution|Hamlet] [in two sentences|].
        """,
    ),
    "val": (
        {
            "country": "Spain|Norway|Mexico|Turkey|Portugal|Vietnam",
            "topic": "winter|a journey|the moon|a garden",
            "word": "see you tomorrow|apple|excuse me|sunshine",
            "person": "Darwin|Cleopatra|Beethoven|Galileo",
        },
        """
        which city is <country>'s capital?
        if I have [14|23|9] [apples|coins] and get [6|11] more, how many is that?
        compose a few lines of verse on <topic>.
        greetings[!|]
        nice to meet you[!|]
        what's your name?
        make me laugh.
        I want to say "<word>" in [Dutch|Polish|Portuguese].
        in which century did <person> live?
        explain [recursion|a for loop|what an API is] [briefly|].
        do you speak [Chinese|French]?
        what should I cook [tonight|for dinner]?
        which [planet|ocean|animal] is the largest?
        can you recommend a [book|film|song]?
        are you a human [being|]?
        do [snails|snakes|millipedes|lobsters] have legs, and how many?
        which colo[u|]rs are in [a rainbow|the German flag|the Italian flag]?
        out of what do people make [glass|cheese|concrete|beer]?
        what would [a house in London|a horse|a loaf of bread] cost [me|] [nowadays|]?
        would you call [a tomato a fruit|Pluto a planet|chess a sport]?
        does it [ever snow in Rome|get dark early in winter]?
        please correct: "[he go to school|she have two cat|I has a dream]".
        what happened in [1789|1914|1969|1492]?
        I can't [sleep|concentrate|find my keys], what should I do?
        [pros|advantages] of [cycling|working at home|learning Latin], please.
        define "[irony|entropy|democracy|nostalgia]".
        how far is it from [Madrid to Lisbon|the Earth to the sun|Oslo to Bergen]?
        what do [bees|pandas|owls|frogs] eat?
        name a [country|city|river|fruit] that begins with [A|B|C|M].
        how do I [get rid of ants|learn to whistle|iron a shirt|change a tyre]?
        """,
    ),
    "test": (
        {
            "country": "Austria|Argentina|Hungary|Thailand|Morocco|Finland",
            "topic": "the desert|growing old|a train ride|snow",
            "word": "good luck|bridge|welcome|mountain",
            "person": "Gandhi|Newton|Picasso|Plato",
        },
        """
        where does the government of <country> sit?
        add up [19 and 24|31, 7 and 2|250 and 125].
        let's have a haiku on <topic>.
        [good afternoon|howdy][!|]
        anybody [there|home]?
        introduce yourself.
        I'm bored, entertain me.
        the [Swedish|Japanese|Turkish] word for "<word>", please.
        what is <person> famous for?
        fix this code: for i in range(3) print(i)
        how long does it take to [learn to swim|boil an egg|fly to the moon]?
        list [three|five] [rivers in Europe|prime numbers|kinds of cheese].
        finish the sentence: once upon a time
        what do you think about [politics|football|modern art]?
        remind me how to tie a tie.
        on how many legs does [a beetle|a lobster|a centipede] walk?
        [roses are red|the sky is falling], what comes next?
        from what is [whisky|porcelain|steel|chocolate] produced?
        how expensive is [a night in a hotel in Rome|gold these days|a haircut]?
        true or false: [the earth is flat|a shark is a fish|sugar is a salt].
        can it be that [dogs dream|plants talk|time stops]?
        rewrite politely: "[give me the money|shut the door|leave me alone]".
        tell me what took place in [1066|1989|1815|2001].
        cheer me up, I [failed an exam|lost my job|missed my bus].
        compare [Mars and Venus|cats and tigers|jazz and blues] for me.
        what's another word for [fast|beautiful|angry|small]?
        distance between [Tokyo and Osaka|the Earth and the moon]?
        recommend something to [read|watch|drink] [on a rainy day|].
        who wrote [Faust|War and Peace|the Odyssey|Don Quixote]?
        what time is it in [Tokyo|New York|Sydney]?
        """,
    ),
}
_CHINESE: dict[str, tuple[Mapping[str, str], str]] = {
    "train": (
        {
            "country": "法国|意大利|日本|巴西|加拿大|埃及|波兰|瑞典|印度",
            "sum": "12加30|7乘以8|100减45|15加27|48除以4",
            "topic": "春天|大海|我的猫|秋天|雨天|友谊|咖啡|夜空",
            "word": "早上好|谢谢|水|朋友|面包",
            "fact": "天空为什么是蓝色的|海水为什么是咸的|冰为什么滑",
            "person": "爱因斯坦|莎士比亚|拿破仑|李白|孔子",
        },
        """
        <country>的首都是哪里？
        <sum>等于多少？
        写一首[关于<topic>的|]诗。
        [你好|您好|嗨|早上好|晚上好][！|]
        你是谁？
        你能做什么？
        讲个笑话。
        “<word>”用[英语|法语|德语]怎么说？
        <fact>？
        <person>是谁？
        [谢谢|多谢|谢谢你][！|]
        今天星期几？
        今天天气怎么样？
        讲一个关于<topic>的故事。
        [西红柿炒鸡蛋|红烧肉|饺子]怎么做？
        再见[！|]
        [好的|好|太棒了][！|]
        帮我给[老板|老师|房东]写一封邮件。
        一年有多少天？
        [蜘蛛|章鱼|螃蟹|蚂蚁]有几条腿？
        [天空|香蕉|雪|瑞典国旗]是什么颜色的？
        [面包|纸|蜂蜜|巧克力]是用什么做的？
        [去巴黎的机票|一辆新车|一头大象]要多少钱？
        谁[发明了电话|建造了金字塔|写了红楼梦]？
        [鲸鱼|蝙蝠|企鹅]是[哺乳动物|鸟]吗？
        [今天下雨了|现在很晚了|今天是星期一]吗？
        “[画蛇添足|守株待兔|一石二鸟]”是什么意思？
        给我[三|五]个[聚会|面试|睡得更好]的建议。
        [猫和狗|茶和咖啡|小说和诗]有什么区别？
        我今天很[难过|开心|累]。
        [柏林|珠穆朗玛峰|故宫]在哪里？
        [二战|工业革命|唐朝]是什么时候结束的？
        用两句话概括[西游记|哈姆雷特|三国演义]。
        解释一下[重力|光合作用|通货膨胀|民主]。
        """,
    ),
    "val": (
        {
            "country": "西班牙|挪威|墨西哥|土耳其|葡萄牙",
            "topic": "冬天|旅行|月亮|花园",
            "person": "达尔文|贝多芬|杜甫",
        },
        """
        哪个城市是<country>的首都？
        我有[14|23|9]个苹果，又得到[6|11]个，一共几个？
        以<topic>为题作几句诗。
        很高兴认识你[！|]
        你叫什么名字？
        逗我笑一下。
        <person>生活在哪个世纪？
        你会说[英语|法语]吗？
        今晚吃什么好？
        推荐一[本书|部电影|首歌]。
        最大的[行星|海洋|动物]是哪个？
        [蜗牛|蛇|蜈蚣|龙虾]长腿吗，有多少条？
        [彩虹|德国国旗]有哪些颜色？
        人们用什么来做[玻璃|奶酪|啤酒]？
        现在买[一匹马|一套房子|一条面包]要花多少？
        [番茄|蘑菇]算水果吗？
        罗马会下雪吗？
        改正这句话：“[他昨天去学校明天|我有两个猫]”。
        [1789|1914|1969]年发生了什么？
        我[睡不着|找不到钥匙|没法集中注意力]，怎么办？
        给“[讽刺|熵|怀旧]”下个定义。
        从[马德里到里斯本|地球到太阳]有多远？
        [蜜蜂|熊猫|猫头鹰]吃什么？
        怎样[学吹口哨|熨衬衫|换轮胎]？
        """,
    ),
    "test": (
        {
            "country": "奥地利|阿根廷|匈牙利|泰国|芬兰",
            "topic": "沙漠|变老|坐火车|雪",
            "person": "甘地|牛顿|毕加索|屈原",
        },
        """
        <country>的政府设在哪座城市？
        把[19和24|31、7和2|250和125]加起来。
        来一首写<topic>的俳句。
        [下午好|在吗][！|]
        请自我介绍一下。
        我好无聊，陪我聊聊。
        <person>因为什么出名？
        列出[三|五]个[质数|欧洲的河流]。
        把这句话写完：从前有一天
        煮鸡蛋要几分钟？
        [甲虫|龙虾]靠几条腿走路？
        [威士忌|瓷器|钢]是从什么原料来的？
        在[罗马|纽约]住一晚酒店贵不贵？
        判断对错：[地球是平的|鲨鱼是鱼|糖是盐]。
        [狗会做梦|植物会说话]吗？
        把这句话说得礼貌些：“[把钱给我|把门关上]”。
        请说说[1066|1989|1815]年的大事。
        我[考试没过|没赶上公交车]，安慰我一下。
        帮我比较[火星和金星|爵士和蓝调]。
        “[快|漂亮|生气]”的同义词有哪些？
        下雨天适合[看|读|喝]点什么？
        [浮士德|战争与和平|堂吉诃德]的作者是谁？
        [东京|悉尼]现在几点？
        """,
    ),
}
_TABLES = {"en": _ENGLISH, "zh": _CHINESE}


@lru_cache(maxsize=8)
def unrelated_prompts(wordings: str, language: str) -> tuple[str, ...]:
    """Return the prompts of a set and language, each once, in a fixed order, without capitals at their beginnings.

    Raises:
        ValueError: there is no such set or language.
    """
    if wordings not in WORDING_SETS or language not in LANGUAGES:
        raise ValueError(
            f"wordings must be one of {', '.join(WORDING_SETS)} and language one of {', '.join(LANGUAGES)}, not "
            f"{wordings!r} and {language!r}"
        )
    words, block = _TABLES[language][wordings]
    prompts = [text for line in block.splitlines() if line.strip() for text in expand(line.strip(), words)]
    if language == "en" and wordings == "train":
        prompts += [text[:1].lower() + text[1:] for text in plain_prompts("train")]
    return tuple(dict.fromkeys(prompts))
