"""Vectors of shapes: codes through the projector and the search head. Knows no folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sdf_vqvae.utils.files import sha256_of
from vae_qwen3vl.projector import SHAPE_SIDE, Projector3D
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector
from vae_qwen3vl.search.head import SearchHead, shape_features
from vae_qwen3vl.sequence_3d import coarse_occupancy, joined_coords
from vae_qwen3vl.trained_parts import shipped_weights
from vae_qwen3vl.vae_latent_extractor import look_up

HEAD_NAME = "search_head.safetensors"
"""Name of the shipped head."""
_CODES_AT_ONCE = 200_000


@dataclass(frozen=True, kw_only=True)
class ShapeTokens:
    """A projector, frozen, and what it gives a search to read."""

    projector: Projector3D
    description: ProjectorDescription
    codebook: Tensor
    """float32 `[K, D]`, of the tokenizer that it was trained with."""

    @classmethod
    def load(cls, projector: Path, codebook: Tensor, device: torch.device | str = "cpu") -> ShapeTokens:
        """Load a projector's file. Raises a ValueError if it is none, or reads vectors of another width."""
        network, description = load_projector(projector)
        if description.latent_dim != codebook.shape[1]:
            raise ValueError(
                f"{projector} reads codes of width {description.latent_dim}, the codebook's have {codebook.shape[1]}"
            )
        network = network.float().to(device).eval()
        return cls(projector=network, description=description, codebook=codebook.to(device))

    @torch.inference_mode()
    def features(self, codes: Sequence[Tensor], coords: Sequence[Tensor]) -> Tensor:  # [O, F]
        """Return what a search head reads of O objects, with codes `[M]` and coordinates `[M, 3]` each.

        `shape_features` of their tokens, and how full the boxes round them are: of these the tokens of the whole keep
        what helped to describe it, and words are found by more.

        Raises:
            ValueError: a code is not in the codebook, or see `Projector3D.project`.
        """
        parts, start, waiting = [], 0, 0
        for stop, own in enumerate(codes, 1):
            waiting += len(own)
            if waiting > _CODES_AT_ONCE or stop == len(codes):
                parts.append(self._features(torch.cat(list(codes[start:stop])), joined_coords(coords[start:stop])))
                start, waiting = stop, 0
        return torch.cat(parts)

    @torch.inference_mode()
    def features_of_the_whole(self, coords: Sequence[Tensor]) -> Tensor:  # [O, F]
        """Return `features` of objects whose coordinates `[M, 3]` alone are known: zeros for the tokens of parts."""
        occupancy = coarse_occupancy(joined_coords(coords).long().to(self.codebook.device), SHAPE_SIDE)
        whole = self.projector.shape_vectors(occupancy) / self.projector.output_rms  # [O * n, H]
        told = torch.cat([whole.reshape(len(coords), -1), occupancy.float()], dim=1)
        return F.pad(told, (self.projector.hidden_size, 0))

    def _features(self, codes: Tensor, coords: Tensor) -> Tensor:
        cells = coords.long().to(self.codebook.device)
        feats = look_up(codes, self.codebook)  # [M, D]
        about = self.description
        tokens = self.projector.project(feats, cells, about.max_3d_tokens, about.truncate_mode)
        told = shape_features(tokens, self.projector.output_rms, about.shape_tokens)
        return torch.cat([told, coarse_occupancy(cells, SHAPE_SIDE).float()], dim=1)


@dataclass(frozen=True, kw_only=True)
class ShapeVectors:
    """Codes in, vectors out that lie near those of what one says about the shape."""

    tokens: ShapeTokens
    head: SearchHead

    @classmethod
    def load(cls, projector: Path, head: Path, codebook: Tensor, device: torch.device | str = "cpu") -> ShapeVectors:
        """Load the files of a projector and of a head that was trained on its tokens.

        Raises:
            ValueError: one of them is no such file, or they don't belong together.
        """
        read = SearchHead.load(head)
        if read.projector_hash != sha256_of(projector):
            raise ValueError(
                f"the search head {head} was trained on the tokens of another projector than {projector}: "
                "scripts/train_search_head.py trains one for it"
            )
        return cls(tokens=ShapeTokens.load(projector, codebook, device), head=read.to(device))

    def __call__(self, codes: Sequence[Tensor], coords: Sequence[Tensor]) -> Tensor:  # [O, E]
        """Return the vectors, float32 of length 1, of O objects with codes `[M]` and coordinates `[M, 3]` each."""
        return self.head(self.tokens.features(codes, coords))


def shipped_search_weights() -> tuple[Path, Path]:
    """Return the files of the shipped projector and search head. Raises a ValueError where one is not installed."""
    projector, _ = shipped_weights()
    head = Path(str(resources.files("vae_qwen3vl") / "weights" / HEAD_NAME))
    if projector is None or not head.is_file():
        raise ValueError("this installation ships no weights for a search: give --projector_ckpt and --search_head")
    return projector, head
