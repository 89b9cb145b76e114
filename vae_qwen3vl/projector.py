"""From codebook vectors to vectors the language model reads.

Knows widths and coordinates; knows neither the VAE nor the language model. The scale of the text embeddings is
given to it once (`output_rms`) and kept in its state, so that a saved projector is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vae_qwen3vl.sequence_3d import (
    beside,
    check_coords,
    coarse_occupancy,
    group_blocks,
    keep_head,
    object_counts,
    pool_to_budget,
    rank_in_object,
)
from vae_qwen3vl.shape_encoder import WIDTH, ShapeEncoder

MERGES = (1, 2, 4)
SHAPE_SIDE, _SHAPE_WIDTH = 8, 160
SHAPE_BOXES = SHAPE_SIDE**3
"""Boxes whose occupancy tells of an object as a whole."""
OverBudget = Literal["pool", "head"]


@dataclass(frozen=True, kw_only=True)
class Tokens3D:
    """3D tokens of a batch of objects, sorted by (batch, z, y, x); those of whole shapes come first, at (0, 0, 0)."""

    embeds: Tensor
    """`[T, H]`."""
    coords: Tensor
    """int64 `[T, 4]` = (object, x, y, z), in blocks."""


class PositionEncoder3D(nn.Module):
    """Turns integer or fractional coordinates into vectors, different ones for different coordinates.

    Args:
        hidden_size: width H of the result; at least 6 for "sinusoidal".
        max_coord: largest coordinate that "learned" can take.
        mode: "sinusoidal": sines and cosines per axis, no parameters. "learned": three tables, one an axis,
            summed (3 * (max_coord + 1) rows, not one row a cell).
    """

    def __init__(
        self, hidden_size: int, max_coord: int = 64, mode: Literal["sinusoidal", "learned"] = "sinusoidal"
    ) -> None:
        super().__init__()
        self.hidden_size, self.max_coord, self.mode = hidden_size, max_coord, mode
        if mode == "learned":
            self.tables = nn.Parameter(torch.randn(3, max_coord + 1, hidden_size) / 3**0.5)
        elif mode != "sinusoidal":
            raise ValueError(f"pos_mode must be 'sinusoidal' or 'learned', not {mode!r}")
        elif hidden_size < 6:
            raise ValueError(f"sinusoidal positions need a width of at least 6, not {hidden_size}")

    def forward(self, coords: Tensor) -> Tensor:  # [..., 3 or 4] -> [..., H]
        """Encode `(x, y, z)`, or `(batch, x, y, z)` whose batch column is left out."""
        xyz = coords[..., -3:]
        if self.mode == "learned":
            return self._look_up(xyz)
        count = self.hidden_size // 6
        # float32 whatever the coordinates are: integer or half-precision angles would be truncated
        steps = torch.arange(count, dtype=torch.float32, device=coords.device) / count
        angles = xyz.float()[..., None] * 10000.0**-steps  # [..., 3, count]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # [..., 6 * count]
        return nn.functional.pad(waves, (0, self.hidden_size - 6 * count))

    def _look_up(self, xyz: Tensor) -> Tensor:
        index = xyz.round().long() if xyz.is_floating_point() else xyz.long()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) > self.max_coord):
            raise ValueError(
                f"learned positions reach from 0 to max_coord={self.max_coord}, "
                f"got {int(index.min())} to {int(index.max())}"
            )
        return self.tables[0][index[..., 0]] + self.tables[1][index[..., 1]] + self.tables[2][index[..., 2]]


class Projector3D(nn.Module):
    """Maps codebook vectors to the language model's width and scale.

    `project` is the whole way: cells -> blocks of `merge`^3 -> vectors -> at most so many per object -> with
    `encoder_layers`, vectors that know the others of their object. `forward` is its middle without those layers, for
    rows that are ready (with `merge=1`: codebook vectors themselves, of any leading shape).

    Each output row has RMS `output_rms` times `1 + output_gain` (learned, zero at first), so that 3D tokens enter
    at the scale of the text embeddings. The vectors of the start and end markers are kept here too.

    Args:
        latent_dim: codebook width D.
        hidden_size: language-model width H.
        num_layers: 1 is one Linear; n >= 2 is an MLP of n Linears with GELU between.
        use_3d_pos: add `PositionEncoder3D` of the coordinates.
        pos_mode: its mode.
        max_coord: its largest coordinate.
        merge: latent cells per token and axis: 1, 2 or 4.
        shape_tokens: tokens in front of the others that tell of the object as a whole: a two-layer network on the
            occupancy of 8^3 boxes round it.
        encoder_layers: layers of a `ShapeEncoder` that all these tokens pass, of 256 channels; 0 is none.
    """

    output_rms: Tensor

    def __init__(
        self,
        latent_dim: int = 16,
        hidden_size: int = 1024,
        num_layers: int = 1,
        use_3d_pos: bool = False,
        pos_mode: Literal["sinusoidal", "learned"] = "sinusoidal",
        max_coord: int = 64,
        merge: int = 1,
        shape_tokens: int = 0,
        encoder_layers: int = 0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"projector_layers must be 1 (one Linear) or more (an MLP), not {num_layers}")
        if shape_tokens < 0:
            raise ValueError(f"shape_tokens must be 0 or more, not {shape_tokens}")
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {MERGES} cells per axis, not {merge}")
        self.latent_dim, self.hidden_size, self.num_layers, self.merge = (
            latent_dim,
            hidden_size,
            num_layers,
            merge,
        )
        self.use_3d_pos, self.pos_mode, self.max_coord = use_3d_pos, pos_mode, max_coord
        self.shape_tokens, self.encoder_layers = shape_tokens, encoder_layers
        self.in_features = latent_dim if merge == 1 else merge**3 * (latent_dim + 1)
        inner = WIDTH if encoder_layers else hidden_size
        layers: list[nn.Module] = [nn.Linear(self.in_features, inner)]
        for _ in range(num_layers - 1):
            layers += [nn.GELU(), nn.Linear(inner, inner)]
        self.proj = layers[0] if num_layers == 1 else nn.Sequential(*layers)
        if use_3d_pos:
            self.position = PositionEncoder3D(hidden_size, max_coord, pos_mode)
            self.position_gain = nn.Parameter(torch.ones(()))
        if shape_tokens:
            wide = shape_tokens * inner
            self.shape = nn.Sequential(nn.Linear(SHAPE_BOXES, _SHAPE_WIDTH), nn.GELU(), nn.Linear(_SHAPE_WIDTH, wide))
        if encoder_layers:
            self.encoder = ShapeEncoder(encoder_layers, inner)
            self.out = nn.Linear(inner, hidden_size)
        self.output_gain = nn.Parameter(torch.zeros(hidden_size))
        self.marker_vectors = nn.Parameter(torch.randn(2, hidden_size))
        self.register_buffer("output_rms", torch.ones(()))

    def forward(self, feats: Tensor, coords: Tensor | None = None) -> Tensor:  # [..., in_features] -> [..., H]
        """Project rows; `coords [..., 4]` are needed with `use_3d_pos`."""
        hidden = self._lift(feats)
        return self._finish(_unit_rms(self.out(hidden)) if self.encoder_layers else hidden, coords)

    def project(
        self, feats: Tensor, coords: Tensor, max_tokens: int = 0, over_budget: OverBudget = "pool"
    ) -> Tokens3D:
        """Turn the codes of a batch of objects into 3D tokens.

        Args:
            feats: `[M, D]` codebook vectors.
            coords: `[M, 4]` = (object, x, y, z) latent cells, in any order. On a CPU beside features on a GPU, they
                and the tokens' stay there, and nothing waits for the GPU.
            max_tokens: tokens an object may have, those of the whole shape among them; 0 or less means no limit.
            over_budget: "pool" averages neighbouring blocks of an object that has more, so that all of it is
                seen; "head" keeps its first `max_tokens` (the lowest z).

        Raises:
            ValueError: there are no codes, or none for a sample between others; a cell appears twice; or a width
                doesn't fit.
        """
        if 0 < max_tokens <= self.shape_tokens:
            raise ValueError(
                f"of {max_tokens} 3D tokens {self.shape_tokens} of the whole shape leave none for its parts"
            )
        if feats.ndim != 2 or feats.shape[1] != self.latent_dim:
            raise ValueError(
                f"expected 3D features [M, {self.latent_dim}] (latent_dim={self.latent_dim}), got {list(feats.shape)}"
            )
        if not len(feats):
            raise ValueError("the 3D batch holds no codes at all: every sample needs at least one")
        cells = check_coords(coords)
        rows, blocks = group_blocks(feats, cells, self.merge)
        max_tokens -= self.shape_tokens if max_tokens > 0 else 0
        if over_budget == "head":
            rows, blocks = keep_head(rows, blocks, max_tokens)
            hidden = self._lift(rows)
        else:
            hidden, blocks = pool_to_budget(self._lift(rows), blocks, max_tokens)
        if self.encoder_layers:
            return self._encoded(hidden, blocks, cells)
        embeds = self._finish(hidden, blocks)
        if not self.shape_tokens:
            return Tokens3D(embeds=embeds, coords=blocks)
        whole, order, merged = self._with_whole(self.shape_vectors(coarse_occupancy(cells, SHAPE_SIDE)), blocks)
        return Tokens3D(embeds=torch.cat([whole, embeds])[beside(order, embeds)], coords=merged)

    def blocks(self, feats: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the encoder makes of each block of `merge`^3 cells, for lessons without a language model.

        Arguments are those of `project`; no block is pooled or cut.

        Returns:
            `[T, W]` before the map to the language model's width, and the blocks int64 `[T, 4]`.
        """
        cells = check_coords(coords)
        rows, blocks = group_blocks(feats, cells, self.merge)
        hidden, merged, placed = self._seen(self._lift(rows), blocks, cells)
        stand = placed.nonzero().squeeze(1)
        return hidden[beside(stand, hidden)], merged[stand]

    def _encoded(self, hidden: Tensor, blocks: Tensor, cells: Tensor) -> Tokens3D:
        """Return the tokens of rows `[T, W]` of blocks after the encoder, those of the whole in front."""
        hidden, merged, _ = self._seen(hidden, blocks, cells)
        return Tokens3D(embeds=self._finish(_unit_rms(self.out(hidden)), merged), coords=merged)

    def _seen(self, hidden: Tensor, blocks: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows after the encoder, where they stand, and which of them stand for a block."""
        merged = blocks
        if self.shape_tokens:
            whole, order, merged = self._with_whole(self._of_the_whole(coarse_occupancy(cells, SHAPE_SIDE)), blocks)
            hidden = torch.cat([whole, hidden])[beside(order, hidden)]
        placed = rank_in_object(merged[:, 0], object_counts(merged)) >= self.shape_tokens
        return self.encoder(hidden, merged, placed), merged, placed

    def _with_whole(self, whole: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors of the whole, the order that puts them in front of each object's blocks, and all places."""
        front = blocks.new_zeros(len(whole), 4)
        front[:, 0] = torch.arange(len(whole), device=blocks.device) // self.shape_tokens
        merged = torch.cat([front, blocks])
        order = merged[:, 0].argsort(stable=True)
        return whole, order, merged[order]

    def no_tokens(self, device: torch.device) -> Tokens3D:
        """Return the tokens of no object, which hang on the parameters: under DDP text alone takes part as well.

        Their coordinates are on `device`.
        """
        gain = self.output_gain
        coords = torch.zeros((0, 4), dtype=torch.long, device=device)
        embeds = self(gain.new_zeros((0, self.in_features)), coords)
        if self.shape_tokens:
            embeds = torch.cat([embeds, self.shape_vectors(gain.new_zeros((0, SHAPE_BOXES)))])
        if self.encoder_layers:
            embeds = embeds + 0 * sum(p.sum() for p in self.encoder.parameters())
        return Tokens3D(embeds=embeds, coords=coords)

    def shape_vectors(self, occupancy: Tensor) -> Tensor:  # [O, SHAPE_BOXES] -> [O * n, H]
        """Return the n = `shape_tokens` tokens of each object as a whole, from its `coarse_occupancy`.

        With an encoder they have not seen the object's parts here.
        """
        vectors = self._of_the_whole(occupancy)
        return self._scaled(self.out(vectors) if self.encoder_layers else vectors)

    def markers(self) -> Tensor:  # [2, H]
        """Return the vectors of the start and the end marker."""
        return self.marker_vectors * self.output_rms

    def _of_the_whole(self, occupancy: Tensor) -> Tensor:  # [O, SHAPE_BOXES] -> [O * n, H or W]
        vectors = self.shape(_unit_rms(beside(occupancy, self.output_gain).to(self.output_gain.dtype)))
        return vectors.unflatten(1, (self.shape_tokens, -1)).flatten(0, 1)

    def _lift(self, feats: Tensor) -> Tensor:  # [..., in_features] -> [..., H or W], unit RMS
        if feats.shape[-1] != self.in_features:
            raise ValueError(
                f"Projector3D(latent_dim={self.latent_dim}, merge={self.merge}) takes rows of width "
                f"{self.in_features}, got {feats.shape[-1]}; project() groups cells into such rows"
            )
        return _unit_rms(self.proj(feats.to(self.output_gain.dtype)))

    def _finish(self, hidden: Tensor, coords: Tensor | None) -> Tensor:  # [..., H]
        if self.use_3d_pos:
            if coords is None:
                raise ValueError("this projector has use_3d_pos=True: pass coords [..., 4] with the features")
            hidden = hidden + self.position_gain * self.position(beside(coords, hidden))
        return self._scaled(hidden)

    def _scaled(self, hidden: Tensor) -> Tensor:  # [..., H]
        return _unit_rms(hidden) * (self.output_rms * (1 + self.output_gain))


def _unit_rms(hidden: Tensor) -> Tensor:
    wide = hidden.float()
    return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-12)
