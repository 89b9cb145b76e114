"""Masks of scans: which voxels belong to which label, from every layout that segmentation datasets use.

Labels come as one volume of ids `[H, W, D]`, the same with a leading channel of one, a one-hot stack or overlapping
channels `[C, H, W, D]`, dense or as a SciPy CSR matrix in an `.npz`. Here all of them become one thing: for each id,
the places of its voxels. Every voxel counts, nothing is sampled, and ids never shift: which channel is which label is
decided by the ids of the label names alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.utils.archives import npz_shapes, read_npz
from sdf_vqvae.utils.files import regular_file

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
_IGNORE = ("ignore", "void", "unlabeled", "unlabelled")
"""Names of what is no organ, but voxels that nobody has labeled."""
_WHOLE = 1e-3
"""How far a label in a file of floats may lie from a whole number."""
_COARSEST = 0.5
"""Widest step between the numbers that a file can hold for which a label is still the nearest whole number."""
_FEW = 5
_STEERING = frozenset("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Line ends, and marks that turn the direction of what follows."""

Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]
Label = int | tuple[int, ...]
"""The id of a label, or the ids of a region, which is their union."""


def ids_of(label: Label) -> tuple[int, ...]:
    """Return the ids of a label; those of a region are in rising order."""
    return label if isinstance(label, tuple) else (label,)


def label_text(label: Label) -> str:
    """Return a label as tables and file names have it: `5`, and `1+2` for a region."""
    return "+".join(str(number) for number in ids_of(label))


@dataclass(frozen=True, kw_only=True)
class LabelNames:
    """Names of labels by id; the background isn't among them, nor what marks voxels that nobody has labeled."""

    names: Mapping[int, str]
    background: int | None
    """Id of the background, where the file lists one."""
    regions: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    """Names of unions of labels, by their ids in rising order."""
    ignore: int | None = None
    """Id of voxels that nobody has labeled (nnU-Net's `ignore`), where the file lists one."""
    notes: tuple[str, ...] = ()
    """What to know about the names."""

    @classmethod
    def parse(cls, content: object) -> LabelNames:
        """Read `{"1": "liver"}`, `{"liver": 1}` or a list, alone or under `labels` or `label_names`.

        A list counts from 1, or from 0 if its first name is the background. A name with several ids, as nnU-Net has
        them (`{"kidney and tumor": [1, 2]}`), is a region.

        Raises:
            ValueError: something else, an id twice, or a name that is no text.
        """
        if isinstance(content, dict):
            content = next((content[k] for k in ("labels", "label_names") if k in content), content)
        if isinstance(content, list):
            first = 0 if content and str(content[0]).strip().lower() in _BACKGROUND else 1
            pairs: list[tuple[Label, object]] = [(first + i, name) for i, name in enumerate(content)]
        elif isinstance(content, dict):
            pairs = [_id_and_name(key, value) for key, value in content.items()]
        else:
            raise ValueError(f"label names are a mapping of ids to names or a list, got {type(content).__name__}")
        if len(pairs) > MOST_NAMES:
            raise ValueError(f"{len(pairs):,} label names, more than {MOST_NAMES:,}")
        found: dict[Label, str] = {}
        special: dict[str, int | None] = {"background": None, "ignore": None}
        for label, raw in pairs:
            name = _name(label, raw)
            if label in (*found, *special.values()):
                raise ValueError(f"label {label_text(label)} is named twice")
            low = name.lower()
            what = "background" if label == 0 or low in _BACKGROUND[:-1] else "ignore" if low in _IGNORE else ""
            if what and isinstance(label, int):
                if special[what] is not None:
                    raise ValueError(f"labels {special[what]} and {label} are both the {what}")
                special[what] = label
            elif name:
                found[label] = name
        regions = {label: name for label, name in found.items() if isinstance(label, tuple)}
        for ids, name in regions.items():
            if {0, special["background"], special["ignore"]} & {*ids}:
                raise ValueError(f"the region {name!r} has the ids {list(ids)}: the background and `ignore` are none")
        names = {label: name for label, name in found.items() if isinstance(label, int)}
        return cls(
            names=dict(sorted(names.items())),
            background=special["background"],
            regions=dict(sorted(regions.items())),
            ignore=special["ignore"],
            notes=_notes_on(pairs, found),
        )

    @classmethod
    def numbered(cls, names: Iterable[str]) -> LabelNames:
        """Return the names of labels that are numbered from 1."""
        return cls(
            names={i: _name(i, name) or f"label {i}" for i, name in enumerate(names, start=1)}, background=None
        )

    def of(self, label: Label) -> str:
        """Return the name of a label; `label 7` where it has none."""
        return self.named.get(label, f"label {label_text(label)}")

    @property
    def named(self) -> dict[Label, str]:
        """Names of all labels and regions."""
        return {label: name for names in (self.names, self.regions) for label, name in names.items()}

    @property
    def ids(self) -> list[int]:
        """All ids that stand for voxels: of names, of regions, and of what nobody has labeled."""
        found = {number for label in self.named for number in ids_of(label)}
        return sorted(found if self.ignore is None else found | {self.ignore})


