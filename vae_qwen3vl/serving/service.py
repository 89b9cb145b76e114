"""What a server does, apart from HTTP: shapes are read, chats answered, codes decoded, files kept.

One object a process. Its work happens in threads and processes; what waits for them is bounded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import torch
from anyio.to_thread import run_sync

from sdf_vqvae.codes.pipeline import decode_codes, surface_of
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.geometry.mesh import write_mesh
from vae_qwen3vl.candidates.asking import BestAnswer, samplings
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.generation.engine import ClosedError, Engine, QueueFullError
from vae_qwen3vl.language.default_model import DEFAULT_LM, default_lm_folder
from vae_qwen3vl.language.sentence_encoder import SentenceModelUnavailableError
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Message, Processor3D
from vae_qwen3vl.search import Hit, ShapeIndex
from vae_qwen3vl.serving.errors import ApiError
from vae_qwen3vl.serving.links import TooManyBytesError, fetch, read_data_url
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.requests import FilePart, MeshPart
from vae_qwen3vl.serving.settings import ServerSettings, ShapeLimits
from vae_qwen3vl.serving.shapes import ShapeReader, ShapeTooLargeError
from vae_qwen3vl.serving.uploads import Upload, UploadFolder, UploadsFullError
from vae_qwen3vl.vae_latent_extractor import codebook as codebook_of

_MIB = 2**20
_FETCH_SECONDS = 30.0
_SHORT = 8
"""Threads for what doesn't take long."""
_Result = TypeVar("_Result")


