"""The `dataset` and `trainer` sections of `configs/vae/*.json` as data: every key is known, or refused by name.

Knows the names and what they mean; loads no data and trains nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DATASETS = ("SparseSDF", "CTWindowSparseSDF", "Meshes")
CT_WINDOWS = ("lung", "bone", "soft_tissue", "brain")
LOSSES = ("l1", "l1_l2", "mse", "huber")
_LATER = "is of later versions of the original system, which this one does not follow: {}"
_LATER_DATASET = {
    "edge_margin": "objects near the wall of the grid are not left out",
    "input_band_factor": "the part of the band that the encoder sees is input_band in models.vqvae.args",
    "preprocessing_extra_band_factor": "field files carry their own band",
    "prefilter_encoder_band": "the encoder's band is cut out of every batch (input_band)",
    "min_encoder_band_voxels": "an object without a voxel in the encoder's band is an error",
}
_LATER_TRAINER = {
    "lambda_inside": "one reconstruction loss covers all voxels of the occupied latent cells",
    "lambda_sharp": "there is no edge mask",
    "lambda_extra": "one reconstruction loss covers all voxels of the occupied latent cells",
    "lambda_unmatched_output": "one reconstruction loss covers all voxels of the occupied latent cells",
    "extra_oor_skip_policy": "no batch is skipped",
    "extra_oor_skip_threshold": "no batch is skipped",
    "decoder_band_prune": "the decoder fills the occupied latent cells",
    "inference_band_factor": "the decoder fills the occupied latent cells",
    "inference_occ_resolution": "the decoder fills the occupied latent cells",
    "snapshot_mc_threshold": "signed fields are read at level 0",
}


def check_keys(
    section: str, given: Mapping[str, Any], known: Iterable[str], refused: Mapping[str, str] | None = None
) -> None:
    """Raise a ValueError for a key that is refused, with its reason, or unknown, with the nearest known one."""
    known = tuple(known)
    for key in given:
        if key in known:
            continue
        if refused and key in refused:
            raise ValueError(f"{section}: {key!r} {_LATER.format(refused[key])}")
        near = difflib.get_close_matches(key, known, n=1)
        raise ValueError(f"{section}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def named_section(section: str, values: Any, names: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return name and args of a `{"name": ..., "args": {...}}` section.

    Raises:
        ValueError: it is not such a mapping, or has another name.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{section} must be a mapping with name and args, got {values!r}")
    check_keys(section, values, ("name", "args"))
    name, args = values.get("name"), values.get("args", {})
    if name not in tuple(names) or not isinstance(args, dict):
        raise ValueError(f"{section}.name must be one of {', '.join(names)} and args a mapping, got {values!r}")
    return name, args


def check_types(
    section: str, config: Any, least: Mapping[str, float], most: Mapping[str, float] | None = None
) -> None:
    """Check numbers, flags and strings of a dataclass against its annotations, and numbers against bounds.

    Raises:
        ValueError: the message names section, key, value and what is expected.
    """
    for field in dataclasses.fields(config):
        value, annotation = getattr(config, field.name), str(field.type)
        if value is None and annotation.endswith("| None"):
            continue
        expected = annotation.removesuffix(" | None")
        kinds = _KINDS.get(expected)
        if kinds is None:
            continue
        fits = isinstance(value, kinds) and (expected == "bool" or not isinstance(value, bool))
        bound = least.get(field.name) if expected in ("int", "float") else None
        ceiling = (most or {}).get(field.name, math.inf)
        number = fits and expected in ("int", "float")
        if not fits or (
            number and not (math.isfinite(value) and (bound is None or value >= bound) and value <= ceiling)
        ):
            more = "" if bound is None else f" of at least {bound:g}"
            more += "" if ceiling == math.inf else f" and at most {ceiling:,}"
            raise ValueError(f"{section}.{field.name} must be {_NAMES[expected]}{more}, got {value!r}")


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_NAMES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string"}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a VAE is trained on: the `dataset` section."""

    name: str = "SparseSDF"
    """`SparseSDF` (a folder of field files), `CTWindowSparseSDF` (fields of a windowed CT volume), or `Meshes` (a
    pack or a folder of mesh files, voxelized as they are drawn)."""
    resolution: int = 512
    """Grid side R of the field files."""
    min_points: int = 0
    """Objects with fewer voxels are left out."""
    max_points: int | None = None
    """Objects with more voxels are left out whole (the original thins them at random, which makes holes)."""
    window_type: str | None = None
    """The intensity window of `CTWindowSparseSDF`: lung, bone, soft_tissue or brain."""

    symmetries: bool = False
    """Turn each use of an object by one of the 48 symmetries of the grid (always so for `Meshes`)."""
    rotation: float = 0.0
    """`Meshes`: share of the draws turned by a random rotation."""
    stretch: float = 0.0
    """`Meshes`: share of the draws scaled along each axis by a factor of its own, 3/4 to 4/3."""
    echo: int = 4
    """`Meshes`: uses of a voxelized mesh, on average."""
    buffer: int = 2048
    """`Meshes`: voxelized meshes kept on the device."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """`Meshes`: sources of a pack and their shares of the draws; the other meshes share the rest evenly."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        least = {"resolution": 8, "min_points": 0, "rotation": 0, "stretch": 0, "echo": 1, "buffer": 1}
        check_types("dataset.args", self, least, {"rotation": 1, "stretch": 1})
        shares = self.shares
        if not isinstance(shares, Mapping) or not all(
            isinstance(k, str) and isinstance(v, int | float) and 0 <= v <= 1 for k, v in shares.items()
        ):
            raise ValueError(f"dataset.args.shares must map names of sources to numbers in 0..1, got {shares!r}")
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"dataset.args.shares add up to {sum(shares.values()):g}, more than 1")
        if self.name != "Meshes" and (self.rotation or self.stretch or self.shares):
            raise ValueError("dataset.args: rotation, stretch and shares belong to the dataset Meshes")
        if self.max_points is not None and self.max_points < max(1, self.min_points):
            raise ValueError(
                f"dataset.args.max_points ({self.max_points}) is less than min_points ({self.min_points})"
            )
        if (self.window_type is not None) != (self.name == "CTWindowSparseSDF"):
            raise ValueError("dataset.args.window_type belongs to CTWindowSparseSDF, which needs it")
        if self.window_type is not None and self.window_type not in CT_WINDOWS:
            raise ValueError(f"dataset.args.window_type must be one of {CT_WINDOWS}, got {self.window_type!r}")

    @classmethod
    def from_section(cls, values: Any) -> DatasetConfig:
        """Read the section. Raises a ValueError that names what is wrong."""
        name, args = named_section("dataset", values, DATASETS)
        known = [f.name for f in dataclasses.fields(cls) if f.name != "name"]
        check_keys("dataset.args", args, known, _LATER_DATASET)
        return cls(name=name, **args)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a VAE is trained: the `trainer` section, under the original's names."""

    training_stage: int = 2
    """1: the codebook alone; 2: all; 3: the decoder alone."""
    pretrained_vae_path: str | None = None
    """Weights to start from; training stops where the file is absent."""
    max_steps: int = 100_000
    """Optimizer steps at most."""
    max_seconds: float | None = None
    """Seconds at most, over all resumed parts of the run."""
    max_epoch: int | None = None
    """Passes over the data at most."""
    batch_size_per_gpu: int = 1
    """Objects in an optimizer step of one process."""
    batch_split: int = 1
    """Parts that such a step is computed in, to save memory."""
    num_workers: int = 0
    """Processes that read data."""
    disable_snapshot: bool = False
    """Leave out the pictures of reconstructions."""
    lr: float = 1e-3
    """`optimizer.args.lr` (AdamW)."""
    weight_decay: float = 0.01
    """`optimizer.args.weight_decay`."""
    warmup_steps: int = 0
    """`lr_scheduler.args.warmup_steps`: linear."""
    cosine_steps: int | None = None
    """`lr_scheduler...T_max`; None: no decay, or over the whole run with `cosine_over_run`."""
    cosine_over_run: bool = False
    """`lr_scheduler` with the base scheduler `CosineOverRun`: the decay ends where max_steps or max_seconds does."""
    lr_min: float = 0.0
    """`lr_scheduler...eta_min`."""
    ema_rate: tuple[float, ...] = ()
    """Decays of the averaged weights."""
    fp16_mode: str | None = None
    """`inflat_all` and `amp` both mean bf16 autocast over float32 weights here, which needs no loss scale."""
    grad_clip: float | None = None
    """`grad_clip.args.max_norm`."""
    clip_percentile: float | None = None
    """`grad_clip.args.clip_percentile` of `AdaptiveGradClipper`: clip at this percentile of past norms as well."""
    lambda_vq: float = 1.0
    """Weight of the codebook loss (gradient mode)."""
    lambda_commitment: float = 0.25
    """Weight of the commitment loss."""
    lambda_occupancy: float = 1.0
    """Weight of the cross-entropy of the predicted occupancy, where the decoder predicts it."""
    sign_weight: float = 0.1
    """Weight of the cross-entropy of the sign (signed fields)."""
    slope_weight: float = 0.0
    """Weight of the error of the differences between neighboring voxels near the surface (signed fields)."""
    object_balance: float = 0.0
    """0: every voxel weighs the same in the losses; 1: every object does; between: by (its voxels)^-balance."""
    bypass_share: float = 0.1
    """Share of the run without the quantizer, where training does not start from a codebook; at its end k-means on
    the latest latent vectors places the codes."""
    loss_type: str = "l1"
    """Reconstruction loss: l1, l1_l2 (their mean), mse or huber."""
    i_print: int = 1000
    """Steps between lines on the console."""
    i_log: int = 500
    """Steps between log records."""
    i_sample: int = 10_000
    """Steps between pictures of reconstructions."""
    i_save: int = 10_000
    """Steps between checkpoints; there is one after every quarter of a run too, and where it is told to stop."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept; older ones are removed."""
    held_out: int = 32
    """Objects of the split `val`, or the last of a dataset without splits, that are never trained on and are
    measured and pictured every i_sample steps."""
    i_ddpcheck: int = 10_000
    """Steps between checks that all processes hold the same weights."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        names = [f.name for f in dataclasses.fields(self)]
        least = {n: 1 if n.startswith(("i_", "batch", "max", "keep")) else 0 for n in names} | {"max_seconds": 0}
        check_types("trainer.args", self, least, {"bypass_share": 1, "object_balance": 1})
        for key, allowed in {
            "training_stage": (1, 2, 3),
            "loss_type": LOSSES,
            "fp16_mode": (None, "inflat_all", "amp"),
            "disable_snapshot": (True, False),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"trainer.args.{key} must be one of {allowed}, got {getattr(self, key)!r}")
        if not all(isinstance(r, float) and 0 < r < 1 for r in self.ema_rate):
            raise ValueError(f"trainer.args.ema_rate must be decays between 0 and 1, got {list(self.ema_rate)}")
        if self.batch_size_per_gpu % self.batch_split:
            raise ValueError(
                f"trainer.args.batch_size_per_gpu ({self.batch_size_per_gpu}) is not a multiple of batch_split "
                f"({self.batch_split})"
            )

    @classmethod
    def from_section(cls, values: Any) -> TrainerConfig:
        """Read the section. Raises a ValueError that names what is wrong."""
        _, args = named_section("trainer", values, ("SparseSDFVQVAETrainer",))
        nested = (
            "lr",
            "weight_decay",
            "warmup_steps",
            "cosine_steps",
            "cosine_over_run",
            "lr_min",
            "clip_percentile",
        )
        plain = [f.name for f in dataclasses.fields(cls) if f.name not in nested]
        known = [*plain, "optimizer", "lr_scheduler", "fp16_scale_growth"]
        check_keys("trainer.args", args, known, _LATER_TRAINER)
        found = {key: value for key, value in args.items() if key in plain and key != "grad_clip"}
        if "ema_rate" in args:
            rates = args["ema_rate"]
            found["ema_rate"] = tuple(rates) if isinstance(rates, list) else (rates,)
        if "optimizer" in args:
            found |= _optimizer(args["optimizer"])
        if "lr_scheduler" in args:
            found |= _schedule(args["lr_scheduler"])
        if "grad_clip" in args:
            found |= _clipping(args["grad_clip"])
        return cls(**found)


def _optimizer(section: Any) -> dict[str, Any]:
    _, args = named_section("trainer.args.optimizer", section, ("AdamW",))
    check_keys("trainer.args.optimizer.args", args, ("lr", "weight_decay"))
    return args


def _schedule(section: Any) -> dict[str, Any]:
    _, args = named_section("trainer.args.lr_scheduler", section, ("WarmupThenScheduler",))
    check_keys("trainer.args.lr_scheduler.args", args, ("warmup_steps", "base_scheduler"))
    found = {key: args[key] for key in ("warmup_steps",) if key in args}
    if "base_scheduler" in args:
        where = "trainer.args.lr_scheduler.args.base_scheduler"
        name, base = named_section(where, args["base_scheduler"], ("CosineAnnealingLR", "CosineOverRun"))
        over_run = name == "CosineOverRun"
        check_keys(f"{where}.args", base, ("eta_min",) if over_run else ("T_max", "eta_min"))
        found |= {"cosine_over_run": True} if over_run else {}
        found |= {
            ours: base[theirs]
            for theirs, ours in {"T_max": "cosine_steps", "eta_min": "lr_min"}.items()
            if theirs in base
        }
    return found


def _clipping(section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        return {"grad_clip": section}
    _, args = named_section("trainer.args.grad_clip", section, ("AdaptiveGradClipper",))
    check_keys("trainer.args.grad_clip.args", args, ("max_norm", "clip_percentile"))
    return {"grad_clip": args.get("max_norm"), "clip_percentile": args.get("clip_percentile")}
