"""Masks of scans: which voxels belong to which label, from every layout that segmentation datasets use.

Labels come as one volume of ids `[H, W, D]`, the same with a leading channel of one, a one-hot stack or overlapping
channels `[C, H, W, D]`, dense or as a SciPy CSR matrix in an `.npz`. Here all of them become one thing: for each id,
the places of its voxels. Every voxel counts, nothing is sampled, and ids never shift: which channel is which label is
decided by the ids of the label names alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.archives import npz_shapes, read_npz, regular_file

LONGEST_SIDE = 2048
"""Most voxels of a scan along one axis."""
MOST_VOXELS = 2**30
"""Most voxels of a scan: 1024^3."""
MOST_CHANNELS = 1024
MOST_LABELED = 2**27
"""Most entries of a sparse mask: the whole of a scan of 512^3."""
MOST_NAMES = 4096
_NAME_LENGTH = 200
_MOST_ROWS = 2**24
_FILE = re.compile(r"mask_\((\d{1,10}(?:, ?\d{1,10}){2,3})\)\.npz", re.ASCII)
_SPARSE_KEYS = ("indices", "indptr", "data", "shape", "format")
_BACKGROUND = ("background", "bg", "")

Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LabelNames:
    """Names of labels by id; the background isn't among them."""

    names: Mapping[int, str]
    background: int | None
    """Id of the background, where the file lists one."""

    @classmethod
    def parse(cls, content: object) -> LabelNames:
        """Read `{"1": "liver"}`, `{"liver": 1}` or a list, alone or under `labels` or `label_names`.

        A list counts from 1, or from 0 if its first name is the background.

        Raises:
            ValueError: something else, an id twice, or a name that is no text.
        """
        if isinstance(content, dict):
            content = next((content[k] for k in ("labels", "label_names") if k in content), content)
        if isinstance(content, list):
            first = 0 if content and str(content[0]).strip().lower() in _BACKGROUND else 1
            pairs = [(first + i, name) for i, name in enumerate(content)]
        elif isinstance(content, dict):
            pairs = [_id_and_name(key, value) for key, value in content.items()]
        else:
            raise ValueError(f"label names are a mapping of ids to names or a list, got {type(content).__name__}")
        if len(pairs) > MOST_NAMES:
            raise ValueError(f"{len(pairs):,} label names, more than {MOST_NAMES:,}")
        names: dict[int, str] = {}
        background = None
        for number, name in pairs:
            if not isinstance(name, str) or len(name) > _NAME_LENGTH:
                raise ValueError(f"the name of label {number} must be a text of at most {_NAME_LENGTH} characters")
            if number in names or number == background:
                raise ValueError(f"label {number} is named twice")
            if number == 0 or name.strip().lower() in _BACKGROUND:
                if background is not None:
                    raise ValueError(f"labels {background} and {number} are both the background")
                background = number
            else:
                names[number] = " ".join(name.split())
        return cls(names=dict(sorted(names.items())), background=background)

    def of(self, number: int) -> str:
        """Return the name of a label; `label 7` where it has none."""
        return self.names.get(number, f"label {number}")