class Service:
    """The model, what reads shapes for it, and the uploads.

    Args:
        model: with its tokenizer of shapes, in evaluation mode.
        settings: the server's.
        limits: of one mesh.
        threshold_factor: see `voxelize_for`.
        metrics: where it counts.
    """

    def __init__(
        self,
        model: Qwen3VLWith3DBranch,
        settings: ServerSettings,
        limits: ShapeLimits,
        metrics: Metrics,
        *,
        threshold_factor: float | None = None,
    ) -> None:
        self.settings, self.metrics, self.vae = settings, metrics, model.vae_model
        is_default = model.model_name_or_path == str(default_lm_folder())
        self.name = settings.model_name or (DEFAULT_LM if is_default else model.vl_label)
        self._after = contextlib.ExitStack()
        folder = settings.files_dir or Path(self._after.enter_context(tempfile.TemporaryDirectory(prefix="uploads-")))
        self.uploads = UploadFolder(
            folder,
            most_files=settings.files_count,
            most_bytes=settings.files_space * _MIB,
            seconds=settings.files_hours * 3600,
        )
        self.reader = ShapeReader(self.vae, limits, workers=settings.mesh_workers, threshold_factor=threshold_factor)
        self._after.callback(self.reader.close)
        self.engine = Engine(
            model,
            Processor3D.from_pretrained(model.model_name_or_path),
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
        )
        choice = CandidateSettings(candidates=settings.max_candidates, shape_weight=settings.shape_weight)
        self.chooser = None
        if choice:
            codebook = codebook_of(self.vae).detach()
            self.chooser = Chooser.load(choice, codebook, self.vae.fingerprint(), model.device)
        self.index = None if settings.index is None else ShapeIndex.open(settings.index)
        self._reading = 0
        self._readers = anyio.CapacityLimiter(settings.mesh_workers)
        self._decoders = anyio.CapacityLimiter(1)
        self._others = anyio.CapacityLimiter(_SHORT)

    def start(self) -> None:
        """Return when requests can be answered. Raises an OSError where meshes can't be read."""
        self.reader.wait_until_ready()
        self.engine.start()

    def close(self, finish: bool = True) -> None:
        """End; chats that run are finished first where that is wished for."""
        self.engine.close(finish)
        self._after.close()

    # -- shapes ----------------------------------------------------------------------------------------------------

    async def codes_of(self, part: MeshPart | FilePart, owner: str, param: str) -> ShapeCodes:
        """Return the codes of a shape that a request names.

        Raises:
            ApiError: 404 for an unknown upload, 413 for what passes a limit, 422 for what can't be read, 429 where
                too many wait.
        """
        up = part.mesh_url.up if isinstance(part, MeshPart) else part.file.up
        with self._waiting("meshes are read"):
            try:
                data, suffix = await run_sync(self._bytes_of, part, owner, param, limiter=self._others)
                known = await run_sync(self.reader.known, data, suffix, up, limiter=self._others)
                if known is not None:
                    return known
                return await run_sync(self.reader.read, data, suffix, up, limiter=self._readers)
            except (ShapeTooLargeError, TooManyBytesError) as error:
                raise ApiError(413, str(error), "mesh_too_large", param) from error
            except ValueError as error:
                raise ApiError(422, str(error), "mesh_unreadable", param) from error
            finally:
                self.metrics.lost.set(self.reader.lost)

    def _bytes_of(self, part: MeshPart | FilePart, owner: str, param: str) -> tuple[bytes, str]:
        if isinstance(part, FilePart):
            upload = self.upload(part.file.file_id, owner, param)
            data = self.uploads.content(upload)
            if data is None:
                raise _no_upload(upload.id, param)
            return data, Path(upload.filename).suffix.lower()
        url = part.mesh_url.url
        if url[:5].lower() == "data:":
            return read_data_url(url)
        hosts = {host.lower() for host in self.settings.allow_url_hosts}
        return fetch(url, hosts, most_bytes=self.settings.max_body * _MIB, seconds=_FETCH_SECONDS)

    async def mesh_of(self, codes: ShapeCodes, suffix: str, voxel_resolution: int | None) -> bytes:
        """Return a mesh file of codes.

        Raises:
            ApiError: 422 where they have no surface, or the resolution doesn't fit; 429 where too many wait.
        """
        with self._waiting("codes are decoded"):
            try:
                return await run_sync(self._decode, codes, suffix, voxel_resolution, limiter=self._decoders)
            except ValueError as error:
                raise ApiError(422, str(error), "not_decodable", "input") from error

    def _decode(self, codes: ShapeCodes, suffix: str, voxel_resolution: int | None) -> bytes:
        with torch.inference_mode():
            mesh = surface_of(self.vae, decode_codes(self.vae, codes), codes, voxel_resolution=voxel_resolution)
        return _written(suffix, lambda path: write_mesh(path, mesh, up=codes.up))

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        if self._reading >= self.settings.max_reading:
            raise ApiError(429, f"too many {what} at a time: come again in a moment", "too_many_meshes")
        self._reading += 1
        self.metrics.reading.inc()
        try:
            yield
        finally:
            self._reading -= 1
            self.metrics.reading.dec()

    async def nearest(self, asked: str | ShapeCodes, k: int) -> list[Hit]:
        """Return the objects of the index that are most like words or a shape.

        Raises:
            ApiError: 404 where there is no index, 422 where it can't be asked that, 503 where words can't be read.
        """
        if self.index is None:
            raise ApiError(404, "this server has no index of shapes: start it with --index INDEX", "no_index")
        ask: Callable[..., list[Hit]] = self.index.by_words if isinstance(asked, str) else self.index.by_shape
        try:
            return await run_sync(ask, asked, k, limiter=self._others)
        except SentenceModelUnavailableError as error:
            raise ApiError(503, str(error), "no_sentence_model", "query") from error
        except ValueError as error:
            raise ApiError(422, str(error), "not_searchable") from error

    # -- chats -----------------------------------------------------------------------------------------------------

    async def submit(self, messages: Sequence[Message], objects: Sequence[ShapeCodes], sampling: Sampling) -> Answer:
        """Have a chat answered.

        Raises:
            ApiError: 400 for a chat that is too long or has no sense, 429 where too many wait, 503 at the end.
        """
        try:
            return await run_sync(self.engine.submit, messages, objects, sampling, limiter=self._others)
        except QueueFullError as error:
            raise ApiError(429, "too many chats wait for an answer: come again in a moment", "queue_full") from error
        except ClosedError as error:
            raise ApiError(503, "the server is shutting down: ask another one", "shutting_down") from error
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_chat", "messages") from error

    async def submit_best(
        self, messages: Sequence[Message], objects: Sequence[ShapeCodes], sampling: Sampling, candidates: int
    ) -> Answer:
        """Have a chat answered in several ways, and return an answer that is the best of them, when all are there.

        Raises:
            ApiError: as for `submit`; 400 where so many candidates are not drawn here.
        """
        chooser = self.chooser
        if chooser is None or candidates > self.settings.max_candidates:
            most = self.settings.max_candidates
            raise ApiError(400, f"{candidates} candidates are more than the {most} that are drawn here", "too_long")
        settings = replace(
            chooser.settings,
            candidates=candidates,
            candidate_temperature=sampling.temperature or chooser.settings.candidate_temperature,
            candidate_seed=max(0, sampling.seed or 0),
        )
        answers: list[Answer] = []
        try:
            for way in samplings(settings, replace(sampling, temperature=0.0)):
                answers.append(await self.submit(messages, objects, way))
        except ApiError:
            for answer in answers:
                answer.cancel()
            raise
        best = BestAnswer(answers, chooser, objects[0] if len(objects) == 1 else None)
        best.start()
        return best

    # -- uploads ---------------------------------------------------------------------------------------------------

    def upload(self, name: str, owner: str, param: str | None = None) -> Upload:
        """Return an upload. Raises an ApiError (404) where its owner has none of that name."""
        upload = self.uploads.get(name, owner)
        if upload is None:
            raise _no_upload(name, param)
        return upload

    async def keep(self, data: bytes, filename: str, purpose: str, owner: str) -> Upload:
        """Keep a file. Raises an ApiError (413) where there is no room."""
        try:
            return await run_sync(self.uploads.add, data, filename, purpose, owner, limiter=self._others)
        except UploadsFullError as error:
            raise ApiError(413, str(error), "no_room", "file") from error

    async def aside(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """Do something short that touches the disk, in a thread."""
        return await run_sync(work, *args, limiter=self._others)


def codes_file(codes: ShapeCodes) -> bytes:
    """Return the content of the file of codes."""
    return _written(".safetensors", codes.save)


def _written(suffix: str, write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="vae-qwen3vl-") as folder:
        path = Path(folder) / f"shape{suffix}"
        write(path)
        return path.read_bytes()


def _no_upload(name: str, param: str | None) -> ApiError:
    return ApiError(
        404, f"there is no upload {name[:64]!r}: it expired, was deleted or is another key's", "no_such_file", param
    )
