"""The codes of a whole dataset: a folder of shards that grows as objects are encoded, and what training reads.

    manifest.json              format, the tokenizer's fingerprint, its latent grid
    codebook.safetensors       the tokenizer's codebook, so that training needs no tokenizer
    metadata.csv               the dataset's table (captions and all) with `codes` and `codes_error`
    codes-000000.safetensors   shards, each a `CodeCache`

Every file is written whole or not at all. Objects are found by their ids; the newest shard that has one counts. A
turned object (`encode --turns`) stands under its id with the turn behind an @, and the table names an object's turns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.shape_codes import ShapeCodes, code_count
from sdf_vqvae.data.object_rows import OneRowAnObject
from sdf_vqvae.data.objects import CODES_MANIFEST, Kind, kind_of
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, read_table
from sdf_vqvae.geometry.turns import UNTURNED, Turn, split_id
from sdf_vqvae.geometry.up import UP_UNSAID, Up
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import read_manifest

CODEBOOK = "codebook.safetensors"
_FORMAT = "sdf-vqvae-code-folder/1"
_SHARD = re.compile(r"codes-(\d{6,9})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Which tokenizer made the codes."""

    vae_hash: str
    """`SparseSDFVQVAE.fingerprint()`."""
    data_resolution: int
    latent_resolution: int
    codebook_size: int
    mirrored: bool = False
    """Whether the codes are of the objects' mirror images."""
    second_codes: int = 0
    """How many second codes there are for cells that need two; 0 where each cell has one."""

    @classmethod
    def of(cls, vae: SparseSDFVQVAE, *, mirrored: bool = False) -> Manifest:
        """Return the manifest of a tokenizer's codes."""
        return cls(
            vae_hash=vae.fingerprint(),
            data_resolution=vae.config.data_resolution,
            latent_resolution=vae.config.latent_resolution,
            codebook_size=len(vae.vq.embeddings.weight),
            mirrored=mirrored,
            second_codes=vae.config.second_codes,
        )

    def shape(self, codes: Tensor, coords: Tensor, up: Up = UP_UNSAID) -> ShapeCodes:
        """Return an object with codes (see `ShapeCodes`) and coordinates, in a cube of side 1 round the origin."""
        return ShapeCodes(
            codes=codes,
            coords=coords.int(),
            latent_resolution=self.latent_resolution,
            data_resolution=self.data_resolution,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            vae_hash=self.vae_hash,
            up=up.axis,
            up_from=up.known_from,
        )

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        values = asdict(self)
        if not self.second_codes:
            del values["second_codes"]  # a folder that earlier versions read
        write_json(folder / CODES_MANIFEST, {"format": _FORMAT, **values}, indent=1)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            ValueError: the folder has none, or it is damaged.
        """
        path, made_by = folder / CODES_MANIFEST, "encode FOLDER"
        return read_manifest(path, _FORMAT, cls._of_values, what="folder of codes", made_by=made_by)

    @classmethod
    def _of_values(cls, about: dict[str, Any]) -> Manifest:
        numbers = {key: about[key] for key in ("data_resolution", "latent_resolution", "codebook_size")}
        if not all(type(value) is int and value > 0 for value in numbers.values()):
            raise ValueError(f"its numbers must be whole and positive: {numbers}")
        mirrored = about.get("mirrored", False)  # which folders of earlier versions don't say
        if type(mirrored) is not bool:
            raise ValueError(f"mirrored must be true or false, not {mirrored!r}")
        second = about.get("second_codes", 0)
        if type(second) is not int or second < 0:
            raise ValueError(f"second_codes must be a number from 0, not {second!r}")
        return cls(vae_hash=str(about["vae_hash"]), mirrored=mirrored, second_codes=second, **numbers)

    def check(self, other: Manifest, folder: Path) -> None:
        """Raise a ValueError unless the other manifest is of the same tokenizer and the same sort of objects."""
        if self.mirrored != other.mirrored:
            there, here = (
                "mirror images" if manifest.mirrored else "objects as they are" for manifest in (self, other)
            )
            raise ValueError(f"{folder} holds codes of {there}, not of {here}: give another --output")
        if self != other:
            raise ValueError(
                f"the codes in {folder} are stale: made by the VAE {self.vae_hash[:12]} ({self.data_resolution}^3 to "
                f"{self.latent_resolution}^3), this one is {other.vae_hash[:12]} ({other.data_resolution}^3 to "
                f"{other.latent_resolution}^3); give another --output, or delete the folder"
            )


class CodeFolder:
    """Read the codes of a dataset.

    Shards are read once and kept: codes of 18,000 objects are about 400 MB.

    Args:
        folder: what `encode` made.
        mirrored: whether codes of mirror images are wanted (`encode --mirror`).

    Raises:
        ValueError: the folder is no folder of codes, or of the other sort; or a shard is damaged or of another
            tokenizer.
    """

    def __init__(self, folder: str | os.PathLike[str], *, mirrored: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        if self.manifest.mirrored != mirrored:
            are = "are of mirror images: they go into mirrored_dir" if not mirrored else "are not of mirror images"
            raise ValueError(f"the codes in {self.folder} {are}")
        tensors, _ = read_safetensors(self.folder / CODEBOOK, "codebook", ("codebook",))
        self.codebook = tensors["codebook"]
        """float32 `[K, D]`."""
        if self.codebook.ndim != 2 or len(self.codebook) != self.manifest.codebook_size:
            raise ValueError(f"{self.folder / CODEBOOK}: expected {self.manifest.codebook_size} codebook vectors")
        self._shards: list[CodeCache] = []
        self._where: dict[str, tuple[int, int]] = {}
        self._turned: dict[str, dict[Turn, tuple[int, int]]] = {}
        for path in shards_in(self.folder):
            shard = read_shard(path, self.manifest)
            for row, name in enumerate(shard.ids):
                own, turn = split_id(name)
                if turn == UNTURNED:
                    self._where[name] = len(self._shards), row
                else:
                    self._turned.setdefault(own, {})[turn] = len(self._shards), row
            self._shards.append(shard)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        """Yield the objects' ids."""
        return iter(self._where)

    def turns(self, name: str) -> tuple[Turn, ...]:
        """Return the turns in which an object is there too, in order."""
        return tuple(sorted(self._turned.get(name, ())))

    def turned(self, name: str, turn: Turn) -> tuple[Tensor, Tensor]:
        """Return codes and coordinates of an object in one of its `turns`. Raises a KeyError for another."""
        if turn == UNTURNED:
            return self[name]
        shard, row = self._turned[name][turn]
        return self._shards[shard].object(row)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        """Return codes int32 `[M]` (or `[M, 2]`, see `ShapeCodes`) and coordinates int16 `[M, 3]` of an object.

        Raises a KeyError for other ids.
        """
        shard, row = self._where[name]
        return self._shards[shard].object(row)

    def table(self) -> Iterator[dict[str, str]]:
        """Yield a row of the dataset's table for each object; ids alone while an encoding run has not ended once.

        An object of which several rows tell is one row with the captions of all; one whose id stands for several
        objects has none.
        """
        yield from self._rows

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        path = self.folder / METADATA
        if not path.is_file():
            return [{ID_COLUMN: name} for name in self._where]
        return OneRowAnObject.of(read_table(path), path).rows


