"""Loading and saving tokenizers: strict, never unpickling, with a report of what was loaded.

A checkpoint is a safetensors file with its JSON config beside it, or a PyTorch file of the original system
(a bare state dict, or one under `state_dict` or `vae`).
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.config import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.runtime import atomic_path, resolve_device

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a checkpoint brought."""

    source: str
    tensors: int
    parameters: int

    def __str__(self) -> str:
        return f"loaded {self.tensors} tensors ({self.parameters:,} values) from {self.source}, none left over"


def load_vae_from_config(
    vae_config: str | os.PathLike[str] | None = None,
    vae_ckpt: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> SparseSDFVQVAE:
    """Build a tokenizer in evaluation mode.

    Args:
        vae_config: JSON config; by default the one beside the checkpoint, or the shipped tokenizer's.
        vae_ckpt: weights. Without it a given config gets random weights (seed 0), which is logged;
            without both, the shipped tokenizer is loaded.
        device: where to; CUDA where present by default.

    Raises:
        ValueError: a file is missing or unreadable, or its tensors do not fit the architecture exactly.
    """
    target = resolve_device(device)
    if vae_config is None and vae_ckpt is None:
        folder = resources.files("sdf_vqvae") / "weights"
        vae_ckpt = Path(str(folder / WEIGHTS_NAME))
        if not vae_ckpt.is_file():
            raise ValueError("this installation ships no tokenizer weights: give vae_config and vae_ckpt")
    if vae_config is None:
        vae_config = Path(str(vae_ckpt)).with_name(CONFIG_NAME)
    config = VAEConfig.from_json(vae_config)
    if vae_ckpt is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = SparseSDFVQVAE(config)
        logger.warning("no checkpoint given: %s runs on random weights", vae_config)
    else:
        vae = SparseSDFVQVAE(config)
        logger.info("%s", load_weights(vae, vae_ckpt))
    return vae.to(target).eval()


def load_weights(vae: SparseSDFVQVAE, path: str | os.PathLike[str]) -> LoadReport:
    """Load a checkpoint into a tokenizer; every tensor must be there, fit, and be used.

    Moving-average buffers of the codebook are training state: they may be absent or left over.

    Raises:
        ValueError: the file cannot be read, or names or shapes differ (the message lists them).
    """
    state = read_state_dict(path)
    expected = vae.state_dict()
    optional = {name for name in (*state, *expected) if name.startswith("vq.") and "ema" in name}
    missing = sorted(expected.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - expected.keys() - optional)
    common = expected.keys() & state.keys()
    misshaped = sorted(
        f"{n} {list(state[n].shape)} instead of {list(expected[n].shape)}"
        for n in common
        if state[n].shape != expected[n].shape
    )
    if missing or unexpected or misshaped:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        lines = "; ".join(f"{len(v)} {k} ({_some(v)})" for k, v in parts.items() if v)
        raise ValueError(f"{path} does not fit the architecture of the config: {lines}")
    if missing_buffers := sorted((expected.keys() & optional) - state.keys()):
        logger.debug("the checkpoint has no codebook averages (%s): they start anew", _some(missing_buffers))
    with torch.no_grad():
        for name in common:
            expected[name].copy_(state[name])
    return LoadReport(source=str(path), tensors=len(common), parameters=sum(state[name].numel() for name in common))


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, unwrapped from `state_dict` or `vae`.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    for wrapper in ("state_dict", "vae"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors)")
    return dict(content)


def save_vae(vae: SparseSDFVQVAE, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` (in `dtype`, without training state) and `config.json` into a folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    state = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in vae.state_dict().items()
        if not (name.startswith("vq.") and "ema" in name)
    }
    document = {"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": vae.config.to_args()}}}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(state, temporary)
    with atomic_path(folder / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
