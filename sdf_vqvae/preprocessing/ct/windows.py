"""Windows of intensities of a CT, and whether its numbers are Hounsfield units (HU) at all.

A window is a range of HU in which one kind of tissue shows; as a mask it is 1 inside the range. Arrays are written at
the full grid side, padded behind the scan on each axis, as the original system does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdf_vqvae.preprocessing.ct.masks import Numbers
from sdf_vqvae.preprocessing.ct.settings import MAX_SIDE
from sdf_vqvae.utils.files import atomic_path

AIR = -1000
"""HU of what lies outside the scan."""
_LEAST_AIR, _LEAST_BONE = -200.0, 100.0
_LOWEST, _HIGHEST = -33000.0, 66000.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """A range of Hounsfield units."""

    name: str
    width: int
    level: int

    @property
    def low(self) -> float:
        """Lowest HU inside."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """Highest HU inside."""
        return self.level + self.width / 2

    @property
    def file_stem(self) -> str:
        """`lung_w1500_l-600`."""
        return f"{self.name}_w{self.width}_l{self.level}"

    def mask(self, image: Numbers) -> npt.NDArray[np.bool_]:
        """Return where the image lies in the window."""
        return np.asarray((image >= self.low) & (image <= self.high))


WINDOWS = {
    w.name: w
    for w in (
        Window(name="lung", width=1500, level=-600),
        Window(name="bone", width=1500, level=300),
        Window(name="soft_tissue", width=400, level=50),
        Window(name="brain", width=80, level=35),
    )
}
# Whole words, so that a thyroid is no rib and a hippocampus no hip.
_WORDS = {
    "lung": r"lungs?|pulmonary|bronch\w*|trachea\w*|airways?",
    "bone": r"bones?|vertebra\w*|ribs?|spine|femur\w*|skull|crani\w*|pelvis|pelvic|hips?|sacrum|scapula\w*|humerus|"
    r"clavicula\w*|clavicles?|sternum|tibia|fibula|radius|ulna|mandible|patella|costal|coccyx",
    "brain": r"brain\w*|cerebr\w*|cerebell\w*|hippocamp\w*|ventricles? of the brain|intracranial\w*",
}


def window_for(organ: str) -> Window:
    """Return the window in which an organ is looked at, by its name; soft tissue where nothing else fits."""
    words = re.sub(r"[_\W]+", " ", organ.lower())
    for name, pattern in _WORDS.items():
        if re.search(rf"\b(?:{pattern})\b", words):
            return WINDOWS[name]
    return WINDOWS["soft_tissue"]


def windows_for(organs: Iterable[str]) -> list[Window]:
    """Return the windows of some organs, each once, in the order of `WINDOWS`; all where there is no organ."""
    names = {window_for(organ).name for organ in organs}
    return [w for w in WINDOWS.values() if w.name in names or not names]


def why_not_hounsfield(image: Numbers) -> str:
    """Return why an image's numbers can't be Hounsfield units, or nothing if they may be.

    A CT shows air (-1000) round or in the body and tissue above 0. Numbers that were normalized, for instance to mean
    0 and standard deviation 1, or shifted so that air is 0, are not HU, and a window of HU cut out of them is noise.
    """
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        return "the image holds values that are not finite"
    found = f"the image's values run from {low:.4g} to {high:.4g}"
    expected = "in Hounsfield units a CT runs from about -1000 (air) to above 300 (bone)"
    advice = "give the CT in HU (NIfTI), or use --use_mask, which needs no intensities"
    if low < _LOWEST or high > _HIGHEST:
        return f"{found}: {expected}, and nothing lies beyond {_LOWEST:g} or {_HIGHEST:g}; {advice}"
    if low > _LEAST_AIR or high < _LEAST_BONE:
        return f"{found}: {expected}, so these were normalized or shifted; {advice}"
    return ""


def grid_side(shape: tuple[int, ...], default: int) -> int:
    """Return the smallest of the default side and 1024 that a scan fits into: scans are padded, never resampled.

    Raises:
        ValueError: a side of the scan is longer than 1024.
    """
    longest = max(shape)
    for side in sorted({default, MAX_SIDE}):
        if longest <= side:
            return side
    raise ValueError(f"the scan has the shape {list(shape)}; sides above {MAX_SIDE} are not supported")


def write_padded(
    path: Path,
    side: int,
    block: Numbers,  # [X, Y, Z]
    *,
    dtype: npt.DTypeLike,
    corner: tuple[int, int, int] = (0, 0, 0),
    background: float = 0,
) -> None:
    """Write an `.npy` `[side, side, side]` that holds a block, whole or not at all.

    Planes without a part of the block are skipped where the background is 0, so that a file of 128 MB takes a few on
    file systems with sparse files. No more than a plane is in memory.

    Args:
        path: the file.
        side: grid side.
        block: the values.
        dtype: of the values in the file.
        corner: where the block begins.
        background: value outside it.
    """
    kind = np.dtype(dtype)
    x0, y0, z0 = corner
    with atomic_path(path) as temporary, temporary.open("r+b") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (side,) * 3}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + side**3 * kind.itemsize)
        rows = slice(y0, y0 + block.shape[1]) if background == 0 else slice(0, side)
        for x in range(side):
            inside = x0 <= x < x0 + len(block)
            if not inside and background == 0:
                continue
            plane = np.full((side, side), background, dtype=kind)
            if inside:
                plane[y0 : y0 + block.shape[1], z0 : z0 + block.shape[2]] = block[x - x0]
            file.seek(start + (x * side + rows.start) * side * kind.itemsize)
            file.write(plane[rows].tobytes())
