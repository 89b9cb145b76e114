"""The two masked transformers: where an object is, and what stands there. Tokens in, logits out.

Both read the words and, where they are given, the object's proportions and its number of cells, by cross-attention;
a token knows its cell by a learned table an axis, and how cells lie to each other by rotary angles an axis (Su et al.
2021). Objects of a batch are padded; padding is never attended to. Knows nothing of masks' schedules or draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.grids import sides_of
from vae_qwen3vl.creation.octree import BYTES

MASKED = -1
"""Stands where a byte or a code is yet to be said."""
_HIDDEN = 64
"""Width of the small networks that read a few numbers."""
_CODE_HIDDEN = 128


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a batch of B objects is to be like."""

    words: Tensor
    """float `[B, S, text_width]`, S > 0: vectors of the words, zeros where there are none."""
    words_mask: Tensor
    """bool `[B, S]`; False throughout for an object without words."""
    proportions: Tensor
    """float `[B, 3]`: sides of the box round the occupied cells, in sides of the grid."""
    cells: Tensor
    """float `[B]`: how many cells are occupied."""
    sizes_mask: Tensor
    """bool `[B, 2]`: whether proportions, and cells, are known."""

    def without_words(self) -> Conditions:
        """Return the same without a word."""
        return replace(self, words_mask=torch.zeros_like(self.words_mask))

    def keeping(self, words: Tensor, sizes: Tensor) -> Conditions:
        """Return the same with words where `words [B]`, and sizes where `sizes [B, 2]`, both bool, are True."""
        return replace(self, words_mask=self.words_mask & words[:, None], sizes_mask=self.sizes_mask & sizes)

    def twice(self) -> Conditions:
        """Return the objects with words, and then the same ones without."""
        bare = self.without_words()
        return Conditions(**{name: torch.cat([value, getattr(bare, name)]) for name, value in vars(self).items()})


class _Attention(nn.Module):
    """Attention of queries on keys, with heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, turn: Rotation | None) -> Tensor:
        """Return what `x [B, L, H]` finds in `memory [B, S, H]` where `mask [B, S]` is True (None: everywhere)."""
        query = self._split(self.query(x))  # [B, heads, L, H / heads]
        key, value = (self._split(part) for part in self.key_value(memory).chunk(2, dim=-1))
        if turn is not None:
            query, key = turn(query), turn(key)
        allowed = None if mask is None else mask[:, None, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Rotation:
    """Turns pairs of numbers of queries and keys by angles that grow with a cell's place along an axis.

    Args:
        centers: float `[B, L, 3]`, centers of the cells in cells of the finest grid.
        head_width: numbers of a head; a sixth of it are pairs of each axis, the rest stay.
        side: of the finest grid: the slowest pair turns once in about four times as much, the fastest in four cells.
    """

    def __init__(self, centers: Tensor, head_width: int, side: int) -> None:
        pairs = head_width // 6
        slowest = math.log(1 / side)
        speeds = torch.exp(torch.linspace(0, slowest, pairs, device=centers.device)) * (math.pi / 2)
        angles = (centers.float()[..., None] * speeds).flatten(2)[:, None]  # [B, 1, L, 3 pairs]
        self.cos, self.sin, self.turned = angles.cos(), angles.sin(), 3 * pairs

    def __call__(self, x: Tensor) -> Tensor:
        """Return queries or keys `[B, heads, L, W]` turned."""
        a, b, rest = x.split([self.turned, self.turned, x.shape[-1] - 2 * self.turned], dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class _Block(nn.Module):
    """Attention among cells, attention on the conditions, and a network for each token; each normed before."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.among = _Attention(width, config.heads)
        self.conditions = _Attention(width, config.heads)
        self.each = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, turn: Rotation, memory: Tensor, memory_mask: Tensor
    ) -> Tensor:  # [B, L, H]
        y = self.norms[0](x)
        x = x + self.dropout(self.among(y, y, mask, turn))
        x = x + self.dropout(self.conditions(self.norms[1](x), memory, memory_mask, None))
        out: Tensor = x + self.dropout(self.each(self.norms[2](x)))
        return out


def _small_network(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, width))