def _id_and_name(key: object, value: object) -> tuple[Label, object]:
    """Return id and name of an entry that has them in either order, or the ids of a region and its name."""
    if isinstance(value, list):
        ids = [_id(number) for number in value]
        if ids and None not in ids:
            distinct = tuple(sorted({number for number in ids if number is not None}))
            return (distinct if len(distinct) > 1 else distinct[0]), key
    for number, name in ((key, value), (value, key)):
        found = _id(number)
        if found is not None:
            return found, name
    raise ValueError(f"label names need an id for each name, got {str(key)[:40]!r}: {str(value)[:40]!r}")


def _id(number: object) -> int | None:
    """Return an id that is a number or the text of one, None for anything else."""
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**31:
        return number
    if isinstance(number, str) and re.fullmatch(r"\d{1,9}", number.strip(), re.ASCII):
        return int(number)
    return None


def _name(label: Label, raw: object) -> str:
    """Return a name as it is kept: composed letters, single spaces, no characters that steer a terminal."""
    if not isinstance(raw, str) or len(raw) > _NAME_LENGTH or any("\ud800" <= c <= "\udfff" for c in raw):
        raise ValueError(f"the name of label {label_text(label)} must be a text of at most {_NAME_LENGTH} characters")
    shown = "".join(" " if unicodedata.category(c) == "Cc" or c in _STEERING else c for c in raw)
    return " ".join(unicodedata.normalize("NFC", shown).split())


