"""Cases of CT datasets on disk: found in the M3D-Seg layout or as NIfTI, and read.

A case is an image, masks, names of labels, and the affine that leads from voxels to millimetres. Knows nothing of
windows, surfaces or outputs.
"""

from __future__ import annotations

import gzip
import math
import os
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_toolkits.ct_masks import (
    LabelMasks,
    LabelNames,
    Numbers,
    check_shape,
    masks_from_array,
    masks_from_sparse_file,
)
from sdf_vqvae.archives import NPY_HEADER_BYTES, one_line, parse_json, regular_file
from sdf_vqvae.field_folder import SAFE_ID
from sdf_vqvae.geometry.volume import check_affine

M3D, NIFTI = "m3d_seg", "nifti"
_JSON_BYTES = 16 * 2**20
_NIFTI_SUFFIXES = (".nii.gz", ".nii")
_GZIP_RATIO = 1100
"""More than deflate can pack: a file that claims more holds less than it says."""
_MM = {"meter": 1000.0, "micron": 0.001}
_TRAILING_BYTES = 2**20
_SAME_GRID = 1e-2
"""Most millimetres between the corners of an image's grid and its label's."""
# What NumPy raises on damaged headers (found by damaging files).
_NPY_DAMAGE = (
    ValueError, OSError, EOFError, SyntaxError, TypeError, ArithmeticError, MemoryError, LookupError, AttributeError,
    RecursionError, tokenize.TokenError,
)  # fmt: skip

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where the parts of one case lie."""

    case_id: str
    source: str
    """`m3d_seg` or `nifti`."""
    image: Path | None
    label: Path | None
    names: Path | None
    """JSON with the names of the labels."""
    spacing: tuple[float, float, float] | None
    """Millimetres between voxels, where the user says so; NIfTI files bring their own."""


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


# -- finding -----------------------------------------------------------------------------------------------------


def find_cases(
    root: Path, spacing: tuple[float, float, float] | None = None, names: Path | None = None
) -> list[CaseFiles]:
    """Return the cases of a dataset folder, in the order of their names.

    With `imagesTr` or `labelsTr` it is read as NIfTI; else as M3D-Seg: the folder of one dataset (`0000.json` and a
    folder a case), or one that holds several, whose cases are then called `0000_case`.

    Raises:
        ValueError: no such folder, or no case in it.
    """
    if not root.is_dir():
        raise ValueError(f"--data_root {root} is not a folder")
    if (root / "labelsTr").is_dir() or (root / "imagesTr").is_dir():
        if spacing is not None:
            raise ValueError("--spacing is for the M3D-Seg layout; NIfTI files bring their own")
        found = list(_nifti_cases(root, names))
    else:
        found = list(_m3d_cases(root, spacing, names, prefix=""))
        if not found:
            for folder in _folders(root):
                found += _m3d_cases(folder, spacing, names, prefix=f"{folder.name}_")
    if not found:
        raise ValueError(
            f"--data_root {root} holds no case: expected imagesTr/ and labelsTr/ (NIfTI), or the M3D-Seg layout "
            "CODE/CODE.json with CASE/image.npy and CASE/mask_(C, H, W, D).npz"
        )
    return found


def pair_case(image: Path | None, label: Path | None, names: Path | None) -> CaseFiles:
    """Return the case of one image, one label file or both (NIfTI), named after the first of them.

    Raises:
        ValueError: neither is given, or a file isn't NIfTI by its name.
    """
    chosen = image or label
    if chosen is None:
        raise ValueError("give --data_root, or --image and --label")
    for file in (image, label):
        if file is not None and not file.name.endswith(_NIFTI_SUFFIXES):
            raise ValueError(f"{file}: --image and --label are NIfTI files, .nii or .nii.gz")
    return CaseFiles(
        case_id=_stem(chosen),
        source=NIFTI,
        image=image,
        label=label,
        names=names or _names_beside(chosen.parent),
        spacing=None,
    )


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, by name, but no hidden ones."""
    yield from (p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith("."))


def _m3d_cases(
    root: Path, spacing: tuple[float, float, float] | None, names: Path | None, prefix: str
) -> Iterator[CaseFiles]:
    listed = names or _m3d_names(root)
    for folder in _folders(root):
        image = folder / "image.npy"
        masks = sorted(p for p in folder.iterdir() if p.name.startswith("mask") and p.suffix in (".npz", ".npy"))
        if image.exists() or masks:
            yield CaseFiles(
                case_id=prefix + folder.name,
                source=M3D,
                image=image if image.exists() else None,
                label=masks[0] if len(masks) == 1 else folder if masks else None,
                names=listed,
                spacing=spacing,
            )


def _m3d_names(root: Path) -> Path | None:
    """Return the JSON with a dataset's labels: named like its folder, else the only one there."""
    own = root / f"{root.resolve().name}.json"
    found = sorted(root.glob("*.json"))
    if own.is_file():
        return own
    return found[0] if len(found) == 1 else _names_beside(root)


def _names_beside(folder: Path) -> Path | None:
    return next((p for p in (folder / "labels.json", folder / "dataset.json") if p.is_file()), None)