class _Memory(nn.Module):
    """The tokens that are attended to: one that is always there, proportions, number of cells, words.

    Every parameter takes part in every pass, known or not, as `DistributedDataParallel` wants it.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.side = config.side
        self.words = nn.Linear(config.text_width, config.width)
        self.proportions = _small_network(3, config.width)
        self.cells = _small_network(1, config.width)
        self.always = nn.Parameter(torch.randn(3, config.width) * 0.02)
        """The token that is always there, and what stands for unknown proportions and cells."""

    def forward(self, given: Conditions) -> tuple[Tensor, Tensor]:
        """Return tokens `[B, 3 + S, H]` and where they count, bool `[B, 3 + S]`."""
        words = self.words(given.words)  # [B, S, H]
        density = given.cells.clamp(min=1).log() / math.log(self.side**3)
        sizes = torch.stack([self.proportions(given.proportions), self.cells(density[:, None])], dim=1)  # [B, 2, H]
        always = self.always.to(words.dtype).expand(len(words), -1, -1)
        sizes = torch.where(given.sizes_mask[..., None], sizes, always[:, 1:])
        there = torch.ones_like(given.words_mask[:, :1]).expand(-1, 3)
        return torch.cat([always[:, :1], sizes, words], dim=1), torch.cat([there, given.words_mask], dim=1)


class _Trunk(nn.Module):
    """Blocks over tokens at cells.

    Args:
        config: the architecture.
        blocks: how many.
        sides: of the grids that cells may be of, coarse to fine.
    """

    def __init__(self, config: GeneratorConfig, blocks: int, sides: list[int]) -> None:
        super().__init__()
        self.side, self.head_width, self.sides = config.side, config.width // config.heads, sides
        self.memory = _Memory(config)
        self.places = nn.ParameterList([torch.randn(3, side, config.width) * 0.02 for side in sides])
        self.blocks = nn.ModuleList([_Block(config) for _ in range(blocks)])
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, cells: Tensor, mask: Tensor, side: int, given: Conditions) -> Tensor:
        """Return `[B, L, H]` for tokens `[B, L, H]` at cells `[B, L, 3]` of a grid of `side`; `mask [B, L]`."""
        table = self.places[self.sides.index(side)]
        x = tokens + sum(table[axis][cells[..., axis]] for axis in range(3))
        turn = Rotation((cells + 0.5) * (self.side / side), self.head_width, self.side)
        memory, memory_mask = self.memory(given)
        padded = None if bool(mask.all()) else mask
        for block in self.blocks:
            x = block(x, padded, turn, memory, memory_mask)
        out: Tensor = self.norm(x)
        return out


class WhereTransformer(nn.Module):
    """Bytes of cells, all of one level, from those of them that are known (see `octree`)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.sides = sides_of(config.side)
        self.trunk = _Trunk(config, config.where_blocks, self.sides)
        self.values = nn.Embedding(BYTES + 1, config.width)
        nn.init.normal_(self.values.weight, std=0.02)
        self.out = nn.Linear(config.width, BYTES)

    def forward(self, values: Tensor, cells: Tensor, mask: Tensor, side: int, given: Conditions) -> Tensor:
        """Return logits `[B, L, 256]`.

        Args:
            values: int64 `[B, L]`, bytes or `MASKED`.
            cells: int64 `[B, L, 3]`.
            mask: bool `[B, L]`, False for padding.
            side: of the cells' grid.
            given: conditions of the B objects.
        """
        tokens = self.values(torch.where(values == MASKED, BYTES, values))
        out: Tensor = self.out(self.trunk(tokens, cells, mask, side, given))
        return out


class WhatTransformer(nn.Module):
    """Codes of an object's occupied cells, from those of them that are known.

    A code goes in, and comes out, as what a small network makes of its codebook vector: no table grows with the
    codebook.

    Args:
        config: the architecture.
        codebook: float `[K, D]`; not part of the state.
    """

    codebook: Tensor

    def __init__(self, config: GeneratorConfig, codebook: Tensor) -> None:
        super().__init__()
        if codebook.shape != (config.codebook_size, config.code_width):
            raise ValueError(
                f"the generator is of a codebook [{config.codebook_size}, {config.code_width}], this one is "
                f"{list(codebook.shape)}"
            )
        self.side = config.side
        vectors = codebook.detach().float().clone()
        self.register_buffer("codebook", vectors / vectors.std().clamp(min=1e-6), persistent=False)
        self.trunk = _Trunk(config, config.what_blocks, [config.side])
        self.code = nn.Sequential(
            nn.Linear(config.code_width, _CODE_HIDDEN), nn.GELU(), nn.Linear(_CODE_HIDDEN, config.width)
        )
        self.masked = nn.Parameter(torch.randn(config.width) * 0.02)
        self.query = nn.Linear(config.width, config.width)
        self.usual = nn.Linear(config.width, 1)

    def code_tokens(self) -> Tensor:  # [K, H]
        """Return what stands for each code."""
        out: Tensor = self.code(self.codebook)
        return out

    def forward(self, codes: Tensor, cells: Tensor, mask: Tensor, given: Conditions, table: Tensor) -> Tensor:
        """Return queries `[B, L, H]`; their products with `table` and `biases` are logits.

        Args:
            codes: int64 `[B, L]`, codes or `MASKED`.
            cells: int64 `[B, L, 3]`.
            mask: bool `[B, L]`, False for padding.
            given: conditions of the B objects.
            table: `code_tokens()`.
        """
        known = table[codes.clamp(min=0)]
        tokens = torch.where((codes == MASKED)[..., None], self.masked.to(known.dtype), known)
        x = self.trunk(tokens, cells, mask, self.side, given)
        out: Tensor = self.query(x) * x.shape[-1] ** -0.5
        return out

    def biases(self, table: Tensor) -> Tensor:  # [K, H] -> [K]
        """Return how usual each code is."""
        out: Tensor = self.usual(table)[:, 0]
        return out
