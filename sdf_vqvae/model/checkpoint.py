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

from sdf_vqvae.config.architecture import VAEConfig, shipped_document
from sdf_vqvae.model.state_dict import Renamed, read_state_dict, to_canonical, to_int8
from sdf_vqvae.model.vqvae import CODEBOOK, SparseSDFVQVAE, is_training_state
from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import regular_file, write_json
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.runtime import resolve_device

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
DEFAULT = "sdf_vqvae_256"
"""Name of the tokenizer that is loaded where none is named; what words the default says were learned on its codes."""
FINER = "sdf_vqvae_512"
"""Name of the tokenizer of fields of 512^3."""
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
        vae_ckpt: weights. Without it, a config of `shipped_tokenizers` gets theirs, any other random ones (seed 0),
            which is logged; without both, the default tokenizer is loaded.
        device: where to; CUDA where present by default.
        codebook_required: see `load_weights`.

    Raises:
        ValueError: a file is missing or unreadable, or its tensors do not fit the architecture exactly.
    """
    target = resolve_device(device)
    if vae_config is None and vae_ckpt is None:
        vae_ckpt = shipped_tokenizers()[DEFAULT]
        if not vae_ckpt.is_file():
            raise ValueError("this installation ships no tokenizer weights: give vae_config and vae_ckpt")
    vae_config = config_of(vae_config, vae_ckpt)
    config = VAEConfig.from_json(vae_config)
    if vae_ckpt is None:
        vae_ckpt = shipped_weights(config)
    if vae_ckpt is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = SparseSDFVQVAE(config)
        logger.warning("no checkpoint given, and none is shipped for %s: it runs on random weights", vae_config)
    else:
        vae = SparseSDFVQVAE(config)
        logger.info("%s", load_weights(vae, vae_ckpt, codebook_required=codebook_required))
    return vae.to(target).eval()


def config_of(
    vae_config: str | os.PathLike[str] | None = None, vae_ckpt: str | os.PathLike[str] | None = None
) -> str | os.PathLike[str]:
    """Return the config that is meant: the given one, the one beside the checkpoint, or the default tokenizer's.

    Raises:
        ValueError: see `config_beside`.
    """
    if vae_config is not None:
        return vae_config
    return shipped_config() if vae_ckpt is None else config_beside(vae_ckpt)


def shipped_config() -> Path:
    """Return the path of the default tokenizer's config; its weights lie beside it."""
    return shipped_tokenizers()[DEFAULT].with_name(CONFIG_NAME)


def shipped_tokenizers() -> dict[str, Path]:
    """Return the weights of the tokenizers of this project by the names of their configs in `configs/vae`.

    A file may be missing in an installation.
    """
    folder = Path(str(resources.files("sdf_vqvae") / "weights"))
    return {DEFAULT: folder / WEIGHTS_NAME, FINER: folder / FINER / WEIGHTS_NAME}


