"""Make an index of a folder: encode what has no codes yet, turn codes into vectors, take over what tables say.

Goes on where an earlier run stopped, takes in what is new, and drops what is gone. Shards of codes are read one at a
time, so that millions of cached objects need no more memory than thousands.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdf_vqvae.codes.encoding import encode_dataset
from sdf_vqvae.codes.folder import CODEBOOK, Manifest, read_shard, shards_in
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.objects import Kind, kind_of
from sdf_vqvae.data.tables import FILE_COLUMNS, ID_COLUMN, METADATA, read_table
from sdf_vqvae.utils.archives import read_safetensors
from sdf_vqvae.utils.files import atomic_path, only_writer, remove_temporaries, sha256_of, write_json_lines
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.search import store
from vae_qwen3vl.search.vectors import ShapeVectors

logger = logging.getLogger(__name__)

ERRORS = "errors.jsonl"
"""Objects that are not in the index, and why."""
_OBJECTS_AT_ONCE = 256
_OF_A_FIRST_RUN = {store.CODES, store.PROJECTOR, store.HEAD, store.CODEBOOK, ".lock"}
"""What a run leaves that was killed before there was an index."""


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What a run came to."""

    objects: int
    """Of the index, now."""
    added: int
    kept: int
    """Objects that were there before."""
    dropped: int
    """Objects that were there before and are gone."""
    failed: dict[str, str]
    """Id or file -> reason."""
    encode_seconds: float
    """Meshes or fields to codes."""
    seconds: float
    """Codes to vectors, and the table."""


def index_dataset(settings: EncodeSettings, projector: Path, head: Path) -> Indexed:
    """Make or update the index `settings.output` of a folder of meshes, fields or codes, or of a pack.

    Args:
        settings: as for encoding; the codes are kept in the index, or stay where they are.
        projector: file of the projector.
        head: file of the search head that was trained on its tokens.

    Raises:
        ValueError: there is nothing to index; the output is no index; or the parts don't fit each other.
        OSError: the disk is full, or another program writes to the index.
    """
    folder, failed, encode_seconds = settings.output, {}, 0.0
    _check_output(folder, settings.source)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        remove_temporaries(folder)
        codes = settings.source
        if not kind_of(codes, Kind.CODES):
            codes = folder / store.CODES
            encoded = encode_dataset(replace(settings, output=codes))
            failed, encode_seconds = dict(encoded.failed), encoded.seconds
        start = time.perf_counter()
        vectors, manifest = _parts(folder, settings.source, codes, projector, head, settings.devices[0])
        with store.telling(folder), store.IndexWriter(folder, manifest.width) as writer:
            if is_index(folder) and not manifest.makes_the_same(store.IndexManifest.load(folder)):
                logger.warning("%s: tokenizer, projector or head changed: all vectors are made anew", folder)
                writer.forget()
            manifest.save(folder)
            before = len(writer)
            listed = writer.expect(_objects(settings, codes, failed))
            added, replaced = _add_missing(writer, vectors, codes, listed, settings.split)
            dropped = writer.settle()
            write_json_lines(folder / ERRORS, ({"object": name, "reason": why} for name, why in failed.items()))
            return Indexed(
                objects=len(writer),
                added=added,
                kept=before - dropped - replaced,
                dropped=dropped,
                failed=failed,
                encode_seconds=encode_seconds,
                seconds=round(time.perf_counter() - start, 2),
            )


def is_index(folder: Path) -> bool:
    """Return whether a folder is an index."""
    return (folder / store.MANIFEST).is_file()


def _check_output(folder: Path, source: Path) -> None:
    """Raise a ValueError unless an index of a source may be made or updated in a folder."""
    if not source.is_dir():
        raise ValueError(f"the folder {source} does not exist")
    if not folder.exists():
        return
    if is_index(folder):
        before = Path(store.IndexManifest.load(folder).source)
        if before.is_dir() and not before.samefile(source):
            raise ValueError(f"--output {folder} is an index of {before}: give another one for {source}")
    elif any(path.name not in _OF_A_FIRST_RUN for path in folder.iterdir()):
        raise ValueError(f"--output {folder} is not empty and no index: give another one")


