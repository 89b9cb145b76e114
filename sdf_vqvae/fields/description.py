"""What the numbers of a sparse distance field mean. Every field file and every VAE config carries this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdf_vqvae.geometry import MAX_RESOLUTION

CONVERSION_HINT = (
    "convert it with `vae-qwen3vl convert FIELD -o OUT` (--vae_config for a VAE that is not the shipped one), "
    "or give the mesh itself"
)
"""What to do about a field of another kind than a VAE reads."""


@dataclass(frozen=True, kw_only=True)
class FieldDescription:
    """What the numbers of a distance field mean."""

    kind: str
    """`sdf` (signed, negative inside) or `udf` (unsigned)."""
    unit: str
    """`band` (clip(d / (band * h), -1, 1)) or `world` (raw distance in the unit cube)."""
    band: float | None
    """Half width in voxels of the shell that is stored; None if unknown."""
    sampling: str
    """`center`: sample i at (i + 0.5) / R - 0.5; `corner`: at i / (R - 1) - 0.5."""
    resolution: int
    """Grid side R; voxel size h = 1 / R."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        for key, allowed in {
            "kind": ("sdf", "udf"),
            "unit": ("band", "world"),
            "sampling": ("center", "corner"),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"field {key} must be one of {allowed}, got {getattr(self, key)!r}")
        if isinstance(self.resolution, bool) or not isinstance(self.resolution, int):
            raise ValueError(f"field resolution must be an integer, got {self.resolution!r}")
        if self.band is not None and (isinstance(self.band, bool) or not isinstance(self.band, int | float)):
            raise ValueError(f"field band must be a number or unknown, got {self.band!r}")
        if not 2 <= self.resolution <= MAX_RESOLUTION:
            raise ValueError(f"field resolution must lie in 2..{MAX_RESOLUTION}, got {self.resolution}")
        if self.band is not None and not 0 < self.band <= MAX_RESOLUTION:
            raise ValueError(f"field band must be voxels in 0..{MAX_RESOLUTION} or unknown, got {self.band}")
        if self.unit == "band" and self.band is None:
            raise ValueError("a field in units of its band needs the band")

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values for JSON."""
        return {
            "kind": self.kind,
            "unit": self.unit,
            "band": self.band,
            "sampling": self.sampling,
            "resolution": self.resolution,
        }

    def in_words(self) -> str:
        """Return the description as part of a sentence."""
        band = "unknown band" if self.band is None else f"band {self.band:g}"
        return (
            f"{self.kind} at {self.resolution}^3 ({band}, in units of the {self.unit}, samples at cell "
            f"{self.sampling}s)"
        )

    @property
    def voxels_per_unit(self) -> float:
        """Distance of one unit of the values, in steps of the grid."""
        steps = self.resolution - 1 if self.sampling == "corner" else self.resolution
        if self.unit == "world" or self.band is None:
            return float(steps)
        return self.band * steps / self.resolution

    def is_read_as(self, other: FieldDescription) -> bool:
        """Return whether fields like this one are resampled where those of another description are read.

        So are signed fields of a known band, on a grid at most twice as coarse or as fine.
        """
        signed = self.kind == other.kind == "sdf" and None not in (self.band, other.band)
        low, high = sorted((self.resolution, other.resolution))
        return signed and high <= 2 * low

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FieldDescription:
        """Read what `to_dict` wrote (British `centre` is accepted).

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        names = {"kind", "unit", "band", "sampling", "resolution"}
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise ValueError(f"a field description is a mapping with the keys {sorted(names)}, got {values!r}")
        if set(values) != names:
            raise ValueError(f"a field description has the keys {sorted(names)}, got {sorted(values)}")
        return cls(**{**values, "sampling": str(values["sampling"]).replace("centre", "center")})
