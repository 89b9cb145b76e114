"""What a free answer says: yes or no, or that the shape does not hold what was asked; in English and in Chinese.

By rule, and strict: an answer that says neither clearly is read as nothing, and one that declines and then asserts
all the same (`I can't see the colour, but it is red`) does not decline. Knows texts alone.
"""

from __future__ import annotations

import re
import unicodedata

# -- yes or no ---------------------------------------------------------------------------------------------------

_UNSURE = re.compile(
    r"(yes and no|yes or no|maybe|perhaps|possibly|unsure|unclear|hard to|it depends|not sure|i'?m not|i am not|"
    r"i don't know|i do not know|i can't|i cannot|no idea|no way|no one|no more|no matter)\b|不确定|不知道|看不|无法|"
    r"也许|可能|不清楚|难说|不好说|是不是|有没有|是否"
)
_YES = re.compile(
    r"(yes|yeah|yep|yup|yea|indeed|correct|certainly|definitely|absolutely|of course|true|sure)(?=$|[\s,.;:!—–-])"
)
_NO = re.compile(
    r"(nope|nah|not really|not at all|certainly not|definitely not|of course not|absolutely not|false|incorrect)"
    r"(?=$|[\s,.;:!—–-])|no(?=$|\s*[,.;:!—–]|\s+(it|this|that|they|there|the)\b)"
)
_SHORT_YES = re.compile(r"(it|this|that|they|there) (is|are|does|do|has|have|can|would)( indeed)?")
_SUBJECT = re.compile(r"(it|it's|its|this|that|they|there|there's|the|i|i'd|you)\b")
_NEGATED = re.compile(r"\b(not|no|never|cannot|without|neither|nor)\b|n't\b|\bisnt\b|\bdoesnt\b|\bhasnt\b")
_AFFIRMED = re.compile(r"(it|this|that|the (object|thing|shape|model)|there) ?('s|is|has|does|are|looks|goes)\b")
_ZH_YES = re.compile(r"(没错|是的|是|对的|对|有的|有|嗯|当然|可以|正确|能|会|算|像|属于)$")
_ZH_NO = re.compile(r"(不是的|不是|不对|不|没有|没|否|错|非)$")
_ZH_FIRST = re.compile(
    r"(?P<yes>没错|是的|对的|对，|当然|正确|嗯)|(?P<no>不是|不对|不，|没有|并不|并非|否|错误|不算|不像|不能|不会|不属于|它不|它没|它并)"
)
_STOPPED = (
    "a an the it this that is are does do has have in of than to as and or very quite rather indeed object thing "
    "shape model there i you say would overall"
)
_STOP_WORDS = frozenset(_STOPPED.split())


def yes_or_no(answer: str, question: str = "") -> bool | None:
    """Return whether an answer says yes; None where it says neither, or both.

    A sentence without the word counts where it repeats the question (`It is flat.`) or denies (`It isn't flat.`).

    Args:
        answer: free text.
        question: that was asked; without it, sentences that repeat it are not recognized.
    """
    text = _plain(answer)
    first = re.split(r"[.!?。！？\n]", text, maxsplit=1)[0].strip()
    if not first or _UNSURE.match(first) or declines(answer):
        return None
    if _is_chinese(first):
        return _chinese_yes_or_no(first, _plain(question))
    says_yes, says_no = _YES.match(first), _NO.match(first)
    if says_yes or says_no:
        rest = first[(says_yes or says_no).end() :].lstrip(" ,;:—–-")  # type: ignore[union-attr]
        denied = bool(_SUBJECT.match(rest) and _NEGATED.search(rest))
        agreed = bool(_AFFIRMED.match(rest) and not _NEGATED.search(rest))
        if (says_yes and denied) or (says_no and agreed and _repeats(rest, question)):
            return None
        return bool(says_yes)
    if not _SUBJECT.match(first) or _UNSURE.search(first):
        return None
    if _NEGATED.search(first):
        return False
    if _SHORT_YES.fullmatch(first) or (_AFFIRMED.match(first) and _repeats(first, question)):
        return True
    return None


def _repeats(sentence: str, question: str) -> bool:
    """Return whether all that a sentence says was asked."""
    said = set(re.findall(r"[a-z]+", sentence)) - _STOP_WORDS - {"s"}
    return bool(said) and said <= set(re.findall(r"[a-z]+", _plain(question)))


def _chinese_yes_or_no(first: str, question: str) -> bool | None:
    if _UNSURE.search(first):
        return None
    clause = re.split(r"[,，;；:：]", first, maxsplit=1)[0].strip().rstrip("的呢啊呀")
    if found := _ZH_FIRST.match(first):
        return found["yes"] is not None
    if _ZH_YES.fullmatch(clause):
        return True
    if _ZH_NO.fullmatch(clause):
        return False
    asked = set(re.findall(r"[\u4e00-\u9fff]", question))
    said = re.sub(r"^(这个|它|该|这)?(物体|模型|东西)?(看起来|看上去)?(很|比较)?", "", clause)
    repeated = said[:1] in "是有" or said in question
    return True if repeated and said and set(said) <= asked | set("是有的") and len(said) > 1 else None


# -- declining ---------------------------------------------------------------------------------------------------

