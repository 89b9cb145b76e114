"""Settings of alignment training: `configs/3d_align_train.yaml` and the command line in, one checked data class out.

The command line wins over the file, the file over the defaults; a flag left out changes nothing. A key that is
unknown, given twice or of the wrong type is an error, and nothing is ignored. Relative paths start at the current
directory (the repository root in every documented command), not at the file's folder. Reads settings only: the
language model's name stays as it is written (`resolve_vl_model` reads it), and no data or model is opened.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import inspect
import itertools
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from sdf_vqvae.config.architecture import config_file
from sdf_vqvae.config.training import check_keys
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import named_number, read_mapping
from vae_qwen3vl.accelerate_section import checked_accelerate
from vae_qwen3vl.data.texts import CAPTION_SHARE
from vae_qwen3vl.language import DEFAULT_PROMPT

_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "projector_layers", "lora_r", "lora_alpha", "dummy_samples"), 1),
    **dict.fromkeys(("gradient_accumulation_steps", "log_every", "val_every", "save_every"), 1),
    **dict.fromkeys(("max_samples", "val_samples", "num_workers", "seed", "shift_cells", "pretrain_epochs"), 0),
    "shape_tokens": 0,
}
_SHARES = ("projector_share", "warmup_ratio", "lora_dropout", "caption_share", "drop_cells", "plain_text_share")
_FROM_ZERO = (*_SHARES, "weight_decay", "grad_clip", "contrastive_weight", "turn_degrees")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "data_format": ("sdf_caption",),
    "truncate_mode": ("pool", "head"),
    "positions": ("mrope", "sequential"),
    "merge": (1, 2, 4),
    "lora_targets": ("attention", "all"),
    "best_by": ("gap", "val_loss", "last"),
    "start_from": ("new", "shipped"),
}
_NAMES = {"int": "an integer", "float": "a number above 0", "bool": "true or false", "str": "a string"}
_METAVARS = {
    **{"vl_model": "NAME", "vae_config": "JSON", "vae_ckpt": "FILE", "prompt": "TEXT", "output_run": "NAME"},
    **{"plain_text": "JSONL", "epoch_limits": "SOURCE=N", "kind_weights": "KIND=N"},
    **{"init_projector": "FILE", "init_lora": "DIR"},
}
_NUMBERED = {"epoch_limits": "ldraw=2000", "kind_weights": "organ=6"}
"""Settings that say a number a name, with examples."""
FREE = (
    *("resume", "output_dir", "output_run", "accelerate", "num_workers", "log_every", "save_every"),
    *("use_gradient_checkpointing", "compile_layers"),
)
"""Settings that may change while a run is stopped: the others decide what comes of it. (The last two do so only as
far as sums are rounded.)"""
_PATHS = ("data_dir", "mirrored_dir", "plain_text", "vae_config", "vae_ckpt", "init_projector", "init_lora")
AUTO = "auto"
"""An `output_run`: the latest one of the settings."""
_GIVEN = "given:"
"""Prefix of our flags in argparse's namespace, where a program may have its own `output_dir`."""

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
_LATER_CHOICES = {"random_sample", "fps"}


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What one training run does, and what an evaluation needs to know of it."""

    vl_model: str | None = None
    """Language model: a folder, a Hub id (never turned into a path), or smollm2-135m, which needs no hub."""
    vae_config: str | None = None
    """Configuration of the VAE; the shipped tokenizer's by default."""
    vae_ckpt: str | None = None
    """Weights of the VAE."""
    data_dir: str | None = None
    """Folder of the captioned data set."""
    mirrored_dir: str | None = None
    """Cached codes of the objects' mirror images (encode --mirror): each epoch half of the objects are theirs, with
    left and right exchanged in what is said."""
    data_format: str = "sdf_caption"
    """Its layout: sdf_caption (metadata.csv and {sha256}_r{R}.npz)."""
    max_samples: int = 0
    """Objects taken from it; 0 takes all."""
    epoch_limits: str | None = None
    """Sources (the table's column) of which an epoch takes at most so many objects, in turn: ldraw=2000,other=500."""
    plain_text: str | None = None
    """Records without an object: adapters are held there to what the language model says without them."""
    plain_text_share: float = 0.1
    """Their share of the training items; each epoch draws anew which ones."""
    dummy_data: bool = False
    """Train on random objects instead, for a quick test."""
    dummy_samples: int = 50
    """Number of random objects."""
    output_dir: str = "outputs_3d_vl"
    """Folder of the runs; each makes its own folder in it."""
    output_run: str | None = None
    """Name of the run in output_dir that an evaluation with --config loads; auto, or nothing: the latest one of these
    settings."""
    prompt: str = DEFAULT_PROMPT
    """The question that the captions answer."""
    max_3d_tokens: int = 2048
    """3D tokens an object may have; 0 or less is no limit."""
    truncate_mode: str = "pool"
    """Over that limit: pool (average blocks, all of the object is seen) or head (cut)."""
    use_3d_pos: bool = False
    """Add a code of the coordinates to the 3D tokens."""
    projector_layers: int = 1
    """1 is a Linear, 2 and more an MLP."""
    use_lora: bool = False
    """Train adapters of the language model with the projector."""
    lora_r: int = 8
    """Rank of the adapters."""
    lora_alpha: int | None = None
    """Scale of the adapters; twice the rank by default."""
    lora_dropout: float = 0.05
    """Dropout in front of the adapters."""
    start_from: str = "new"
    """What training begins with: new weights, or the shipped projector and adapters, in the shape that they have."""
    init_projector: str | None = None
    """Trained projector (a file of an earlier run, or the shipped one) to start from; its layers, merge and position
    encoding must be these settings'."""
    init_lora: str | None = None
    """Trained adapters (a folder of an earlier run, or the shipped ones) to start from, with use_lora; their rank,
    scale and targets stay what they are."""
    lora_targets: str = "attention"
    """Linear maps of a text layer that get adapters: attention (q, k, v, o) or all (the MLP's too)."""
    merge: int = 4
    """Cells an axis in one 3D token: 1, 2 or 4."""
    shape_tokens: int = 0
    """3D tokens in front that tell of the object as a whole, from its coarse occupancy."""
    caption_share: float = CAPTION_SHARE
    """How often a caption of the table is learned where an object has questions too."""
    kind_weights: str | None = None
    """How often kinds of questions are drawn, beside 1 for the others: organ=6,category=4."""
    shift_cells: int = 0
    """Cached codes: each epoch moves an object along every axis by up to so many cells, so blocks of merged cells cut
    it differently."""
    drop_cells: float = 0.0
    """Cached codes: each epoch leaves out a random share of an object's codes, up to this one."""
    turn_degrees: float = 0.0
    """Cached codes: each epoch turns an object a little about its middle; deviation of the angle about each axis."""
    positions: str = "mrope"
    """Positions of the 3D tokens: mrope (their block's coordinates) or sequential."""
    lr: float = 1e-4
    """Learning rate of the projector."""
    lora_lr: float | None = None
    """Learning rate of the adapters; a fifth of lr by default."""
    contrastive_weight: float = 0.0
    """Weight of a second loss of the projector: the mean of an object's 3D tokens should be nearer to its own name's
    words than to other names of the batch. Cached codes only."""
    pretrain_epochs: int = 0
    """Passes in which the projector first learns, without the language model, which caption belongs to which object
    (see projector_pretraining.py). Cached codes only."""
    projector_share: float = 0.3
    """Share of the run in which the projector learns alone, before the adapters join."""
    weight_decay: float = 0.01
    """Weight decay (AdamW)."""
    warmup_ratio: float = 0.03
    """Share of the run in which the rates rise; then they fall by a cosine."""
    grad_clip: float = 1.0
    """Largest norm of the gradients; 0 for any."""
    gradient_accumulation_steps: int = 1
    """Batches a step."""
    compile_layers: bool = False
    """Compile the language model's layers (torch.compile): on CUDA, steps of small models are several times faster
    after a minute."""
    use_gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    epochs: int = 3
    """Passes over the data."""
    batch_size: int = 2
    """Objects a batch and GPU."""
    max_seconds: float | None = None
    """Stop after so many seconds; the rates fall accordingly."""
    num_workers: int = 0
    """Processes that read data."""
    val_samples: int = 256
    """Objects kept from training to validate on, where the data has no split `val`; 0 for none."""
    val_every: int = 200
    """Steps between validations."""
    best_by: str = "gap"
    """Which weights are a run's result: those to which other objects' shapes cost most (gap), those with the lowest
    val_loss, or the last step's (last)."""
    log_every: int = 10
    """Steps between log records."""
    save_every: int = 500
    """Steps between checkpoints; there is one after every quarter of a run too, and where it is told to stop."""
    seed: int = 42
    """Seed of the weights, of the order and of the choice among an object's texts."""
    resume: bool = False
    """Go on with the latest run in output_dir that has these settings and was stopped; an error if there is none."""
    accelerate: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `accelerate launch`, under its own names; in the file only."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        for key in _option_names():
            _checked(key, getattr(self, key))
        for key in _NUMBERED:
            self.numbers(key)
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
        text, found = getattr(self, key), {}
        for part in text.split(",") if text else ():
            pair = named_number(part)
            if pair is None:
                raise ValueError(f"{key} must be {_METAVARS[key]}, such as {_NUMBERED[key]}, got {part.strip()!r}")
            if pair[0] in found:
                raise ValueError(f"{key} names {pair[0]!r} twice")
            found[pair[0]] = pair[1]
        return found

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
    parser: argparse.ArgumentParser, leave_out: Iterable[str] = (), *, only: Iterable[str] | None = None
) -> None:
    """Add `--config` and a flag for every setting but those in `leave_out`; `read_alignment_config` reads them.

    With `only`, no other settings have flags.

    The flags and their help are the fields of `AlignmentConfig`.
    """
    # argparse rather than jsonargparse 4.53: there, a flag before --config loses to the file, a key given twice
    # passes, plain flags want a value, and an error takes five lines.
    if parser.usage is None:  # two dozen flags; --help lists them below
        parser.usage = "%(prog)s [--config YAML] [--SETTING VALUE ...]"
    about_paths = "relative paths in it start at the current directory"
    parser.add_argument("--config", metavar="YAML", help=f"file of settings; flags win over it, {about_paths}")
    meanings, left_out = _meanings(), set(leave_out)
    if only is not None:
        left_out |= set(_option_names()) - set(only)
    for setting in dataclasses.fields(AlignmentConfig):
        name, kind = setting.name, str(setting.type).removesuffix(" | None")
        if name in left_out or name == "accelerate":
            continue
        default = "" if kind == "bool" or setting.default is None else f" (default: {setting.default})"
        about = (meanings.get(name, "").removesuffix(".") + default).replace("%", "%%")
        flag: dict[str, Any] = {"dest": _GIVEN + name, "default": argparse.SUPPRESS, "help": about}
        if kind == "bool":
            flag["help"] += f" (--no-{name} turns it off)"
            parser.add_argument(f"--{name}", nargs="?", const=True, metavar="true|false", **flag)
            off: dict[str, Any] = {"dest": _GIVEN + name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            parser.add_argument(f"--no-{name}", action="store_false", **off)
        else:
            short = _METAVARS.get(name, "DIR" if name.endswith("_dir") else kind[:1].upper())
            metavar = (
                "|".join(map(str, _CHOICES[name])) if name in _CHOICES else {"I": "N", "F": "X"}.get(short, short)
            )
            parser.add_argument(f"--{name}", metavar=metavar, **flag)


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
    values = {}
    for dest, given in vars(options).items():
        if dest.startswith(_GIVEN):
            key = dest.removeprefix(_GIVEN)
            try:
                values[key] = _checked(
                    key, _READERS.get(_kind(key)[0], str)(given) if isinstance(given, str) else given
                )
            except ValueError as error:
                raise ValueError(f"--{error}") from error
    return values


# -- one value -------------------------------------------------------------------------------------------------


def _checked(key: str, value: Any) -> Any:
    """Return a value as the type of its key. Raises a ValueError that says what is expected."""
    kind, optional = _kind(key)
    if optional and (value is None or (key == "output_run" and value == "")):
        return None
    expected, least = _NAMES[kind], _LEAST.get(key)
    if key in _FROM_ZERO:
        expected = "a number from 0 to 1" if key in _SHARES else "a number of at least 0"
    if least is not None:
        expected += f" of at least {least}"
    if key in _CHOICES:
        *others, last = map(str, _CHOICES[key])
        expected = " or ".join(filter(None, (", ".join(others), last)))
    fits: bool
    if kind == "float":
        value, original = _rate(value, zero=key in _FROM_ZERO, most=1.0 if key in _SHARES else math.inf), value
        fits = value is not None
        value = original if value is None else value
    elif kind == "int":
        fits = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
    elif kind == "bool":
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, str) and bool(value.strip())
        if isinstance(value, str) and not value.strip():
            expected += " that is not empty"
        elif not isinstance(value, str) and key not in _CHOICES:
            expected += " (in quotes)"
    if not fits or value not in _CHOICES.get(key, (value,)):
        later = " (of later versions of the original system)" if value in _LATER_CHOICES else ""
        raise ValueError(f"{key} must be {expected}, got {value!r}{later}")
    return value


