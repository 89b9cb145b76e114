"""Among which answers one is chosen, and by what. Loads nothing heavy, so that programs can say what there is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from sdf_vqvae.utils.settings import Bounds, Count, Option, Positive, Share, check


@dataclass(frozen=True, kw_only=True)
class CandidateSettings:
    """Among which answers one is chosen, and by what."""

    candidates: Count = 0
    """Answers that are drawn beside the likeliest one, to choose among them all; 0 draws none."""
    candidate_temperature: Annotated[float, Bounds(least=0.01, most=2)] = 0.7
    """Of the draw: higher ones differ more."""
    shape_weight: Share = 0.75
    """What chooses: 0, mean likeness to the other candidates (minimum Bayes risk); 1, likeness to the vector that the
    search head predicts from the shape; between, both."""
    neighbors: Annotated[Path, Option(metavar="INDEX")] | None = None
    """Index of shapes: the words of those nearest to the object are candidates too."""
    neighbor_count: Positive = 8
    """How many of them."""
    candidate_seed: Count = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)

    def __bool__(self) -> bool:
        """Return whether there is anything to choose among."""
        return self.candidates > 0 or self.neighbors is not None

    def told(self) -> dict[str, Any]:
        """Return all of them as plain values, for the record."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
