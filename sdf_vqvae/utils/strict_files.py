"""Text that says something of data, read strictly: JSON, manifests; settings as YAML (safe loader) or JSON; NAME=N.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sdf_vqvae.utils.files import regular_file

Read = TypeVar("Read")


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parse JSON. Raises a ValueError for anything else, such as text that is nested thousands deep.

    Args:
        text: the JSON.
        unique_keys: also refuse an object that has a key twice, of which the last would count.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats if unique_keys else None)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error


def read_manifest(path: Path, form: str, read: Callable[[dict[str, Any]], Read], *, what: str, made_by: str) -> Read:
    """Return what a folder's manifest says: a JSON object that names its format.

    Args:
        path: its file.
        form: the format that is read.
        read: makes the rest into what is returned; a ValueError, LookupError or TypeError says that it is wrong.
        what: what a folder with such a file is.
        made_by: the command that makes one.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} is no {what}: it has no {path.name}; make one with `{made_by}`")
    try:
        about = parse_json(regular_file(path, "manifest").read_bytes())
        if (there := about.pop("format")) != form:
            raise ValueError(f"its format is {there!r}, this version reads {form!r}")
        return read(about)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable manifest: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key[:40]!r} is given twice")
        values[key] = value
    return values


def named_number(text: str) -> tuple[str, int] | None:
    """Return what NAME=N says, None where a text is something else."""
    name, _, number = text.strip().rpartition("=")
    return (name, int(number)) if name and number.isdigit() else None


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the mapping that a `.json` file, or a YAML file by any other name, holds; {} for an empty YAML file.

    Raises:
        ValueError: the file can't be read, a key is given twice or is no string, or a value is no plain value (text,
            number, true or false, null, list, mapping). The message names file and line, or key.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file (UTF-8)") from error
    try:
        document = parse_json(text, unique_keys=True) if Path(path).suffix == ".json" else _load_yaml(text)
        if not isinstance(document, dict):
            raise ValueError(f"expected `key: value` lines, found {document!r:.40}")
        for key, value in document.items():
            _check_plain(key, value)
        return document
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("YAML configs need pyyaml: pip install 'vae-qwen3vl[language]'", name="yaml") from error

    def refuse_twins(node: Any, seen: set[int]) -> None:
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))  # an alias leads to the same node again
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                refuse_twins(item, seen)
            return
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
                keys.add((key.tag, key.value))
            refuse_twins(value, seen)

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        refuse_twins(node, set())
        document = loader.construct_document(node)
        return {} if document is None else document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(at + ", ".join(part for part in (error.context, error.problem) if part)) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_plain(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"the key {key!r} is no word; put it in quotes")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(name, item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(key, item)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{key} is {value!r}, which is no text and no number; put it in quotes")
