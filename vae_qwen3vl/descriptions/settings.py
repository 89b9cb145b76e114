"""Which objects are asked what, and how. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from sdf_vqvae.utils.settings import Option, Positive, check
from vae_qwen3vl.candidates.settings import CandidateSettings

_OF_THE_RUN = ("sources", "output", "prompts", "batch_size", "split", "max_samples")
"""Settings that change nothing in what is said of an object."""


@dataclass(frozen=True, kw_only=True)
class DescribeSettings:
    """Which objects are asked what, and how."""

    sources: Annotated[tuple[Path, ...], Option(positional=True, metavar="MESH|FIELD|CODES|FOLDER")]
    """Mesh files, field files (.npz), codes files (.safetensors); folders of meshes, of fields or of codes; packs."""
    output: Annotated[Path, Option(short="-o", metavar="FILE")] | None = None
    """JSON Lines file, .jsonl, that grows as answers come; the same command goes on with it (default: print them)."""
    prompts: tuple[str, ...] = ()
    """Questions; without any, the one that the projector was trained with."""
    max_new_tokens: Positive = 64
    """Length of an answer."""
    abstain: Annotated[float, Option(metavar="P")] | None = None
    """Below this probability of being right the answer is "something like a ..." (default: never)."""
    batch_size: Positive = 8
    """Answers that are written together."""
    look_up: Annotated[Path, Option(metavar="INDEX")] | None = None
    """Index of shapes: the model reads what the nearest objects are called beside the shape. Made for weights that
    were trained so (the shipped ones were not)."""
    split: str | None = None
    """Only objects whose row says so in its column `split`."""
    max_samples: Positive | None = None
    """The first so many objects of each path."""
    up: str | None = None
    """See `up_of`."""
    threshold_factor: float | None = None
    """See `voxelize_for`."""
    vae_config: str | Path | None = None
    vae_ckpt: str | Path | None = None
    vl_model: str | None = None
    projector_ckpt: str | None = None
    lora_dir: str | None = None
    dtype: str | None = None
    """See `load_describer`."""
    choice: CandidateSettings = field(default_factory=CandidateSettings)
    """Among which answers one is chosen, and by what; by default the likeliest is taken."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
        if self.abstain is not None and not 0 <= self.abstain <= 1:
            raise ValueError(f"--abstain {self.abstain}: a probability is from 0 to 1")
        if self.abstain is not None and (self.choice or self.look_up is not None):
            raise ValueError(
                "--abstain knows how often the likeliest answers to the question alone are right: leave "
                "--candidates, --neighbors and --look_up out"
            )

    @property
    def decisive(self) -> dict[str, Any]:
        """What is not as it is by default, of the settings that change what is said of an object."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        chosen = {name: value for name, (value, default) in values.items() if value != default and name != "choice"}
        if self.choice:
            chosen |= self.choice.told()
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in chosen.items()
            if name not in _OF_THE_RUN
        }
