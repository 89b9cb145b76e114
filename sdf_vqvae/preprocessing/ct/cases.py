"""Cases of CT datasets, read: an image, masks, names of labels, and the affine from voxels to millimetres.

Which files belong to a case is `ct_layouts`' business. Knows nothing of windows, surfaces or outputs.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import tokenize
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.geometry.volume import check_affine
from sdf_vqvae.preprocessing.ct.layouts import JSON_BYTES, M3D, CaseFiles, organ_file
from sdf_vqvae.preprocessing.ct.masks import (
    LabelMasks,
    LabelNames,
    Numbers,
    Places,
    check_shape,
    masks_from_array,
    masks_from_sparse_file,
)
from sdf_vqvae.utils.archives import NPY_HEADER_BYTES
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import regular_file
from sdf_vqvae.utils.strict_files import parse_json

_GZIP_RATIO = 1100
"""More than deflate can pack: a file that claims more holds less than it says."""
_MM = {"meter": 1000.0, "micron": 0.001}
_TRAILING_BYTES = 2**20
_SAME_GRID = 1e-2
"""Most voxels between the corners of an image's grid and its label's."""
_SAME_FORM = 0.05
"""Most voxels between the corners of a grid by a file's sform and by its qform, whose rotation is rounded."""
# What NumPy raises on damaged headers (found by damaging files).
_NPY_DAMAGE = (
    ValueError, OSError, EOFError, SyntaxError, TypeError, ArithmeticError, MemoryError, LookupError, AttributeError,
    RecursionError, tokenize.TokenError,
)  # fmt: skip

_DESCRIPTION = "dataset.json"
"""Describes a dataset of nnU-Net or MONAI; label names are only one part of it."""
_CASE_ID = re.compile(r"\w[\w.-]*")
_CASE_ID_BYTES = 200

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One case, read."""

    image: Numbers | None
    """`[X, Y, Z]`; memory-mapped where the file allows it."""
    masks: LabelMasks | None
    names: LabelNames
    affine: Affine
    """Voxel (i, j, k, 1) to millimetres; NIfTI cases are turned to right, anterior, superior."""
    spacing_known: bool
    """False where no file and no flag gives a spacing, and 1 mm is assumed."""
    orientation_known: bool
    """False where no file says which way the axes point: the voxels' axes are taken as they are."""
    notes: tuple[str, ...] = ()
    """What to know about how the case was read."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        if self.masks is not None:
            return self.masks.shape
        assert self.image is not None
        return self.image.shape[0], self.image.shape[1], self.image.shape[2]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each axis."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z


def load_case(files: CaseFiles, *, with_image: bool = True) -> Case:
    """Read a case.

    Args:
        files: where it lies.
        with_image: also open the image.

    Raises:
        ValueError: its name can't be part of a path, a file is missing, damaged or twice there, or image and mask
            don't fit.
        ImportError: it is NIfTI and nibabel is not installed.
    """
    if files.error:
        raise ValueError(files.error)
    if not _CASE_ID.fullmatch(files.case_id) or len(files.case_id.encode()) > _CASE_ID_BYTES:
        raise ValueError(f"the case's name {files.case_id!r} can't name a folder: use letters, digits, . _ and -")
    names = names_of(files)
    if files.label is None and files.image is None:
        raise ValueError("the case has neither an image nor a mask")
    case = (_load_m3d if files.source == M3D else _load_nifti)(files, names, with_image)
    check_affine(case.affine)
    notes = (*files.notes, *case.notes, *(() if case.masks is None else (*names.notes, *case.masks.notes)))
    return replace(case, notes=notes)


def grid_of(path: Path) -> tuple[int, int, int]:
    """Return the voxels of a NIfTI file along each axis; its header alone is read.

    Raises:
        ValueError: it is damaged, or claims more than it can hold.
        ImportError: nibabel is not installed.
    """
    x, y, z = _read_nifti(path, as_label=True, voxels=False).shape
    return x, y, z


def names_of(files: CaseFiles) -> LabelNames:
    """Return the names of a case's labels, none where no file has them.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    if files.organ_files:
        return LabelNames.numbered(files.organ_files)
    path = files.names
    if path is None:
        return LabelNames(names={}, background=None)
    file = regular_file(path, "file of label names")
    if file.stat().st_size > JSON_BYTES:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes, more than label names ever do")
    try:
        content = parse_json(file.read_bytes(), unique_keys=True)
        if path.name == _DESCRIPTION and isinstance(content, dict) and not {"labels", "label_names"} & {*content}:
            return LabelNames(names={}, background=None, notes=(f"{_DESCRIPTION} names no labels",))
        return LabelNames.parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {brief(error)}") from error


