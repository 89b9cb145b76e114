"""How each kind of question is asked, in English and in Chinese.

Tables only; `{}` is what a yes/no question claims.
"""

from __future__ import annotations

from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[str, ...] = get_args(Language)
PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "describe": {
        "en": ("Describe this 3D object.", "What does this 3D shape show?", "Give a caption for this 3D object."),
        "zh": ("描述这个三维物体。", "这个三维形状展示了什么？", "请为这个三维物体写一句说明。"),
    },
    "name": {
        "en": ("What is this?", "What is this object called?", "Name this 3D object."),
        "zh": ("这是什么？", "这个物体叫什么？", "说出这个三维物体的名称。"),
    },
    "category": {
        "en": ("Which category does it belong to?", "What category is this object listed under?"),
        "zh": ("它属于哪个类别？", "这个物体归在什么类别下？"),
    },
    "collection": {
        "en": ("Which collection does it come from?", "Where does this model come from?"),
        "zh": ("它来自哪个模型库？", "这个模型的来源是什么？"),
    },
    "part_of": {
        "en": ("What is it part of?", "Which set or larger model does it belong to?"),
        "zh": ("它是什么的一部分？", "它属于哪一套或哪个更大的模型？"),
    },
    "organ": {
        "en": ("Which organ or structure is this?", "Name this anatomical structure."),
        "zh": ("这是什么器官或结构？", "说出这个解剖结构的名称。"),
    },
    "side": {
        "en": ("Is it on the left or on the right side?", "Left or right?"),
        "zh": ("它在左侧还是右侧？", "左还是右？"),
    },
    "system": {
        "en": ("Which organ system does it belong to?", "What organ system is this a part of?"),
        "zh": ("它属于哪个系统？", "这是哪个人体系统的一部分？"),
    },
    "anatomy": {"en": ("What is known about this structure?", "Tell me about this part of the body.")},
    "longest_side": {
        "en": (
            "Which is longest: its width, height or depth?",
            "Along which side is it longest: width, height, depth?",
        ),
        "zh": ("它的宽度、高度和深度中哪个最大？", "宽、高、深之中，哪一边最长？"),
    },
    "shape": {
        "en": ("Is it flat, rod-like or compact?", "What are its proportions: flat, rod-like or compact?"),
        "zh": ("它是扁平、细长还是紧凑？", "它的比例如何：扁平、细长还是紧凑？"),
    },
    "ratio": {
        "en": (
            "How many times its shortest side is its longest side?",
            "What is the ratio of longest to shortest side?",
        ),
        "zh": ("最长边是最短边的多少倍？", "它的长短边之比约为多少？"),
    },
    "size": {
        "en": ("How long is its longest side in reality?", "How large is it?"),
        "zh": ("它的最长边实际有多长？", "它有多大？"),
    },
    "pieces": {
        "en": ("How many separate pieces does its surface have?", "Of how many unconnected pieces is it made?"),
        "zh": ("它的表面由几个不相连的部分组成？", "它有几个互不相连的部分？"),
    },
    "is_name": {
        "en": ("Is this {}?", "Does this 3D shape show {}?"),
        "zh": ("这是{}吗？", "这个三维形状展示的是{}吗？"),
    },
    "is_category": {
        "en": ('Does it belong to the category "{}"?', 'Is it listed under "{}"?'),
        "zh": ("它属于“{}”类别吗？", "这个物体归在“{}”类别下吗？"),
    },
    "is_collection": {
        "en": ("Does it come from the {}?", "Is this model from the {}?"),
        "zh": ("它来自 {}吗？", "这个模型的来源是 {}吗？"),
    },
    "is_organ": {
        "en": ("Is this the {}?", "Does this surface show the {}?"),
        "zh": ("这是{}吗？", "这个表面展示的是{}吗？"),
    },
    "is_side": {
        "en": ("Is it on the {} side?", "Does it lie on the {} side?"),
        "zh": ("它在{}侧吗？", "它位于{}侧吗？"),
    },
    "is_system": {
        "en": ("Is it part of the {}?", "Does it belong to the {}?"),
        "zh": ("它属于{}吗？", "这是{}的一部分吗？"),
    },
    "is_shape": {
        "en": ("Is it {}?", "Are its proportions {}?"),
        "zh": ("它是{}的吗？", "它的形状{}吗？"),
    },
    "is_mirrored": {
        "en": (
            "Are its left and right halves mirror images of each other?",
            "Is it symmetric, its left half like its right half?",
        ),
        "zh": ("它的左右两半互为镜像吗？", "它左右对称吗？"),
    },
}
YES_NO_ANSWERS = {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}
