"""A small transformer over the 3D tokens of each object, between its blocks of codes and the language model.

Knows rows and their places; knows neither codes nor language. Positions are rotary, an axis of space each: what a
token sees of another depends on the signed offset between them, so left and right differ, and parts can be counted.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_qwen3vl.sequence_3d import beside, object_counts, rank_in_object

WIDTH = 256
_HEAD = 64
_SHORTEST, _LONGEST = 2.0, 64.0
"""Wave lengths of the rotary positions, in blocks."""


class ShapeEncoder(nn.Module):
    """Lets the tokens of an object see one another (pre-norm transformer; Vaswani et al. 2017, Xiong et al. 2020).

    New layers change nothing: what they add begins at zero.

    Args:
        layers: number of layers.
        width: channels W of a row, a multiple of 64.
    """

    def __init__(self, layers: int, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, coords: Tensor, placed: Tensor | None = None) -> Tensor:  # [T, W]
        """Return the rows as they see the others of their object.

        Args:
            rows: `[T, W]`, sorted by object.
            coords: int `[T, 4]` = (object, x, y, z) in blocks; objects from 0 without a gap.
            placed: bool `[T]`; rows that stand nowhere (False) are seen from everywhere alike. None: all stand.
        """
        objects, counts = coords[:, 0], object_counts(coords)
        length = int(counts.max()) if len(counts) else 0
        place = beside(objects * length + rank_in_object(objects, counts), rows)  # [T]
        real = torch.zeros(len(counts) * length, dtype=torch.bool, device=rows.device).index_fill(0, place, True)
        real = real.view(len(counts), length)
        angles = _angles(beside(coords[:, 1:], rows), placed)[:, None]  # [T, 1, _HEAD / 2]
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            rows = layer(rows, cos, sin, place, real)
        return self.norm(rows)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        last = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), last)
        for linear in (self.out, last):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor, place: Tensor, real: Tensor) -> Tensor:  # [T, W]
        """Return the next rows. Attention alone is padded: row t stands at `place[t]` of the places `real [B, L]`."""
        q, k, v = self.qkv(self.attention_norm(rows)).unflatten(1, (3, self.heads, _HEAD)).unbind(1)
        qkv = torch.stack([_turned(q, cos, sin), _turned(k, cos, sin), v], dim=1)  # [T, 3, heads, _HEAD]
        padded = qkv.new_zeros(real.numel(), *qkv.shape[1:]).index_copy(0, place, qkv)
        q, k, v = padded.unflatten(0, real.shape).permute(2, 0, 3, 1, 4)  # each [B, heads, L, _HEAD]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        rows = rows + self.out(seen.transpose(1, 2).flatten(2).flatten(0, 1)[place])
        return rows + self.mlp(self.mlp_norm(rows))


def _angles(xyz: Tensor, placed: Tensor | None) -> Tensor:  # [T, 3] -> [T, _HEAD / 2]
    """Return by how much each pair of channels is turned: ten wave lengths an axis; two pairs are not."""
    waves = _HEAD // 2 // 3
    step = torch.arange(waves, dtype=torch.float32, device=xyz.device) / (waves - 1)
    rates = 2 * math.pi / (_SHORTEST * (_LONGEST / _SHORTEST) ** step)
    angles = F.pad((xyz.float()[:, :, None] * rates).flatten(1), (0, _HEAD // 2 - 3 * waves))
    return angles if placed is None else angles * beside(placed, angles)[:, None]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels (Su et al. 2021, "RoFormer")."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