def _notes_on(pairs: list[tuple[Label, object]], found: Mapping[Label, str]) -> tuple[str, ...]:
    """Return what a reader of the names should know."""
    zero = next((str(name) for label, name in pairs if label == 0), "")
    notes = []
    if zero.strip().lower() not in (*_BACKGROUND, *_IGNORE):
        notes.append(f"label 0 is called {zero[:40]!r}; it is taken for the background")
    for name in dict.fromkeys(found.values()):
        ids = [label_text(label) for label, other in found.items() if other == name]
        if len(ids) > 1:
            notes.append(f"labels {', '.join(ids)} are all called {name!r}; each stays an organ of its own")
    return tuple(notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMasks:
    """The voxels of each label of one scan; labels may overlap."""

    shape: tuple[int, int, int]
    places: Mapping[int, Places]
    """Id -> sorted places of its voxels in the flattened volume (C order). Ids without a voxel are left out."""
    notes: tuple[str, ...] = ()
    """What to know about how the voxels were read."""

    def count(self, label: Label) -> int:
        """Return the number of voxels of a label or region."""
        return len(self._places_of(label))

    def labels(self, names: LabelNames) -> list[Label]:
        """Return the organs that have voxels: labels and regions, in the order of their ids.

        A label that has no name, but is part of a region, is none of its own.
        """
        parts = {number for ids in names.regions for number in ids}
        single = [n for n in self.places if n in names.names or n not in parts]
        regions = [ids for ids in names.regions if any(n in self.places for n in ids)]
        return sorted([*single, *regions], key=ids_of)

    def crop(self, label: Label) -> tuple[tuple[int, int, int], npt.NDArray[np.bool_]]:
        """Return the lowest voxel of a label's bounding box, and the box."""
        x, y, z = np.unravel_index(self._places_of(label), self.shape)
        low = (int(x.min()), int(y.min()), int(z.min()))
        box = np.zeros([int(axis.max()) + 1 - start for axis, start in zip((x, y, z), low, strict=True)], dtype=bool)
        box[x - low[0], y - low[1], z - low[2]] = True
        return low, box

    def _places_of(self, label: Label) -> Places:
        if isinstance(label, int):
            return self.places[label]
        parts = [self.places[number] for number in label if number in self.places]
        return np.unique(np.concatenate(parts))  # channels may overlap


def masks_from_array(array: Numbers, names: LabelNames, *, step: float = 0.0) -> LabelMasks:
    """Read a dense mask: `[H, W, D]` or `[1, H, W, D]` of ids, or `[C, H, W, D]`, one-hot or overlapping.

    Args:
        array: the mask.
        names: of the labels.
        step: between the numbers that the file can hold, where it stores them scaled. Labels are rounded by up to
            half of it, and by a thousandth in any case.

    Raises:
        ValueError: another shape, values that are not whole numbers, or channels that the names don't account for.
    """
    if array.dtype.kind not in "biuf":
        raise ValueError(f"a mask holds numbers, this one {array.dtype}")
    if array.ndim not in (3, 4):
        raise ValueError(f"a mask has the shape [H, W, D] or [C, H, W, D], got {list(array.shape)}")
    shape = array.shape if array.ndim == 4 else (1, *array.shape)
    check_shape(shape)
    flat = array.reshape(shape[0], -1)

    def rows() -> Iterator[tuple[Places, Numbers]]:
        for row in flat:
            places = np.flatnonzero(row)
            yield places, row[places]

    return _from_rows(shape, rows(), names, step, stack=array.ndim == 4)


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
    stack = path.name.count(",") == 3
    return _from_rows(shape, _csr_rows(path.name, arrays, shape, rows), names, stack=stack)


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


def _from_rows(
    shape: tuple[int, ...],
    rows: Iterator[tuple[Places, Numbers]],
    names: LabelNames,
    step: float = 0.0,
    *,
    stack: bool,
) -> LabelMasks:
    """Give each channel its label, or take one channel apart by its values.

    A stack (`[C, H, W, D]`) of one channel that holds 1 alone is that of the one label there is, of whatever id; in a
    volume of ids a 1 is label 1.
    """
    channels, volume = shape[0], (shape[1], shape[2], shape[3])
    numbers = _channel_ids(channels, names) if channels > 1 and names.named else None
    found: dict[int, Places] = {}
    held: dict[int, int] = {}
    notes: list[str] = []
    for channel, (places, values) in enumerate(rows):
        ids, note = _whole(values, step)
        notes += [note] if note else []
        places, ids = (places, ids) if ids.all() else (places[ids != 0], ids[ids != 0])
        if channels == 1:
            found = _by_value(places, ids, names)
            if stack and list(found) == [1] and len(names.ids) == 1 and names.ids != [1]:
                found = {names.ids[0]: found[1]}
                notes.append(f"the only channel, of ones, is taken for the only label, {names.ids[0]}")
        else:
            found[channel] = places
            held |= {channel: _value_of(channel, ids)} if len(ids) else {}
    if channels > 1:
        if numbers is None:
            first = 0 if _is_background(found, math.prod(volume)) else 1
            numbers = [None if first + c == 0 else first + c for c in range(channels)]
        _check_values(held, numbers)
        found = {n: found[c] for c, n in enumerate(numbers) if n is not None and len(found[c])}
    nobody = found.pop(names.ignore, None) if names.ignore is not None else None
    if nobody is not None:
        notes.append(f"label {names.ignore} marks voxels that nobody has labeled: it is no organ")
    return LabelMasks(shape=volume, places=found, notes=tuple(dict.fromkeys(notes)))


def _whole(values: Numbers, step: float) -> tuple[npt.NDArray[np.int64], str]:
    """Return values as whole numbers, and what to say if some had to be rounded.

    Raises:
        ValueError: some are no whole numbers, or not finite.
    """
    if values.dtype.kind != "f":
        return values.astype(np.int64), ""
    if not np.isfinite(values).all():
        raise ValueError("a volume of labels holds whole numbers; this one holds values that are not finite")
    nearest = np.round(values)
    away = np.abs(values - nearest)
    limit = max(_WHOLE, step / 2 * (1 + _WHOLE)) if step < _COARSEST else _WHOLE
    if (away > limit).any():
        others = np.unique(values[away > limit])
        shown = ", ".join(f"{value:.6g}" for value in others[:_FEW])
        more = f" and {len(others) - _FEW:,} more" if len(others) > _FEW else ""
        raise ValueError(f"a volume of labels holds whole numbers; this one holds {shown}{more}")
    if not away.any():
        return nearest.astype(np.int64), ""
    worst = int(away.argmax())
    why = f" (the file stores them in steps of {step:.3g})" if away[worst] > _WHOLE else ""
    note = f"labels were rounded to whole numbers, {values[worst]:.9g} to {nearest[worst]:.0f}{why}"
    return nearest.astype(np.int64), note


def _by_value(places: Places, ids: npt.NDArray[np.int64], names: LabelNames) -> dict[int, Places]:
    """Return the places of each id of a volume of ids; 0 is the background, and so is the id named so."""
    if len(ids) == 0:
        return {}
    if ids.min() < 0:
        raise ValueError(f"labels are numbers from 0 on, got {ids.min()}")
    order = np.argsort(ids, kind="stable")
    present, starts = np.unique(ids[order], return_index=True)
    if len(present) > MOST_NAMES:
        raise ValueError(
            f"the volume holds {len(present):,} different labels, more than {MOST_NAMES:,}: is it an image?"
        )
    parts = np.split(places[order], starts[1:])
    return {int(n): part for n, part in zip(present, parts, strict=True) if int(n) != names.background}


def _value_of(channel: int, ids: npt.NDArray[np.int64]) -> int:
    """Return what a channel holds in its voxels. Raises a ValueError if these are several labels."""
    if ids.min() != ids.max():
        present = np.unique(ids)
        shown = ", ".join(str(n) for n in present[:_FEW]) + (" ..." if len(present) > _FEW else "")
        raise ValueError(f"channel {channel} holds several labels ({shown}); each channel is the mask of one")
    return int(ids[0])


def _check_values(held: Mapping[int, int], numbers: Sequence[int | None]) -> None:
    """Raise a ValueError if channels hold ids, by their values, and others than their places say."""
    if len(set(held.values())) < 2:
        return  # masks of ones, or of 255
    for channel, value in held.items():
        number = numbers[channel]
        if number is not None and value != number:
            raise ValueError(
                f"channel {channel} holds the value {value}, but by its place it is label {number}; which channel is "
                "which label can't be told: correct the list of names, or the values"
            )


def _channel_ids(channels: int, names: LabelNames) -> list[int | None]:
    """Return the id of each channel, None for the background."""
    ids: list[int | None] = list(names.ids)
    if channels == len(ids):
        return ids
    if channels == len(ids) + 1:
        background = names.background or 0
        return [None if n == background else n for n in sorted([*names.ids, background])]
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