def _id_and_name(key: object, value: object) -> tuple[int, object]:
    """Return id and name of an entry that has them in either order."""
    for number, name in ((key, value), (value, key)):
        if isinstance(number, bool):
            continue
        if isinstance(number, int) and 0 <= number < 2**31:
            return number, name
        if isinstance(number, str) and re.fullmatch(r"\d{1,9}", number.strip(), re.ASCII):
            return int(number), name
    raise ValueError(f"label names need an id for each name, got {str(key)[:40]!r}: {str(value)[:40]!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMasks:
    """The voxels of each label of one scan; labels may overlap."""

    shape: tuple[int, int, int]
    places: Mapping[int, Places]
    """Id -> sorted places of its voxels in the flattened volume (C order). Ids without a voxel are left out."""

    def count(self, number: int) -> int:
        """Return the number of voxels of a label."""
        return len(self.places[number])

    def crop(self, number: int) -> tuple[tuple[int, int, int], npt.NDArray[np.bool_]]:
        """Return the lowest voxel of a label's bounding box, and the box."""
        x, y, z = np.unravel_index(self.places[number], self.shape)
        low = (int(x.min()), int(y.min()), int(z.min()))
        box = np.zeros([int(axis.max()) + 1 - start for axis, start in zip((x, y, z), low, strict=True)], dtype=bool)
        box[x - low[0], y - low[1], z - low[2]] = True
        return low, box


def masks_from_array(array: Numbers, names: LabelNames) -> LabelMasks:
    """Read a dense mask: `[H, W, D]` or `[1, H, W, D]` of ids, or `[C, H, W, D]`, one-hot or overlapping.

    Raises:
        ValueError: another shape, values that are not whole numbers, or channels that the names don't account for.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a mask holds numbers, this one {array.dtype}")
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise ValueError(f"a mask has the shape [H, W, D] or [C, H, W, D], got {list(array.shape)}")
    check_shape(array.shape)
    flat = array.reshape(len(array), -1)

    def rows() -> Iterator[tuple[Places, Numbers]]:
        for row in flat:
            places = np.flatnonzero(row)
            yield places, row[places]

    return _from_rows(array.shape, rows(), names)


def masks_from_sparse_file(path: Path, names: LabelNames) -> LabelMasks:
    """Read `mask_(C, H, W, D).npz` (or `mask_(H, W, D).npz`): a SciPy CSR matrix whose true shape is in its name.

    Nothing is unpickled, and every length is compared with the file before it is trusted.

    Raises:
        ValueError: the name holds no such shape, the shapes disagree or are too large, the file is damaged, or an
            index is out of range.
    """
    shape = shape_in_name(path.name)
    file = regular_file(path, "mask file")
    entries = npz_shapes(file, _SPARSE_KEYS)
    missing = [key for key in _SPARSE_KEYS if key not in entries]
    if missing:
        raise ValueError(f"{path.name} is no SciPy CSR matrix: it lacks {missing}")
    rows = entries["indptr"][0] - 1 if len(entries["indptr"]) == 1 else -1
    if not 0 < rows <= min(_MOST_ROWS, math.prod(shape)):
        raise ValueError(f"{path.name}: indptr must have one number more than the matrix has rows")
    count = entries["indices"][0] if len(entries["indices"]) == 1 else -1
    if not 0 <= count <= min(MOST_LABELED, math.prod(shape)) or entries["data"] != (count,):
        raise ValueError(
            f"{path.name}: indices and data must be of one length, at most {MOST_LABELED:,} and the shape's "
            f"{math.prod(shape):,}; got {list(entries['indices'])} and {list(entries['data'])}"
        )
    bounds = {"indices": 8 * count, "data": 8 * count, "indptr": 8 * (rows + 1)}
    arrays = read_npz(file, _SPARSE_KEYS, bounds)
    if arrays["format"].size != 1 or arrays["format"].item() not in (b"csr", "csr"):
        raise ValueError(f"{path.name} is no CSR matrix but of the format {str(arrays['format'])[:40]}")
    return _from_rows(shape, _csr_rows(path.name, arrays, shape, rows), names)


def shape_in_name(name: str) -> tuple[int, int, int, int]:
    """Return the shape (C, H, W, D) in the name of a mask file; C is 1 where the name has three numbers.

    Raises:
        ValueError: the name has another form, or the shape is too large.
    """
    match = _FILE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} does not have the form 'mask_(C, H, W, D).npz'")
    numbers = [int(number) for number in match[1].split(",")]
    shape = (*numbers,) if len(numbers) == 4 else (1, *numbers)
    check_shape(shape)
    return shape[0], shape[1], shape[2], shape[3]


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise a ValueError if a mask [C, H, W, D] is larger than any that is read."""
    channels, *sides = shape
    if not (
        1 <= channels <= MOST_CHANNELS and all(1 <= n <= LONGEST_SIDE for n in sides)
    ) or math.prod(sides) > MOST_VOXELS:  # fmt: skip
        raise ValueError(
            f"a mask of the shape {list(shape)} is not read: at most {MOST_CHANNELS} channels, sides of "
            f"{LONGEST_SIDE} and {MOST_VOXELS:,} voxels"
        )


def _csr_rows(
    name: str, arrays: dict[str, Numbers], shape: tuple[int, ...], rows: int
) -> Iterator[tuple[Places, Numbers]]:
    """Check a CSR matrix and yield places and values of each channel."""
    indices, indptr, data = arrays["indices"], arrays["indptr"], arrays["data"]
    if not all(a.dtype.kind in "iu" for a in (indices, indptr, arrays["shape"])) or data.dtype.kind not in "biuf":
        raise ValueError(f"{name}: indices, indptr and shape must be integers and data numbers")
    if arrays["shape"].shape != (2,) or int(arrays["shape"][0]) != rows:
        raise ValueError(f"{name}: the matrix's shape {arrays['shape'].tolist()} does not fit its {rows} rows")
    columns = int(arrays["shape"][1])
    if rows * columns != math.prod(shape):
        raise ValueError(
            f"{name}: the matrix [{rows}, {columns}] has not as many voxels as the shape {list(shape)} in the name"
        )
    ends = indptr.astype(np.int64)
    if ends[0] != 0 or ends[-1] != len(indices) or (np.diff(ends) < 0).any():
        raise ValueError(f"{name}: indptr must rise from 0 to {len(indices)}, the number of entries")
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < columns):
        raise ValueError(f"{name}: indices must lie in 0..{columns - 1}, got {indices.min()}..{indices.max()}")
    size = math.prod(shape[1:])
    flat = indices.astype(np.int64) + np.repeat(np.arange(rows, dtype=np.int64) * columns, np.diff(ends))
    if (np.diff(flat) <= 0).any():  # rows out of order, or an entry twice
        flat, first = np.unique(flat, return_index=True)
        data = data[first]
    kept = data != 0
    flat, data = flat[kept], data[kept]
    starts = np.searchsorted(flat, np.arange(shape[0] + 1) * size)
    for channel in range(shape[0]):
        part = slice(starts[channel], starts[channel + 1])
        yield flat[part] - channel * size, data[part]


