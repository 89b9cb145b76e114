"""The codes of one object and their file: what an object is after encoding, with its way back to source units."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.runtime import atomic_path
from sdf_vqvae.sparse.tensor import SparseTensor

_FORMAT = "sdf-vqvae-codes/1"


@dataclass(frozen=True, kw_only=True)
class ShapeCodes:
    """Discrete codes of one object on the latent grid.

    The file is safetensors: `codes [M]` int32, `coords [M, 3]` int16, everything else as JSON under the
    metadata key `shape_codes`.
    """

    codes: Tensor
    """int32 `[M]`."""
    coords: Tensor
    """int32 `[M, 3]` = (x, y, z), rows sorted."""
    latent_resolution: int
    data_resolution: int
    center: tuple[float, float, float]
    """world = (source - center) * scale."""
    scale: float
    vae_hash: str
    """`SparseSDFVQVAE.fingerprint()` of the tokenizer that made the codes."""

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        if self.codes.ndim != 1 or self.coords.shape != (len(self.codes), 3) or len(self.codes) == 0:
            raise ValueError(
                f"codes must have shape [M] and coords [M, 3], M > 0; got {list(self.codes.shape)} "
                f"and {list(self.coords.shape)}"
            )
        if int(self.coords.min()) < 0 or int(self.coords.max()) >= self.latent_resolution:
            raise ValueError(f"code coordinates leave the latent grid of {self.latent_resolution}^3")

    @property
    def bits(self) -> int:
        """Bits of the codes alone, at 13 bits a code and 3 log2(side) a coordinate triple, not compressed."""
        side_bits = (self.latent_resolution - 1).bit_length()
        return len(self.codes) * (13 + 3 * side_bits)

    def to_sparse_tensor(self, device: torch.device | str = "cpu") -> SparseTensor:
        """Return what `SparseSDFVQVAE.Decode` takes: feats `[M, 1]` int64 on the latent grid."""
        coords = torch.cat([torch.zeros_like(self.coords[:, :1]), self.coords], dim=1)
        return SparseTensor(self.codes.long()[:, None].to(device), coords.to(device), side=self.latent_resolution)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing an earlier one only when complete."""
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "latent_resolution": self.latent_resolution,
            "data_resolution": self.data_resolution,
            "center": list(self.center),
            "scale": self.scale,
            "vae_hash": self.vae_hash,
        }
        tensors = {
            "codes": self.codes.to(torch.int32).cpu().contiguous(),
            "coords": self.coords.to(torch.int16).cpu().contiguous(),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"shape_codes": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShapeCodes:
        """Read a codes file.

        Raises:
            ValueError: the file is not a codes file or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["shape_codes"])
                codes, coords = file.get_tensor("codes"), file.get_tensor("coords")
            if about["format"] != _FORMAT:
                raise ValueError(f"{path}: codes of format {about['format']!r}, this version reads {_FORMAT!r}")
            x, y, z = about["center"]
            return cls(
                codes=codes.to(torch.int32),
                coords=coords.to(torch.int32),
                latent_resolution=int(about["latent_resolution"]),
                data_resolution=int(about["data_resolution"]),
                center=(float(x), float(y), float(z)),
                scale=float(about["scale"]),
                vae_hash=str(about["vae_hash"]),
            )
        except OSError as error:
            raise ValueError(f"cannot read the codes file {path}: {error}") from error
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a codes file: {error}") from error
