"""What is made of scans. Opens nothing."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry import MAX_RESOLUTION
from sdf_vqvae.geometry.formats.registry import WRITABLE
from sdf_vqvae.geometry.up import AUTO, UP_IN_SCANS, Up, up_of
from sdf_vqvae.utils.settings import Bounds, Option, Positive, check

MAX_SIDE = 1024
"""Of the padded arrays."""
_VERSION = 2
_Side = Annotated[int, Bounds(least=8, most=min(MAX_RESOLUTION, MAX_SIDE)), Option(metavar="R")]
_MESHES = ("none", *(suffix[1:] for suffix in WRITABLE))


@dataclass(frozen=True, kw_only=True)
class OrganSettings:
    """How organs are written."""

    resolution: int
    band: float
    mesh_suffix: str
    """`.ply`, `.obj` and so on; empty for no meshes."""
    up: Up = UP_IN_SCANS
    """The axis of the scan's millimetres that points up. Fields stand along y, meshes as the scanner has them."""

    @property
    def field(self) -> FieldDescription:
        """What the field files are."""
        return FieldDescription(
            kind="sdf", unit="band", band=self.band, sampling="center", resolution=self.resolution
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is made of every case."""

    output: Path
    default_resolution: int
    """Grid side of the padded arrays, where the scan fits."""
    use_mask: bool
    """Masks of the labels instead of the image and its windows."""
    compute_sdf: bool
    replace_npy: bool
    """With `compute_sdf`: leave out the dense array of what has a field."""
    assume_hu: bool
    organ_names: tuple[str, ...]
    """The labels wanted, by name, cut at commas; all if empty."""
    organ: OrganSettings

    def fingerprint(self) -> dict[str, Any]:
        """Return what the outputs depend on."""
        values = asdict(self)
        del values["output"]
        return {"version": _VERSION, **values, "organ_names": list(self.organ_names)}


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} holds no name")
    return names


def _spacing(text: str) -> tuple[float, float, float]:
    from sdf_vqvae.geometry.volume import MAX_ANISOTROPY

    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1.5,1.5,3") from error
    if not (min(x, y, z) > 0 and max(x, y, z) < min(1e4, MAX_ANISOTROPY * min(x, y, z))):
        raise argparse.ArgumentTypeError(f"{text!r} holds a spacing that no scan has")
    return x, y, z


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """Which scans are read, what is made of them, and how."""

    data_root: Annotated[Path, Option(metavar="DIR")] | None = None
    """A dataset, or several (docs/ct.md has the layouts)."""
    image: Path | None = None
    """One CT, .nii or .nii.gz."""
    label: Path | None = None
    """Its labels, .nii or .nii.gz, or a folder of one an organ."""
    organ_labels: Annotated[Path, Option(metavar="JSON")] | None = None
    """Names of the labels (default: found beside)."""
    spacing: Annotated[tuple[float, float, float], Option(metavar="X,Y,Z", read=_spacing)] | None = None
    """Millimetres between voxels; M3D-Seg records none."""
    up: str | None = None
    """The axis of the scans that points up; None is superior."""
    organs: Annotated[tuple[str, ...], Option(metavar="A,B", read=_names)] = ()
    """Only these labels, by name."""
    max_cases: Positive | None = None
    """Only the first so many cases."""
    assume_hu: bool = False
    """Take intensities as Hounsfield units unseen."""
    output_dir: Path
    """Folder of the outputs."""
    default_resolution: _Side = 512
    """Side of the padded arrays; scans that don't fit get 1024."""
    use_mask: bool = False
    """Masks of the labels instead of image and windows."""
    compute_sdf: bool = False
    """Also fields and meshes, and the dataset organs/."""
    sdf_resolution: _Side = 512
    """Of the fields; the shipped tokenizer reads 256."""
    sdf_threshold_factor: Annotated[float, Bounds(above=0, most=MAX_RESOLUTION), Option(metavar="T")] = 3.0
    """Half width of the fields in voxels."""
    replace_npy: bool = False
    """Leave out the dense array of what has a field."""
    mesh_format: Annotated[str, Option(metavar="|".join(_MESHES))] = "ply"
    """Of the organs' meshes; `none` for no meshes."""
    num_workers: Positive = 4
    """Processes."""
    device: Annotated[str, Option(metavar="DEVICE")] = "cpu"
    """Where fields are computed: cpu, cuda, cuda:1."""
    no_skip: bool = False
    """Process finished cases again."""

    def __post_init__(self) -> None:
        """Check all values, and what goes together; the messages name the options."""
        check(self, by_flag=True)
        if self.mesh_format not in _MESHES:
            raise ValueError(f"--mesh_format must be one of {', '.join(_MESHES)}, got {self.mesh_format!r}")
        if self.replace_npy and not self.compute_sdf:
            raise ValueError("--replace_npy replaces arrays by fields: it needs --compute_sdf")
        if self.up == AUTO:
            raise ValueError(f"--up {AUTO}: organs stand as their scan does; give an axis")

    def of_cases(self, folder: str = "") -> Settings:
        """Return what is made of every case of the dataset whose outputs have a folder of their own."""
        return Settings(
            output=self.output_dir / folder,
            default_resolution=self.default_resolution,
            use_mask=self.use_mask,
            compute_sdf=self.compute_sdf,
            replace_npy=self.replace_npy,
            assume_hu=self.assume_hu,
            organ_names=self.organs,
            organ=OrganSettings(
                resolution=self.sdf_resolution,
                band=self.sdf_threshold_factor,
                mesh_suffix="" if self.mesh_format == "none" else f".{self.mesh_format}",
                up=up_of("", self.up) if self.up else UP_IN_SCANS,
            ),
        )