def _nifti_cases(root: Path, names: Path | None) -> Iterator[CaseFiles]:
    images = {_stem(p).removesuffix("_0000"): p for p in _nifti_files(root / "imagesTr")}
    labels = {_stem(p): p for p in _nifti_files(root / "labelsTr")}
    for case in sorted({*images, *labels}):
        yield CaseFiles(
            case_id=case,
            source=NIFTI,
            image=images.get(case),
            label=labels.get(case),
            names=names or _names_beside(root),
            spacing=None,
        )


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in sorted(folder.iterdir()) if p.name.endswith(_NIFTI_SUFFIXES) and not p.name.startswith(".")]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


# -- reading -----------------------------------------------------------------------------------------------------


def load_case(files: CaseFiles, *, with_image: bool = True) -> Case:
    """Read a case.

    Args:
        files: where it lies.
        with_image: also open the image.

    Raises:
        ValueError: its name can't be part of a path, a file is missing or damaged, or image and mask don't fit.
        ImportError: it is NIfTI and nibabel is not installed.
    """
    if not SAFE_ID.fullmatch(files.case_id):
        raise ValueError(f"the case's name {files.case_id!r} can't name a folder: use letters, digits, . _ and -")
    names = _read_names(files.names)
    if files.label is None and files.image is None:
        raise ValueError("the case has neither an image nor a mask")
    case = (_load_m3d if files.source == M3D else _load_nifti)(files, names, with_image)
    check_affine(case.affine)
    return case


def _read_names(path: Path | None) -> LabelNames:
    if path is None:
        return LabelNames(names={}, background=None)
    file = regular_file(path, "file of label names")
    if file.stat().st_size > _JSON_BYTES:
        raise ValueError(f"{path} has {file.stat().st_size:,} bytes, more than label names ever do")
    try:
        return LabelNames.parse(parse_json(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from error


def _load_m3d(files: CaseFiles, names: LabelNames, with_image: bool) -> Case:
    image = None
    if files.image is not None and (with_image or files.label is None):
        image = _without_channel(files.image, _open_npy(files.image, "image file"))
    masks = None
    if files.label is not None:
        if files.label.is_dir():
            raise ValueError(f"{files.label.name} holds several mask files: keep one")
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
    )


def _open_npy(path: Path, what: str) -> Numbers:
    """Map an `.npy` of plain numbers into memory: nothing is read before it is used."""
    file = regular_file(path, what)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False, max_header_size=NPY_HEADER_BYTES)
    except _NPY_DAMAGE as error:
        raise ValueError(f"{path} is not a readable array (.npy): {one_line(error)}") from error
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


def _load_nifti(files: CaseFiles, names: LabelNames, with_image: bool) -> Case:
    masks, affine, image = None, None, None
    if files.label is not None:
        array, affine = _read_nifti(files.label, as_label=True)
        masks = masks_from_array(array, names)
    if files.image is not None and (with_image or masks is None):
        image, image_affine = _read_nifti(files.image, as_label=False)
        if masks is not None and affine is not None:
            _check_same_grid(image.shape, image_affine, masks.shape, affine)
        affine = image_affine if affine is None else affine
    assert affine is not None
    return Case(image=image, masks=masks, names=names, affine=affine, spacing_known=True)


def _check_same_grid(
    shape: tuple[int, ...], affine: Affine, label_shape: tuple[int, ...], label_affine: Affine
) -> None:
    if shape != label_shape:
        raise ValueError(f"the image has the shape {list(shape)}, the label {list(label_shape)}")
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    apart = float(np.abs(corners @ (affine - label_affine).T).max())
    if not apart <= _SAME_GRID * float(np.linalg.norm(affine[:3, :3], axis=0).max()):
        raise ValueError(f"image and label lie {apart:.3g} mm apart: they are not on one grid")


def _read_nifti(path: Path, *, as_label: bool) -> tuple[Numbers, Affine]:
    """Return the voxels, turned to right, anterior, superior, and their affine in millimetres."""
    try:
        import nibabel
        from nibabel import orientations
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
        from nibabel.wrapstruct import WrapStructError
    except ImportError as error:
        raise ImportError("NIfTI files need nibabel: pip install 'vae-qwen3vl[medical]'") from error
    import zlib

    file = regular_file(path, "NIfTI file")
    try:
        opened = nibabel.load(file)
        if not isinstance(opened, nibabel.Nifti1Image):  # NIfTI-2 is one, too
            raise ValueError("it is another format")
        _check_nifti_size(opened, os.path.getsize(file), packed=file.suffix == ".gz")
        array = _voxels(opened, file)
        unit = opened.header.get_xyzt_units()[0]
        affine = np.diag([_MM.get(unit, 1.0)] * 3 + [1.0]) @ opened.affine
        check_affine(affine)
        array = _spatial(array, as_label)
        turn = orientations.io_orientation(affine)
        affine = affine @ orientations.inv_ornt_aff(turn, array.shape[:3])
        array = orientations.apply_orientation(array, turn)
    except (
        ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, KeyError, TypeError,
        OverflowError, MemoryError, IndexError, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a readable NIfTI file: {one_line(error)}") from error
    return (np.moveaxis(array, 3, 0) if array.ndim == 4 else array), affine


def _voxels(opened: Any, file: Path) -> Numbers:
    """Return the voxels of an open NIfTI file; those of a packed one only if its checksum is right."""
    scaled = opened.header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    kind = np.float32 if scaled else None
    if file.suffix != ".gz":
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
