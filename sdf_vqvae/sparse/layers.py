"""Norms, pooling, subdivision and shape-preserving layers on sparse tensors."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.sparse.tensor import SparseTensor


class SparseActivation(nn.Module):
    """SiLU on the features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Apply to `[N, C]`."""
        return x.replace(nn.functional.silu(x.feats))


class SparseGroupNorm(nn.Module):
    """Group normalization over the active voxels of each sample, in float32 (Wu and He, 2018).

    The number of groups is the greatest common divisor of `groups` and `channels`.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize `[N, C]`; the output has the input's dtype."""
        splits = x.coordinates.row_splits
        parts = [self._one(x.feats[a:b]) for a, b in itertools.pairwise(splits) if b > a]
        return x.replace(torch.cat(parts) if len(parts) > 1 else parts[0])

    def _one(self, feats: Tensor) -> Tensor:
        """Normalize one sample, two passes over the rows: [n, C]."""
        with torch.autocast(feats.device.type, enabled=False):
            if active_backend(feats.device) == "triton" and feats.dtype != torch.float64:
                from sdf_vqvae.sparse.backends.group_norm_triton import group_norm

                return group_norm(feats.contiguous(), self.weight, self.bias, self.groups, self.eps)
            values = feats.float()
            variance, mean = torch.var_mean(values, dim=0, correction=0)  # [C] each
            group_mean = mean.view(self.groups, -1).mean(1, keepdim=True)  # [G, 1]
            spread = variance.view(self.groups, -1) + (mean.view(self.groups, -1) - group_mean) ** 2
            scale = torch.rsqrt(spread.mean(1, keepdim=True) + self.eps)  # [G, 1]
            per_group = self.weight.numel() // self.groups
            scale = scale.expand(-1, per_group).reshape(-1) * self.weight
            shift = self.bias - group_mean.expand(-1, per_group).reshape(-1) * scale
            return torch.addcmul(shift, values, scale).to(feats.dtype)


class VoxelNorm(nn.Module):
    """Layer normalization of every voxel by itself (Ba et al., 2016); statistics are computed in float32.

    Unlike group normalization it does not depend on which other voxels are active.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalize `[N, C]`; the output has the input's dtype."""
        return x.replace(self.of(x.feats))

    def of(self, feats: Tensor) -> Tensor:
        """Normalize rows `[N, C]`."""
        # Autocast would widen input and output to float32, three times the memory traffic.
        with torch.autocast(feats.device.type, enabled=False):
            if active_backend(feats.device) == "triton" and feats.dtype != torch.float64:
                from sdf_vqvae.sparse.backends.voxel_norm_triton import WIDEST, voxel_norm

                if feats.shape[1] <= WIDEST:
                    return voxel_norm(feats.contiguous(), self.weight, self.bias, self.eps)
            weight, bias = self.weight.to(feats.dtype), self.bias.to(feats.dtype)
            return nn.functional.layer_norm(feats, feats.shape[1:], weight, bias, self.eps)


class SparseDownsample(nn.Module):
    """Average pooling over 2^3 cells.

    Args:
        counts_zero: divide by the number of voxels plus one instead of their number. The original system
            pools like that (a reduction that counts its zero start value), so its weights need it.
    """

    def __init__(self, counts_zero: bool = False) -> None:
        super().__init__()
        self.counts_zero = counts_zero

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Pool `[N, C]` to the cells of the coarser set `[P, C]`."""
        cells, parent = x.coordinates.coarser()
        # Children side by side: sums in float32, in the same order every time.
        children = x.feats.new_zeros((len(cells) * 8, x.feats.shape[1]))
        children = children.index_copy_(0, x.coordinates.places_in_cells(), x.feats)
        total = children.view(len(cells), 8, -1).sum(1, dtype=torch.promote_types(x.feats.dtype, torch.float32))
        counts = x.coordinates.derived("voxels per cell", lambda: torch.bincount(parent, minlength=len(cells))).to(
            x.feats.dtype
        )
        divisor = counts + 1 if self.counts_zero else counts
        return SparseTensor((total / divisor[:, None]).to(x.feats.dtype), cells)


class SparseSubdivide(nn.Module):
    """Replace every voxel by its eight children, which copy its features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` to `[8 N, C]`, children of a voxel adjacent, z fastest."""
        # expand, not repeat_interleave: the gradient is then a sum over eight rows instead of scattered atomics.
        copies = x.feats[:, None].expand(-1, 8, -1).reshape(-1, x.feats.shape[1])
        return SparseTensor(copies, x.coordinates.finer())
