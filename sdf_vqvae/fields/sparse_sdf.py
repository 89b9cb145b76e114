"""One object's distance field, described well enough to be used by anyone, and its `.npz` file.

Knows nothing of codes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import trimesh
from torch import Tensor, nn

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh
from sdf_vqvae.geometry.up import check_up, rotation
from sdf_vqvae.geometry.volume import SIGN_METHOD, LabelSurface, label_field
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.sparse.coordinates import linear_keys
from sdf_vqvae.utils.archives import npz_shapes, read_npz, write_npz
from sdf_vqvae.utils.files import atomic_path, regular_file
from sdf_vqvae.utils.runtime import resolve_device

_FORMAT = 1
MAX_VOXELS = 2**26
"""Most voxels of a field file: 67 million. A shell of band 3 round a large surface has 37 million at 1024^3."""
_COLUMN_BYTES = {"sparse_sdf": 8 * MAX_VOXELS, "sparse_index": 3 * 8 * MAX_VOXELS}
_ORIGINAL = ("sparse_sdf", "sparse_index", "resolution")
_DESCRIPTION = ("kind", "unit", "band", "sampling", "center", "scale", "watertight", "sign_method", "format")
_UP = ("up", "up_from")  # files of earlier versions lack them: theirs stand along y
# Later files of the original system: signed distances over this band, in voxels, clipped to -1..1.
_LATER_ORIGINAL_BAND = "extra_band_factor"
_KEYS = (*_ORIGINAL, _LATER_ORIGINAL_BAND, *_DESCRIPTION, *_UP)


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseSDF:
    """The distance field of one object, standing along +y, on the voxels near its surface."""

    sdf: Tensor
    """float32 `[N]`, in the unit of the field."""
    index: Tensor
    """int32 `[N, 3]` = (x, y, z) in 0..R-1."""
    field: FieldDescription
    center: tuple[float, float, float]
    """world = R(up) @ (source - center) * scale."""
    scale: float
    watertight: bool
    """Whether the source mesh was closed."""
    sign_method: str
    """`winding`, `winding+shell`, `volume` (the label of a scan) or `none`."""
    up: str = "y"
    """The axis of the source that points up, one of `UP_AXES`; R(up) is its `rotation`."""
    up_from: str = ""
    """Where that is known from (see `Up`); empty where nobody said."""

    def __post_init__(self) -> None:
        """Check shapes, ranges and finiteness; one voxel is checked to stand once only where a file is read."""
        if self.sdf.ndim != 1 or self.index.shape != (len(self.sdf), 3) or len(self.sdf) == 0:
            raise ValueError(
                f"sdf must have shape [N] and index [N, 3], N > 0; got {list(self.sdf.shape)} "
                f"and {list(self.index.shape)}"
            )
        if self.index.is_floating_point() or not self.sdf.is_floating_point():
            raise ValueError(f"sdf must be floats and index integers, got {self.sdf.dtype} and {self.index.dtype}")
        low, high = (int(v) for v in torch.aminmax(self.index))
        if low < 0 or high >= self.field.resolution:
            raise ValueError(f"index must lie in 0..{self.field.resolution - 1}, got {low}..{high}")
        if not bool(torch.isfinite(self.sdf).all()):
            raise ValueError("sdf holds values that are not finite")
        if self.field.unit == "band" and float(self.sdf.abs().max()) > 1 + 1e-6:
            raise ValueError("sdf in units of the band must lie in -1..1")
        if self.field.kind == "udf" and float(self.sdf.min()) < 0:
            raise ValueError("sdf holds negative values, but the field is of kind 'udf' (unsigned)")
        if len(self.center) != 3 or not all(math.isfinite(v) for v in self.center):
            raise ValueError(f"center must be three finite numbers, got {self.center}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {self.scale}")
        check_up(self.up)

    @classmethod
    def from_mesh(
        cls,
        mesh: str | os.PathLike[str] | trimesh.Trimesh,
        resolution: int = 256,
        *,
        band: float = 3.0,
        signed: bool = True,
        up: str = "y",
        device: str | torch.device | None = None,
    ) -> SparseSDF:
        """Voxelize a mesh file or a trimesh object.

        Args:
            mesh: path or mesh, in any units.
            resolution: grid side R, 8..1024.
            band: half width in voxels of the stored shell.
            signed: False for unsigned distances (kind `udf`).
            up: the axis of the mesh that points up. By default nothing is turned, whatever the file's format.
            device: where to compute; CUDA where present by default. The result stays there.

        Raises:
            ValueError: the mesh cannot be read or used; see `load_mesh`, `normalize_mesh` and `voxelize`.
        """
        source = mesh if isinstance(mesh, trimesh.Trimesh) else load_mesh(mesh)
        normalized = normalize_mesh(source, up)
        target = resolve_device(device)
        voxels = voxelize(
            normalized.vertices.to(target),
            normalized.faces.to(target),
            resolution=resolution,
            band=band,
            signed=signed,
            watertight=normalized.watertight,
        )
        return cls(
            sdf=voxels.distance,
            index=voxels.index,
            field=FieldDescription(
                kind="sdf" if signed else "udf", unit="band", band=band, sampling="center", resolution=resolution
            ),
            center=normalized.center,
            scale=normalized.scale,
            watertight=normalized.watertight,
            sign_method=voxels.sign_method,
            up=up,
        )

    @classmethod
    def from_label(
        cls,
        surface: LabelSurface,
        resolution: int = 256,
        *,
        band: float = 3.0,
        up: str = "y",
        device: str | torch.device | None = None,
    ) -> SparseSDF:
        """Voxelize the surface of a label of a scan (`sdf_vqvae.geometry.volume.label_surface`).

        Args:
            surface: the label's surface; `center` and `scale` lead back to millimetres in the scan's coordinates.
            resolution: grid side R, 8..1024.
            band: half width in voxels of the stored shell.
            up: the axis of the millimetres that points up: z in a scan's own coordinates (right, anterior,
                superior). By default nothing is turned.
            device: where to compute; CUDA where present by default. The result stays there.

        Raises:
            ValueError: see `voxelize`.
        """
        labeled = label_field(surface, resolution=resolution, band=band, up=up, device=resolve_device(device))
        return cls(
            sdf=labeled.field.distance,
            index=labeled.field.index,
            field=FieldDescription(kind="sdf", unit="band", band=band, sampling="center", resolution=resolution),
            center=labeled.center,
            scale=labeled.scale,
            watertight=True,
            sign_method=SIGN_METHOD,
            up=up,
        )

    def to(self, device: torch.device | str) -> SparseSDF:
        """Return a copy on another device."""
        return replace(self, sdf=self.sdf.to(device), index=self.index.to(device))

    def turned(self, up: str) -> SparseSDF:
        """Return the field of the same source with another of its axes up, as if it had been voxelized so.

        A quarter turn of a grid is a permutation of its samples, so no value changes.

        Raises:
            ValueError: `up` is none of `UP_AXES`.
        """
        if up == self.up:
            return self
        return self._with_index(self._index_turned(torch.from_numpy(rotation(up) @ rotation(self.up).T)), up=up)

    def rotated(self, turn: Tensor) -> SparseSDF:
        """Return the field of the object turned inside, which stays as it is in its own units.

        Args:
            turn: whole `[3, 3]`, one of the 24 rotations of a grid: they permute its samples and change no value.

        Raises:
            ValueError: the values stand at corners, which a turned grid does not have.
        """
        if self.field.sampling != "center":
            raise ValueError("a field sampled at corners can't be turned on its own grid")
        up = torch.from_numpy(rotation(self.up)).double()
        x, y, z = (up.T @ turn.double() @ up @ torch.tensor(self.center, dtype=torch.float64)).tolist()
        return self._with_index(self._index_turned(turn), center=(x, y, z))

    def _index_turned(self, turn: Tensor) -> Tensor:
        """Return where samples come to lie. `[N, 3]`"""
        last = self.field.resolution - 1
        # From the middle of the grid, in half steps, so that numbers stay whole.
        index = ((2 * self.index.cpu().long() - last) @ turn.long().T + last) // 2
        return index.to(self.index)

    def mirrored(self) -> SparseSDF:
        """Return the field of the object's mirror image, left and right exchanged (x -> -x inside).

        Raises:
            ValueError: the values stand at corners, whose mirror images the grid does not have.
        """
        if self.field.sampling != "center":
            raise ValueError("a field sampled at corners has no mirror image on its own grid")
        index = self.index.clone()
        index[:, 0] = self.field.resolution - 1 - index[:, 0]
        turn = rotation(self.up)
        x, y, z = (turn.T @ ((-1, 1, 1) * (turn @ self.center))).tolist()
        return self._with_index(index, center=(x, y, z))

    def _with_index(self, index: Tensor, **changes: Any) -> SparseSDF:
        """Return a copy with the voxels at other places, their rows sorted."""
        order = linear_keys(nn.functional.pad(index, (1, 0)), self.field.resolution).argsort()
        return replace(self, sdf=self.sdf[order], index=index[order], **changes)

    def to_batch(self) -> dict[str, Tensor]:
        """Return the batch dict of this object alone."""
        return collate_sparse_sdf([self])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed `.npz`, replacing an earlier file only when complete.

        Keys: `sparse_sdf` float32 `[N, 1]`, `sparse_index` int32 `[N, 3]`, `resolution` (the original
        system's three), and `kind, unit, band, sampling, center, scale, watertight, sign_method, up, up_from,
        format`.
        """
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            write_npz(
                file,
                {
                    "sparse_sdf": self.sdf.cpu().numpy().astype(np.float32)[:, None],
                    "sparse_index": self.index.cpu().numpy().astype(np.int32),
                    "resolution": np.int64(self.field.resolution),
                    "kind": np.str_(self.field.kind),
                    "unit": np.str_(self.field.unit),
                    "band": np.float64(np.nan if self.field.band is None else self.field.band),
                    "sampling": np.str_(self.field.sampling),
                    "center": np.asarray(self.center, dtype=np.float64),
                    "scale": np.float64(self.scale),
                    "watertight": np.bool_(self.watertight),
                    "sign_method": np.str_(self.sign_method),
                    "up": np.str_(self.up),
                    "up_from": np.str_(self.up_from),
                    "format": np.int64(_FORMAT),
                },
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparseSDF:
        """Read a field file.

        One of the original system reads as raw unsigned distances of unknown band; one of its later versions, which
        has `extra_band_factor`, as signed distances in units of that band. Samples of both stand at corners.

        Raises:
            ValueError: the file is missing or damaged, a key is missing, or an array has another shape or range.
        """
        file = regular_file(path, "field file")
        for name, shape in npz_shapes(file, ("sparse_sdf", "sparse_index")).items():
            if shape and shape[0] > MAX_VOXELS:
                raise ValueError(f"{path}: {name} has {shape[0]:,} rows, more than the {MAX_VOXELS:,} that are read")
        arrays = read_npz(file, _KEYS, _COLUMN_BYTES)
        try:
            return cls._from_arrays(arrays)
        except KeyError as error:
            raise ValueError(f"{path} lacks the key {error}; it has {sorted(arrays)}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray]) -> SparseSDF:
        sdf, index = arrays["sparse_sdf"], arrays["sparse_index"]
        resolution = _scalar(arrays, "resolution", int)
        if not np.issubdtype(index.dtype, np.integer) or index.ndim != 2 or index.shape[1] != 3:
            raise ValueError(f"sparse_index must be integers [N, 3], got {index.dtype} {list(index.shape)}")
        if sdf.shape not in ((len(index), 1), (len(index),)) or not np.issubdtype(sdf.dtype, np.floating):
            raise ValueError(
                f"sparse_sdf must be floats [N, 1] for N = {len(index)} rows of sparse_index, "
                f"got {sdf.dtype} {list(sdf.shape)}"
            )
        # Before the narrowing to int32, which would wrap round.
        if index.size and not (index.min() >= 0 and index.max() < resolution):
            raise ValueError(f"sparse_index must lie in 0..{resolution - 1}, got {index.min()}..{index.max()}")
        x, y, z = (index[:, axis].astype(np.int64) for axis in range(3))
        keys = (x * resolution + y) * resolution + z
        if not (keys[1:] > keys[:-1]).all():  # files that are written here have sorted rows
            keys.sort()
            if (keys[1:] == keys[:-1]).any():
                raise ValueError("sparse_index holds a voxel more than once")
        with np.errstate(over="ignore"):  # infinite is refused below, with a message
            narrowed = sdf.reshape(-1).astype(np.float32)
        values, places = torch.from_numpy(narrowed), torch.from_numpy(index.astype(np.int32))
        present = [key for key in _DESCRIPTION if key in arrays]
        if not present:
            later = _LATER_ORIGINAL_BAND in arrays
            field = FieldDescription(
                kind="sdf" if later else "udf",
                unit="band" if later else "world",
                band=_scalar(arrays, _LATER_ORIGINAL_BAND, float) if later else None,
                sampling="corner",
                resolution=resolution,
            )
            return cls(
                sdf=values,
                index=places,
                field=field,
                center=(0.0, 0.0, 0.0),
                scale=1.0,
                watertight=False,
                sign_method="none",
            )
        version = _scalar(arrays, "format", int)
        if version != _FORMAT:
            raise ValueError(f"format is {version}; this version reads {_FORMAT}")
        band = _scalar(arrays, "band", float)
        if arrays["center"].shape != (3,):
            raise ValueError(f"center must have shape [3], got {list(arrays['center'].shape)}")
        center = tuple(float(v) for v in arrays["center"])
        return cls(
            sdf=values,
            index=places,
            field=FieldDescription(
                kind=_scalar(arrays, "kind", str),
                unit=_scalar(arrays, "unit", str),
                band=None if math.isnan(band) else band,
                sampling=_scalar(arrays, "sampling", str).replace("centre", "center"),
                resolution=resolution,
            ),
            center=(center[0], center[1], center[2]),
            scale=_scalar(arrays, "scale", float),
            watertight=_scalar(arrays, "watertight", bool),
            sign_method=_scalar(arrays, "sign_method", str),
            up=_scalar(arrays, "up", str) if "up" in arrays else "y",
            up_from=_scalar(arrays, "up_from", str) if "up_from" in arrays else "",
        )


_T = TypeVar("_T", int, float, bool, str)
_KINDS_OF_NUMBERS = {int: "iu", float: "f", bool: "b", str: "U"}


def _scalar(arrays: Mapping[str, np.ndarray], key: str, kind: type[_T]) -> _T:
    """Return the one value of a key, which must be of that kind."""
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in _KINDS_OF_NUMBERS[kind]:
        raise ValueError(f"{key} must be one {kind.__name__}, got {array.dtype} {list(array.shape)}")
    return kind(array.reshape(()).item())


def collate_sparse_sdf(objects: Sequence[SparseSDF]) -> dict[str, Tensor]:
    """Join fields to the batch dict that `SparseSDFVQVAE.Encode` takes.

    Returns:
        `sparse_sdf` float32 `[N, 1]`, `sparse_index` int64 `[N, 3]`, `batch_idx` int64 `[N]`.

    Raises:
        ValueError: no object, or fields of different descriptions.
    """
    if not objects:
        raise ValueError("collate_sparse_sdf needs at least one object")
    for i, other in enumerate(objects):
        if other.field != objects[0].field:
            raise ValueError(
                f"objects of one batch need one kind of field: 0 has {objects[0].field}, {i} {other.field}"
            )
    sizes = torch.tensor([len(o.sdf) for o in objects])
    device = objects[0].sdf.device
    return {
        "sparse_sdf": torch.cat([o.sdf.to(device) for o in objects]).float()[:, None],
        "sparse_index": torch.cat([o.index.to(device) for o in objects]).long(),
        "batch_idx": torch.arange(len(objects)).repeat_interleave(sizes).to(device),
    }