def _from_rows(shape: tuple[int, ...], rows: Iterator[tuple[Places, Numbers]], names: LabelNames) -> LabelMasks:
    """Give each channel its label, or take one channel apart by its values."""
    channels, volume = shape[0], (shape[1], shape[2], shape[3])
    if channels == 1:
        ((places, values),) = rows
        return LabelMasks(shape=volume, places=_by_value(places, values, names))
    numbers = _channel_ids(channels, names) if names.names else None
    found: dict[int, Places] = {}
    for channel, (places, values) in enumerate(rows):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("the mask holds values that are not finite")
        found[channel] = places
    if numbers is None:
        first = 0 if _is_background(found, math.prod(volume)) else 1
        numbers = [None if first + c == 0 else first + c for c in range(channels)]
    return LabelMasks(
        shape=volume, places={n: found[c] for c, n in enumerate(numbers) if n is not None and len(found[c])}
    )


def _by_value(places: Places, values: Numbers, names: LabelNames) -> dict[int, Places]:
    """Return the places of each id of a volume of ids; 0 is the background, and so is the id named so."""
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise ValueError("a volume of labels holds whole numbers; this one holds others")
    ids = values.astype(np.int64)
    if len(ids) and ids.min() < 0:
        raise ValueError(f"labels are numbers from 0 on, got {ids.min()}")
    order = np.argsort(ids, kind="stable")
    present, starts = np.unique(ids[order], return_index=True)
    if len(present) > MOST_NAMES:
        raise ValueError(
            f"the volume holds {len(present):,} different labels, more than {MOST_NAMES:,}: is it an image?"
        )
    parts = np.split(places[order], starts[1:])
    found = {int(n): part for n, part in zip(present, parts, strict=True) if int(n) != names.background}
    if list(found) == [1] and len(names.names) == 1:
        return {next(iter(names.names)): found[1]}  # one channel of one label, of whatever id
    return found


def _channel_ids(channels: int, names: LabelNames) -> list[int | None]:
    """Return the id of each channel, None for the background."""
    ids: list[int | None] = list(names.names)
    if channels == len(ids):
        return ids
    if channels == len(ids) + 1:
        background = names.background or 0
        return [None if n == background else n for n in sorted([*names.names, background])]
    listed = f"{len(ids)} labels" + ("" if names.background is None else " and the background")
    raise ValueError(
        f"the mask has {channels} channels, but the label names list {listed}; which channel is which label can't be "
        "told: correct the list of names"
    )


def _is_background(found: dict[int, Places], size: int) -> bool:
    """Return whether the first channel of a nameless stack is the background: all that no other channel has."""
    others = np.zeros(size, dtype=bool)
    for channel in range(1, len(found)):
        others[found[channel]] = True
    return len(found[0]) == size - int(others.sum()) and not others[found[0]].any()
