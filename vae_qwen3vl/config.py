"""Settings of alignment training: `configs/3d_align_train.yaml` and the command line in, one checked data class out.

The command line wins over the file, the file over the defaults; a flag left out changes nothing. A key that is
unknown, given twice or of the wrong type is an error, and nothing is ignored. Relative paths start at the current
directory (the repository root in every documented command), not at the file's folder. Reads settings only: the
language model's name stays as it is written (`resolve_vl_model` reads it), and no data or model is opened.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from sdf_vqvae.config.architecture import config_file
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.settings import (
    Amount,
    Count,
    Option,
    Positive,
    Rate,
    Share,
    add_options,
    check,
    check_keys,
    given,
    settings_of,
)
from sdf_vqvae.utils.strict_files import named_number, read_mapping
from vae_qwen3vl.accelerate_config import checked_accelerate
from vae_qwen3vl.data.look_up import SHOWN_SHARE, WRONG_SHARE
from vae_qwen3vl.data.texts import CAPTION_SHARE
from vae_qwen3vl.language import DEFAULT_PROMPT

_EXAMPLES = {"epoch_limits": "ldraw=2000", "kind_weights": "organ=6"}
"""Settings that say a number a name."""
FREE = (
    *("resume", "output_dir", "output_run", "accelerate", "num_workers", "log_every", "save_every"),
    *("use_gradient_checkpointing", "compile_layers"),
)
"""Settings that may change while a run is stopped: the others decide what comes of it. (The last two do so only as
far as sums are rounded.)"""
_PATHS = (
    "data_dir",
    "mirrored_dir",
    "look_up",
    "plain_text",
    "vae_config",
    "vae_ckpt",
    "init_projector",
    "init_lora",
)
AUTO = "auto"
"""An `output_run`: the latest one of the settings."""

# Keys of later versions of the original system. The first group is a trainer's; a trainer that honours one of them
# moves it into the data class.
_LATER = {
    "use_lr_scheduler": "the rate always warms up and falls by a cosine",
    "use_discrete_3d_tokens": "the vocabulary is not extended; the projector reads codebook vectors",
    "use_variable_length_3d_tokens": "every object has as many 3D tokens as it needs, up to max_3d_tokens",
    "max_safe_3d_length": "max_3d_tokens is the one limit",
    "max_length_variable": "max_3d_tokens is the one limit, and an answer is never cut",
    "coord_max_3d": "coordinates are positions, not words",
    "reconstruction_ratio": "meshes are rebuilt by the VAE's decoder, not written by the language model",
    "training_stage": "the projector and the adapter are trained in one run",
    "warmup_output_dir": "the projector and the adapter are trained in one run",
    "use_flash_attn_2": "attention is PyTorch's own",
    "tensor_parallel_size": "every GPU holds the whole model",
    "sequence_parallel_size": "every GPU holds whole sequences",
    "num_nodes": "it is num_machines in the accelerate section",
    "gpus_per_node": "it follows from num_processes in the accelerate section",
    "use_deepspeed": "it is distributed_type in the accelerate section",
    "dist_timeout_seconds": "PyTorch's own timeout holds",
    "resume_from": "--resume goes on with the latest run of the same settings that was stopped",
    "resume_ckpt_epoch": "--resume goes on from the latest checkpoint",
}


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What one training run does, and what an evaluation needs to know of it."""

    vl_model: Annotated[str, Option(metavar="NAME")] | None = None
    """Language model: a folder, a Hub id (never turned into a path), or smollm2-135m, which needs no hub."""
    vae_config: Annotated[str, Option(metavar="JSON")] | None = None
    """Configuration of the VAE; the shipped tokenizer's by default."""
    vae_ckpt: Annotated[str, Option(metavar="FILE")] | None = None
    """Weights of the VAE; those shipped for its configuration by default."""
    data_dir: str | None = None
    """Folder of the captioned data set."""
    mirrored_dir: str | None = None
    """Cached codes of the objects' mirror images (encode --mirror): each epoch half of the objects are theirs, with
    left and right exchanged in what is said."""
    data_format: Literal["sdf_caption"] = "sdf_caption"
    """Its layout: sdf_caption (metadata.csv and {sha256}_r{R}.npz)."""
    max_samples: Count = 0
    """Objects taken from it; 0 takes all."""
    epoch_limits: Annotated[str, Option(metavar="SOURCE=N")] | None = None
    """Sources (the table's column) of which an epoch takes at most so many objects, in turn: ldraw=2000,other=500."""
    look_up: Annotated[str, Option(metavar="INDEX")] | None = None
    """Index of the objects to train on (vae-qwen3vl index CODES -o INDEX --split train): words of an object's nearest
    ones, never its own or its copies', are shown beside it. Cached codes only."""
    look_up_share: Share = SHOWN_SHARE
    """With look_up: share of the draws that show any."""
    look_up_wrong: Share = WRONG_SHARE
    """With look_up: share of those that show another object's: what does not fit the shape is not to be believed."""
    plain_text: Annotated[str, Option(metavar="JSONL")] | None = None
    """Records without an object: adapters are held there to what the language model says without them."""
    plain_text_share: Share = 0.1
    """Their share of the training items; each epoch draws anew which ones."""
    dummy_data: bool = False
    """Train on random objects instead, for a quick test."""
    dummy_samples: Positive = 50
    """Number of random objects."""
    output_dir: str = "outputs_3d_vl"
    """Folder of the runs; each makes its own folder in it."""
    output_run: Annotated[str, Option(metavar="NAME", empty=True)] | None = None
    """Name of the run in output_dir that an evaluation with --config loads; auto, or nothing: the latest one of these
    settings."""
    prompt: str = DEFAULT_PROMPT
    """The question that the captions answer."""
    max_3d_tokens: int = 2048
    """3D tokens an object may have; 0 or less is no limit."""
    truncate_mode: Annotated[Literal["pool", "head"], Option(later=("random_sample", "fps"))] = "pool"
    """Over that limit: pool (average blocks, all of the object is seen) or head (cut)."""
    use_3d_pos: bool = False
    """Add a code of the coordinates to the 3D tokens."""
    projector_layers: Positive = 1
    """1 is a Linear, 2 and more an MLP."""
    use_lora: bool = False
    """Train adapters of the language model with the projector."""
    lora_r: Positive = 8
    """Rank of the adapters."""
    lora_alpha: Positive | None = None
    """Scale of the adapters; twice the rank by default."""
    lora_dropout: Share = 0.05
    """Dropout in front of the adapters."""
    start_from: Literal["new", "shipped"] = "new"
    """What training begins with: new weights, or the shipped projector and adapters, in the shape that they have."""
    init_projector: Annotated[str, Option(metavar="FILE")] | None = None
    """Trained projector (a file of an earlier run, or the shipped one) to start from; its layers, merge and position
    encoding must be these settings'."""
    init_lora: Annotated[str, Option(metavar="DIR")] | None = None
    """Trained adapters (a folder of an earlier run, or the shipped ones) to start from, with use_lora; their rank,
    scale and targets stay what they are."""
    lora_targets: Literal["attention", "all"] = "attention"
    """Linear maps of a text layer that get adapters: attention (q, k, v, o) or all (the MLP's too)."""
    merge: Literal[1, 2, 4] = 4
    """Cells an axis in one 3D token: 1, 2 or 4."""
    shape_tokens: Count = 0
    """3D tokens in front that tell of the object as a whole, from its coarse occupancy."""
    encoder_layers: Count = 0
    """Layers of a small transformer over an object's 3D tokens, in front of the language model."""
    caption_share: Share = CAPTION_SHARE
    """How often a caption of the table is learned where an object has questions too."""
    kind_weights: Annotated[str, Option(metavar="KIND=N")] | None = None
    """How often kinds of questions are drawn, beside 1 for the others: organ=6,category=4."""
    shift_cells: Count = 0
    """Cached codes: each epoch moves an object along every axis by up to so many cells, so blocks of merged cells cut
    it differently."""
    drop_cells: Share = 0.0
    """Cached codes: each epoch leaves out a random share of an object's codes, up to this one."""
    turn_degrees: Amount = 0.0
    """Cached codes: each epoch turns an object a little about its middle; deviation of the angle about each axis."""
    positions: Literal["mrope", "sequential"] = "mrope"
    """Positions of the 3D tokens: mrope (their block's coordinates) or sequential."""
    lr: Rate = 1e-4
    """Learning rate of the projector."""
    lora_lr: Rate | None = None
    """Learning rate of the adapters; a fifth of lr by default."""
    contrastive_weight: Amount = 0.0
    """Weight of a second loss of the projector: the mean of an object's 3D tokens should be nearer to its own name's
    words than to other names of the batch. Cached codes only."""
    pretrain_epochs: Count = 0
    """Passes in which the projector first learns, without the language model, which caption belongs to which object
    (see projector_pretraining.py). Cached codes only."""
    pretrain_masked: Amount = 0.0
    """Weight, in those passes, of telling hidden codes from the rest of their object; needs encoder_layers."""
    projector_share: Share = 0.3
    """Share of the run in which the projector learns alone, before the adapters join."""
    weight_decay: Amount = 0.01
    """Weight decay (AdamW)."""
    warmup_ratio: Share = 0.03
    """Share of the run in which the rates rise; then they fall by a cosine."""
    grad_clip: Amount = 1.0
    """Largest norm of the gradients; 0 for any."""
    gradient_accumulation_steps: Positive = 1
    """Batches a step."""
    compile_layers: bool = False
    """Compile the language model's layers (torch.compile): on CUDA, steps of small models are several times faster
    after a minute."""
    use_gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    epochs: Positive = 3
    """Passes over the data."""
    batch_size: Positive = 2
    """Objects a batch and GPU."""
    max_seconds: Rate | None = None
    """Stop after so many seconds; the rates fall accordingly."""
    num_workers: Count = 0
    """Processes that read data."""
    val_samples: Count = 256
    """Objects kept from training to validate on, where the data has no split `val`; 0 for none."""
    val_every: Positive = 200
    """Steps between validations."""
    best_by: Literal["gap", "val_loss", "last"] = "gap"
    """Which weights are a run's result: those to which other objects' shapes cost most (gap), those with the lowest
    val_loss, or the last step's (last)."""
    log_every: Positive = 10
    """Steps between log records."""
    save_every: Positive = 500
    """Steps between checkpoints; there is one after every quarter of a run too, and where it is told to stop."""
    seed: Count = 42
    """Seed of the weights, of the order and of the choice among an object's texts."""
    resume: bool = False
    """Go on with the latest run in output_dir that has these settings and was stopped; an error if there is none."""
    accelerate: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `accelerate launch`, under its own names; in the file only."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self)
        for key in _EXAMPLES:
            self.numbers(key)
        if self.pretrain_masked and not (self.encoder_layers and self.pretrain_epochs):
            raise ValueError("pretrain_masked needs encoder_layers and pretrain_epochs")
        if 0 < self.max_3d_tokens <= self.shape_tokens:
            raise ValueError(f"{self.shape_tokens} shape_tokens leave nothing of max_3d_tokens {self.max_3d_tokens}")
        if self.init_lora is not None and not self.use_lora:
            raise ValueError("init_lora needs use_lora: the adapters it starts from are trained on")
        if self.start_from == "shipped" and (self.init_projector is not None or self.init_lora is not None):
            raise ValueError("start_from shipped names an init_projector and an init_lora: leave yours out, or it")

    def numbers(self, key: str) -> dict[str, int]:
        """Return what `epoch_limits` or `kind_weights` says, by name.

        Raises:
            ValueError: it says nothing that can be read.
        """
        text, numbers = getattr(self, key), {}
        for part in text.split(",") if text else ():
            pair = named_number(part)
            if pair is None:
                form = settings_of(AlignmentConfig)[key].option.metavar
                raise ValueError(f"{key} must be {form}, such as {_EXAMPLES[key]}, got {part.strip()!r}")
            name, number = pair
            if name in numbers:
                raise ValueError(f"{key} names {name!r} twice")
            numbers[name] = number
        return numbers

    @property
    def lora_rate(self) -> float:
        """Learning rate of the adapters."""
        return self.lr / 5 if self.lora_lr is None else self.lora_lr

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> AlignmentConfig:
        """Read a YAML file, or the `train_args.json` of a run.

        Raises:
            ValueError: the file can't be read, or holds what is not a setting; the message names file, key and value.
        """
        return cls(**_read_values(path))

    def to_dict(self) -> dict[str, Any]:
        """Return all values; written as YAML or JSON, `from_file` reads them back."""
        return copy.deepcopy({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def changes(self, now: AlignmentConfig) -> dict[str, tuple[Any, Any]]:
        """Return the settings that other settings have otherwise, old and new, but those that are `FREE`.

        Paths are the same wherever they name the same place from the current directory.
        """
        pairs = {key: (getattr(self, key), getattr(now, key)) for key in _option_names() if key not in FREE}
        for key in _PATHS:
            old, new = pairs[key]
            if old is not None and new is not None and os.path.abspath(old) == os.path.abspath(new):
                del pairs[key]
        return {key: (old, new) for key, (old, new) in pairs.items() if old != new}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the values as JSON (a run's `train_args.json`)."""
        write_json(path, self.to_dict(), indent=2, ensure_ascii=False)

    def check_files(self) -> None:
        """Raise a ValueError if the VAE's config or weights, or parts to start from, are named but absent."""
        for key in ("vae_config", "vae_ckpt", "init_projector", "init_lora"):
            value = getattr(self, key)
            kind, there = ("folder", Path.is_dir) if key == "init_lora" else ("file", Path.is_file)
            if value is not None and not there(config_file(value) if key == "vae_config" else Path(value)):
                where = "" if Path(value).is_absolute() else f" in the current directory {Path.cwd()}"
                raise ValueError(f"{key}: there is no {kind} {value}{where}; give --{key}")

    def model_settings(self) -> dict[str, Any]:
        """Return the arguments of `Qwen3VLWith3DBranch` that these settings decide."""
        return {
            "max_3d_tokens": self.max_3d_tokens,
            "truncate_mode": self.truncate_mode,
            "use_3d_pos": self.use_3d_pos,
            "projector_num_layers": self.projector_layers,
            "merge": self.merge,
            "shape_tokens": self.shape_tokens,
            "encoder_layers": self.encoder_layers,
            "positions": self.positions,
        }

    def run_name(self, samples: int | None = None) -> str:
        """Return the name of a run's folder, as `ep2_lr1e-4_bs2_n500_lora8`; no digit of the rate is lost.

        Args:
            samples: objects that are trained on; by default what the settings say: their number, `all`, or `d50`
                for 50 random ones.
        """
        if samples is not None:
            number = str(samples)
        elif self.dummy_data:
            number = f"d{self.dummy_samples}"
        else:
            number = str(self.max_samples or "all")
        adapter = f"lora{self.lora_r}" if self.use_lora else "nolora"
        return f"ep{self.epochs}_lr{_short(self.lr)}_bs{self.batch_size}_n{number}_{adapter}"

    def make_run_folder(self, samples: int | None = None) -> Path:
        """Make this run's own folder in `output_dir`; a second run of the same settings gets `_2`, a third `_3`.

        Making it is what reserves the name, so that two programs never share one. In a distributed run, rank 0 alone
        calls this.
        """
        parent, name = Path(self.output_dir), self.run_name(samples)
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / (name if number == 1 else f"{name}_{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        raise AssertionError("unreachable")

    def run_folder(self) -> Path:
        """Return the folder of the run that `output_run` names. Raises a ValueError where there is none."""
        folder = Path(self.output_dir) / (self.output_run or "")
        if self.output_run and folder.is_dir():
            return folder
        parent = Path(self.output_dir)
        runs = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        there = f"there are {', '.join(runs)}" if runs else "there is none"
        raise ValueError(f"output_run: {self.output_run!r} is no run in {self.output_dir} ({there})")


def add_alignment_options(
    parser: argparse.ArgumentParser, leave_out: Collection[str] = (), *, only: Collection[str] | None = None
) -> None:
    """Add `--config` and a flag for every setting but those in `leave_out`; `read_alignment_config` reads them.

    With `only`, no other settings have flags.
    """
    if parser.usage is None:  # two dozen flags; --help lists them below
        parser.usage = "%(prog)s [--config YAML] [--SETTING VALUE ...]"
    about_paths = "relative paths in it start at the current directory"
    parser.add_argument("--config", metavar="YAML", help=f"file of settings; flags win over it, {about_paths}")
    add_options(parser, AlignmentConfig, only, leave_out=leave_out, overrides=True)


def read_alignment_config(options: argparse.Namespace) -> AlignmentConfig:
    """Return the settings of a command line: flags over the file of `--config` over defaults.

    Raises:
        ValueError: a flag or a key is wrong, or the VAE's files are named but absent. One line, for `run_program`.
    """
    values = {} if options.config is None else _read_values(options.config)
    config = AlignmentConfig(**values | given_settings(options))
    config.check_files()
    return config


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives itself. Raises a ValueError for a wrong one."""
    return given(options, AlignmentConfig)


def _short(number: float) -> str:
    """Return the shortest exact scientific notation: 1e-4, 1.5e-4."""
    digits = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(digits.exponent, int)
    first, rest = digits.digits[0], "".join(map(str, digits.digits[1:]))
    return f"{first}{'.' if rest else ''}{rest}e{digits.exponent + len(rest)}"


# -- the file --------------------------------------------------------------------------------------------------


@cache
def _option_names() -> tuple[str, ...]:
    return tuple(name for name in settings_of(AlignmentConfig) if name != "accelerate")


def _checked(key: str, value: Any) -> Any:
    """Return a value of a file as its key has it. Raises a ValueError that says what is expected.

    Rates are numbers with or without a dot, and text too: YAML 1.1 takes `1e-4` for that.
    """
    setting = settings_of(AlignmentConfig)[key]
    read = value
    if setting.option.empty and value == "":
        read = None
    elif setting.kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        read = setting.from_text(str(value))
    setting.check(read, key, value)
    return read


def _read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the checked values of a file."""
    document = read_mapping(path)
    try:
        refused = _LATER | {key: "there are no such switches" for key in document if key.startswith("debug_")}
        check_keys("settings", document, (*_option_names(), "accelerate"), refused)
        values = {key: _checked(key, value) for key, value in document.items() if key != "accelerate"}
        return values | {"accelerate": checked_accelerate(document.get("accelerate") or {})}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
