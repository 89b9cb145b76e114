"""The lock of what CI installs: all that the project asks for is in it, in a version that fits, by its hash."""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

if sys.version_info < (3, 11):
    pytest.skip("reading pyproject.toml needs Python 3.11", allow_module_level=True)
import tomllib

_LEFT_OUT = {"torch"}
"""Which build of it is installed depends on the machine."""
_PIN = re.compile(
    r"^([a-z0-9.-]+)(?:\[[^\]]*\])?==([^\s;]+)(?: ; ([^\\]+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.M,
)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_holds_what_the_project_asks_for(repository):
    text = (repository / "requirements-ci.lock").read_text(encoding="utf-8")
    pins: dict[str, list[str]] = {}
    for name, version, _, hashes in _PIN.findall(text):
        assert hashes
        pins.setdefault(plain(name), []).append(version)
    assert sum(map(len, pins.values())) == len(re.findall(r"^\S+==", text, re.M)) > 150
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = list(map(Requirement, project["dependencies"] + extras["dev"]))
    for own in [one for one in asked if plain(one.name) == project["name"]]:
        asked += [Requirement(line) for extra in own.extras for line in extras[extra]]
    for one in asked:
        if plain(one.name) in _LEFT_OUT | {project["name"]}:
            continue
        versions = pins.get(plain(one.name), [])
        assert versions, f"{one.name} is not in the lock: make lock"
        assert all(one.specifier.contains(version, prereleases=True) for version in versions), f"{one}: make lock"
        for extra in one.extras:  # such as ray[serve]
            brings = [Requirement(line) for line in requires(one.name) or ()]
            wanted = [part.name for part in brings if part.marker and part.marker.evaluate({"extra": extra})]
            assert {plain(name) for name in wanted} <= pins.keys(), f"{one}: make lock"
