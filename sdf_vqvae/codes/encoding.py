"""Encode a dataset once: fields, a pack, or a folder of meshes, to a folder of codes that training reads.

Goes on where an earlier run stopped. Workers hold a tokenizer each and get a few objects at a time.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.folder import CodeFolderWriter
from sdf_vqvae.codes.pipeline import field_for, voxelize_many_for
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.codes.shape_codes import codes_of_cells
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.folder_table import TableUse
from sdf_vqvae.data.mesh_sources import Source
from sdf_vqvae.data.objects import Kind, Place, field_objects, kind_of
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, UP_COLUMN, write_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.geometry.turns import UNTURNED, Turn, split_id
from sdf_vqvae.geometry.up import UP_UNSAID, Up, rotation
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import only_writer, remove_temporaries
from sdf_vqvae.utils.jobs import DIED_TWICE, run_jobs
from sdf_vqvae.utils.progress import Progress, follow
from sdf_vqvae.utils.workers import disk_is_full

logger = logging.getLogger(__name__)

_OBJECTS_A_SHARD = 2048


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a run came to."""

    encoded: int
    kept: int
    """Objects that an earlier run had encoded; here and in the others, each of an object's turns counts."""
    failed: dict[str, str]
    """Id -> reason."""
    codes: int
    """Of all objects that are there now."""
    seconds: float
    table: TableUse | None = None
    """What was understood of the table beside mesh files."""
    repeated: Sequence[str] = ()
    """Meshes that are there more than once, and rows of one object that differ."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What a source holds."""

    rows: Sequence[Mapping[str, str]]
    """Of its table, one an object."""
    places: Mapping[str, Place]
    """Id -> where it lies, of the objects that can be tried."""
    failed: dict[str, str]
    """Id, or file where there is none -> why an object can't be."""
    table: TableUse | None = None
    repeated: Sequence[str] = ()
    """See `Encoded`."""


def encode_dataset(settings: EncodeSettings) -> Encoded:
    """Encode what is missing and write the table.

    A run that is killed loses what came after the last shard, which are written every ten seconds or 2,048 objects.

    Raises:
        ValueError: there is nothing to encode, or the output holds codes of another tokenizer.
        OSError: the disk is full, or workers can't be started; what was written is kept.
    """
    vae = load_vae_from_config(settings.vae_config, settings.vae_ckpt, settings.devices[0])
    objects = objects_of(settings, vae)
    settings.output.mkdir(parents=True, exist_ok=True)
    with only_writer(settings.output):
        remove_temporaries(settings.output)
        try:
            return _encode_missing(settings, vae, objects)
        except OSError as error:
            if disk_is_full(error):
                raise OSError(
                    f"the disk is full: the shards in {settings.output} are kept, and the same command goes on from "
                    "there once there is room"
                ) from error
            raise


def _encode_missing(settings: EncodeSettings, vae: SparseSDFVQVAE, objects: Objects) -> Encoded:
    """Encode the objects that the output lacks, and write the table of all."""
    writer = CodeFolderWriter(settings.output, vae, mirrored=settings.mirror)
    _check_kept(objects.places, writer)
    every = settings.all_turns()
    jobs = [
        Job(name=name, place=place, turns=tuple(turn for turn in every if turn.id_of(name) not in writer.done))
        for name, place in objects.places.items()
    ]
    wanted = [job for job in jobs if job.turns]
    missing = sum(len(job.turns) for job in wanted)
    kept = len(jobs) * len(every) - missing
    failed = dict(objects.failed)
    make = functools.partial(EncodeWorker, settings=settings)
    if settings.engine == "local" and settings.workers == 1 and len(settings.devices) == 1:
        make = functools.partial(_here, worker=EncodeWorker(settings.devices[0], settings=settings, vae=vae))
    else:
        del vae  # every worker has its own
    start = time.perf_counter()
    written = start
    encoded = 0
    with Progress(missing, "encode") as progress:
        for name, codes, coords, up, error in _through_workers(make, wanted, settings):
            progress.update()
            if error:
                failed[name] = error
                logger.warning("%s not encoded: %s", name, error)
                continue
            assert codes is not None and coords is not None and up is not None
            writer.add(name, codes, coords, up)
            encoded += 1
            if len(writer) >= _OBJECTS_A_SHARD or time.perf_counter() - written > settings.shard_seconds:
                writer.flush()
                written = time.perf_counter()
    writer.flush()
    turns: dict[str, list[str]] = {}
    for name, turn in sorted(map(split_id, writer.done)):
        if turn != UNTURNED:
            turns.setdefault(name, []).append(turn.name)
    table = [
        {
            **row,
            **({} if up is None else {UP_COLUMN: up.axis, "up_from": up.known_from}),
            **({"turns": " ".join(turns.get(row[ID_COLUMN], ()))} if turns else {}),
            "codes": "" if error else str(writer.done.get(row[ID_COLUMN], "")),
            "codes_error": error,
        }
        for row in objects.rows
        for error in [failed.get(_key(row), "")]
        for up in [writer.ups.get(row[ID_COLUMN])]
    ]
    write_table(settings.output / METADATA, table)
    return Encoded(
        encoded=encoded,
        kept=kept,
        failed=failed,
        codes=sum(writer.done.values()),
        seconds=round(time.perf_counter() - start, 2),
        table=objects.table,
        repeated=objects.repeated,
    )


