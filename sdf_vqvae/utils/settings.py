"""Settings as data classes, and from their fields all else: checks, flags, `--help`, and keys of files.

A settings class is a frozen data class. What a value may be stands beside its field, in the annotation: the type
(`int`, `float`, `bool`, `str`, `Path`, `Literal[...]` for a choice, a `tuple` of one of them, `| None`) and, with
`Annotated`, `Bounds` and `Option`; what it means is the docstring under it. `check` holds values against that,
`add_options` makes flags of it and `given` reads them; a flag that is left out changes nothing. Fields of other types
are the class's own business.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast

_LATER = "is of later versions of the original system, which this one does not follow: {}"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Between what a number lies."""

    least: float = -math.inf
    above: float | None = None
    """In place of `least`: more than this."""
    most: float = math.inf

    def hold(self, number: float) -> bool:
        """Return whether a number is finite and lies between them; without any, every number does."""
        if self == Bounds():
            return True
        low = number >= self.least if self.above is None else number > self.above
        return math.isfinite(number) and low and number <= self.most

    def in_words(self, kind: type) -> str:
        """Return what is expected, as `a number from 0 to 1`."""
        number = "an integer" if kind is int else "a number"
        if self.above is not None:
            return f"{number} above {self.above:g}"
        if kind is float and math.isfinite(self.least) and math.isfinite(self.most):
            return f"{number} from {self.least:g} to {self.most:g}"
        low = f" of at least {self.least:g}" if math.isfinite(self.least) else ""
        high = f" and at most {self.most:,}" if math.isfinite(self.most) else ""
        return number + low + high


