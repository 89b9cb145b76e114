"""What an evaluation asks and measures. Loads nothing heavy, so that a program can say what there is to choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CAPTIONS, CLOSED_SETS, RETRIEVAL = "captions", "closed_sets", "retrieval"
MEASURES = (CAPTIONS, CLOSED_SETS, RETRIEVAL)


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is asked and measured."""

    prompt: str
    """Asks for a description."""
    measures: tuple[str, ...] = MEASURES
    """Of `MEASURES`; what the objects don't allow is left out."""
    questions: Path | None = None
    """JSONL of `make-questions` about the objects; None takes the one of their split beside their codes."""
    max_new_tokens: int = 128
    """Of a description."""
    batch_size: int = 16
    """Objects at a time."""
    seed: int = 0
    """Of the controls, and of the choice among an object's questions."""
    shapes: Path | None = None
    """The objects' true meshes, to score rebuilt ones: a pack, folder or file."""
    voxel_resolution: int | None = None
    """Of rebuilt meshes; None is the data's."""
    mc_threshold: float | None = None
    """Iso value of rebuilt meshes, in units of the field."""
    data: str = ""
    """What the page calls the objects."""
    run: Path | None = None
    """The run that the weights are of, for the record."""
