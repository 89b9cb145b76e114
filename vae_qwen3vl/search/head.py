"""The map from an object's 3D tokens to the space of sentences: what it reads, what it computes, its file.

Knows tokens and numbers; nothing of folders, and nothing of how it was trained (`training.search_head`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.projector import Tokens3D
from vae_qwen3vl.sequence_3d import object_counts, rank_in_object

_KEY = "vae_qwen3vl.search_head"


def shape_features(tokens: Tokens3D, scale: Tensor, shape_tokens: int) -> Tensor:  # [O, (1 + n) H]
    """Return what is read of each object: the mean of the tokens of its parts, then its n tokens of the whole.

    Each token of the whole has columns of its own: in one mean with a hundred others it would hardly count.

    Args:
        tokens: of O objects.
        scale: the tokens' usual RMS, a number.
        shape_tokens: n, how many of an object's tokens, the first ones, tell of it as a whole.
    """
    objects, embeds = tokens.coords[:, 0], tokens.embeds.float() / scale
    counts = object_counts(tokens.coords)  # [O]
    whole = rank_in_object(objects, counts) < shape_tokens
    sums = torch.zeros(len(counts), embeds.shape[1], device=embeds.device)
    means = sums.index_add(0, objects[~whole], embeds[~whole]) / (counts[:, None] - shape_tokens)
    return torch.cat([means, embeds[whole].reshape(len(counts), -1)], dim=1)


@dataclass(frozen=True, kw_only=True)
class SearchHead:
    """An affine map from a shape's features to the space of a sentence model, whose results have length 1.

    The file is safetensors with `weight` and `bias` in float16; the rest is JSON under a metadata key.
    """

    weight: Tensor
    """`[E, F]`."""
    bias: Tensor
    """`[E]`."""
    projector_hash: str
    """SHA-256 of the file of the projector whose tokens it reads."""
    sentence_model: str
    """Whose sentences it is compared with."""
    trained_on: str
    """What it learned from, in words."""

    def __post_init__(self) -> None:
        """Check shapes and values."""
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"weight must be [E, F] and bias [E], got {list(self.weight.shape)} and {list(self.bias.shape)}"
            )
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise ValueError("a weight is not finite")

    def __call__(self, features: Tensor) -> Tensor:  # [O, F] -> [O, E]
        """Return vectors of length 1."""
        if features.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"the head reads {self.weight.shape[1]} features, the projector gives {features.shape[1]}"
            )
        return F.normalize(F.linear(features, self.weight, self.bias), dim=1)

    def to(self, device: torch.device | str) -> SearchHead:
        """Return it on another device."""
        return dataclasses.replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        about = {name: getattr(self, name) for name in ("projector_hash", "sentence_model", "trained_on")}
        tensors = {name: getattr(self, name).detach().to("cpu", torch.float16) for name in ("weight", "bias")}
        write_safetensors(path, tensors, {_KEY: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchHead:
        """Read the file.

        Raises:
            ValueError: it is no search head, or damaged.
        """
        tensors, metadata = read_safetensors(path, "search head", ("weight", "bias"))
        try:
            about = parse_json(metadata[_KEY])
            texts = {name: str(about[name]) for name in ("projector_hash", "sentence_model", "trained_on")}
            return cls(weight=tensors["weight"].float(), bias=tensors["bias"].float(), **texts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a search head: {brief(error)}") from error