def _rate(value: Any, *, zero: bool = False, most: float = math.inf) -> float | None:
    """Return a positive number (or `zero`) up to `most`, else None. YAML 1.1 takes `1e-4` for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and (number > 0 or (zero and number == 0)) and number <= most else None


def _number(text: str) -> int | str:
    """Return the integer that a flag's text holds, else the text."""
    try:
        return int(text)
    except ValueError:
        return text


def _truth(text: str) -> bool | str:
    """Return what a flag's text says, as YAML has it, else the text."""
    return {"true": True, "false": False}.get(text.lower(), text)


_READERS: dict[str, Callable[[str], Any]] = {"int": _number, "bool": _truth}


def flag_of(key: str, value: Any) -> str:
    """Return the flag that gives a setting a value, as a person types it: `--merge 2`, `--no-use_3d_pos`."""
    if isinstance(value, bool):
        return f"--{key}" if value else f"--no-{key}"
    return f"--{key} {value}"


def _short(number: float) -> str:
    """Return the shortest exact scientific notation: 1e-4, 1.5e-4."""
    digits = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(digits.exponent, int)
    first, rest = digits.digits[0], "".join(map(str, digits.digits[1:]))
    return f"{first}{'.' if rest else ''}{rest}e{digits.exponent + len(rest)}"


# -- the keys --------------------------------------------------------------------------------------------------


@cache
def _option_names() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(AlignmentConfig) if f.name != "accelerate")


@cache
def _kind(key: str) -> tuple[str, bool]:
    """Return the type of a key as a word, and whether it may be None."""
    annotation = next(str(f.type) for f in dataclasses.fields(AlignmentConfig) if f.name == key)
    return annotation.removesuffix(" | None"), annotation.endswith(" | None")


def _meanings() -> dict[str, str]:
    """Return the docstring under each field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(AlignmentConfig))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {
        line.target.id: " ".join(below.value.value.split())
        for line, below in itertools.pairwise(tree.body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


# -- the file --------------------------------------------------------------------------------------------------


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