def _check_kept(places: Mapping[str, Place], writer: CodeFolderWriter) -> None:
    """Raise a ValueError if an object that is there already was encoded standing otherwise than is wanted now."""
    for name, place in places.items():
        if name not in writer.done or place.up is None:
            continue
        there = writer.ups.get(name, UP_UNSAID)
        if not there.is_made_by(place.up):
            raise ValueError(
                f"{writer.folder} holds codes of {name} that were made {there.apart_from(place.up)}: give "
                "another --output, or delete the folder"
            )


def objects_of(settings: EncodeSettings, vae: SparseSDFVQVAE) -> Objects:
    """Return the table of a source, the objects that can be tried, and why the others can't.

    Raises:
        ValueError: the source does not exist, or has no object.
    """
    source = settings.source
    if not source.is_dir():
        raise ValueError(f"the folder {source} does not exist")
    rows: list[Mapping[str, str]] = []
    places: dict[str, Place] = {}
    failed: dict[str, str] = {}
    meshes: Source | None = None
    kind = kind_of(source, Kind.FIELDS, Kind.PACK)
    if kind is Kind.FIELDS:
        fields = FieldFolder(source, vae.config.data_resolution, resampled=True)
        failed |= fields.left_out
        for item in field_objects(fields):
            if settings.split is not None and item.split != settings.split:
                continue
            rows.append(item.row)
            if item.place is None:
                continue
            try:
                places[item.id] = item.place.standing(settings.up, item.row.get(UP_COLUMN, ""))
            except ValueError as error:
                failed[item.id] = str(error)
    else:
        source_format = "pack" if kind is Kind.PACK else "folder"
        meshes = Source(source_format, source, split=settings.split, up=settings.up)
        for item in follow(meshes, "reading the input", leave=False):
            rows.append(item.row)
            if item.place is None:
                failed[_key(item.row)] = item.error
            else:
                places[item.id] = item.place
    if not places:
        some = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:2])
        of_split = "" if settings.split is None else f" of the split {settings.split!r}"
        raise ValueError(f"{source} holds nothing{of_split} to encode" + (f" ({some})" if some else ""))
    if settings.max_samples:
        places = dict(itertools.islice(places.items(), settings.max_samples))
        rows = [row for row in rows if row[ID_COLUMN] in places]
        failed = {name: why for name, why in failed.items() if name in places}
    return Objects(
        rows=rows,
        places=places,
        failed=failed,
        table=None if meshes is None else meshes.table,
        repeated=() if meshes is None else meshes.repeated,
    )


def _key(row: Mapping[str, str]) -> str:
    """Return what an object is called: its id, or its file where that can't be read."""
    return row[ID_COLUMN] or row.get("file", "")


class Job(NamedTuple):
    """One object to encode."""

    name: str
    """Its id."""
    place: Place
    """Where it lies."""
    turns: tuple[Turn, ...] = (UNTURNED,)
    """The ways in which it is encoded."""


_Result = tuple[str, Tensor | None, Tensor | None, Up | None, str]
"""Id, codes, coordinates, how its source stands, and why there are none."""


def _through_workers(
    make: Callable[[str], Callable[[list[Job]], list[_Result]]], wanted: Sequence[Job], settings: EncodeSettings
) -> Iterator[_Result]:
    """Hand groups of objects to workers; where one dies of a group, its objects are tried one by one."""
    groups = [list(group) for group in _batched(wanted, settings.objects_at_a_time)]
    while groups:
        again: list[list[Job]] = []
        jobs = run_jobs(make, groups, workers=settings.workers, devices=settings.devices, engine=settings.engine)
        for done in jobs:
            group = groups[done.number]
            if done.result is not None:
                yield from done.result
            elif len(group) > 1 and done.error == DIED_TWICE:
                again += [[job] for job in group]
            else:
                yield from (result for job in group for result in _none_of(job, done.error))
        groups = again


def _batched(jobs: Sequence[Job], size: int) -> Iterator[tuple[Job, ...]]:
    rest = iter(jobs)
    while group := tuple(itertools.islice(rest, size)):
        yield group


def _here(_device: str, *, worker: EncodeWorker) -> EncodeWorker:
    return worker


