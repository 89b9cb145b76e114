"""The section `accelerate` of a settings file: the settings of `accelerate launch`, under its own names.

Knows accelerate's own classes, where it is installed; nothing of the other settings.
"""

from __future__ import annotations

import copy
import dataclasses
from importlib.util import find_spec
from typing import Any

from sdf_vqvae.utils.settings import check_keys

# YAML 1.1 reads an unquoted no as false; in these keys of accelerate it is the word.
_NO = {"downcast_bf16": "no", "mixed_precision": "no", "distributed_type": "NO", "dynamo_backend": "NO"}
_NAMES = {bool: "true or false", int: "an integer"}


def checked_accelerate(section: Any) -> dict[str, Any]:
    """Return the `accelerate` section, checked against accelerate's own settings where it is installed."""
    if not isinstance(section, dict):
        raise ValueError(f"accelerate must be a mapping, got {section!r}")
    values = {key: _NO.get(key, value) if value is False else value for key, value in section.items()}
    if not values or find_spec("accelerate") is None:
        return values
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.utils import PrecisionType

    known: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(ClusterConfig)}
    check_keys("accelerate", values, (*known, "fp16", "dynamo_backend"))  # the last two are its older spellings
    for key, value in values.items():
        kind = known.get(key)
        if kind in (bool, int) and key not in _NO and type(value) is not kind:
            raise ValueError(f"accelerate.{key} must be {_NAMES[kind]}, got {value!r}")
    precision = values.get("mixed_precision")
    if precision is not None and precision not in PrecisionType.list():
        raise ValueError(f"accelerate.mixed_precision must be one of {PrecisionType.list()}, got {precision!r}")
    try:
        ClusterConfig(**ClusterConfig.process_config(copy.deepcopy(values)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"accelerate: {error}") from error
    return values
