"""Loading and saving tokenizers: strict, never unpickling, with a report of what was loaded.

A checkpoint is a safetensors file with its JSON config beside it, or a PyTorch file of the original system
(a bare state dict, or one under `state_dict` or `vae`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.state_dict import Renamed, read_state_dict, to_canonical, to_int8
from sdf_vqvae.model.vqvae import CODEBOOK, SparseSDFVQVAE, is_training_state
from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import regular_file, write_json
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.runtime import resolve_device

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_LISTED = 6
_LEVEL = re.compile(r"^(encoder\.(?:levels|downsample)\.)(\d+)\.")
_OUTERMOST = ("encoder.stem.", "decoder.out_norm.", "decoder.out_layer.")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a checkpoint brought."""

    source: str
    tensors: int
    """Tensors loaded."""
    parameters: int
    """Values in them."""
    renamed: list[Renamed]
    """Loaded tensors that the file has under another name or in another layout."""
    left_over: list[str]
    """Training state of the codebook, not loaded."""
    missing: list[str]
    """Empty, or the codebook where a checkpoint without one was accepted."""

    def __str__(self) -> str:
        more = f", {len(self.renamed)} of them renamed or rearranged" if self.renamed else ""
        lacks = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        return f"loaded {self.tensors} tensors ({self.parameters:,} values) from {self.source}{more}{lacks}"

    def table(self) -> str:
        """Return a line of counts, then a line for each tensor that is not simply loaded."""
        rows = [(r.how, f"{r.file_name} {list(r.file_shape)} -> {r.name} {list(r.shape)}") for r in self.renamed]
        rows += [("left over", f"{name} (training state)") for name in self.left_over]
        rows += [("missing", name) for name in self.missing]
        counts = (
            f"{self.source}: loaded {self.tensors} ({self.parameters:,} values), of them renamed or rearranged "
            f"{len(self.renamed)}; left over {len(self.left_over)}; missing {len(self.missing)}"
        )
        return "\n".join([counts, *(f"{kind:<12} {what}" for kind, what in rows)])


@waiting("loading the tokenizer")
def load_vae_from_config(
    vae_config: str | os.PathLike[str] | None = None,
    vae_ckpt: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    *,
    codebook_required: bool = True,
) -> SparseSDFVQVAE:
    """Build a tokenizer in evaluation mode.

    Args:
        vae_config: JSON config; by default the one beside the checkpoint, or the shipped tokenizer's.
        vae_ckpt: weights. Without it a given config gets random weights (seed 0), which is logged;
            without both, the shipped tokenizer is loaded.
        device: where to; CUDA where present by default.
        codebook_required: see `load_weights`.

    Raises:
        ValueError: a file is missing or unreadable, or its tensors do not fit the architecture exactly.
    """
    target = resolve_device(device)
    if vae_config is None and vae_ckpt is None:
        vae_ckpt = shipped_config().with_name(WEIGHTS_NAME)
        if not vae_ckpt.is_file():
            raise ValueError("this installation ships no tokenizer weights: give vae_config and vae_ckpt")
    if vae_config is None:
        assert vae_ckpt is not None
        vae_config = config_beside(vae_ckpt)
    config = VAEConfig.from_json(vae_config)
    if vae_ckpt is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = SparseSDFVQVAE(config)
        logger.warning("no checkpoint given: %s runs on random weights", vae_config)
    else:
        vae = SparseSDFVQVAE(config)
        logger.info("%s", load_weights(vae, vae_ckpt, codebook_required=codebook_required))
    return vae.to(target).eval()


def shipped_config() -> Path:
    """Return the path of the shipped tokenizer's config; its weights lie beside it."""
    return Path(str(resources.files("sdf_vqvae") / "weights" / CONFIG_NAME))


def config_beside(vae_ckpt: str | os.PathLike[str]) -> Path:
    """Return the `config.json` beside a checkpoint. Raises a ValueError where there is none."""
    path = Path(vae_ckpt).with_name(CONFIG_NAME)
    regular_file(vae_ckpt, "checkpoint")
    if not path.is_file():
        raise ValueError(
            f"{vae_ckpt} has no {CONFIG_NAME} beside it: give --vae_config, e.g. configs/vae/sdf_vqvae_stage2.json"
        )
    return path