def _load_m3d(files: CaseFiles, names: LabelNames, with_image: bool) -> Case:
    image = None
    if files.image is not None and (with_image or files.label is None):
        image = _without_channel(files.image, _open_npy(files.image, "image file"))
    masks = None
    if files.label is not None:
        if files.label.suffix == ".npz":
            masks = masks_from_sparse_file(files.label, names)
        else:
            masks = masks_from_array(_open_npy(files.label, "mask file"), names)
    if image is not None and masks is not None and image.shape != masks.shape:
        raise ValueError(f"the image has the shape {list(image.shape)}, the mask {list(masks.shape)}")
    spacing = files.spacing or (1.0, 1.0, 1.0)
    return Case(
        image=image,
        masks=masks,
        names=names,
        affine=np.diag([*spacing, 1.0]),
        spacing_known=files.spacing is not None,
        orientation_known=False,
    )


def _open_npy(path: Path, what: str) -> Numbers:
    """Map an `.npy` of plain numbers into memory: nothing is read before it is used."""
    file = regular_file(path, what)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False, max_header_size=NPY_HEADER_BYTES)
    except _NPY_DAMAGE as error:
        raise ValueError(f"{path} is not a readable array (.npy): {brief(error)}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim not in (3, 4):
        close = getattr(array, "close", None)
        if close is not None:
            close()
        raise ValueError(f"{path} must hold numbers [H, W, D] or [C, H, W, D]")
    check_shape(array.shape if array.ndim == 4 else (1, *array.shape))
    return array


def _without_channel(path: Path, array: Numbers) -> Numbers:
    if array.ndim == 4 and len(array) != 1:
        raise ValueError(f"{path} has {len(array)} channels; a CT has one")
    return array[0] if array.ndim == 4 else array


# -- NIfTI -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Volume:
    """A NIfTI file, as it is stored."""

    array: Numbers | None
    """`[X, Y, Z]`, or `[X, Y, Z, C]`; None where it was not read."""
    shape: tuple[int, ...]
    affine: Affine
    """To millimetres."""
    has_form: bool
    """It says which way its axes point (sform or qform); else the affine is the spacing alone."""
    step: float
    """Between the numbers that it can hold, where they are stored scaled; else 0."""
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Millimetres between voxels."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def placed_like(self, other: _Volume) -> _Volume:
        """Return the volume with the affine of another on the same grid.

        Raises:
            ValueError: they differ in shape or spacing.
        """
        if self.shape[:3] != other.shape[:3]:
            return self  # refused where the two are compared
        told = not np.allclose(self.spacing, 1)  # what a header holds that nobody filled in
        if told and not np.allclose(self.spacing, other.spacing, rtol=_SAME_GRID):
            raise ValueError(
                "image and label have the spacings "
                + " and ".join(", ".join(f"{s:.4g}" for s in v.spacing) for v in (other, self))
                + " mm, and one has neither qform nor sform"
            )
        return replace(self, affine=other.affine)

    def turned(self) -> tuple[Numbers, Affine]:
        """Return the voxels, `[X, Y, Z]` or `[C, X, Y, Z]`, turned to right, anterior, superior, and their affine."""
        from nibabel import orientations

        assert self.array is not None
        turn = orientations.io_orientation(self.affine)
        affine = self.affine @ orientations.inv_ornt_aff(turn, self.shape[:3])
        array = orientations.apply_orientation(self.array, turn)
        return (np.moveaxis(array, 3, 0) if array.ndim == 4 else array), affine


def _load_nifti(files: CaseFiles, names: LabelNames, with_image: bool) -> Case:
    if files.label is not None and files.organ_files:
        return _load_organ_files(files, files.label, names, with_image)
    label = None if files.label is None else _read_nifti(files.label, as_label=True)
    image = _image_beside(files, label, with_image)
    image, label, notes = _on_one_grid(image, label)
    masks, affine = None, None
    if label is not None:
        array, affine = label.turned()
        masks = masks_from_array(array, names, step=label.step)
    return _nifti_case(image, masks, affine, names, (image, label), notes)


def _load_organ_files(files: CaseFiles, folder: Path, names: LabelNames, with_image: bool) -> Case:
    """Read a case whose labels are binary files, one an organ, all on one grid."""
    found = [(n, file) for n, organ in enumerate(files.organ_files, start=1) if (file := organ_file(folder, organ))]
    if not found:
        raise ValueError(f"{folder} holds no NIfTI file")
    read = _read_nifti(found[0][1], as_label=True)
    image, first, notes = _on_one_grid(_image_beside(files, read, with_image), read)
    assert first is not None
    array, affine = first.turned()
    shape, step = array.shape, first.step
    places: dict[int, Places] = {}
    for number, file in found:
        if number != found[0][0]:
            label = _read_nifti(file, as_label=True)
            label = label if label.has_form or not first.has_form else label.placed_like(first)
            array, turned = label.turned()
            step = label.step
            _check_same_grid(shape, affine, array.shape, turned, found[0][1].name, file.name)
        masks = masks_from_array(array, LabelNames(names={}, background=None), step=step)
        if len(masks.places) > 1 or array.ndim != 3:
            raise ValueError(f"{file.name} holds several labels; the file of an organ holds one")
        for voxels in masks.places.values():
            places[number] = voxels
    masks = LabelMasks(shape=(shape[0], shape[1], shape[2]), places=places)
    return _nifti_case(image, masks, affine, names, (image, first), notes)


def _image_beside(files: CaseFiles, label: _Volume | None, with_image: bool) -> _Volume | None:
    """Return the image, its header alone where that only has to say where a label lies, or None."""
    if files.image is None or not (with_image or label is None or not label.has_form):
        return None
    return _read_nifti(files.image, as_label=False, voxels=with_image or label is None)


def _on_one_grid(
    image: _Volume | None, label: _Volume | None
) -> tuple[_Volume | None, _Volume | None, tuple[str, ...]]:
    """Return image and label, one that doesn't say how it lies placed like the other, and what to say of that."""
    given = [volume for volume in (image, label) if volume is not None]
    notes = [note for volume in given for note in volume.notes]
    if not any(volume.has_form for volume in given):
        notes.append(
            "no file has a qform or sform: voxel axes are taken as they are, and left and right are not known"
        )
    elif image is not None and label is not None and image.has_form != label.has_form:
        notes.append(
            f"the {'image' if label.has_form else 'label'} has neither qform nor sform, and is placed like the other"
        )
        image, label = (image.placed_like(label), label) if label.has_form else (image, label.placed_like(image))
    return image, label, tuple(dict.fromkeys(notes))


def _nifti_case(
    image: _Volume | None,
    masks: LabelMasks | None,
    affine: Affine | None,
    names: LabelNames,
    volumes: tuple[_Volume | None, ...],
    notes: tuple[str, ...],
) -> Case:
    array = None
    if image is not None and image.array is not None:
        array, image_affine = image.turned()
        if masks is not None and affine is not None:
            _check_same_grid(array.shape, image_affine, masks.shape, affine)
        affine = image_affine if affine is None else affine
    assert affine is not None
    known = any(volume is not None and volume.has_form for volume in volumes)
    return Case(
        image=array, masks=masks, names=names, affine=affine, spacing_known=True, orientation_known=known, notes=notes
    )


def _check_same_grid(
    shape: tuple[int, ...],
    affine: Affine,
    label_shape: tuple[int, ...],
    label_affine: Affine,
    first: str = "image",
    second: str = "label",
) -> None:
    if shape != label_shape:
        raise ValueError(f"the {first} has the shape {list(shape)}, the {second} {list(label_shape)}")
    apart = _apart(shape, affine, label_affine)
    if not apart <= _SAME_GRID * float(np.linalg.norm(affine[:3, :3], axis=0).max()):
        raise ValueError(f"{first} and {second} lie {apart:.3g} mm apart: they are not on one grid")


def _apart(shape: tuple[int, ...], affine: Affine, other: Affine) -> float:
    """Return by how many millimetres two affines move the corners of a grid apart, at most."""
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    return float(np.abs(corners @ (affine - other).T).max())


def _read_nifti(path: Path, *, as_label: bool, voxels: bool = True) -> _Volume:
    """Read a NIfTI file, or its header alone."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
        from nibabel.wrapstruct import WrapStructError
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'vae-qwen3vl[medical]'") from error
    import zlib

    file = regular_file(path, "NIfTI file")
    packed = file.suffix.lower() == ".gz"
    try:
        opened = nibabel.load(file)
        if not isinstance(opened, nibabel.Nifti1Image):  # NIfTI-2 is one, too
            raise ValueError("it is another format")
        _check_nifti_size(opened, os.path.getsize(file), packed=packed)
        slope, intercept = float(opened.dataobj.slope), float(opened.dataobj.inter)  # nibabel clears the header's own
        scaled = (slope, intercept) != (1.0, 0.0)
        # Half of the float32 values near a large label lie more than a thousandth from it.
        kind = None if not scaled else np.float64 if as_label else np.float32
        array = _spatial(_voxels(opened, file, kind, packed), as_label) if voxels else None
        affine, has_form, notes = _placement(opened)
    except (
        ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, KeyError, TypeError,
        OverflowError, MemoryError, IndexError, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a readable NIfTI file: {brief(error)}") from error
    whole = opened.header.get_data_dtype().kind in "biu"
    return _Volume(
        array=array,
        shape=tuple(int(n) for n in (opened.shape[:3] if array is None else array.shape)),
        affine=affine,
        has_form=has_form,
        step=abs(slope) if scaled and whole else 0.0,
        notes=notes,
    )


def _placement(opened: Any) -> tuple[Affine, bool, tuple[str, ...]]:
    """Return the affine of a NIfTI file in millimetres, whether the file has one, and what to say of it.

    Without a qform and an sform nibabel turns the x axis round, as the Analyze format had it. Nothing in such a file
    says so: the axes stay as they are.
    """
    header = opened.header
    sform, qform = (int(header[key]) > 0 for key in ("sform_code", "qform_code"))
    affine = np.asarray(opened.affine, dtype=np.float64)
    if not (sform or qform):
        affine = np.diag([*np.abs(np.asarray(header.get_zooms()[:3], dtype=np.float64)), 1.0])
    scale = _MM.get(header.get_xyzt_units()[0], 1.0)
    affine = np.diag([scale] * 3 + [1.0]) @ affine
    check_affine(affine)
    if not (sform and qform):
        return affine, sform or qform, _on_spacing(header, affine / scale) if sform else ()
    try:
        other = scale * np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError as error:  # HeaderDataError is not one of nibabel's here
        return affine, True, (f"the qform is damaged ({brief(error)}): the sform is used",)
    other[3] = affine[3]
    apart = _apart(opened.shape[:3], affine, other)
    if apart <= _SAME_FORM * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        return affine, True, ()
    return affine, True, (f"sform and qform differ by up to {apart:.3g} mm: the sform is used, as in nibabel",)


def _on_spacing(header: Any, affine: Affine) -> tuple[str, ...]:
    """Return what to say of a file whose sform is alone and has another spacing than its header."""
    given, used = (np.asarray(header.get_zooms()[:3], dtype=np.float64), np.linalg.norm(affine[:3, :3], axis=0))
    if np.allclose(given, used, rtol=_SAME_GRID):
        return ()
    spacings = " and ".join(", ".join(f"{s:.4g}" for s in spacing) for spacing in (given, used))
    return (f"the header's spacing and the sform's are {spacings}: the sform is used, as in nibabel",)


def _voxels(opened: Any, file: Path, kind: Any, packed: bool) -> Numbers:
    """Return the voxels of an open NIfTI file; those of a packed one only if its checksum is right."""
    if not packed:
        return np.asarray(opened.dataobj, dtype=kind)
    with gzip.open(file) as stream:
        array = np.asarray(type(opened).from_stream(stream).dataobj, dtype=kind)
        if len(stream.read(_TRAILING_BYTES)) == _TRAILING_BYTES:
            raise ValueError("it goes on long after its voxels")
    return array


def _check_nifti_size(opened: object, file_bytes: int, packed: bool) -> None:
    """Raise a ValueError if a file claims more than is read, or than it can hold."""
    header = opened.header  # type: ignore[attr-defined]
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) not in (3, 4, 5) or (len(shape) == 5 and shape[3] != 1):
        raise ValueError(f"it has the shape {list(shape)}, no volume")
    check_shape((shape[-1] if len(shape) > 3 else 1, *shape[:3]))
    dtype = header.get_data_dtype()
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, no plain numbers")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > file_bytes * (_GZIP_RATIO if packed else 1):
        raise ValueError(f"its header claims {claimed:,} bytes, but the file has {file_bytes:,}")


def _spatial(array: Numbers, as_label: bool) -> Numbers:
    """Return a volume `[X, Y, Z]`, or channels `[X, Y, Z, C]` of a label file."""
    if array.ndim == 5:
        array = array[:, :, :, 0]
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim == 4 and not as_label:
        raise ValueError(f"it has {array.shape[3]} volumes; a CT has one")
    return array
