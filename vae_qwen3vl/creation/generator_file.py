"""A generator in a folder: `generator.safetensors`, and `config.json` with its architecture and what it learned from.

Loads are strict: every tensor is there, fits and is finite, and the tokenizer is the one whose codes it learned.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from sdf_vqvae.model.state_dict import from_int8, to_int8
from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.generator import ShapeGenerator

WEIGHTS, CONFIG = "generator.safetensors", "config.json"
_FORMAT = "vae-qwen3vl-generator/1"
_ABOUT = "generator"
TRAIN_ONE = "train one with `vae-qwen3vl train-generator --data_dir CODES --output_dir RUN` and give --generator RUN"


@dataclass(frozen=True, kw_only=True)
class GeneratorAbout:
    """What belongs to a generator's weights."""

    vae_hash: str
    """Fingerprint of the tokenizer whose codes it makes."""
    data_resolution: int
    """Side of the tokenizer's data grid."""
    sentence_model: str
    """Whose vectors of words it reads."""
    trained_on: str
    """What it learned from, in words."""


def shipped_generator() -> Path:
    """Return the folder of the generator that comes with this installation; none does so far."""
    return Path(str(resources.files("vae_qwen3vl") / "weights" / "generator"))


def generator_folder(asked: str | os.PathLike[str] | None) -> Path:
    """Return the folder that is meant: the given one, or the shipped one.

    Raises:
        ValueError: there is none.
    """
    folder = shipped_generator() if asked is None else Path(asked)
    if (folder / WEIGHTS).is_file():
        return folder
    if asked is None:
        raise ValueError(f"no generator is shipped with this version: {TRAIN_ONE}")
    raise ValueError(f"there is no generator in {folder} ({WEIGHTS}): {TRAIN_ONE}")


def save_generator(
    generator: ShapeGenerator, about: GeneratorAbout, folder: str | os.PathLike[str], *, int8: bool = True
) -> None:
    """Write both files; with `int8` weights are int8 with a float16 scale a row, a quarter of float32.

    The file of the weights says all of the other one too, which is there for people.
    """
    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    document = {"format": _FORMAT, "architecture": generator.config.to_dict(), **asdict(about)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, document, indent=1)
    write_safetensors(folder / WEIGHTS, to_int8(state) if int8 else state, {_ABOUT: json.dumps(document)})


def read_about(folder: str | os.PathLike[str]) -> tuple[GeneratorConfig, GeneratorAbout]:
    """Return what a generator's file says of it.

    Raises:
        ValueError: it is no generator, or damaged.
    """
    return _about_of(Path(folder) / WEIGHTS, read_safetensors(Path(folder) / WEIGHTS, "generator", ())[1])


def load_generator(
    folder: str | os.PathLike[str], codebook: Tensor, vae_hash: str, device: torch.device | str = "cpu"
) -> tuple[ShapeGenerator, GeneratorAbout]:
    """Read a generator, in evaluation mode.

    Args:
        folder: with its files.
        codebook: float `[K, D]` of the tokenizer.
        vae_hash: the tokenizer's fingerprint.
        device: where to.

    Raises:
        ValueError: it is no generator, damaged, or of another tokenizer.
    """
    path = Path(folder) / WEIGHTS
    tensors, metadata = read_safetensors(path, "generator")
    config, about = _about_of(path, metadata)
    if about.vae_hash != vae_hash:
        raise ValueError(
            f"the generator in {folder} makes codes of the VAE {about.vae_hash[:12]}, but this one is "
            f"{vae_hash[:12]}: give the --vae_config and --vae_ckpt it was trained with"
        )
    generator = ShapeGenerator(config, codebook.cpu())
    expected = generator.state_dict()
    state = from_int8(tensors)
    wrong = sorted(
        {name for name in expected.keys() ^ state.keys()}
        | {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    )
    if wrong:
        raise ValueError(f"{path} does not fit its architecture: {len(wrong)} tensors, such as {wrong[0]}")
    broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {broken[0]}")
    generator.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return generator.to(device).eval(), about


def _about_of(path: Path, metadata: dict[str, str]) -> tuple[GeneratorConfig, GeneratorAbout]:
    try:
        document = parse_json(metadata[_ABOUT])
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}, this version reads {_FORMAT!r}")
        config = GeneratorConfig.of_values(document["architecture"])
        words = {name: str(document[name]) for name in ("vae_hash", "sentence_model", "trained_on")}
        return config, GeneratorAbout(data_resolution=int(document["data_resolution"]), **words)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a generator: {brief(error)}") from error
