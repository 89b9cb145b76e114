"""What is encoded, with what, and how. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sdf_vqvae.geometry.turns import UNTURNED, Turn, read_turns
from sdf_vqvae.utils.jobs import Engine
from sdf_vqvae.utils.settings import Bounds, Option, Positive, check


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What to encode, with what, and how."""

    source: Annotated[Path, Option(positional=True, metavar="MESH|FIELD|FOLDER")]
    """GLB, glTF, OBJ, PLY, STL or OFF; .npz; or a dataset: fields, a pack, or a folder of meshes."""
    output: Annotated[Path, Option(short="-o", metavar="FILE|FOLDER")]
    """Codes file, .safetensors; for a dataset the folder of codes."""
    vae_config: str | Path | None = None
    vae_ckpt: str | Path | None = None
    threshold_factor: float | None = None
    """See `voxelize_for`; for meshes and tokenizers of the original system."""
    up: str | None = None
    """The axis of all sources that points up, or `auto`; None takes each object's own (`up_of`)."""
    split: str | None = None
    """Only objects whose row says so in its column `split`."""
    max_samples: Positive | None = None
    """The first so many objects."""
    mirror: bool = False
    """Encode mirror images, left and right exchanged: a second folder of codes, for training's mirrored_dir."""
    turns: Annotated[str, Option(metavar="TURNS")] | None = None
    """Encode each object also turned: yaw (by quarters about the vertical), ups (another axis up), all (the 23 turns
    of a grid), or names such as y90,-x0,y45 (the axis that comes up, degrees about the vertical; others than
    quarters of meshes alone)."""
    batch_voxels: Positive = 2_000_000
    """Voxels that go through the tokenizer at a time, at most (a larger object goes alone)."""
    shard_seconds: float = 10.0
    """Write what is encoded so often; a killed run loses no more."""
    objects_at_a_time: int = 16
    """Objects that a worker is handed at a time."""
    workers: Annotated[int, Bounds(least=1), Option(default="one a device")] = 1
    """Processes."""
    devices: tuple[str, ...] = ("cpu",)
    engine: Engine = "local"
    """Processes here, or a Ray cluster."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
        self.all_turns()

    def all_turns(self) -> tuple[Turn, ...]:
        """Return the ways in which each object is encoded. Raises a ValueError where `turns` names none."""
        try:
            return (UNTURNED, *(read_turns(self.turns) if self.turns else ()))
        except ValueError as error:
            raise ValueError(f"--turns: {error}") from error