def shards_in(folder: Path) -> list[Path]:
    """Return the shards of a folder, oldest first."""
    return sorted((path for path in folder.iterdir() if _SHARD.fullmatch(path.name)), key=_shard_number)


def _shard_number(path: Path) -> int:
    match = _SHARD.fullmatch(path.name)
    return int(match[1]) if match else -1


def read_shard(path: Path, manifest: Manifest) -> CodeCache:
    """Read a shard and check that it fits the manifest.

    Raises:
        ValueError: it is damaged, or made by another tokenizer.
    """
    shard = CodeCache.load(path)
    if shard.vae_hash != manifest.vae_hash:
        raise ValueError(f"{path} is stale: made by the VAE {shard.vae_hash[:12]}, not {manifest.vae_hash[:12]}")
    if (shard.codes.ndim == 2) != (manifest.second_codes > 0):
        raise ValueError(f"{path}: one code a cell or two, and the manifest says otherwise")
    if len(shard.codes):
        most = [*shard.codes.view(len(shard.codes), -1).amax(0).tolist(), int(shard.coords.max())]
        sizes = [manifest.codebook_size, *([manifest.second_codes] if manifest.second_codes else [])]
        if any(a >= b for a, b in zip(most, [*sizes, manifest.latent_resolution], strict=True)):
            raise ValueError(f"{path}: codes or coordinates are outside the codebook or the latent grid")
    return shard


class CodeFolderWriter:
    """Add objects to a folder of codes, shard by shard.

    Args:
        folder: created where missing; of the same tokenizer where there is one.
        vae: the tokenizer.
        mirrored: whether what is added is of the objects' mirror images.

    Raises:
        ValueError: the folder holds codes of another tokenizer or of the other sort of objects, or other files.
    """

    def __init__(self, folder: str | os.PathLike[str], vae: SparseSDFVQVAE, *, mirrored: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.of(vae, mirrored=mirrored)
        self.done: dict[str, int] = {}
        """Number of codes of every object that is there, by id, of each of its turns too."""
        self.ups: dict[str, Up] = {}
        """How its source stands; objects of earlier versions, which don't say it, are missing."""
        if kind_of(self.folder, Kind.CODES):
            Manifest.load(self.folder).check(self.manifest, self.folder)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"--output {self.folder} is not empty and no folder of codes: give another one")
            table = vae.vq.embeddings.weight.detach().to("cpu", torch.float32).contiguous()
            write_safetensors(self.folder / CODEBOOK, {"codebook": table}, {})
            self.manifest.save(self.folder)
        self._next = 0
        for path in shards_in(self.folder):
            shard = read_shard(path, self.manifest)
            self.done |= {name: code_count(shard.object(i)[0]) for i, name in enumerate(shard.ids)}
            self.ups |= dict(zip(shard.ids, shard.ups, strict=bool(shard.ups)))
            self._next = _shard_number(path) + 1
        self._waiting: list[tuple[str, Tensor, Tensor, Up]] = []

    def __len__(self) -> int:
        """Return the number of objects that wait to be written."""
        return len(self._waiting)

    def add(self, name: str, codes: Tensor, coords: Tensor, up: Up = UP_UNSAID) -> None:
        """Take an object; it is on disk after the next `flush`.

        Args:
            name: its id.
            codes: int32 `[M]` or `[M, 2]`.
            coords: int16 `[M, 3]`.
            up: how its source stands.
        """
        self._waiting.append((name, codes, coords, up))

    def flush(self) -> None:
        """Write what waits as one shard."""
        if not self._waiting:
            return
        names, codes, coords, ups = zip(*self._waiting, strict=True)
        sizes = torch.tensor([0, *(len(c) for c in codes)])
        shard = CodeCache(
            codes=torch.cat(codes),
            coords=torch.cat(coords),
            splits=sizes.cumsum(0),
            ids=names,
            failures={},
            vae_hash=self.manifest.vae_hash,
            ups=ups,
        )
        shard.save(self.folder / f"codes-{self._next:06d}.safetensors")
        self._next += 1
        self.done |= dict(zip(names, map(code_count, codes), strict=True))
        self.ups |= dict(zip(names, ups, strict=True))
        self._waiting = []