def shipped_weights(config: VAEConfig) -> Path | None:
    """Return the weights that a tokenizer of that config is shipped with; None for configs of no such tokenizer.

    Raises:
        ValueError: it is such a tokenizer, but its weights are not in this installation.
    """
    for name, weights in shipped_tokenizers().items():
        if config == VAEConfig.from_json(shipped_document(f"{name}.json")):
            if weights.is_file():
                return weights
            raise ValueError(
                f"this installation has no weights of the tokenizer {name} ({weights}): give --vae_ckpt with weights "
                "of your own (train_tokenizer makes some), or leave --vae_config out for the default tokenizer"
            )
    return None


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
    """Start a residual tokenizer from one that is part of it, whose trunks and levels become its own.

    That is one with fewer blocks on its levels (more of them begin as the identity), or of a data grid half as fine.

    Where this one has a level more, the encoder's numbers of levels move up, since they count from the finest
    inwards, and what touches the new level or the distances themselves (the encoder's stem, the decoder's last
    layers) keeps its random start. Where its patches are twice as large instead, those layers start as the others'
    between neighboring grids: it begins as the coarser one, read and answered in finer voxels.

    The codes are taken over where there are as many.

    Args:
        vae: where to.
        path: weights whose `config.json` lies beside them.

    Returns:
        What was loaded; `missing` are the tensors that start at random.

    Raises:
        ValueError: the file can't be read, or its network is not the inner part of this one.
    """
    given, config = VAEConfig.from_json(config_beside(path)), vae.config
    new = len(config.widths) - len(given.widths)
    larger = config.patch_size == 2 * given.patch_size
    inner = {
        "architecture": (given.architecture, config.architecture),
        "resolution": (given.resolution, config.resolution),
        "level_channels": (given.widths, config.widths[max(new, 0) :]),
        "patch_size": (given.patch_size, config.patch_size // (2 if larger else 1)),
    }
    differing = [f"{name} {a!r}, not {b!r}" for name, (a, b) in inner.items() if a != b]
    for half in ("encoder", "decoder"):
        theirs, ours = given.level_blocks_of(half), config.level_blocks_of(half)[max(new, 0) :]
        if any(a > b for a, b in zip(theirs, ours, strict=False)):  # other numbers of levels are told of above
            differing.append(f"blocks of the {half}'s levels {theirs!r}, more than {ours!r}")
    halvings = config.levels - given.levels
    if config.architecture != "residual" or halvings < 0 or (larger and new) or differing:
        raise ValueError(
            f"{path} is not the inner part of this residual network: {halvings} halvings fewer, "
            f"{'; '.join(differing) or 'of patches and levels'}"
        )
    source = SparseSDFVQVAE(given)
    load_weights(source, path)
    left = {name for name in source.state_dict() if is_training_state(name)}
    if given.num_embeddings != config.num_embeddings:
        left.add(CODEBOOK)
    state = {
        _LEVEL.sub(lambda found: f"{found[1]}{int(found[2]) + new}.", name): tensor
        for name, tensor in source.state_dict().items()
        if name not in left and not (new and name.startswith(_OUTERMOST))
    }
    if larger:
        state |= _for_larger_patches(state)
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


def _for_larger_patches(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stem and output layer for patches of 4^3 voxels from those for the same patches in 2^3 coarser ones.

    Both fields have bands of as many voxels, so a distance on the coarser grid is half of that on the finer one. The
    stem takes the means of eight values and of their marks; answers are interpolated linearly and, beyond the centers
    of the coarser voxels, extrapolated, so a plane stays a plane where `tanh` is straight.
    """
    axis = torch.tensor([-0.75, -0.25, 0.25, 0.75])[:, None] * torch.tensor([-1.0, 1.0]) + 0.5  # [4, 2], sums 1
    # From voxels in the order x, y, z of the patch to eight blocks of eight.
    between = torch.einsum("xa,yb,zc->xyzabc", axis, axis, axis).view(2, 2, 2, 2, 2, 2, 8)
    between = between.permute(0, 2, 4, 1, 3, 5, 6).reshape(64, 8)
    stem = state["encoder.stem.weight"].view(-1, 8, 1, 2) * torch.tensor([0.5, 1.0]) / 8
    return {
        "encoder.stem.weight": stem.expand(-1, 8, 8, 2).reshape(len(stem), -1),
        "decoder.out_layer.weight": 2 * between @ state["decoder.out_layer.weight"],
        "decoder.out_layer.bias": 2 * between @ state["decoder.out_layer.bias"],
    }


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
        dtype: of the file's numbers. `torch.int8` keeps weights as int8 with a scale a row, and codebooks and
            everything small as float16: a quarter of float32.
    """
    folder = Path(folder)
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in vae.state_dict().items()
        if not is_training_state(name)
    }
    if dtype == torch.int8:
        state = to_int8(state, keep=[name for name in state if name.startswith("vq.")])
    else:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    document = {"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": vae.config.to_args()}}}
    write_safetensors(folder / WEIGHTS_NAME, state)
    write_json(folder / CONFIG_NAME, document, indent=2)
