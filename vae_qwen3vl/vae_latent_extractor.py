"""From a batch of sparse fields to codebook vectors, through any VAE with `Encode`, `Decode` and `vq.embeddings`.

Knows what a VAE gives (codes at latent cells) and nothing of sequences or language. The VAE may be a
`SparseSDFVQVAE` or a foreign object; its codes may be integers or floats, `[M]` or `[M, 1]`. Of cells with two codes
`[M, 2]` language reads the first: the second tells of the surface what words don't.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdf_vqvae.quantizers.quantizer import first_codes

logger = logging.getLogger(__name__)


class ShapeVAE(Protocol):
    """What the language branch needs of a VAE."""

    vq: Any
    """Has `embeddings`: the codebook, an `nn.Embedding` (or a plain tensor) `[K, D]`."""

    def Encode(self, batch: Any) -> Any:
        """Return an object with `.feats` (codes `[M, 1]` or `[M, 2]`) and `.coords` (`[M, 4]` = batch, x, y, z)."""

    def Decode(self, encoding_indices: Any) -> Any:
        """Return the sparse field of those codes."""


def codebook(vae_model: ShapeVAE) -> Tensor:
    """Return the codebook `[K, D]` of a VAE.

    Raises:
        ValueError: the object has no `vq.embeddings`.
    """
    embeddings = getattr(getattr(vae_model, "vq", None), "embeddings", None)
    table = getattr(embeddings, "weight", embeddings)
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise ValueError(
            f"{type(vae_model).__name__} has no codebook: expected vq.embeddings (nn.Embedding or tensor [K, D])"
        )
    return table


def vae_fingerprint(vae_model: ShapeVAE) -> str:
    """Return what ties a projector to the codes it was trained on.

    It is the VAE's own `fingerprint()` (a `SparseSDFVQVAE` has one), else the SHA-256 of its codebook.
    """
    fingerprint = getattr(vae_model, "fingerprint", None)
    if callable(fingerprint):
        return str(fingerprint())
    table = codebook(vae_model).detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()


def codebook_vectors(codes: Tensor, vae_model: ShapeVAE) -> Tensor:  # [M], [M, 1] or [M, 2] -> [M, D]
    """Look codes up in the VAE's codebook, without gradient; see `look_up`."""
    return look_up(codes, codebook(vae_model).detach())


def look_up(codes: Tensor, table: Tensor) -> Tensor:  # [M], [M, 1] or [M, 2] -> [M, D]
    """Return the vectors of codes, on the codebook's device.

    Args:
        codes: `[M]` or `[M, 1]`, integers (or floats that hold integers); of `[M, 2]` the first of each cell counts.
        table: the codebook `[K, D]` of the VAE that the codes come from.

    Raises:
        ValueError: more than two codes a cell, or a code outside the codebook.
    """
    if codes.ndim not in (1, 2) or (codes.ndim == 2 and codes.shape[1] not in (1, 2)):
        raise ValueError(f"codes must be [M], [M, 1] or [M, 2] (one or two a cell), not {list(codes.shape)}")
    index = first_codes(codes)
    if index.is_floating_point():
        index = index.round()
    index = index.long()  # [M]
    # Looked at where they are: nobody waits for a GPU on whose codebook codes of the CPU are looked up.
    low, high = torch.stack(torch.aminmax(index)).tolist() if len(index) else (0, 0)
    if low < 0 or high >= len(table):
        raise ValueError(
            f"codes run from {low} to {high}, but the codebook has {len(table)} entries: they come from another VAE"
        )
    return F.embedding(index.to(table.device, non_blocking=index.device.type == "cpu"), table)  # [M, D]


def extract_3d_latent(
    batch: Any, vae_model: ShapeVAE, device: str | torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Encode a batch and return its codebook vectors.

    Args:
        batch: dict `sparse_sdf [N, 1]`, `sparse_index [N, 3]`, `batch_idx [N]` (or what the VAE's `Encode` takes).
        vae_model: any object with `Encode`, `Decode` and `vq.embeddings`.
        device: where to run. None runs where the VAE is, and so does "cuda" (with a warning) where there is no GPU;
            any other device moves the VAE there, and it stays there.

    Returns:
        `feats [M, D]` codebook vectors and `coords` int32 `[M, 4]` = (batch, x, y, z) on the latent grid.
    """
    feats, coords, _ = extract_3d_latent_and_indices(batch, vae_model, device)
    return feats, coords


def extract_3d_latent_and_indices(
    batch: Any, vae_model: ShapeVAE, device: str | torch.device | None = None
) -> tuple[Tensor, Tensor, Any]:
    """Encode a batch and return codebook vectors and the codes themselves.

    Arguments as for `extract_3d_latent`. No gradient is kept; the VAE runs in eval mode and returns to the mode
    it was in.

    Returns:
        `feats [M, D]`, `coords` int32 `[M, 4]`, and the VAE's own codes object, ready for `vae_model.Decode`.
    """
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        # The documented calls say device="cuda"; on a machine without a GPU the object is encoded all the same.
        logger.warning("device=%s was asked for, but PyTorch sees no CUDA GPU: encoding where the VAE is", device)
        device = None
    if device is not None:
        target = torch.device(device)
        if isinstance(vae_model, nn.Module):
            vae_model.to(target)
    else:
        target = codebook(vae_model).device
    with torch.no_grad(), _eval_mode(vae_model):
        encoding_indices = vae_model.Encode(_to_device(batch, target))
        feats = codebook_vectors(encoding_indices.feats, vae_model)  # [M, D]
    coords = encoding_indices.coords.to(feats.device, torch.int32)  # [M, 4]
    if coords.shape != (len(feats), 4):
        raise ValueError(
            f"the VAE returned {len(feats)} codes with coordinates {list(coords.shape)}; expected [{len(feats)}, 4]"
        )
    return feats, coords, encoding_indices


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return batch.to(device) if hasattr(batch, "to") else batch


@contextlib.contextmanager
def _eval_mode(vae_model: ShapeVAE) -> Iterator[None]:
    if not isinstance(vae_model, nn.Module) or not vae_model.training:
        yield
        return
    vae_model.eval()
    try:
        yield
    finally:
        vae_model.train()
