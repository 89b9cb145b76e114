"""Codes of many objects in one file: encode once, train many times.

Knows objects by their ids and the tokenizer by its fingerprint; captions and batches are others'.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.codes.shape_codes import check_shapes
from sdf_vqvae.geometry.up import Up, check_up
from sdf_vqvae.quantizers.quantizer import first_codes
from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.strict_files import parse_json

_FORMAT = "sdf-vqvae-code-cache/1"


@dataclass(frozen=True, kw_only=True)
class CodeCache:
    """Codes of n objects, one after another.

    The file is safetensors with `codes [T]` or `[T, 2]` int32, `coords [T, 3]` int16 and `splits [n + 1]` int64;
    ids, failures, ways of standing and the fingerprint are JSON under the metadata key `code_cache`.
    """

    codes: Tensor
    """int32 `[T]` or `[T, 2]`; see `ShapeCodes`."""
    coords: Tensor
    """int16 `[T, 3]` = (x, y, z) on the latent grid."""
    splits: Tensor
    """int64 `[n + 1]`: where each object begins."""
    ids: tuple[str, ...]
    failures: dict[str, str]
    """Reason by id of every object that could not be encoded."""
    vae_hash: str
    """`SparseSDFVQVAE.fingerprint()` of the tokenizer that made the codes."""
    ups: tuple[Up, ...] = ()
    """How each object's source stands. Files of earlier versions don't say it: theirs stand along y."""

    def __post_init__(self) -> None:
        """Check types and shapes, and that each object has its codes."""
        check_shapes(self.codes, self.coords)
        total = len(self.codes)
        kinds = (self.codes.dtype, self.coords.dtype, self.splits.dtype)
        if kinds != (torch.int32, torch.int16, torch.int64):
            raise ValueError(
                "codes must be int32, coords int16 and splits int64, got " + ", ".join(str(kind) for kind in kinds)
            )
        if self.splits.shape != (len(self.ids) + 1,) or len(set(self.ids)) < len(self.ids):
            raise ValueError(
                f"{len(self.ids)} different ids need as many splits and one, got {list(self.splits.shape)}"
            )
        ends = [int(self.splits[0]), int(self.splits[-1])]
        if ends != [0, total] or bool((self.splits[1:] <= self.splits[:-1]).any()):
            raise ValueError(f"splits must ascend from 0 to {total}, got {ends[0]}..{ends[1]}")
        if len(self.ups) not in (0, len(self.ids)):
            raise ValueError(f"{len(self.ids)} objects need as many ways to stand, got {len(self.ups)}")
        for up in self.ups:
            check_up(up.axis)
        least = total and min(int(first_codes(self.codes).min()), int(self.coords.min()), int(self.codes.min()) + 1)
        if least < 0:
            raise ValueError("codes and coords are numbers from 0 (second codes from -1)")

    def __len__(self) -> int:
        return len(self.ids)

    def object(self, i: int) -> tuple[Tensor, Tensor]:
        """Return codes `[M]` or `[M, 2]` and coordinates `[M, 3]` of object i."""
        start, stop = int(self.splits[i]), int(self.splits[i + 1])
        return self.codes[start:stop], self.coords[start:stop]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing an earlier one only when complete."""
        about = {"format": _FORMAT, "ids": self.ids, "failures": self.failures, "vae_hash": self.vae_hash}
        about |= {"up": [up.axis for up in self.ups], "up_from": [up.known_from for up in self.ups]}
        tensors = {"codes": self.codes, "coords": self.coords, "splits": self.splits}
        write_safetensors(path, tensors, {"code_cache": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeCache:
        """Read the file.

        Raises:
            ValueError: the file is not a code cache, or damaged.
        """
        tensors, metadata = read_safetensors(path, "code cache", ("codes", "coords", "splits"))
        try:
            about = parse_json(metadata["code_cache"])
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}, this version reads {_FORMAT!r}")
            return cls(
                **tensors,
                ids=tuple(str(name) for name in about["ids"]),
                failures={str(name): str(why) for name, why in about["failures"].items()},
                vae_hash=str(about["vae_hash"]),
                ups=tuple(
                    Up(axis=str(axis), known_from=str(known_from))
                    for axis, known_from in zip(about.get("up", ()), about.get("up_from", ()), strict=True)
                ),
            )
        except KeyError as error:
            raise ValueError(f"{path} is not a code cache: it lacks {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path} is not a code cache: {brief(error)}") from error
