"""The architecture of a tokenizer as data: `configs/vae/*.json` in, a checked `VAEConfig` out.

Knows the names and meanings of the keys; builds nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from sdf_vqvae.config.training import DatasetConfig, TrainerConfig
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.utils.files import regular_file
from sdf_vqvae.utils.settings import Amount, Bounds, Positive, check, check_keys, named_section
from sdf_vqvae.utils.strict_files import parse_json

logger = logging.getLogger(__name__)

# Keys of the original system's files that change nothing in the network; they are accepted and kept.
_WITHOUT_EFFECT = ("representation_config", "latents_scale", "latents_shift")
_MODEL_NAMES = ("SparseSDFVQVAE", "Direct3DS2_VQVAE")  # the second is the original's alias
# Arguments that the original also takes for each half; here the halves may differ in their number of blocks only.
_SPLIT = ("model_channels", "num_heads", "num_head_channels")
_MOST_LEVELS = 8
_PATCHES = {2: 1, 4: 2}
"""Sides of patches, and how often they halve the data grid."""
# The bounds are far beyond any network of this kind; what exceeds them is a slip that would ask for terabytes.
_WIDEST, _DEEPEST = 8192, 128
_Blocks = Annotated[int, Bounds(least=0, most=_DEEPEST)]
_Side = Annotated[int, Bounds(least=1, most=1024)]
_Width = Annotated[int, Bounds(least=1, most=_WIDEST)]
_FIXED = {"out_channels": 1, "vq_group_size": 1, "extra_down_up_levels": 0, "train_full_block_decode": False}
"""Arguments of the original, some of later versions, of which one value is the network that is built here."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Constructor arguments of `SparseSDFVQVAE`; the names are those of the original's JSON files."""

    resolution: _Side = 64
    """Side of the latent grid; the data grid is `2 ** levels` times finer."""
    model_channels: _Width = 512
    """Width C of the transformer trunks."""
    latent_channels: Annotated[int, Bounds(least=1, most=4096)] = 16
    """Width D of a code."""
    num_blocks: _Blocks = 4
    """Transformer blocks in each trunk."""
    num_blocks_encoder: _Blocks | None = None
    """Blocks of the encoder's trunk, if not `num_blocks`."""
    num_blocks_decoder: _Blocks | None = None
    """Blocks of the decoder's trunk, if not `num_blocks`."""
    num_heads: _Side | None = None
    """Attention heads; by default `model_channels / num_head_channels`."""
    num_head_channels: _Width = 64
    """Width of a head, where `num_heads` is not given."""
    mlp_ratio: Annotated[float, Bounds(least=0, most=32)] = 4.0
    """Hidden width of a block's feed-forward layer over C."""
    attn_mode: str = "swin"
    """`swin` (windows, every second block shifted by half a window), `windowed` or `full`."""
    window_size: _Side = 8
    """Side of an attention window in latent cells."""
    pe_mode: str = "ape"
    """Position code of the trunks: `ape` (sines of the coordinates)."""
    qk_rms_norm: bool = False
    """Normalize queries and keys."""
    num_embeddings: Annotated[int, Bounds(least=1, most=2**22)] = 8192
    """Codebook size K."""
    use_ema_update: bool = False
    """Learn the codebook by moving averages instead of gradients."""
    vq_decay: Amount = 0.99
    """Decay of those averages."""
    vq_epsilon: Amount = 1e-5
    """Smoothing of the code counts."""
    use_kmeans_reinit: bool = False
    """Accepted from the original's files. Codes that fall out of use are restarted continually instead."""
    kmeans_interval: Positive = 2000
    """See `use_kmeans_reinit`."""
    reservoir_size: Positive = 16384
    """Encoder outputs kept for the data-dependent start of the codebook."""
    use_fp16: bool = False
    """Run the network in half precision; left to autocast here, so only `False` is accepted."""
    use_checkpoint: bool = False
    """Recompute the trunks' activations in the backward pass."""
    chunk_size: int = 1
    """Decode in `chunk_size`^3 spatial blocks; only 1 is supported."""
    architecture: str = "original"
    """`original` (pooling and subdivision) or `residual` (space-to-channel steps with shortcuts)."""
    level_channels: tuple[int, ...] | None = None
    """Widths of the levels with convolutions, from the finest inwards, the trunk's not included. `original`: the
    finest is the data grid, by default (C/16, C/8, C/4); `residual`: that of patches, by default (C/4, C/2)."""
    level_blocks: tuple[int, ...] = ()
    """Residual blocks on each of those levels, in each half; by default two. `residual` only."""
    level_blocks_decoder: tuple[int, ...] = ()
    """Those of the decoder, if not `level_blocks`."""
    patch_size: int = 2
    """Voxels along a side of the patches that are rows of the finest level: 2 or 4. `residual` only."""
    predict_occupancy: bool = False
    """The decoder predicts which children exist and computes no others. `residual` only."""
    quantizer: str = "euclidean"
    """How vectors meet codes: `euclidean`; `cosine` (both on the unit sphere); `simvq` (a learned map of fixed codes,
    Zhu et al., 2024); `fsq` (a fixed grid, Mentzer et al., 2023)."""
    fsq_levels: tuple[int, ...] = ()
    """Values along each axis of the grid of `fsq`; their product is num_embeddings."""
    second_codes: int = 0
    """Codes of the second codebook of `quantizer="residual"`, for cells that one code is not enough for."""
    second_share: float = 0.0
    """Share of the cells that have a second code in training; it settles how far from its code a cell has one."""
    rotation_trick: bool = False
    """Gradients pass the quantizer by the rotation that takes vector to code (Fifty et al., 2024), not unchanged."""
    pool_counts_zero: bool = True
    """Pool as the original does, dividing by the voxel count plus one; its weights need that."""
    field: FieldDescription = field(
        default_factory=lambda: FieldDescription(
            kind="udf", unit="world", band=None, sampling="corner", resolution=512
        )
    )
    """The distance field the network was trained on; by default the original system's."""
    input_band: Amount | None = None
    """The encoder sees voxels within this many voxels of the surface; None: all of the field's."""

    def __post_init__(self) -> None:
        """Check every value; the message names the key."""
        from sdf_vqvae.quantizers.registry import QUANTIZERS, check_quantizer

        check(self, "models.vqvae.args")
        if self.num_heads is None and self.model_channels % self.num_head_channels:
            raise ValueError(
                f"model_channels ({self.model_channels}) is not a multiple of num_head_channels "
                f"({self.num_head_channels}); set num_heads"
            )
        for key, allowed in {
            "attn_mode": ("swin", "windowed", "full"),
            "pe_mode": ("ape",),
            "architecture": ("original", "residual"),
            "quantizer": tuple(QUANTIZERS),
            "chunk_size": (1,),
            "use_fp16": (False,),
            "patch_size": tuple(_PATCHES),
        }.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)!r} is not supported; choose from {allowed}")
        if self.num_heads is not None and self.model_channels % self.num_heads:
            raise ValueError(
                f"model_channels ({self.model_channels}) is not a multiple of num_heads ({self.num_heads})"
            )
        if not all(isinstance(width, int) and 0 < width <= _WIDEST for width in self.widths) or not self.widths:
            raise ValueError(f"level_channels must be integers in 1..{_WIDEST}, got {list(self.widths)}")
        check_quantizer(vars(self))
        blocks = {name: getattr(self, name) for name in ("level_blocks", "level_blocks_decoder")}
        residual_only = self.predict_occupancy or any(blocks.values()) or self.patch_size != 2
        if self.architecture == "original" and residual_only:
            raise ValueError(f"predict_occupancy, {', '.join(blocks)} and patch_size need architecture='residual'")
        for name, counts in blocks.items():
            if counts and len(counts) != len(self.widths):
                raise ValueError(f"{name} needs {len(self.widths)} numbers, as {list(self.widths)}; got {counts}")
            if not all(type(n) is int and 0 <= n <= _DEEPEST for n in counts):
                raise ValueError(f"{name} must be integers in 0..{_DEEPEST}, got {counts!r}")
        if self.architecture == "residual" and not self.level_blocks:
            object.__setattr__(self, "level_blocks", (2,) * len(self.widths))
        if self.data_resolution != self.field.resolution:
            raise ValueError(
                f"resolution={self.resolution} (latent grid) with {self.levels} levels means a data grid of "
                f"{self.data_resolution}, but the field is described with {self.field.resolution}"
            )
        if self.input_band is not None and (self.field.unit != "band" or self.field.band is None):
            raise ValueError("input_band needs a field in units of its band")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels with convolutions, from the finest inwards, the trunk's not included."""
        c = self.model_channels
        default = (c // 16, c // 8, c // 4) if self.architecture == "original" else (c // 4, c // 2)
        return self.level_channels if self.level_channels is not None else default

    @property
    def levels(self) -> int:
        """Number of halvings between data grid and latent grid."""
        return len(self.widths) + self.patch_levels

    @property
    def patch_levels(self) -> int:
        """Number of halvings between data grid and the finest level with features."""
        return _patch_levels({"architecture": self.architecture, "patch_size": self.patch_size})

    def blocks_of(self, half: str) -> int:
        """Return the transformer blocks of `encoder` or `decoder`."""
        own: int | None = self.num_blocks_encoder if half == "encoder" else self.num_blocks_decoder
        return self.num_blocks if own is None else own

    def level_blocks_of(self, half: str) -> tuple[int, ...]:
        """Return the residual blocks of `encoder` or `decoder` on each level, finest first."""
        return self.level_blocks_decoder if half == "decoder" and self.level_blocks_decoder else self.level_blocks

    @property
    def latent_resolution(self) -> int:
        """Side of the latent grid."""
        return self.resolution

    @property
    def data_resolution(self) -> int:
        """Side of the data grid R."""
        return self.resolution * 2**self.levels

    @property
    def heads(self) -> int:
        """Attention heads of the trunks."""
        return self.num_heads or self.model_channels // self.num_head_channels

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> VAEConfig:
        """Build from constructor arguments (`models.vqvae.args` of a JSON file).

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of range.
        """
        values = {k: v for k, v in args.items() if k not in _WITHOUT_EFFECT}
        if "embed_dim" in values:
            values["latent_channels"] = values.pop("embed_dim")
        for key, only in _FIXED.items():
            if values.pop(key, only) != only:
                raise ValueError(f"{key}={args[key]!r} is not supported: {only!r} is the network that is built here")
        for key in _SPLIT:
            halves = [values.pop(f"{key}_{half}", None) for half in ("encoder", "decoder")]
            given = {v for v in (values.get(key), *halves) if v is not None}
            if len(given) > 1:
                raise ValueError(f"{key} differs between encoder and decoder ({halves}), which is not supported")
            if given:
                values[key] = given.pop()
        for key in ("model_channels", "num_head_channels", "num_blocks"):
            if values.get(key, 0) is None:
                del values[key]
        check_keys("models.vqvae.args", values, (f.name for f in dataclasses.fields(cls)))
        widths = values.get("level_channels")
        for key in (f.name for f in dataclasses.fields(cls) if str(f.type).startswith("tuple")):
            numbers = values.get(key)
            if numbers is not None:
                if not isinstance(numbers, list | tuple) or len(numbers) > _MOST_LEVELS:
                    raise ValueError(f"{key} must be a list of at most {_MOST_LEVELS} integers, got {numbers!r}")
                values[key] = tuple(numbers)
        side = values.get("resolution", cls.resolution)
        if "field" in values:
            values["field"] = FieldDescription.from_dict(values["field"])
        elif isinstance(side, int):
            values["field"] = FieldDescription(
                kind="udf",
                unit="world",
                band=None,
                sampling="corner",
                resolution=side * 2 ** (3 if widths is None else len(widths) + _patch_levels(args)),
            )
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> VAEConfig:
        """Read `models.vqvae.args` of a JSON file; its other sections are checked as well.

        Raises:
            ValueError: see `read_vae_document`.
        """
        return read_vae_document(path).model

    def to_args(self) -> dict[str, Any]:
        """Return the arguments that `from_args` turns back into this config."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["field"] = self.field.to_dict()
        return values


def _patch_levels(args: dict[str, Any]) -> int:
    """Return how often patches halve the data grid."""
    return _PATCHES.get(args.get("patch_size", 2), 1) if args.get("architecture") == "residual" else 0


@dataclass(frozen=True, kw_only=True)
class VAEDocument:
    """The sections of a `configs/vae/*.json` file."""

    model: VAEConfig
    dataset: DatasetConfig | None
    trainer: TrainerConfig | None


def config_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that a name of a VAE config stands for: what is there, else the shipped config of that name.

    Shipped are the files of `configs/vae`. So that `configs/vae/NAME.json` works from any folder, they are meant by
    that path or by `NAME.json` alone, where the current folder has no such file; the log says so.
    """
    given = Path(path)
    if given.parent not in (Path("configs/vae"), Path()) or os.path.lexists(given):
        return given
    shipped = shipped_document(given.name)
    if given.suffix != ".json" or not shipped.is_file():
        return given
    logger.info("there is no %s here: %s is read", path, shipped)
    return shipped


def shipped_document(name: str) -> Path:
    """Return the file of that name as `configs/vae` has it in this installation."""
    return Path(str(resources.files("sdf_vqvae.config") / "documents" / name))


def read_vae_document(path: str | os.PathLike[str]) -> VAEDocument:
    """Read a JSON file with the sections `models` (needed), `dataset` and `trainer`; see `config_file` for its path.

    Raises:
        ValueError: the file is missing, is not JSON, lacks `models.vqvae.args`, or a key anywhere is unknown, is not
            supported, or has a value of another type or range. The message names file and key.
    """
    file = regular_file(config_file(path), "VAE config")
    try:
        document = parse_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the VAE config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
            raise ValueError("there is no models.vqvae.args section")
        check_keys("the file", document, ("models", "dataset", "trainer"))
        check_keys("models", document["models"], ("vqvae",))
        _, args = named_section("models.vqvae", document["models"].get("vqvae"), _MODEL_NAMES)
        sections = {key: document[key] for key in ("dataset", "trainer") if document.get(key) is not None}
        return VAEDocument(
            model=VAEConfig.from_args(args),
            dataset=DatasetConfig.from_section(sections["dataset"]) if "dataset" in sections else None,
            trainer=TrainerConfig.from_section(sections["trainer"]) if "trainer" in sections else None,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
