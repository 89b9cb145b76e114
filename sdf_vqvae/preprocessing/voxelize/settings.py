"""What is made of a dataset of meshes. Opens nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sdf_vqvae.data import FORMATS
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry import MAX_RESOLUTION

DEFAULT_BAND = 3.0


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


@dataclass(frozen=True, kw_only=True)
class VoxelizeSettings:
    """What to voxelize, and how."""

    source_format: str
    """`trellis500k`, `custom`, `folder` or `pack`."""
    input_dir: Path
    output_dir: Path
    resolutions: tuple[int, ...] = (512,)
    """Grid sides; each object gets a file for each."""
    threshold_factor: float = DEFAULT_BAND
    """Half width in voxels of the stored shell."""
    signed: bool = True
    """False for the original system's files: raw unsigned distances."""
    up: str | None = None
    """The axis of all meshes that points up, or `auto`; None takes what table and format say (`up_of`)."""
    split: str | None = None
    """Only rows of this split."""
    filter_aesthetic_score: float | None = None
    """Only rows whose `aesthetic_score` is at least this."""
    max_samples: int | None = None
    """Only the first so many rows of those; None or 0 for all."""
    skip_existing: bool = True
    """Keep whole files of an earlier run."""
    workers: int = 1
    """Processes; 1 is this one. More need a main program that can be imported, as all of multiprocessing's do."""
    devices: tuple[str, ...] = ("cpu",)
    engine: str = "local"
    """`local` or `ray`."""

    def __post_init__(self) -> None:
        """Check the values that argparse doesn't; the messages name the options."""
        if self.source_format not in FORMATS:
            raise ValueError(f"--format {self.source_format!r} is unknown; use one of {', '.join(FORMATS)}")
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
        if self.workers < 1:
            raise ValueError(f"--max_workers must be at least 1, got {self.workers}")

    @property
    def kind(self) -> FieldKind:
        """What the fields have in common."""
        return FieldKind(band=self.threshold_factor, signed=self.signed)
