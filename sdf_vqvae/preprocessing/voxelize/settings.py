"""What is made of a dataset of meshes. Opens nothing."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sdf_vqvae.data import Format
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry import MAX_RESOLUTION
from sdf_vqvae.utils.jobs import Engine
from sdf_vqvae.utils.settings import Bounds, Option, check


@dataclass(frozen=True, kw_only=True)
class FieldKind:
    """What the fields of a dataset have in common."""

    band: float
    """Half width in voxels of the stored shell."""
    signed: bool = True
    """False for the original system's fields: raw unsigned distances at the corners of cells."""

    def stored(self, resolution: int) -> FieldDescription:
        """Return the description that files have. Those of the original system don't record their band."""
        if self.signed:
            return FieldDescription(kind="sdf", unit="band", band=self.band, sampling="center", resolution=resolution)
        return FieldDescription(kind="udf", unit="world", band=None, sampling="corner", resolution=resolution)


def _resolutions(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of grid sides such as 256,512") from error


@dataclass(frozen=True, kw_only=True)
class VoxelizeSettings:
    """What to voxelize, and how."""

    source_format: Annotated[Format, Option(flag="--format")]
    """trellis500k: ObjaverseXL (object-paths.json) or HSSD; custom: metadata.csv with glb_file; folder: mesh files,
    however deep; pack: meshes.bin and meshes.jsonl."""
    input_dir: Path
    """The meshes."""
    output_dir: Path
    """The dataset; made where missing."""
    resolutions: Annotated[tuple[int, ...], Option(metavar="R,R", read=_resolutions)] = (512,)
    """Grid sides, as in "256,512"; each object gets a file for each."""
    threshold_factor: Annotated[float, Option(metavar="B")] = 3.0
    """Half width in voxels of the stored shell; the shipped tokenizer reads 3. The original's default, 0.01, keeps
    about a fiftieth of the voxels that the surface passes through, too few to rebuild it."""
    signed: Annotated[bool, Option(flag="--unsigned")] = True
    """Signed distances in units of the band; --unsigned makes the original's files instead: raw unsigned distances in
    the unit cube, samples at i / (R - 1) - 0.5."""
    up: str | None = None
    """The axis of all meshes that points up, or `auto`; None takes what table and format say (`up_of`)."""
    split: str | None = None
    """Only rows whose column `split` says this."""
    filter_aesthetic_score: float | None = None
    """Only rows with an aesthetic_score of this or more."""
    max_samples: int | None = None
    """Only the first so many of them (0: all)."""
    skip_existing: Annotated[bool, Option(flag="--no_skip")] = True
    """Keep whole files of an earlier run; --no_skip makes all files anew."""
    workers: Annotated[int, Bounds(least=1), Option(flag="--max_workers", default="one a core, up to four a GPU")] = 1
    """Processes. More than one need a main program that can be imported, as all of multiprocessing's do."""
    devices: tuple[str, ...] = ("cpu",)
    engine: Engine = "local"
    """Processes here, or a Ray cluster."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
        if not self.resolutions or len(set(self.resolutions)) < len(self.resolutions):
            raise ValueError(f"--resolutions must be different numbers, got {self.resolutions}")
        for resolution in self.resolutions:
            if not 8 <= resolution <= MAX_RESOLUTION:
                raise ValueError(f"--resolutions must lie in 8..{MAX_RESOLUTION}, got {resolution}")
        if not 0 < self.threshold_factor <= min(self.resolutions):
            raise ValueError(
                f"--threshold_factor is a number of voxels, more than 0 and at most the resolution; "
                f"got {self.threshold_factor:g}"
            )
        if self.filter_aesthetic_score is not None and math.isnan(self.filter_aesthetic_score):
            raise ValueError("--filter_aesthetic_score must be a number")
        if self.max_samples is not None and self.max_samples < 0:
            raise ValueError(f"--max_samples must be 0 (all) or more, got {self.max_samples}")

    @property
    def kind(self) -> FieldKind:
        """What the fields have in common."""
        return FieldKind(band=self.threshold_factor, signed=self.signed)
