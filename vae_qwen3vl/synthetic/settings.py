"""Which questions are made, and of what. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sdf_vqvae.utils.settings import Option, Positive, check
from vae_qwen3vl.synthetic.questions import KINDS
from vae_qwen3vl.synthetic.wordings import LANGUAGES, Language, WordingSet


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """What to make questions of, and which."""

    pack: Annotated[Path, Option(positional=True, metavar="PACK")]
    """Folder with meshes.bin and meshes.jsonl."""
    output: Annotated[Path, Option(short="-o", metavar="FILE")]
    """JSON Lines file, .jsonl."""
    split: str = "train"
    """Only objects of this split."""
    seed: int = 0
    """The same seed makes the same file."""
    wordings: Annotated[WordingSet | None, Option(default="that of the split")] = None
    """Which wordings are used: the three sets share none, so that questions of another set are new to a model."""
    languages: Annotated[tuple[Language, ...], Option(default="both")] = LANGUAGES  # type: ignore[assignment]
    """Languages of the questions."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of questions, see `questions`."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Source -> at most so many of its objects, drawn by the seed."""
    max_samples: Positive | None = None
    """At most so many objects of all."""
    anatomy_terms: Annotated[Path, Option(metavar="JSON")] | None = None
    """Anatomical term -> sentences; without it no questions `anatomy`."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
