"""The `dataset` and `trainer` sections of `configs/vae/*.json` as data: every key is known, or refused by name.

Knows the names and what they mean; loads no data and trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from sdf_vqvae.utils.settings import (
    Amount,
    Bounds,
    Count,
    Option,
    Positive,
    Share,
    check,
    check_keys,
    named_section,
    settings_of,
)

Dataset = Literal["SparseSDF", "CTWindowSparseSDF", "Meshes"]
DATASETS: tuple[str, ...] = get_args(Dataset)
Window = Literal["lung", "bone", "soft_tissue", "brain"]
CT_WINDOWS: tuple[str, ...] = get_args(Window)
THIN = "made:thin"
"""The source, in `shares`, of thin shapes made by rule."""
Loss = Literal["l1", "l1_l2", "mse", "huber"]
LOSSES: tuple[str, ...] = get_args(Loss)
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


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a VAE is trained on: the `dataset` section."""

    name: Dataset = "SparseSDF"
    """`SparseSDF` (a folder of field files), `CTWindowSparseSDF` (fields of a windowed CT volume), or `Meshes` (a
    pack or a folder of mesh files, voxelized as they are drawn)."""
    resolution: Annotated[int, Bounds(least=8)] = 512
    """Grid side R of the field files."""
    min_points: Count = 0
    """Objects with fewer voxels are left out."""
    max_points: int | None = None
    """Objects with more voxels are left out whole (the original thins them at random, which makes holes)."""
    window_type: Window | None = None
    """The intensity window of `CTWindowSparseSDF`: lung, bone, soft_tissue or brain."""

    symmetries: bool = False
    """Turn each use of an object by one of the 48 symmetries of the grid (always so for `Meshes`)."""
    rotation: Share = 0.0
    """`Meshes`: share of the draws turned by a random rotation."""
    stretch: Share = 0.0
    """`Meshes`: share of the draws scaled along each axis by a factor of its own, 3/4 to 4/3."""
    echo: Positive = 4
    """`Meshes`: uses of a voxelized mesh, on average."""
    buffer: Positive = 2048
    """`Meshes`: voxelized meshes kept on the device."""
    draw_by_error: Amount = 0.0
    """`Meshes`: voxelized meshes are drawn in proportion to (how badly each was rebuilt)^this; 0: all alike."""
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """`Meshes`: sources of a pack and their shares of the draws; the other meshes share the rest evenly. The source
    `made:thin` is there beside any meshes: rods, tubes, plates, frames and lattices made by rule."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self, "dataset.args")
        shares = self.shares
        if not isinstance(shares, Mapping) or not all(
            isinstance(k, str) and isinstance(v, int | float) and 0 <= v <= 1 for k, v in shares.items()
        ):
            raise ValueError(f"dataset.args.shares must map names of sources to numbers in 0..1, got {shares!r}")
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"dataset.args.shares add up to {sum(shares.values()):g}, more than 1")
        if shares.get(THIN, 0) >= 1:
            raise ValueError(f"dataset.args.shares: {THIN} must be less than 1, since it goes beside meshes")
        if self.name != "Meshes" and (self.rotation or self.stretch or self.shares or self.draw_by_error):
            raise ValueError("dataset.args: rotation, stretch, shares and draw_by_error belong to the dataset Meshes")
        if self.max_points is not None and self.max_points < max(1, self.min_points):
            raise ValueError(
                f"dataset.args.max_points ({self.max_points}) is less than min_points ({self.min_points})"
            )
        if (self.window_type is not None) != (self.name == "CTWindowSparseSDF"):
            raise ValueError("dataset.args.window_type belongs to CTWindowSparseSDF, which needs it")

    @classmethod
    def from_section(cls, values: Any) -> DatasetConfig:
        """Read the section. Raises a ValueError that names what is wrong."""
        name, args = named_section("dataset", values, DATASETS)
        check_keys("dataset.args", args, (key for key in settings_of(cls) if key != "name"), _LATER_DATASET)
        return cls(**{"name": name} | args)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a VAE is trained: the `trainer` section, under the original's names."""

    training_stage: Literal[1, 2, 3] = 2
    """1: the codebook alone; 2: all; 3: the decoder alone."""
    pretrained_vae_path: Annotated[str, Option(metavar="FILE")] | None = None
    """Weights to start from; training stops where the file is absent."""
    pretrained_inner: bool = False
    """The weights to start from are part of the network (`config.json` beside them): of fewer blocks, where more
    begin as the identity; or of a data grid half as fine, and with patches twice as large all layers start from them,
    with one level more the inner ones. With a `bypass_share` of 0 their codes stay where there are as many, else
    k-means places them anew."""
    max_steps: Positive = 100_000
    """Optimizer steps at most."""
    max_seconds: Amount | None = None
    """Seconds at most, over all resumed parts of the run."""
    max_epoch: Positive | None = None
    """Passes over the data at most."""
    batch_size_per_gpu: Positive = 1
    """Objects in an optimizer step of one process."""
    batch_split: Positive = 1
    """Parts that such a step is computed in, to save memory."""
    num_workers: Count = 0
    """Processes that read data."""
    disable_snapshot: bool = False
    """Leave out the pictures of reconstructions."""
    optimizer: Literal["AdamW", "Muon"] = "AdamW"
    """`optimizer.name`. Muon: steps of the matrices inside the network are made orthogonal; AdamW for the rest."""
    lr: Amount = 1e-3
    """`optimizer.args.lr`."""
    weight_decay: Amount = 0.01
    """`optimizer.args.weight_decay`."""
    warmup_steps: Count = 0
    """`lr_scheduler.args.warmup_steps`: linear."""
    cosine_steps: Count | None = None
    """`lr_scheduler...T_max`; None: no decay, or over the whole run with `cosine_over_run`."""
    cosine_over_run: bool = False
    """`lr_scheduler` with the base scheduler `CosineOverRun`: the decay ends where max_steps or max_seconds does."""
    lr_min: Amount = 0.0
    """`lr_scheduler...eta_min`."""
    ema_rate: tuple[float, ...] = ()
    """Decays of the averaged weights."""
    fp16_mode: Literal["inflat_all", "amp"] | None = None
    """`inflat_all` and `amp` both mean bf16 autocast over float32 weights here, which needs no loss scale."""
    grad_clip: Amount | None = None
    """`grad_clip.args.max_norm`."""
    clip_percentile: Amount | None = None
    """`grad_clip.args.clip_percentile` of `AdaptiveGradClipper`: clip at this percentile of past norms as well."""
    lambda_vq: Amount = 1.0
    """Weight of the codebook loss (gradient mode)."""
    lambda_commitment: Amount = 0.25
    """Weight of the commitment loss."""
    lambda_occupancy: Amount = 1.0
    """Weight of the cross-entropy of the predicted occupancy, where the decoder predicts it."""
    sign_weight: Amount = 0.1
    """Weight of the cross-entropy of the sign (signed fields)."""
    slope_weight: Amount = 0.0
    """Weight of the error of the differences between neighboring voxels near the surface (signed fields)."""
    thin_weight: Amount = 0.0
    """How much more a voxel counts where matter or a gap is thin, in all these losses and in those of occupancy: 1 +
    this, times 1 - half the thickness over the band (signed fields)."""
    surface_weight: Amount = 0.0
    """Weight of the volume between the answered surface and the true one, over the area (signed fields)."""
    object_balance: Share = 0.0
    """0: every voxel weighs the same in the losses; 1: every object does; between: by (its voxels)^-balance."""
    bypass_share: Share = 0.1
    """Share of the run without the quantizer, where training does not start from a codebook; at its end k-means on
    the latest latent vectors places the codes."""
    loss_type: Loss = "l1"
    """Reconstruction loss: l1, l1_l2 (their mean), mse or huber."""
    i_print: Positive = 1000
    """Steps between lines on the console."""
    i_log: Positive = 500
    """Steps between log records."""
    i_sample: Positive = 10_000
    """Steps between pictures of reconstructions."""
    i_save: Positive = 10_000
    """Steps between checkpoints; there is one after every quarter of a run too, and where it is told to stop."""
    keep_checkpoints: Positive = 2
    """Checkpoints that are kept; older ones are removed."""
    held_out: Count = 32
    """Objects of the split `val`, or the last of a dataset without splits, that are never trained on and are
    measured and pictured every i_sample steps."""
    i_ddpcheck: Positive = 10_000
    """Steps between checks that all processes hold the same weights."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        check(self, "trainer.args")
        if not all(isinstance(r, float) and 0 < r < 1 for r in self.ema_rate):
            raise ValueError(f"trainer.args.ema_rate must be decays between 0 and 1, got {list(self.ema_rate)}")
        if self.pretrained_inner and (self.pretrained_vae_path is None or self.training_stage != 2):
            raise ValueError("trainer.args.pretrained_inner needs pretrained_vae_path and training_stage 2")
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
            "optimizer",
            "lr",
            "weight_decay",
            "warmup_steps",
            "cosine_steps",
            "cosine_over_run",
            "lr_min",
            "clip_percentile",
        )
        plain = [name for name in settings_of(cls) if name not in nested]
        names = [*plain, "optimizer", "lr_scheduler", "fp16_scale_growth"]
        check_keys("trainer.args", args, names, _LATER_TRAINER)
        settings = {key: value for key, value in args.items() if key in plain and key != "grad_clip"}
        if "ema_rate" in args:
            rates = args["ema_rate"]
            settings["ema_rate"] = tuple(rates) if isinstance(rates, list) else (rates,)
        if "optimizer" in args:
            settings |= _optimizer(args["optimizer"])
        if "lr_scheduler" in args:
            settings |= _schedule(args["lr_scheduler"])
        if "grad_clip" in args:
            settings |= _clipping(args["grad_clip"])
        return cls(**settings)


def _optimizer(section: Any) -> dict[str, Any]:
    name, args = named_section("trainer.args.optimizer", section, ("AdamW", "Muon"))
    check_keys("trainer.args.optimizer.args", args, ("lr", "weight_decay"))
    return {"optimizer": name, **args}


def _schedule(section: Any) -> dict[str, Any]:
    _, args = named_section("trainer.args.lr_scheduler", section, ("WarmupThenScheduler",))
    check_keys("trainer.args.lr_scheduler.args", args, ("warmup_steps", "base_scheduler"))
    settings = {key: args[key] for key in ("warmup_steps",) if key in args}
    if "base_scheduler" in args:
        where = "trainer.args.lr_scheduler.args.base_scheduler"
        name, base = named_section(where, args["base_scheduler"], ("CosineAnnealingLR", "CosineOverRun"))
        over_run = name == "CosineOverRun"
        check_keys(f"{where}.args", base, ("eta_min",) if over_run else ("T_max", "eta_min"))
        settings |= {"cosine_over_run": True} if over_run else {}
        settings |= {
            ours: base[theirs]
            for theirs, ours in {"T_max": "cosine_steps", "eta_min": "lr_min"}.items()
            if theirs in base
        }
    return settings


def _clipping(section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        return {"grad_clip": section}
    _, args = named_section("trainer.args.grad_clip", section, ("AdaptiveGradClipper",))
    check_keys("trainer.args.grad_clip.args", args, ("max_norm", "clip_percentile"))
    return {"grad_clip": args.get("max_norm"), "clip_percentile": args.get("clip_percentile")}
