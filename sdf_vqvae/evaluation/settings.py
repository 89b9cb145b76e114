"""What is measured of a tokenizer. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sdf_vqvae.utils.settings import Option, Positive, check


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured; the same for all objects of a folder."""

    shapes: Annotated[str, Option(positional=True, metavar="SHAPES", empty=True)] = ""
    """Folder of meshes, mesh pack, dataset of fields, or a mesh file."""
    split: str | None = None
    """Only objects of this split of a pack or dataset."""
    samples: Positive = 100_000
    """Points on each surface; 1000000 as some papers do."""
    seed: int = 0
    """Of the points, and of the choice of max_samples objects."""
    threshold_factor: float | None = None
    """See `voxelize_for`."""
    up: str | None = None
    """The axis that points up, as asked for; None takes each object's own."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