def load_weights(vae: SparseSDFVQVAE, path: str | os.PathLike[str], *, codebook_required: bool = True) -> LoadReport:
    """Load a checkpoint into a tokenizer; every tensor must be there, fit, and be used.

    Layouts and names of torchsparse, and prefixes of wrappers, are turned into ours (see `to_canonical`).
    Moving-average buffers of the codebook are training state: they may be absent or left over.

    Args:
        vae: where to.
        path: `.safetensors`, or a PyTorch file with a state dict, bare or under `state_dict` or `vae`.
        codebook_required: False accepts a checkpoint without a codebook, as Direct3D-S2's public VAE, which has
            none: encoder and decoder are loaded, the codebook stays random until it is trained, and a warning
            says so.

    Raises:
        ValueError: the file cannot be read, names or shapes differ (the message lists them), or a value is not
            finite.
    """
    try:
        state, renamed = to_canonical(read_state_dict(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    expected = vae.state_dict()
    optional = {name for name in (*state, *expected) if is_training_state(name)}
    missing = sorted(expected.keys() - state.keys() - optional)
    unexpected = sorted(state.keys() - expected.keys() - optional)
    common = sorted(expected.keys() & state.keys())
    misshaped = [
        f"{n} {list(state[n].shape)} instead of {list(expected[n].shape)}"
        for n in common
        if state[n].shape != expected[n].shape
    ]
    if missing == [CODEBOOK] and not unexpected and not misshaped:
        if codebook_required:
            raise ValueError(
                f"{path} holds no codebook ({CODEBOOK}), as Direct3D-S2's public VAE: its encoder and decoder work, "
                "but there are no codes before a codebook has been trained on it"
            )
        logger.warning("%s holds no codebook: codes mean nothing before one has been trained", path)
    elif missing or unexpected or misshaped:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        lines = "; ".join(f"{len(v)} {k} ({_some(v)})" for k, v in parts.items() if v)
        raise ValueError(f"{path} does not fit the architecture of the config: {lines}{_guess(state)}")
    broken = [n for n in common if state[n].is_floating_point() and not bool(torch.isfinite(state[n]).all())]
    if broken:
        raise ValueError(f"{path} holds values that are not finite, in {_some(broken)}")
    with torch.no_grad():
        for name in common:
            expected[name].copy_(state[name])
    return LoadReport(
        source=str(path),
        tensors=len(common),
        parameters=sum(state[name].numel() for name in common),
        renamed=[r for r in renamed if r.name in expected],
        left_over=sorted(state.keys() - expected.keys()),
        missing=missing,
    )


def load_inner_levels(vae: SparseSDFVQVAE, path: str | os.PathLike[str]) -> LoadReport:
    """Start a residual tokenizer from one of a coarser data grid, whose trunks, codebook and levels become its own.

    The encoder counts levels from the finest inwards, so its numbers move up by the levels that are new; the
    decoder's stay. What touches the new levels or the distances themselves (the encoder's stem, the decoder's last
    layers) keeps its random start.

    Args:
        vae: where to.
        path: weights whose `config.json` lies beside them.

    Returns:
        What was loaded; `missing` are the tensors that start at random.

    Raises:
        ValueError: the file can't be read, or its network is not the inner part of this one.
    """
    given, config = VAEConfig.from_json(config_beside(path)), vae.config
    new = config.levels - given.levels
    inner = {
        "architecture": (given.architecture, config.architecture),
        "resolution": (given.resolution, config.resolution),
        "level_channels": (given.widths, config.widths[new:]),
        "level_blocks": (given.level_blocks, config.level_blocks[new:]),
    }
    differing = [f"{name} {a!r}, not {b!r}" for name, (a, b) in inner.items() if a != b]
    if config.architecture != "residual" or new < 1 or differing:
        raise ValueError(
            f"{path} is not the inner part of this residual network: {new} levels fewer, {'; '.join(differing)}"
        )
    source = SparseSDFVQVAE(given)
    load_weights(source, path)
    state = {
        _LEVEL.sub(lambda found: f"{found[1]}{int(found[2]) + new}.", name): tensor
        for name, tensor in source.state_dict().items()
        if not name.startswith(_OUTERMOST) and not is_training_state(name)
    }
    expected = vae.state_dict()
    unfit = [n for n in state if n not in expected or expected[n].shape != state[n].shape]
    if unfit:
        raise ValueError(f"{path} is not the inner part of this network: {_some(unfit)}")
    with torch.no_grad():
        for name, tensor in state.items():
            expected[name].copy_(tensor)
    return LoadReport(
        source=str(path),
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        renamed=[],
        left_over=[],
        missing=[n for n in expected if n not in state and not is_training_state(n)],
    )


def _guess(state: Mapping[str, Tensor]) -> str:
    """Return what the tensors say about the config that they need, as the end of a sentence."""
    numbers: dict[str, int] = {}
    for half in ("encoder", "decoder"):
        blocks = {n.split(".")[2] for n in state if n.startswith(f"{half}.blocks.")}
        if blocks:
            numbers[f"num_blocks_{half}"] = len(blocks)
    for key, name, axis in (
        ("model_channels", "decoder.input_layer.weight", 0),
        ("latent_channels", "decoder.input_layer.weight", 1),
        ("num_embeddings", CODEBOOK, 0),
    ):
        if name in state and state[name].ndim == 2:
            numbers[key] = state[name].shape[axis]
    return f". The file looks like {', '.join(f'{k}={v}' for k, v in numbers.items())}" if numbers else ""


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def save_vae(vae: SparseSDFVQVAE, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` (without training state) and `config.json` into a folder.

    Args:
        vae: the tokenizer.
        folder: where to.
        dtype: of the file's numbers. `torch.int8` keeps weights as int8 with a scale a row, and the codebook and
            everything small as float16: a quarter of float32.
    """
    folder = Path(folder)
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in vae.state_dict().items()
        if not is_training_state(name)
    }
    if dtype == torch.int8:
        state = to_int8(state, keep=(CODEBOOK,))
    else:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    document = {"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": vae.config.to_args()}}}
    write_safetensors(folder / WEIGHTS_NAME, state)
    write_json(folder / CONFIG_NAME, document, indent=2)