_SHAPE = r"(shape|form|geometry|mesh|model|surface|outline|3d)"
_DECLINES = re.compile(
    r"\b(can't|cannot|can not|couldn't|could not|unable to|not able to|impossible to|no way to|not possible to|"
    r"there's no way of|hard to) (\w+ )?(be )?(see|seen|tell|say|telling|saying|know|knowing|known|told|determine|"
    r"determined|judge|judged|read|derive|derived|infer|inferred|recogni[sz]e|recogni[sz]ed|answer|answered|guess)\b|"
    r"(?<!\bhe )(?<!\bshe )(?<!\bthey )\b(don't|do not|doesn't|does not|didn't) (\w+ )?(know|see|show|tell|say|hold|"
    r"contain|reveal)\b(?! (more|much more|anything else|better|if you))|"
    r"\b(have|has) no (information|data|way)|\bnot have (\w+ )?(information|data|access)\b|"
    r"\b(isn't|is not|aren't|are not|not) (visible|known|shown|recorded|given|part of|stored|something|available|"
    r"contained|included|in the)\b|"
    r"\b(unknown|no information (about|on|is)|says nothing|tells nothing|shows nothing|holds no|"
    r"has no information|no idea|"
    r"no colou?r information|nothing about)\b"
)
_ZH_DECLINES = re.compile(
    r"看不出|看不到|看不见|无法(从|由|根据|知道|得知|判断|确定|看|辨|回答)|没办法|不知道|不清楚|判断不了|说明不了|无从|"
    r"没有.{0,10}(信息|数据)|不包含|不能(从|判断|确定|看出|知道)|得不到|并未(显示|记录)|不(显示|含)|未知"
)
_BUT = re.compile(r"[.!?;\n。！？；]|,? \b(?:but|however|though|although|yet)\b|，?(?:但是|但|不过|可是|然而)|: |：")
_HEDGES = re.compile(
    r"\b(probably|likely|perhaps|maybe|presumably|i(?:'d)? (?:guess|think|suppose|assume|would say)|i'd say|"
    r"typically|usually|generally|most often|must be|should be|seems? to be made)\b|大概|"
    r"可能|也许|应该是|估计|通常|一般|我猜"
)
_COLOURS = (
    "red orange yellow green blue purple violet pink brown black white grey gray silver gold golden beige turquoise "
    "crimson transparent translucent colourless colorless cyan magenta tan dark light bright pale"
)
_MATERIALS = (
    "wood wooden metal metallic plastic stone glass steel iron aluminium aluminum leather rubber fabric cotton "
    "ceramic clay bamboo concrete paper cardboard marble brass copper bronze oak porcelain foam wool"
)
_OTHERS = (
    "ikea lego sony toyota nike samsung bosch philips cheap expensive heavy lightweight old new antique modern "
    "vintage dollar dollars euro euros usd eur kilo kilos kg gram grams pound pounds ton tons century ebay "
    "amazon warm cold hot"
)
_ASSERTED = re.compile(
    r"\b(" + "|".join(f"{_COLOURS} {_MATERIALS} {_OTHERS}".split()) + r")\b|[$€£¥]|\d+ ?(years|cents|kg|g|lbs?)\b|"
    r"\b(made|built|produced|designed|created|sold|bought) (of|by|from|in|out of|at)\b|\bcosts?\b|\bweighs?\b|"
    r"\b(1[5-9]|20)\d\d\b"
)
_ZH_ASSERTED = re.compile(
    r"[红橙黄绿蓝紫粉棕黑白灰金银青]色|[红黄绿蓝黑白灰]的|透明|[木铁铜铝钢]制|木头|木材|木质|金属|塑料|石头|玻璃|皮革|橡胶|"
    r"布料|陶瓷|竹子|大理石|宜家|乐高|索尼|丰田|\d+ ?(元|块|公斤|克|斤|年)|便宜|昂贵|古董|世纪|由.{1,12}制(成|造)"
)


def declines(answer: str) -> bool:
    """Return whether an answer says that what was asked can't be known, and asserts nothing of the kind itself.

    One clause must decline. No clause that does not decline may name a colour, a material, a price, a weight, a year,
    a brand or the like, or guess (`probably`, `usually`), whether or not that was asked for.
    """
    text = _plain(answer)
    clauses = [clause.strip() for clause in _BUT.split(text) if clause and clause.strip()]
    chinese = _is_chinese(text)
    pattern, asserted = (_ZH_DECLINES, _ZH_ASSERTED) if chinese else (_DECLINES, _ASSERTED)
    declining = [bool(pattern.search(clause)) for clause in clauses]
    if not any(declining):
        return False
    for clause, declined in zip(clauses, declining, strict=True):
        if _HEDGES.search(clause):
            return False
        said = clause
        if declined:  # only what comes before it: "it is red, I can't say more"
            said = clause[: pattern.search(clause).start()]  # type: ignore[union-attr]
            if any(asserted.fullmatch(part.strip()) for part in re.split("[,，]", clause)):
                return False
        if asserted.search(said):
            return False
    return True


def _plain(text: str) -> str:
    """Return text in small letters, with plain apostrophes and spaces, without quotes around it."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("`", "'")
    return " ".join(plain.strip().strip('"“”').split())


def _is_chinese(text: str) -> bool:
    return bool(re.search(r"[\u4e00-\u9fff]", text))
