"""The objects at paths, each as codes: read or encoded a few at a time, when they are asked for.

Knows files, the tokenizer and the folders of `encode`; nothing of language.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sdf_vqvae.codes.encoding import EncodeWorker, Job
from sdf_vqvae.codes.folder import CodeFolder, Manifest
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes, check_codes, up_of_codes
from sdf_vqvae.data.objects import Kind, StoredObject, kind_of, objects_at
from sdf_vqvae.data.tables import ID_COLUMN, UP_COLUMN
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.errors import brief
from vae_qwen3vl.descriptions.settings import DescribeSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cached:
    """An object of a folder of codes."""

    folder: CodeFolder
    id: str


_Entry = StoredObject | Path | _Cached
"""An object of a folder or file of meshes or fields, a codes file, or an object of a folder of codes."""


class Shapes:
    """The objects at all paths of a run.

    The tokenizer is loaded, unless folders of codes bring all that is needed of it.

    Args:
        settings: which paths, and which of their objects.
        device: of the tokenizer.

    Raises:
        ValueError: there is nothing at a path, or its codes are of another tokenizer.
    """

    def __init__(self, settings: DescribeSettings, device: torch.device) -> None:
        kinds = {path: _kind(path) for path in settings.sources}
        cached = {path: CodeFolder(path) for path, kind in kinds.items() if kind is Kind.CODES}
        self.vae: SparseSDFVQVAE | None = None
        """None where all codes are cached."""
        if settings.vae_config is not None or settings.vae_ckpt is not None or len(cached) < len(kinds):
            self.vae = load_vae_from_config(settings.vae_config, settings.vae_ckpt, device)
            manifest, self.codebook = Manifest.of(self.vae), self.vae.vq.embeddings.weight.detach()
        else:
            first = next(iter(cached.values()))
            manifest, self.codebook = first.manifest, first.codebook
        self.manifest = manifest
        """Of the tokenizer."""
        self._settings = settings
        self._entries: dict[str, _Entry] = {}
        for path, kind in kinds.items():
            if kind is Kind.CODES:
                _check_tokenizer(cached[path], manifest)
                found: Iterator[tuple[str, _Entry]] = _cached(cached[path], settings)
            elif kind is Kind.FILE and path.suffix == CODES_SUFFIX:
                found = iter([(str(path), path)])
            else:
                found = _listed(path, kind, settings, manifest.data_resolution)
            self._entries |= itertools.islice(found, settings.max_samples)

    @property
    def names(self) -> list[str]:
        """What records call the objects: a file's path, or that of its folder and its id there."""
        return list(self._entries)

    def read(self, names: Sequence[str]) -> list[ShapeCodes | str]:
        """Return the codes of some objects, or in a line each why they can't be had.

        Where its source lies is not asked here: `center` and `scale` are those of the files of codes alone. `up_from`
        is empty where nobody said how it stands.
        """
        shapes: dict[str, ShapeCodes | str] = {}
        jobs = []
        for name in names:
            entry = self._entries[name]
            try:
                if isinstance(entry, StoredObject):
                    place = entry.there.standing(self._settings.up, entry.row.get(UP_COLUMN, ""))
                    jobs.append(Job(name=name, place=place))
                elif isinstance(entry, _Cached):
                    shapes[name] = self.manifest.shape(*entry.folder[entry.id])
                else:
                    shapes[name] = self._of_file(entry)
            except (ValueError, OSError) as error:
                shapes[name] = brief(error)
        if jobs:
            assert self.vae is not None
            # Of its settings only what a field is made with counts here: nothing is written.
            encode = EncodeSettings(source=Path(), output=Path(), threshold_factor=self._settings.threshold_factor)
            worker = EncodeWorker(str(self.vae.device), settings=encode, vae=self.vae)
            for name, codes, coords, up, reason in worker(jobs):
                if codes is None or coords is None or up is None:
                    shapes[name] = reason
                else:
                    shapes[name] = self.manifest.shape(codes, coords, up)
        return [shapes[name] for name in names]

    def _of_file(self, path: Path) -> ShapeCodes:
        assert self.vae is not None
        codes = ShapeCodes.load(path)
        up = up_of_codes(codes, self._settings.up)
        check_codes(self.vae, codes)
        return replace(codes, up_from=up.known_from)


def _kind(path: Path) -> Kind:
    kind = kind_of(path, Kind.CODES, Kind.PACK, Kind.FIELDS, Kind.FOLDER, Kind.FILE)
    if kind is None:
        raise ValueError(f"{path} does not exist: give meshes, fields, codes, or a folder of them")
    return kind


def _check_tokenizer(folder: CodeFolder, manifest: Manifest) -> None:
    if folder.manifest.vae_hash != manifest.vae_hash:
        raise ValueError(
            f"the codes in {folder.folder} were made by the VAE {folder.manifest.vae_hash[:12]}, but this one is "
            f"{manifest.vae_hash[:12]}: give the --vae_config and --vae_ckpt they were made with"
        )


def _cached(folder: CodeFolder, settings: DescribeSettings) -> Iterator[tuple[str, _Entry]]:
    if settings.up is not None:
        raise ValueError(f"--up {settings.up}: the objects in {folder.folder} are codes already, and can't be turned")
    rows = [row for row in folder.table() if row[ID_COLUMN] in folder]
    wanted = [row[ID_COLUMN] for row in rows if settings.split in (None, row.get("split"))]
    if not wanted:
        of_split = "" if settings.split is None else f" of the split {settings.split!r}"
        raise ValueError(f"{folder.folder} holds no object{of_split}")
    return ((os.path.join(folder.folder, name), _Cached(folder=folder, id=name)) for name in wanted)


def _listed(path: Path, kind: Kind, settings: DescribeSettings, resolution: int) -> Iterator[tuple[str, _Entry]]:
    objects = objects_at(path, split=settings.split, resolution=resolution)
    return ((str(path) if kind is Kind.FILE else os.path.join(path, item.id), item) for item in objects)
