"""A settings class says all of its options once: types, bounds, flags and help follow from its fields."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import DatasetConfig, TrainerConfig
from sdf_vqvae.evaluation.settings import EvaluationSettings
from sdf_vqvae.preprocessing.ct.settings import ScanSettings
from sdf_vqvae.preprocessing.voxelize.settings import VoxelizeSettings
from sdf_vqvae.utils.settings import (
    Amount,
    Bounds,
    Count,
    Option,
    Positive,
    Rate,
    Share,
    add_options,
    check,
    check_keys,
    given,
    meanings_of,
    settings_of,
)
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.evaluation.settings import EvalSettings
from vae_qwen3vl.synthetic.settings import QuestionSettings

CLASSES = (
    *(AlignmentConfig, DatasetConfig, EncodeSettings, EvaluationSettings, QuestionSettings, ScanSettings),
    *(EvalSettings, TrainerConfig, VAEConfig, VoxelizeSettings),
)


def upper(text: str) -> str:
    if text == "no":
        raise argparse.ArgumentTypeError("it is no")
    return text.upper()


@dataclass(frozen=True, kw_only=True)
class Baking:
    """How a cake is baked."""

    source: Annotated[Path, Option(positional=True, metavar="RECIPE")]
    """The recipe, 100 % of it."""
    target: Annotated[Path, Option(short="-t")]
    """Where it goes."""
    minutes: Positive = 40
    """In the oven."""
    degrees: Rate = 180.0
    """Of the oven, in
    Celsius."""
    sugar: Share | None = None
    """Of the dough."""
    salt: Amount = 0.5
    """Grams."""
    eggs: Count = 2
    """Eggs."""
    shelf: Annotated[int, Bounds(least=1, most=1000)] = 2
    """From below."""
    fan: bool = False
    """With the fan on."""
    hot: Annotated[bool, Option(flag="--cold")] = True
    """Served hot; --cold serves it cold."""
    form: Literal["round", "square", "loaf"] = "round"
    """Its shape."""
    layers: Literal[1, 2] = 1
    """Of the cake."""
    name: Annotated[str, Option(read=upper)] = "CAKE"
    """On the icing."""
    helpers: tuple[Literal["ann", "bob"], ...] = ()
    """Who helps."""
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


def parse(*words: str, overrides: bool = False, section: str = "") -> dict:
    parser = argparse.ArgumentParser()
    add_options(parser, Baking, overrides=overrides)
    return given(parser.parse_args(["recipe.txt", "-t", "cake", *words]), Baking, section)


FILES = {"source": Path("recipe.txt"), "target": Path("cake")}


def test_a_flag_that_is_left_out_changes_nothing():
    assert parse() == FILES
    assert Baking(**parse()) == Baking(source=Path("recipe.txt"), target=Path("cake"))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--minutes", "5"], "minutes", 5),
        (["--degrees", "2e2"], "degrees", 200.0),
        (["--sugar", "0"], "sugar", 0.0),
        (["--fan"], "fan", True),
        (["--cold"], "hot", False),
        (["--form", "loaf"], "form", "loaf"),
        (["--layers", "2"], "layers", 2),
        (["--name", "mine"], "name", "MINE"),
        (["--helpers", "bob", "ann"], "helpers", ("bob", "ann")),
    ],
)
def test_flags_give_values_of_the_type_of_the_field(words, key, value):
    found = parse(*words)
    assert found == FILES | {key: value}
    assert type(found[key]) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "soon"], "--minutes must be an integer of at least 1, got 'soon'"),
        (["--minutes", "0"], "--minutes must be an integer of at least 1, got 0"),
        (["--minutes", "1.5"], "--minutes must be an integer of at least 1, got '1.5'"),
        (["--degrees", "0"], "--degrees must be a number above 0, got 0.0"),
        (["--degrees", "inf"], "--degrees must be a number above 0, got inf"),
        (["--sugar", "1.1"], "--sugar must be a number from 0 to 1, got 1.1"),
        (["--salt", "-1"], "--salt must be a number of at least 0, got -1.0"),
        (["--shelf", "2000"], "--shelf must be an integer of at least 1 and at most 1,000, got 2000"),
        (["--form", "heart"], "--form must be round, square or loaf, got 'heart'"),
        (["--layers", "3"], "--layers must be 1 or 2, got 3"),
        (["--helpers", "ann", "eve"], "--helpers must be ann or bob, got 'eve'"),
    ],
)
def test_a_wrong_flag_is_told_what_is_expected(words, message):
    with pytest.raises(ValueError) as caught:
        parse(*words)
    assert str(caught.value) == message


def test_a_reader_of_text_is_argparse_s_own(capsys):
    with pytest.raises(SystemExit):
        parse("--name", "no")
    assert "argument --name: it is no" in capsys.readouterr().err


def test_messages_name_the_key_of_a_section_where_flags_replace_one():
    with pytest.raises(ValueError, match=r"^cake.args.layers must be one of 1 or 2, got 3$"):
        parse("--layers", "3", section="cake.args")


@pytest.mark.parametrize("words", [["--fan"], ["--fan", "true"], ["--fan", "True"]])
def test_what_wins_over_a_file_is_turned_on_and_off(words):
    assert parse(*words, overrides=True)["fan"] is True
    assert parse("--no-fan", overrides=True)["fan"] is False
    assert parse("--fan", "FALSE", overrides=True)["fan"] is False
    with pytest.raises(ValueError, match="--fan must be true or false, got 'perhaps'"):
        parse("--fan", "perhaps", overrides=True)


@pytest.mark.parametrize(
    "values",
    [
        {"minutes": True},
        {"minutes": 1.0},
        {"degrees": "180"},
        {"degrees": float("nan")},
        {"fan": 1},
        {"layers": True},
        {"form": ["round"]},
        {"name": " "},
        {"name": 3},
        {"source": "recipe.txt"},
        {"helpers": ["ann"]},
        {"helpers": ("eve",)},
        {"eggs": None},
    ],
)
def test_values_are_checked_wherever_they_come_from(values):
    with pytest.raises(ValueError, match=f"^{next(iter(values))} must be "):
        Baking(**FILES | values)


@for_all(st.sampled_from(("minutes", "degrees", "sugar", "salt", "eggs")), st.floats() | st.integers())
def test_numbers_hold_their_bounds(key, number):
    bounds = {"minutes": lambda n: n >= 1, "eggs": lambda n: n >= 0, "degrees": lambda n: 0 < n < float("inf")}
    bounds |= {"sugar": lambda n: 0 <= n <= 1, "salt": lambda n: 0 <= n < float("inf")}
    fits = bounds[key](number) and (key not in ("minutes", "eggs") or isinstance(number, int))
    try:
        Baking(**FILES | {key: number})
    except ValueError:
        assert not fits
    else:
        assert fits


def test_help_says_meaning_choices_and_default():
    parser = argparse.ArgumentParser(prog="bake")
    add_options(parser, Baking)
    said = " ".join(parser.format_help().split())
    for line in (
        "RECIPE the recipe, 100 % of it",
        "-t FILE, --target FILE where it goes",
        "--minutes N in the oven (default: 40)",
        "--degrees X of the oven, in Celsius (default: 180.0)",
        "--sugar X of the dough --salt",
        "--fan with the fan on --cold",
        "--form round|square|loaf its shape (default: round)",
        "--helpers ann|bob [ann|bob ...] who helps",
    ):
        assert line in said
    assert "notes" not in said


def test_parts_of_a_class_stand_in_groups_and_beside_options_made_by_hand():
    parser = argparse.ArgumentParser()
    group = parser.add_argument_group("more")
    add_options(parser, Baking, ("minutes",), by_hand=("name",))
    add_options(group, Baking, ("eggs",))
    parser.add_argument("--name")
    parser.add_argument("--degrees", default="of its own")
    assert given(parser.parse_args(["--eggs", "3", "--name", "x"]), Baking) == {"eggs": 3, "name": "x"}


def test_an_unknown_key_is_told_the_nearest_and_a_refused_one_why():
    with pytest.raises(ValueError, match=r"^cake: unknown key 'minuts'; did you mean 'minutes'\?$"):
        check_keys("cake", {"minuts": 1}, settings_of(Baking))
    with pytest.raises(ValueError, match=r"'yeast' is of later versions .*: it rises by itself$"):
        check_keys("cake", {"yeast": 1}, settings_of(Baking), {"yeast": "it rises by itself"})


@pytest.mark.parametrize("config", CLASSES, ids=lambda config: config.__name__)
def test_every_class_says_what_its_fields_mean_and_holds_its_defaults(config):
    meanings, settings = meanings_of(config), settings_of(config)
    assert set(settings) == {f.name for f in fields(config)}
    parser = argparse.ArgumentParser()
    add_options(parser, config)
    for name in parser.get_default(f"options of {config.__name__}"):
        assert name in meanings or name in ("devices", "vae_config", "vae_ckpt"), name
    for name, setting in settings.items():
        if isinstance(setting.default, int | float | str | tuple):
            setting.check(setting.default, name)