def _parts(
    folder: Path, source: Path, codes: Path, projector: Path, head: Path, device: str
) -> tuple[ShapeVectors, store.IndexManifest]:
    """Copy into an index what its queries need, and return what makes its vectors, with its manifest."""
    made_by = Manifest.load(codes)
    if made_by.mirrored:
        raise ValueError(f"the codes in {codes} are of mirror images: index those of the objects as they are")
    tensors, _ = read_safetensors(codes / CODEBOOK, "codebook", ("codebook",))
    vectors = ShapeVectors.load(projector, head, tensors["codebook"], device)
    trained_on = vectors.tokens.description.vae_hash
    if trained_on not in (None, made_by.vae_hash):
        raise ValueError(
            f"{projector} was trained on codes of the VAE {trained_on[:12]}, those in {codes} were made by "
            f"{made_by.vae_hash[:12]}: give a --projector_ckpt and a --search_head that were trained for it"
        )
    for file, name in ((projector, store.PROJECTOR), (head, store.HEAD), (codes / CODEBOOK, store.CODEBOOK)):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(file, temporary)
    inside = codes.parent.absolute() == folder.absolute()
    manifest = store.IndexManifest(
        width=len(vectors.head.bias),
        vae_hash=made_by.vae_hash,
        projector_hash=sha256_of(projector),
        head_hash=sha256_of(head),
        source=str(source.absolute()),
        codes=codes.name if inside else str(codes.absolute()),
    )
    return vectors, manifest


def _objects(settings: EncodeSettings, codes: Path, failed: dict[str, str]) -> Iterator[store.Listed]:
    """Yield what the table of a folder of codes says of the objects, those without codes to `failed`.

    A folder whose encoding has not ended has no table yet: its objects are those of its shards.
    """
    table = codes / METADATA
    if not table.is_file():
        if settings.split is not None:
            raise ValueError(f"{codes} has no {METADATA} yet, which says what is of the split {settings.split!r}")
        manifest = Manifest.load(codes)
        ids = (name for path in shards_in(codes) for name in read_shard(path, manifest).ids)
        yield from (store.Listed(id=name, name="", source="", about="") for name in ids)
        return
    chosen = (row for row in read_table(table) if settings.split is None or row.get("split") == settings.split)
    for row in itertools.islice(chosen, settings.max_samples):
        name = row[ID_COLUMN]
        if why := row.get("codes_error", ""):
            failed[name or row.get("file", "")] = why
        elif name:
            yield _listed(row, settings.source)


def _listed(row: Mapping[str, str], source: Path) -> store.Listed:
    file = next((row[column] for column in FILE_COLUMNS if row.get(column)), "")
    path = source / file
    return store.Listed(
        id=row[ID_COLUMN],
        name=row.get("name") or Path(file).stem,
        source=str(path.absolute()) if file and path.is_file() else file or row.get("id") or row.get("source", ""),
        about=" / ".join(captions_of_row(row)),
    )


def _add_missing(
    writer: store.IndexWriter, vectors: ShapeVectors, codes: Path, listed: int, split: str | None
) -> tuple[int, int]:
    """Add the listed objects whose codes the index does not have; return how many are new, and how many renewed."""
    manifest, before, done = Manifest.load(codes), len(writer), 0
    with Progress(listed, "index", initial=min(before, listed)) as progress:
        for path in shards_in(codes):  # oldest first: the newest shard that has an object counts
            about = path.stat()
            key = f"{path.name} {about.st_size} {about.st_mtime_ns} {split or ''}"
            if writer.knows_shard(key):
                continue
            shard = read_shard(path, manifest)
            missing = writer.missing(shard.ids, path.name)
            for start in range(0, len(missing), _OBJECTS_AT_ONCE):
                rows = missing[start : start + _OBJECTS_AT_ONCE]
                made = vectors(*zip(*(shard.object(row) for row in rows), strict=True))
                writer.put([shard.ids[row] for row in rows], path.name, made.cpu().numpy().astype(np.float16))
                done += len(rows)
                progress.update(len(rows))
            writer.finish_shard(key)
    added = len(writer) - before
    return added, done - added