class EncodeWorker:
    """A tokenizer on one device that encodes a few objects at a time."""

    def __init__(self, device: str, *, settings: EncodeSettings, vae: SparseSDFVQVAE | None = None) -> None:
        self.settings = settings
        self.vae = vae or load_vae_from_config(settings.vae_config, settings.vae_ckpt, device)

    def __call__(self, jobs: list[Job]) -> list[_Result]:
        """Return the codes of each object, or why there are none."""
        results: list[_Result] = []
        fields = self._in_all_turns(jobs, results)  # made as they are encoded: 24 of each would fill the memory
        encoded = self.encode_fields(fields)
        return results + encoded

    def _in_all_turns(self, jobs: Sequence[Job], failed: list[_Result]) -> Iterator[tuple[str, SparseSDF]]:
        """Yield the fields of objects in each of their turns; why there is none is added to `failed`."""
        for job, field in zip(jobs, self.fields_of([job.place for job in jobs]), strict=True):
            if isinstance(field, str):
                failed += _none_of(job, field)
                continue
            for turn in job.turns:
                name = turn.id_of(job.name)
                try:
                    if turn.is_exact:
                        turned = field if turn == UNTURNED else field.rotated(torch.from_numpy(turn.rotation()))
                    else:
                        turned = self._voxelized_in(turn, job.place, field)
                except (ValueError, OSError) as error:
                    failed.append((name, None, None, None, brief(error)))
                else:
                    yield name, turned

    def _voxelized_in(self, turn: Turn, place: Place, field: SparseSDF) -> SparseSDF:
        """Return the field of a mesh turned by any angle; `field` is the one of it as it stands."""
        mesh = place.load()
        if isinstance(mesh, SparseSDF):
            raise ValueError(f"a field turns by quarters alone, not by {turn.name}: encode the meshes it was made of")
        inside = turn.rotation()
        if self.settings.mirror:  # the mirror image is taken of what was turned, not turned itself
            inside = inside * np.outer((-1, 1, 1), (-1, 1, 1))
        standing = rotation(field.up)
        vertices = np.asarray(mesh.vertices, dtype=np.float64) @ (standing.T @ inside @ standing).T
        turned = field_for(
            self.vae,
            trimesh.Trimesh(vertices, mesh.faces, process=False),
            threshold_factor=self.settings.threshold_factor,
            up=Up(axis=field.up, known_from=field.up_from),
        )
        return turned.mirrored() if self.settings.mirror else turned

    def encode_fields(self, fields: Iterable[tuple[str, SparseSDF]]) -> list[_Result]:
        """Return the codes of fields with their names."""
        parts = _by_size(fields, self.settings.batch_voxels)
        return [result for part in parts for result in self._encode(part)]

    def fields_of(self, places: Sequence[Place]) -> list[SparseSDF | str]:
        """Return each object's field (or its mirror image's), or the reason why it has none."""
        fields: list[SparseSDF | str] = []
        meshes: list[tuple[int, trimesh.Trimesh]] = []
        for number, place in enumerate(places):
            try:
                shape = place.load()
                if isinstance(shape, SparseSDF):
                    as_made = place.up is None or place.up.axis == shape.up
                    shape = field_for(self.vae, shape, up=None if as_made else place.up)
                    fields.append(shape.to(self.vae.device))
                else:
                    meshes.append((number, shape))
                    fields.append("")
            except (ValueError, OSError) as error:
                fields.append(brief(error))
        voxelized = voxelize_many_for(
            self.vae,
            [mesh for _, mesh in meshes],
            threshold_factor=self.settings.threshold_factor,
            ups=[up for number, _ in meshes if (up := places[number].up) is not None],
        )
        for (number, _), field in zip(meshes, voxelized, strict=True):
            fields[number] = field
        return [_mirror_image(field) for field in fields] if self.settings.mirror else fields

    def _encode(self, part: list[tuple[str, SparseSDF]]) -> list[_Result]:
        """Encode fields together; where that fails, one by one."""
        try:
            with torch.no_grad():
                codes = self.vae.Encode(collate_sparse_sdf([field for _, field in part]))
        except ValueError as error:
            if len(part) == 1:
                return [(part[0][0], None, None, None, brief(error))]
            return [result for single in part for result in self._encode([single])]
        sizes = torch.bincount(codes.coords[:, 0], minlength=len(part)).tolist()
        values = codes_of_cells(codes).split(sizes)
        coords = codes.coords[:, 1:].to("cpu", torch.int16).split(sizes)
        rows = zip(part, values, coords, strict=True)
        # Copies: a part of a tensor would be sent between processes whole.
        return [
            (name, indices.clone(), cells.clone(), Up(axis=field.up, known_from=field.up_from), "")
            for (name, field), indices, cells in rows
        ]


def _mirror_image(field: SparseSDF | str) -> SparseSDF | str:
    """Return a field's mirror image, or why there is none."""
    if isinstance(field, str):
        return field
    try:
        return field.mirrored()
    except ValueError as error:
        return brief(error)


def _none_of(job: Job, reason: str) -> list[_Result]:
    """Return what becomes of an object that can't be encoded."""
    return [(turn.id_of(job.name), None, None, None, reason) for turn in job.turns]


def _by_size(fields: Iterable[tuple[str, SparseSDF]], most: int) -> Iterator[list[tuple[str, SparseSDF]]]:
    """Yield fields in parts of at most so many voxels, or of one field."""
    part: list[tuple[str, SparseSDF]] = []
    total = 0
    for name, field in fields:
        if part and total + len(field.sdf) > most:
            yield part
            part, total = [], 0
        part.append((name, field))
        total += len(field.sdf)
    if part:
        yield part