Positive = Annotated[int, Bounds(least=1)]
Count = Annotated[int, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
Rate = Annotated[float, Bounds(above=0)]
Amount = Annotated[float, Bounds(least=0)]


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field stands on a command line and in messages, where its name and type don't say it."""

    flag: str | None = None
    """Its flag, with dashes; by default `--` and its name."""
    short: str | None = None
    """A second one, as `-o`."""
    positional: bool = False
    """It has no flag."""
    metavar: str | None = None
    default: str | None = None
    """What `--help` says of the default, where it is not the value: empty for nothing."""
    read: Callable[[str], Any] | None = None
    """Reads the text of the command line (argparse's `type`)."""
    later: tuple[str, ...] = ()
    """Values of later versions of the original system, which are refused as such."""
    empty: bool = False
    """An empty text is allowed, and None where the field may be."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of a settings class."""

    name: str
    kind: type | None
    """int, float, bool, str, Path or tuple; None for others, which have no flags and aren't checked."""
    optional: bool
    choices: tuple[Any, ...]
    bounds: Bounds
    option: Option
    default: Any
    """`dataclasses.MISSING` where there is none."""
    item: Setting | None
    """What a tuple holds."""

    @property
    def flag(self) -> str:
        """The flag that gives it."""
        return self.option.flag or f"--{self.name}"

    def check(self, value: Any, named: str, original: Any = None) -> None:
        """Raise a ValueError that says what is expected unless a value fits.

        Args:
            value: the value.
            named: what the message begins with: the key with its section, or the flag.
            original: what stood there, where the value was made of it.
        """
        if value is None and self.optional:
            return
        if self.kind is tuple and isinstance(value, tuple) and self.item is not None:
            for part in value:
                self.item.check(part, named)
            return
        if self.kind is None or self._fits(value):
            return
        shown = value if original is None else original
        later = " (of later versions of the original system)" if shown in self.option.later else ""
        raise ValueError(f"{named} must be {self._expected(value, '.' in named)}, got {shown!r}{later}")

    def _fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices and type(value) is type(self.choices[0])
        if self.kind in (int, float):
            numbers: Any = int if self.kind is int else (int, float)
            return isinstance(value, numbers) and not isinstance(value, bool) and self.bounds.hold(value)
        if self.kind is str:
            return isinstance(value, str) and (bool(value.strip()) or self.option.empty)
        return isinstance(value, self.kind or object)

    def _expected(self, value: Any, in_section: bool) -> str:
        if self.choices:
            *others, last = map(str, self.choices)
            return "one of " * in_section + " or ".join(filter(None, (", ".join(others), last)))
        if self.kind in (int, float):
            return self.bounds.in_words(self.kind)
        if self.kind is str:
            return "a string that is not empty" if isinstance(value, str) else "a string (in quotes)"
        return "true or false" if self.kind is bool else "a list" if self.kind is tuple else "a path"

    def from_text(self, text: str) -> Any:
        """Return what the text of a flag stands for; the text itself where it is of no such kind."""
        if self.optional and self.option.empty and not text:
            return None
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if self.kind is Path:
            return Path(text)
        if self.kind in (int, float):
            try:
                return self.kind(text)
            except (ValueError, OverflowError):
                return text
        return text


def settings_of(config: type) -> dict[str, Setting]:
    """Return the fields of a settings class by name."""
    return _settings_of(cast(Any, config))


@cache
def _settings_of(config: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(config, include_extras=True)
    return {
        field.name: _setting(field.name, hints[field.name], field.default) for field in dataclasses.fields(config)
    }


def _setting(name: str, hint: Any, default: Any = dataclasses.MISSING) -> Setting:
    notes, optional = [], False
    while (origin := typing.get_origin(hint)) in (Annotated, Union, types.UnionType):
        if origin is Annotated:
            notes += hint.__metadata__
            hint = hint.__origin__
        else:
            members = [member for member in typing.get_args(hint) if member is not type(None)]
            optional = len(members) < len(typing.get_args(hint))
            hint = members[0] if len(members) == 1 else Any
    choices = typing.get_args(hint) if origin is Literal else ()
    kind = type(choices[0]) if choices else tuple if origin is tuple else hint
    return Setting(
        name=name,
        kind=kind if kind in (int, float, bool, str, Path, tuple) else None,
        optional=optional,
        choices=choices,
        bounds=next((note for note in notes if isinstance(note, Bounds)), Bounds()),
        option=next((note for note in notes if isinstance(note, Option)), Option()),
        default=default,
        item=_setting(name, typing.get_args(hint)[0]) if origin is tuple else None,
    )


def check(config: Any, section: str = "", *, by_flag: bool = False) -> None:
    """Check the values of a settings object (for its `__post_init__`).

    Args:
        config: the object.
        section: of a file, to be named before the keys.
        by_flag: messages name the flags in place of the keys.

    Raises:
        ValueError: the message names key, value and what is expected.
    """
    for name, setting in settings_of(type(config)).items():
        key = f"{section}.{name}" if section else name
        setting.check(getattr(config, name), setting.flag if by_flag else key)


# -- files -------------------------------------------------------------------------------------------------------


def check_keys(
    section: str, values: Mapping[str, Any], names: Iterable[str], refused: Mapping[str, str] | None = None
) -> None:
    """Raise a ValueError for a key that is refused, with its reason, or unknown, with the nearest known one."""
    names = tuple(names)
    for key in values:
        if key in names:
            continue
        if refused and key in refused:
            raise ValueError(f"{section}: {key!r} {_LATER.format(refused[key])}")
        near = difflib.get_close_matches(key, names, n=1)
        raise ValueError(f"{section}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def named_section(section: str, values: Any, names: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return name and args of a `{"name": ..., "args": {...}}` section.

    Raises:
        ValueError: it is not such a mapping, or has another name.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{section} must be a mapping with name and args, got {values!r}")
    check_keys(section, values, ("name", "args"))
    name, args = values.get("name"), values.get("args", {})
    if name not in tuple(names) or not isinstance(args, dict):
        raise ValueError(f"{section}.name must be one of {', '.join(names)} and args a mapping, got {values!r}")
    return name, args


# -- command lines -----------------------------------------------------------------------------------------------


def add_options(
    parser: argparse._ActionsContainer,
    config: type,
    names: Collection[str] | None = None,
    *,
    leave_out: Collection[str] = (),
    by_hand: Collection[str] = (),
    overrides: bool = False,
) -> None:
    """Add the flags of a settings class's fields; `given` reads them.

    Args:
        parser: a parser or a group of one; several calls may add parts of the fields.
        config: the settings class.
        names: of the fields, by default all that can have flags.
        leave_out: fields without flags.
        by_hand: fields whose options somebody else adds, under the names of the fields.
        overrides: the flags win over a file, so that what is on has to be turned off as well: `--use_lora false` and
            `--no-use_lora`, beside `--use_lora` and `--use_lora true`.
    """
    meanings = meanings_of(config)
    known = settings_of(config)
    chosen = [known[name] for name in known if name in (names or known) and name not in (*leave_out, *by_hand)]
    with_flags = [setting.name for setting in chosen if setting.kind is not None or setting.option.read is not None]
    for name in with_flags:
        _add_option(parser, known[name], meanings.get(name, ""), overrides)
    earlier = parser.get_default(_key(config)) or ()
    parser.set_defaults(**{_key(config): (*earlier, *with_flags, *by_hand)})


def given(options: argparse.Namespace, config: type, section: str = "") -> dict[str, Any]:
    """Return the values of a settings class that a command line gives itself.

    Raises:
        ValueError: a value does not fit; the message names the flag, or the key of the section.
    """
    values = {}
    for name in getattr(options, _key(config), ()):
        value, setting = getattr(options, name), settings_of(config)[name]
        if value is None:
            continue
        values[name] = setting.from_text(value) if isinstance(value, str) else value
        if isinstance(value, list):
            values[name] = tuple(value)
        setting.check(values[name], f"{section}.{name}" if section else setting.flag)
    return values


def flag_of(key: str, value: Any) -> str:
    """Return the flag that gives a setting a value, as a person types it: `--merge 2`, `--no-use_3d_pos`."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no-{key}"
    return f"--{key} {value}"


def meanings_of(config: type) -> dict[str, str]:
    """Return the docstring under each field, as one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        line.target.id: " ".join(below.value.value.split())
        for line, below in itertools.pairwise(tree.body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def _key(config: type) -> str:
    """Return where a namespace keeps the names of the fields that have flags."""
    return f"options of {config.__name__}"


def _add_option(parser: argparse._ActionsContainer, setting: Setting, meaning: str, overrides: bool) -> None:
    flag: dict[str, Any]
    how: dict[str, Any]
    option, required = setting.option, setting.default is dataclasses.MISSING
    first, *_ = meaning.split(" ", 1)
    if first.istitle() and first.isalpha():  # no name such as SDF3DCaptionDataset
        meaning = meaning[0].lower() + meaning[1:]
    about = f"{meaning.removesuffix('.')}{_default_in_words(setting)}".replace("%", "%%")
    if setting.kind is bool:
        flag = {"dest": setting.name, "default": None}
        if not overrides:
            parser.add_argument(setting.flag, action="store_const", const=not setting.default, help=about, **flag)
            return
        about += f" (--no-{setting.name} turns it off)"
        how = {"nargs": "?", "const": True, "metavar": "true|false", "type": setting.from_text}
        parser.add_argument(setting.flag, **how, help=about, **flag)
        parser.add_argument(f"--no-{setting.name}", action="store_false", help=argparse.SUPPRESS, **flag)
        return
    how = {"help": about, "metavar": option.metavar or _metavar(setting)}
    how["type"] = option.read or (setting.item or setting).from_text
    if setting.kind is tuple and option.read is None:
        how["nargs"] = "+"
    if option.positional:
        parser.add_argument(setting.name, **how)
        return
    names = (option.short, setting.flag) if option.short else (setting.flag,)
    parser.add_argument(*names, dest=setting.name, required=required, **how)


def _default_in_words(setting: Setting) -> str:
    words = setting.option.default
    if words is None:
        value = setting.default
        if setting.kind is bool or value is None or value == () or value is dataclasses.MISSING:
            return ""
        words = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" (default: {words})" if words else ""


def _metavar(setting: Setting) -> str:
    choices = setting.choices or (setting.item.choices if setting.item is not None else ())
    if choices:
        return "|".join(map(str, choices))
    kind = setting.item.kind if setting.item is not None else setting.kind
    short: dict[Any, str] = {int: "N", float: "X", Path: "FILE"}
    return "DIR" if setting.name.endswith("_dir") else short.get(kind, "TEXT")
