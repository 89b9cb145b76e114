"""Transformer blocks whose tokens are sparse voxels: attention inside cubic windows, or over each sample.

Attention itself is PyTorch's: its kernel for sequences of different lengths in half precision on CUDA, elsewhere
scaled_dot_product_attention on windows grouped by length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdf_vqvae.sparse.coordinates import CoordinateSet, Windows
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.threads import by_rows

# Not cuDNN's: it plans anew for every number of windows, which took 0.7 s for each new batch on an H100.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, windows: Windows) -> Tensor:
    """Softmax attention of every row over the rows of its window.

    Args:
        query: `[N, heads, D]`; `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        windows: partition of the N rows.

    Returns:
        `[N, heads, D]`.
    """
    if not _has_flash_attention(query):
        return _padded_attention(query, key, value, windows)
    q, k, v = (t[windows.order] for t in (query, key, value))
    # What torch.nn.attention.varlen calls, whose import brings PyTorch's compiler along: two seconds.
    bounds, longest = windows.bounds, windows.longest
    attended, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, False, False
    )
    return attended[windows.position]


def _has_flash_attention(query: Tensor) -> bool:
    """Return whether PyTorch's kernel for sequences of different lengths takes these tensors `[N, heads, D]`."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    fits = query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    built = not torch.version.hip and torch.backends.cuda.is_flash_attention_available()
    return fits and built and torch.cuda.get_device_capability(query.device)[0] >= 8


def _padded_attention(query: Tensor, key: Tensor, value: Tensor, windows: Windows) -> Tensor:
    """Attend in windows padded to powers of two. `[N, heads, D]`"""
    mixed = torch.empty_like(query)
    with sdpa_kernel(_KERNELS):
        for bucket in windows.buckets:
            q, k, v = (t[bucket.rows].transpose(1, 2) for t in (query, key, value))  # [W, heads, length, D]
            mask = None if bucket.real is None else bucket.real[:, None, None, :]
            attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            attended, rows = attended.transpose(1, 2).flatten(0, 1), bucket.rows.flatten()
            if bucket.own is not None:
                attended, rows = attended[bucket.own], rows[bucket.own]
            mixed = mixed.index_copy_(0, rows, attended)
    return mixed


class AbsolutePositionEmbedder(nn.Module):
    """Sines and cosines of integer coordinates (Vaswani et al., 2017), axis after axis, padded with zeros.

    Each axis gets `channels // 3 // 2` frequencies `10000^(-i / n)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.frequencies = channels // 3 // 2

    def forward(self, xyz: Tensor) -> Tensor:
        """Embed `[N, 3]` as float32 `[N, channels]`."""
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=xyz.device) / self.frequencies
        angles = xyz.float()[..., None] / 10000.0**steps  # [N, 3, F]
        embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1).flatten(1)
        return nn.functional.pad(embedding, (0, self.channels - embedding.shape[1]))


class SparseAttention(nn.Module):
    """Multi-head self-attention inside windows of `window_size`^3 voxels, or over whole samples if None."""

    def __init__(self, channels: int, heads: int, window_size: int | None, shift: int, qk_rms_norm: bool) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels ({channels}) must be a multiple of the number of heads ({heads})")
        self.heads = heads
        self.window_size = window_size
        self.shift = shift
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        width = channels // heads
        self.q_rms_norm = HeadRMSNorm(width, heads) if qk_rms_norm else None
        self.k_rms_norm = HeadRMSNorm(width, heads) if qk_rms_norm else None

    def forward(self, feats: Tensor, coordinates: CoordinateSet) -> Tensor:
        """Attend over `[N, C]`."""
        query, key, value = self.to_qkv(feats).view(len(feats), 3, self.heads, -1).unbind(1)
        if self.q_rms_norm is not None and self.k_rms_norm is not None:
            query, key = self.q_rms_norm(query), self.k_rms_norm(key)
        windows = coordinates.windows(self.window_size or coordinates.side, self.shift)
        return self.to_out(windowed_attention(query, key, value, windows).flatten(1))


class HeadRMSNorm(nn.Module):
    """Per-head root-mean-square normalization of queries or keys (Dehghani et al., 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[N, heads, D]`."""
        return (nn.functional.normalize(x.float(), dim=-1) * self.gamma * x.shape[-1] ** 0.5).to(x.dtype)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.hidden = int(channels * ratio)
        self.mlp = nn.Sequential(
            nn.Linear(channels, self.hidden), nn.GELU(approximate="tanh"), nn.Linear(self.hidden, channels)
        )

    def forward(self, feats: Tensor) -> Tensor:
        """`[N, C]` to `[N, C]`."""
        return self.mlp(feats)


class SparseTransformerBlock(nn.Module):
    """Pre-norm transformer block; its layer norms have no learned scale."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        mlp_ratio: float,
        window_size: int | None,
        shift: int,
        qk_rms_norm: bool,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attn = SparseAttention(channels, heads, window_size, shift, qk_rms_norm)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` to `[N, C]`."""
        feats = x.feats + self.attn(self.norm1(x.feats), x.coordinates)
        return x.replace(by_rows(self._update, feats, width=self.mlp.hidden))

    def _update(self, feats: Tensor) -> Tensor:
        return feats + self.mlp(self.norm2(feats))
