"""What an evaluation asks and measures. Loads nothing heavy, so that a program can say what there is to choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from sdf_vqvae.utils.settings import Option, Positive, check
from vae_qwen3vl.candidates.settings import CandidateSettings

Measure = Literal["captions", "closed_sets", "users_questions", "retrieval"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
CAPTIONS, CLOSED_SETS, USERS_QUESTIONS, RETRIEVAL = MEASURES


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What is asked and measured."""

    prompt: str
    """Asks for a description."""
    measures: Annotated[tuple[Measure, ...], Option(default="all that the data allows")] = MEASURES
    """Measures; what the objects don't allow is left out."""
    questions: Annotated[Path, Option(metavar="JSONL")] | None = None
    """Of make-questions about these objects (default: conversations_{split}.jsonl in --data_dir)."""
    max_new_tokens: Positive = 128
    """Of an answer."""
    batch_size: Positive = 16
    """Objects at a time."""
    look_up: Annotated[Path, Option(metavar="INDEX")] | None = None
    """Index of training objects: descriptions read what the nearest ones are called."""
    sentence_model: str | None = None
    """Measures descriptions: a folder, a Hub id or all-minilm-l6-v2 (the default, which chooses among candidates)."""
    choice: CandidateSettings = field(default_factory=CandidateSettings)
    """Among which answers a description is chosen, and by what; by default the likeliest is taken."""
    seed: int = 0
    """Of the controls, and of the choice among an object's questions."""
    shapes: Annotated[Path, Option(metavar="PATH")] | None = None
    """Their true meshes, to score --save_mesh: a pack, folder or file."""
    voxel_resolution: Annotated[Positive, Option(metavar="R")] | None = None
    """Of rebuilt meshes (default: the data's)."""
    mc_threshold: Annotated[float, Option(metavar="T")] | None = None
    """Iso value of rebuilt meshes, in units of the field (default: 0)."""
    data: Annotated[str, Option(empty=True)] = ""
    """What the page calls the objects."""
    run: Path | None = None
    """The run that the weights are of, for the record."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
