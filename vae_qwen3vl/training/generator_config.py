"""Settings of a generator: `configs/creation/generator.yaml` and the command line in, one checked data class out.

The command line wins over the file, the file over the defaults.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Any

from sdf_vqvae.utils.settings import Amount, Count, Option, Positive, Rate, Share, check, check_keys, settings_of
from sdf_vqvae.utils.strict_files import read_mapping

FREE = ("output_dir", "log_every", "val_every", "save_every", "num_workers", "resume")
"""Settings that may change while a run is stopped: the others decide what comes of it."""


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """How a generator is trained."""

    data_dir: str
    """Folder of cached codes with captions (vae-qwen3vl encode DATASET -o codes)."""
    output_dir: Annotated[str, Option(metavar="FOLDER")] = "outputs_generator"
    """The run folder; the generator in it is ready for create."""
    mirrored_dir: str | None = None
    """Cached codes of the objects' mirror images (encode --mirror): each epoch half of the objects are theirs, with
    left and right exchanged in what is said."""
    sentence_model: Annotated[str, Option(metavar="NAME")] = "all-minilm-l6-v2"
    """Whose vectors of words are read: all-minilm-l6-v2 (from PyPI), a folder, or a Hub id."""
    max_samples: Count = 0
    """Objects taken from the data; 0 takes all."""
    val_samples: Count = 256
    """Objects that are not trained on and measured: of the split `val`, or where there is none at most a tenth of
    all; 0 for none."""
    width: Positive = 256
    """Numbers of a token inside the networks."""
    heads: Positive = 4
    """Heads of attention."""
    where_blocks: Positive = 5
    """Blocks of the network that says which cells are occupied."""
    what_blocks: Positive = 8
    """Blocks of the network that says their codes."""
    dropout: Share = 0.2
    """Share of the numbers that a block's parts leave out while training; small data wants it, large data less."""
    epochs: Positive = 100
    """Passes over the data at most."""
    batch_size: Positive = 32
    """Objects a step and process."""
    max_seconds: Rate | None = None
    """Stop after so many seconds, over all resumed parts; the rate falls accordingly."""
    lr: Rate = 5e-4
    """Largest learning rate (AdamW): it rises, then falls by a cosine."""
    warmup_ratio: Share = 0.03
    """Share of the run in which the rate rises."""
    weight_decay: Amount = 0.03
    """Weight decay (AdamW)."""
    grad_clip: Amount = 1.0
    """Largest norm of the gradients; 0 for any."""
    average: Share = 0.999
    """Decay a step of the averaged weights, which are the result; shorter runs average over less."""
    num_workers: Count = 0
    """Processes that read data."""
    log_every: Positive = 10
    """Steps between log records."""
    val_every: Positive = 500
    """Steps between measurements of what was kept apart."""
    save_every: Positive = 500
    """Steps between checkpoints; there is one after every quarter of a run too, and where it is told to stop."""
    seed: Count = 42
    """Seed of the weights, of the order, of the masks and of the choice among an object's captions."""
    resume: bool = False
    """Go on with the run in output_dir that was stopped."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self)

    @classmethod
    def of(cls, file: str | os.PathLike[str] | None, flags: dict[str, Any]) -> GeneratorTraining:
        """Return the settings of a file, where one is given, and of flags.

        Raises:
            ValueError: the file can't be read, a key or value is wrong, or no data is named.
        """
        values: dict[str, Any] = {}
        if file is not None:
            values = read_mapping(file)
            try:
                check_keys("settings", values, settings_of(cls))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
        values = values | flags
        if "data_dir" not in values:
            raise ValueError(
                "no data: give --data_dir CODES, a folder of cached codes with captions "
                "(vae-qwen3vl encode DATASET -o CODES)"
            )
        return cls(**values)

    def decisive(self) -> dict[str, Any]:
        """Return the settings that a run can't change when it goes on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}
