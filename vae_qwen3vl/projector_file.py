"""The file of a trained projector: its tensors, and the description from which a model is rebuilt around it.

`.safetensors` keeps the description as metadata, and may hold weights as int8 with a float16 scale a row. `.pt` is a
bare torch state dict (readable with `weights_only=True` and `load_state_dict`) that carries the description in the
state dict's own metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sdf_vqvae.model.state_dict import from_int8, to_int8
from sdf_vqvae.utils.archives import read_safetensors, read_torch_file, write_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import atomic_path
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.layout import Positions
from vae_qwen3vl.projector import OverBudget, Projector3D

_KEY = "vae_qwen3vl.projector"


@dataclass(frozen=True, kw_only=True)
class ProjectorDescription:
    """What a projector was built and trained as."""

    latent_dim: int
    hidden_size: int
    num_layers: int
    merge: int = 1
    shape_tokens: int = 0
    encoder_layers: int = 0
    use_3d_pos: bool = False
    pos_mode: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_coord: int = 64
    positions: Positions = "mrope"
    max_3d_tokens: int = 2048
    truncate_mode: OverBudget = "pool"
    prompt: str | None = None
    """The prompt it was trained with."""
    vae_hash: str | None = None
    """Fingerprint of the VAE whose codes it reads."""
    vl_model: str | None = None
    """Name of the language model it was trained for."""
    with_lora: bool = False
    """Whether adapters of the language model were trained with it; files of earlier versions don't say."""

    def build(self) -> Projector3D:
        """Return a projector of this shape, not yet trained."""
        return Projector3D(
            latent_dim=self.latent_dim,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            use_3d_pos=self.use_3d_pos,
            pos_mode=self.pos_mode,
            max_coord=self.max_coord,
            merge=self.merge,
            shape_tokens=self.shape_tokens,
            encoder_layers=self.encoder_layers,
        )


def save_projector(
    path: str | os.PathLike[str],
    projector: Projector3D,
    description: ProjectorDescription,
    state: Mapping[str, Tensor] | None = None,
    *,
    packed: bool = False,
) -> None:
    """Write a projector to a `.safetensors` or `.pt` file, whole or not at all.

    Args:
        path: the file.
        projector: what is written,
        description: and what is said of it.
        state: its state dict, where a trainer has gathered it from several processes.
        packed: write weights as int8 (`to_int8`), a quarter of float32; `.safetensors` alone.
    """
    values = projector.state_dict() if state is None else state
    if packed:
        values = to_int8(values, keep=("marker_vectors",))
    state = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    text = json.dumps(dataclasses.asdict(description))
    if Path(path).suffix == ".safetensors":
        write_safetensors(path, state, {_KEY: text})
        return
    ordered = OrderedDict(state)
    ordered._metadata = {"": {"version": 1, _KEY: text}}  # type: ignore[attr-defined]
    with atomic_path(path) as temporary:
        try:
            torch.save(ordered, temporary)
        except RuntimeError as error:  # which is no OSError, not even where the disk is full
            raise OSError(brief(error)) from error


def load_projector(path: str | os.PathLike[str]) -> tuple[Projector3D, ProjectorDescription]:
    """Read a projector file and build the projector it describes; every tensor must fit.

    Raises:
        ValueError: the file is no projector, has no description, or its tensors differ from the description.
    """
    state, text = _read(Path(path))
    if text is None:
        raise ValueError(f"{path} does not say what kind of projector it holds; it was not written by save_projector")
    description = _parse(path, text)
    layers = max(description.num_layers, description.encoder_layers)
    if layers > len(state):
        raise ValueError(f"{path} describes {layers:,} layers, but it holds {len(state)} tensors")
    try:
        with torch.device("meta"):  # names and shapes alone: the description may claim any size
            built = description.build()
        expected = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: the description of the projector is not usable ({brief(error)})") from error
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if expected != shapes:
        wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
        detail = ", ".join(f"{name}: file {shapes.get(name)}, expected {expected.get(name)}" for name in wrong[:4])
        raise ValueError(f"{path} doesn't hold the projector it describes ({len(wrong)} tensors differ: {detail})")
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {broken[0]}")
    projector = description.build()
    projector.load_state_dict(state)
    return projector, description


def _parse(path: str | os.PathLike[str], text: str) -> ProjectorDescription:
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError(f"a mapping is expected, not {text[:40]!r}")
        _check_values(values)
        return ProjectorDescription(**values)
    except (TypeError, ValueError) as error:
        reason = brief(error)
        raise ValueError(f"{path}: the description of the projector is not readable ({reason})") from error


def _check_values(values: dict[str, Any]) -> None:
    """Check types, and names against what is known."""
    hints = typing.get_type_hints(ProjectorDescription)
    for name, value in values.items():
        hint = hints.get(name)
        if typing.get_origin(hint) is Literal:
            fits = value in typing.get_args(hint)
        else:
            kinds = typing.get_args(hint) or (hint,)
            fits = type(value) in kinds and not (type(value) is int and value < 0)
        if hint is not None and not fits:
            raise ValueError(f"{name} is {value!r}")


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path, "projector file")
        try:
            return from_int8(tensors), metadata.get(_KEY)
        except ValueError as error:
            raise ValueError(f"{path} is no projector file: {brief(error)}") from error
    state = read_torch_file(path, "projector file")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a projector state dict: expected names and tensors")
    about = getattr(state, "_metadata", {})
    entry = about.get("", {}) if isinstance(about, dict) else {}
    text = entry.get(_KEY) if isinstance(entry, dict) else None
    return {str(name): value for name, value in state.items()}, text if isinstance(text, str) else None
