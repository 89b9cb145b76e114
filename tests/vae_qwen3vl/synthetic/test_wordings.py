"""Wordings by grammar: well formed for whatever a question claims, and in three sets that share no way of asking."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic import wordings_chinese, wordings_english
from vae_qwen3vl.synthetic.asks import ABOUT_SHAPE, CANNOT_BE_SEEN, SUBJECTS, UNRELATED, claims_of, make_asks
from vae_qwen3vl.synthetic.grammar import expand
from vae_qwen3vl.synthetic.questions import KINDS
from vae_qwen3vl.synthetic.unrelated_prompts import unrelated_prompts
from vae_qwen3vl.synthetic.wordings import (
    LANGUAGES,
    PROPERTIES,
    UNSEEN,
    WORDING_SETS,
    all_typed,
    templates,
    texts_of,
    worded,
)

TABLES = {"en": wordings_english, "zh": wordings_chinese}
ASKED = [
    (language, kind, unseen)
    for language in LANGUAGES
    for kind, unseen in [
        *((kind, "") for kind in TABLES[language].WORDINGS),
        *((UNSEEN, name) for name in PROPERTIES),
    ]
]
NOUNS = re.compile(
    r"\b(this 3d object|this 3d shape|(this|the) (object|thing|model|shape|item)|it|this|its|the)\b|"
    r"这个三维物体|三维|这个物体|这东西|这个模型|该物体|它|这个|这是|[物体东西模型形状]{2}"
)


def normal(text: str) -> str:
    """A text without capitals and marks."""
    return " ".join(re.sub(r"[^\w{}]+", " ", text.lower()).split())


def skeleton(text: str) -> str:
    """A text without what names the object: what is left is the way of asking."""
    return " ".join(NOUNS.sub(" ", normal(text)).split())


# -- the grammar -------------------------------------------------------------------------------------------------


def test_choices_are_written_out_in_order():
    assert expand("[is|was] <it> [really|] flat?", {"it": "this|it"}) == (
        *("is this really flat?", "is this flat?", "is it really flat?", "is it flat?"),
        *("was this really flat?", "was this flat?", "was it really flat?", "was it flat?"),
    )
    assert expand("a[b[c|d]|]", {}) == ("abc", "abd", "a")
    assert expand("is {} [here|]?", {}) == ("is {} here?", "is {}?")
    assert expand("<a>", {"a": "<b> x", "b": "y|z"}) == ("y x", "z x")


@pytest.mark.parametrize(("template", "message"), [("a [b", "does not close"), ("a ] b", "closes"), ("<x>", "'x'")])
def test_a_broken_template_is_an_error(template, message):
    with pytest.raises(ValueError, match=message):
        expand(template, {"it": "it"})


# -- three sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_sets_share_no_template_no_text_and_no_way_of_asking(language):
    for form in (str, normal, skeleton):
        sets: dict[str, set[str]] = defaultdict(set)
        for of_language, kind, unseen in ASKED:
            if of_language == language:
                for name in WORDING_SETS:
                    for texts in texts_of(kind, language, name, unseen=unseen):
                        sets[name] |= {form(text) for text in texts}
        for name in WORDING_SETS:
            sets[name] |= {form(text) for text in unrelated_prompts(name, language)}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert sets[one] and not sets[one] & sets[other] - {""}, (form.__name__, one, other)


def test_every_kind_has_many_wordings_in_every_set():
    for language, kind, unseen in ASKED:
        counts = [len(templates(kind, language, name, unseen=unseen)) for name in WORDING_SETS]
        if unseen in ("owner", "temperature", "smell"):
            assert counts[0] == 0 < counts[2], "held-out properties"
            continue
        least = (
            3 if kind in ("part_of", "anatomy", "is_shape", "ratio", "collection", "system", "pieces", "side") else 4
        )
        assert counts[0] >= min(least, 3) - (kind == "part_of") and min(counts[1:]) >= 1, (language, kind, counts)
        texts = [sum(len(own) for own in texts_of(kind, language, name, unseen=unseen)) for name in WORDING_SETS]
        assert texts[0] >= 2, (language, kind, texts)
    assert {kind for _, kind, _ in ASKED} == set(KINDS)


# -- well formed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_is_well_formed_for_everything_that_is_claimed(language):
    bad = re.compile(
        r"[\[\]|<>{}]|  |^\s|\s$|\?\?|\.\.|？？|。。|\b(a a|an a|the the|is is|the a|the an)\b| [?.,!]|[a-z][?.][a-z]"
    )
    for of_language, kind, unseen in ASKED:
        if of_language != language:
            continue
        for name in WORDING_SETS:
            claims = claims_of(kind, language)
            forms = list(all_typed(kind, language, name, "CLAIM", unseen=unseen))
            assert all(("claim" in text.lower()) == (claims != ("",)) for text in forms), (kind, name)
            for number, text in enumerate(forms):
                claim = claims[number % len(claims)]
                said = text.replace("CLAIM", claim).replace("Claim", claim).replace("claim", claim.lower())
                assert not bad.search(said), said
                assert len(said) > 1 and bool(re.search(r"[\u4e00-\u9fff]", said)) == (language == "zh"), said
            if forms:
                for claim in claims:
                    text = worded(kind, language, name, pick(kind, claim), claim, unseen=unseen)
                    assert not bad.search(text) and claim.lower() in text.lower(), text


def test_english_articles_fit_what_is_claimed():
    assert {"an axe", "a chair", "grass", "a pair of scissors"} <= set(claims_of("is_name", "en"))
    assert not [claim for claim in claims_of("is_name", "en") if re.match(r"a [aeio]|an [^aeiou]", claim)]


def test_the_same_number_asks_in_the_same_words_and_all_are_asked():
    drawn = {worded("is_flat", "en", "train", pick(number)) for number in range(20000)}
    assert drawn == set(all_typed("is_flat", "en", "train"))
    assert worded("is_flat", "en", "train", 12345) == worded("is_flat", "en", "train", 12345)
    assert {"Is it flat?", "is this flat", "is it flat?"} <= drawn and any(text.startswith("Hi!") for text in drawn)


# -- what users type ---------------------------------------------------------------------------------------------


def test_asks_are_of_three_subjects_and_sets_apart():
    sets = {name: make_asks(name, 300) for name in WORDING_SETS}
    for name, asks in sets.items():
        assert {ask.subject for ask in asks} == set(SUBJECTS) and {ask.language for ask in asks} == set(LANGUAGES)
        texts = [ask.text for ask in asks]
        assert len(set(texts)) == len(texts) and {ask.wordings for ask in asks} == {name}
        # Nothing but what is asked tells the subjects apart: each is typed in all ways.
        for subject in SUBJECTS:
            own = [ask.text for ask in asks if ask.subject == subject and ask.language == "en"]
            assert (
                len(own) > 150 and any(text[0].islower() for text in own) and any(text[0].isupper() for text in own)
            )
    assert not {normal(a.text) for a in sets["train"]} & {normal(a.text) for a in sets["test"]}
    kinds = {subject: {a.kind for a in sets["test"] if a.subject == subject} for subject in SUBJECTS}
    assert "has_hole" in kinds[ABOUT_SHAPE] and {"colour", "smell"} <= kinds[CANNOT_BE_SEEN]
    assert kinds[UNRELATED] == {""}


def test_asks_are_the_same_for_the_same_seed():
    assert make_asks("val", 50, seed=1) == make_asks("val", 50, seed=1) != make_asks("val", 50, seed=2)
    assert {ask.language for ask in make_asks("val", 50, languages=["zh"])} == {"zh"}


@pytest.mark.parametrize(("name", "count", "languages"), [("dev", 5, ["en"]), ("val", 0, ["en"]), ("val", 5, ["fr"])])
def test_unknown_sets_and_languages_are_refused(name, count, languages):
    with pytest.raises(ValueError, match="give wordings of train, val, test"):
        make_asks(name, count, languages=languages)
    if name == "dev":
        with pytest.raises(ValueError, match="train, val, test"):
            unrelated_prompts("dev", "en")
