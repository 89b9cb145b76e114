"""The codes of one object and their file: what an object is after encoding, with its way back to source units."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdf_vqvae.geometry import MAX_RESOLUTION
from sdf_vqvae.geometry.up import Up, check_up
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.quantizers.quantizer import first_codes
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.strict_files import parse_json

CODES_SUFFIX = ".safetensors"
"""How the name of a codes file ends."""
_FORMAT = "sdf-vqvae-codes/1"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class ShapeCodes:
    """Discrete codes of one object, standing along +y, on the latent grid.

    The file is safetensors: `codes [M]` or `[M, 2]` int32, `coords [M, 3]` int16, everything else as JSON under the
    metadata key `shape_codes`.
    """

    codes: Tensor
    """int32 `[M]`; or, of tokenizers whose cells may have two codes, `[M, 2]`, the second -1 where there is none."""
    coords: Tensor
    """int32 `[M, 3]` = (x, y, z), rows sorted."""
    latent_resolution: int
    data_resolution: int
    center: tuple[float, float, float]
    """world = R(up) @ (source - center) * scale."""
    scale: float
    vae_hash: str
    """`SparseSDFVQVAE.fingerprint()` of the tokenizer that made the codes."""
    up: str = "y"
    """The axis of the source that points up; R(up) is its `rotation`."""
    up_from: str = ""
    """Where that is known from (see `Up`); empty where nobody said."""

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        check_shapes(self.codes, self.coords)
        if len(self.codes) == 0:
            raise ValueError("there must be at least one code, got none")
        if int(self.coords.min()) < 0 or int(self.coords.max()) >= self.latent_resolution:
            raise ValueError(f"code coordinates leave the latent grid of {self.latent_resolution}^3")
        if int(self.first.min()) < 0 or int(self.codes.min()) < -1:
            raise ValueError(f"codes are numbers from 0, got {int(self.codes.min())}")
        if not 1 <= self.latent_resolution <= self.data_resolution <= MAX_RESOLUTION:
            raise ValueError(
                f"a latent grid of {self.latent_resolution}^3 and a data grid of {self.data_resolution}^3 don't fit: "
                f"1 <= latent <= data <= {MAX_RESOLUTION}"
            )
        if not all(math.isfinite(v) for v in self.center):
            raise ValueError(f"center must be three finite numbers, got {self.center}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {self.scale}")
        check_up(self.up)

    @property
    def first(self) -> Tensor:
        """The first code of each cell, int32 `[M]`: what language reads."""
        return first_codes(self.codes)

    @property
    def count(self) -> int:
        """How many codes there are, second ones among them."""
        return code_count(self.codes)

    def to_sparse_tensor(self, device: torch.device | str = "cpu") -> SparseTensor:
        """Return what `SparseSDFVQVAE.Decode` takes: feats `[M, 1]` or `[M, 2]` int64 on the latent grid."""
        coords = torch.cat([torch.zeros_like(self.coords[:, :1]), self.coords], dim=1)
        feats = self.codes.long().view(len(coords), -1)
        return SparseTensor(feats.to(device), coords.to(device), side=self.latent_resolution)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing an earlier one only when complete."""
        about = {
            "format": _FORMAT,
            "latent_resolution": self.latent_resolution,
            "data_resolution": self.data_resolution,
            "center": list(self.center),
            "scale": self.scale,
            "vae_hash": self.vae_hash,
            "up": self.up,
            "up_from": self.up_from,
        }
        tensors = {
            "codes": self.codes.to(torch.int32).cpu().contiguous(),
            "coords": self.coords.to(torch.int16).cpu().contiguous(),
        }
        write_safetensors(path, tensors, {"shape_codes": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShapeCodes:
        """Read a codes file.

        Raises:
            ValueError: the file is not a codes file or is damaged.
        """
        tensors, metadata = read_safetensors(path, "codes file", ("codes", "coords"))
        try:
            about = parse_json(metadata["shape_codes"])
            if about["format"] != _FORMAT:
                raise ValueError(f"codes of format {about['format']!r}, this version reads {_FORMAT!r}")
            for name, tensor in tensors.items():
                if tensor.dtype not in _INTEGERS:
                    raise ValueError(f"{name} must be integers, got {tensor.dtype}")
            x, y, z = about["center"]
            shape = cls(
                codes=tensors["codes"],
                coords=tensors["coords"],
                latent_resolution=int(about["latent_resolution"]),
                data_resolution=int(about["data_resolution"]),
                center=(float(x), float(y), float(z)),
                scale=float(about["scale"]),
                vae_hash=str(about["vae_hash"]),
                # Files of earlier versions don't have these: theirs stand along y.
                up=str(about.get("up", "y")),
                up_from=str(about.get("up_from", "")),
            )
            if int(shape.codes.max()) >= 2**31:
                raise ValueError(f"codes are 32-bit numbers, got {int(shape.codes.max())}")
            if len(torch.unique(shape.coords.long(), dim=0)) < len(shape.codes):
                raise ValueError("coords holds a cell more than once")
            return replace(shape, codes=shape.codes.to(torch.int32), coords=shape.coords.to(torch.int32))
        except KeyError as error:
            raise ValueError(f"{path} is not a codes file: it lacks {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is not a codes file: {brief(error)}") from error


def check_shapes(codes: Tensor, coords: Tensor) -> None:
    """Raise a ValueError unless these are codes `[M]` or `[M, 2]` and coordinates `[M, 3]`."""
    if list(codes.shape[1:]) not in ([], [2]) or codes.ndim == 0 or coords.shape != (len(codes), 3):
        raise ValueError(
            f"codes must have shape [M] or [M, 2] and coords [M, 3]; got {list(codes.shape)} and {list(coords.shape)}"
        )


def code_count(codes: Tensor) -> int:
    """Return how many codes `[M]` or `[M, 2]` are, second ones among them."""
    return int((codes >= 0).sum())


def codes_of_cells(encoded: SparseTensor) -> Tensor:
    """Return what `SparseSDFVQVAE.Encode` gave as codes int32 `[M]` or `[M, 2]` on the CPU."""
    return encoded.feats.to("cpu", torch.int32).squeeze(1)


def check_codes(vae: SparseSDFVQVAE, codes: ShapeCodes) -> None:
    """Raise a ValueError unless the codes were made by this tokenizer and are in its codebook."""
    here = vae.fingerprint()
    if codes.vae_hash != here:
        raise ValueError(
            f"the codes were made by the VAE {codes.vae_hash[:12]}, but this one is {here[:12]}: "
            "give the --vae_config and --vae_ckpt they were made with"
        )
    grids = (vae.config.latent_resolution, vae.config.data_resolution)
    if (codes.latent_resolution, codes.data_resolution) != grids:
        raise ValueError(
            f"the codes are of a latent grid of {codes.latent_resolution}^3 and a data grid of "
            f"{codes.data_resolution}^3, but the VAE's are {grids[0]}^3 and {grids[1]}^3: the codes file is damaged"
        )
    columns = codes.codes.view(len(codes.coords), -1).unbind(1)
    sizes = [vae.config.num_embeddings, vae.config.second_codes][: vae.vq.columns]
    if len(columns) != len(sizes):
        raise ValueError(f"there are up to {len(columns)} codes a cell, but the VAE has {len(sizes)}: a damaged file")
    for column, size in zip(columns, sizes, strict=True):
        if int(column.max()) >= size:
            raise ValueError(f"codes must lie in 0..{size - 1}, got {int(column.min())}..{int(column.max())}")


def up_of_codes(codes: ShapeCodes, asked: str | None) -> Up:
    """Return which way the source of codes stands. Raises a ValueError if another way is asked for."""
    if asked not in (None, codes.up):
        raise ValueError(
            f"--up {asked}: the codes are of an object that stands along {codes.up} of its source, and can't be "
            "turned: encode the mesh again"
        )
    return Up(axis=codes.up, known_from=codes.up_from or "as it was encoded")
