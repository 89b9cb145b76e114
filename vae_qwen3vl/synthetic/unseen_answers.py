"""What is answered where a shape can't hold the answer: that it doesn't show it, and sometimes what it does show.

Sentences by grammar, in both languages; an object's name stands in them only where the tables have it.
"""

from __future__ import annotations

from vae_qwen3vl.synthetic.grammar import expand
from vae_qwen3vl.synthetic.known_object import KnownObject, shape_of, thing_of
from vae_qwen3vl.synthetic.words import SHAPES, THINGS, with_article

_NAMES = {
    "en": {
        "colour": "colour",
        "material": "material",
        "price": "price",
        "brand": "brand",
        "weight": "weight",
        "age": "age",
        "maker": "maker",
        "shop": "shop",
        "owner": "owner",
        "temperature": "temperature",
        "smell": "smell",
    },
    "zh": {
        "colour": "颜色",
        "material": "材料",
        "price": "价格",
        "brand": "品牌",
        "weight": "重量",
        "age": "年代",
        "maker": "制造者",
        "shop": "购买地点",
        "owner": "主人",
        "temperature": "温度",
        "smell": "气味",
    },
}
_DECLINING = {
    "en": """
        [I can't see|I cannot see|I can't tell] its {}: [all I have is|I only see|I was given only] the shape.
        [The|Its] {} can't be [seen|known|told] from [a|the] shape.
        A shape [alone|] doesn't [tell|show] the {}.
        I don't know the {}; [only the form is known to me|I see nothing but the form].
        There is no way to tell the {} from the shape [alone|].
        The shape says nothing about the {}.
        I'm afraid the {} is not visible in a shape.
        """,
    "zh": """
        [只看形状|仅凭形状|从形状上]看不出{}。
        形状里没有{}的信息。
        我不知道{}，我只看得到形状。
        [无法|没办法]从形状判断{}。
        形状本身说明不了{}。
        """,
}
_SEEN = {
    "en": ("By its form, it [looks like|could be] {}.", "Its form is [rather|] {}."),
    "zh": ("从外形看，它像{}。", "它的外形{}。"),
}
"""What the shape does show: a thing, proportions."""
_MISTAKEN = ("bamboo", "cardboard box", "hot dog", "plastic cup", "traffic light")
"""Things whose names would be taken for what they are made of, or for how they feel."""


def unseen_answer(known: KnownObject, asked: str, language: str, choice: int) -> str:
    """Return that a property can't be seen; half of the time with what can, where the tables have words for it.

    Args:
        known: the object.
        asked: the property, of `wordings.PROPERTIES`.
        language: of `wordings.LANGUAGES`.
        choice: decides among sentences, of `pick`.
    """
    sentences = [
        text for line in _DECLINING[language].split("\n") if line.strip() for text in expand(line.strip(), {})
    ]
    choice, place = divmod(choice, len(sentences))
    answer = sentences[place].format(_NAMES[language][asked])
    choice, wanted = divmod(choice, 2)
    seen = _seen(known, language, choice) if wanted else None
    return answer if seen is None else answer + (" " if language == "en" else "") + seen


def _seen(known: KnownObject, language: str, choice: int) -> str | None:
    english = language == "en"
    thing, proportions = thing_of(known), shape_of(known.facts)
    if thing and thing not in _MISTAKEN:
        template, words = _SEEN[language][0], with_article(thing) if english else THINGS[thing][1]
    elif proportions:
        template, words = _SEEN[language][1], proportions if english else SHAPES[proportions]
    else:
        return None
    texts = expand(template, {})
    return texts[choice % len(texts)].format(words)
