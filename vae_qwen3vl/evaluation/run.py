"""An evaluation of the language side: objects are asked about, rebuilt and measured, and a folder has the results.

    data = from_codes(CodeFolder("train_codes"), split="test", most=0)
    model = load_describer(None, vae_hash=data.vae_hash)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    found = evaluate(model, processor, data, EvalSettings(prompt=DEFAULT_PROMPT), "eval_out")

Knows nothing of command lines.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.evaluation.objects import list_shapes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.data.look_up import Neighbors
from vae_qwen3vl.evaluation.closed_sets import ClosedSet, questions_of, read_closed_sets
from vae_qwen3vl.evaluation.controls import bag_of_words
from vae_qwen3vl.evaluation.interview import Interviewer
from vae_qwen3vl.evaluation.objects import EvalData, EvalObject
from vae_qwen3vl.evaluation.reconstruction import mean_scores, reconstruct_all
from vae_qwen3vl.evaluation.results import Evaluation, make_records, write_results
from vae_qwen3vl.evaluation.settings import CAPTIONS, CLOSED_SETS, RETRIEVAL, USERS_QUESTIONS, EvalSettings
from vae_qwen3vl.evaluation.summary import summarize
from vae_qwen3vl.evaluation.users_questions import UsersSet, read_users_sets
from vae_qwen3vl.language.sentence_encoder import (
    SentenceEncoder,
    SentenceModelUnavailableError,
    embed,
    load_sentence_encoder,
)
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

logger = logging.getLogger(__name__)


def evaluate(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    data: EvalData,
    settings: EvalSettings,
    folder: str | os.PathLike[str],
    *,
    vae: SparseSDFVQVAE | None = None,
) -> Evaluation:
    """Ask a model about objects, measure what it says, and write the folder.

    Args:
        model: of `load_describer`, for codes of the data's tokenizer.
        processor: of its tokenizer.
        data: the objects.
        settings: what is asked and measured.
        folder: for the results; made if needed.
        vae: the tokenizer of the codes, to rebuild meshes from them; None rebuilds none.

    Raises:
        ValueError: the tokenizer is not the one of the codes; or a file of questions or shapes can't be used.
    """
    shapes = [] if vae is None else _true_shapes(vae, data, settings)
    measures = _measures(settings.measures, data.objects)
    closed = _closed_sets(data, settings) if CLOSED_SETS in measures else None
    users = _users_sets(data, settings) if USERS_QUESTIONS in measures else None
    encoder = _sentence_encoder(settings.sentence_model) if CAPTIONS in measures else None
    chooser = Chooser.load(settings.choice, data.codebook, data.vae_hash) if settings.choice else None
    about = _about(model, data, settings)
    if CAPTIONS in measures:
        about["sentence_model"] = None if encoder is None else encoder.name
    if chooser is not None:
        about["candidates"] = settings.choice.told() | {"chosen_with": chooser.encoder.name}
        if encoder is not None and CAPTIONS in measures and _is_same(encoder, chooser.encoder):
            logger.warning(
                "descriptions are chosen and measured by the same sentence model: Sentence-BERT flatters them "
                "(--sentence_model measures with another)"
            )
    if settings.look_up is not None:
        about["look_up"] = str(settings.look_up)
    interviewer = Interviewer(
        model=model,
        processor=processor,
        data=data,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        chooser=chooser,
        near=None if settings.look_up is None else _neighbors(settings.look_up, data),
        embed=bag_of_words if encoder is None else lambda texts: embed(encoder, texts).numpy(),
    )
    said = interviewer.ask(
        settings.prompt,
        controls=CAPTIONS in measures,
        closed=closed,
        users=users,
        retrieval=RETRIEVAL in measures,
    )
    reconstructions = {}
    if vae is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        reconstructions = reconstruct_all(
            vae,
            data.objects,
            Path(folder),
            shapes=shapes,
            voxel_resolution=settings.voxel_resolution,
            mc_threshold=settings.mc_threshold,
        )
    summary = {
        "settings": about,
        "objects": len(data.objects),
        "trained_on": data.seen,
        **summarize(said, [one.captions for one in data.objects], encoder=encoder),
        "reconstruction": mean_scores(reconstructions),
    }
    records = make_records(data.objects, said, reconstructions)
    evaluation = Evaluation(records=records, summary=summary, reconstructions=reconstructions)
    write_results(folder, evaluation)
    return evaluation


def _true_shapes(vae: SparseSDFVQVAE, data: EvalData, settings: EvalSettings) -> Sequence[StoredObject]:
    """Return the shapes that rebuilt meshes are scored against; the tokenizer is that of the codes."""
    if vae.fingerprint() != data.vae_hash:
        raise ValueError(
            f"the codes of {settings.data} are of the VAE {data.vae_hash[:12]}, this one is "
            f"{vae.fingerprint()[:12]}: give its --vae_config and --vae_ckpt"
        )
    return [] if settings.shapes is None else list_shapes(settings.shapes, resolution=vae.config.data_resolution)


def _measures(asked: Sequence[str], objects: Sequence[EvalObject]) -> set[str]:
    """Return what can be measured: captions and retrieval need a caption of every object, retrieval two objects."""
    measures = set(asked)
    bare = sum(not one.captions for one in objects)
    if 0 < bare < len(objects):
        logger.warning("%d of %d objects have no caption: captions and retrieval aren't measured", bare, len(objects))
    if bare:
        measures -= {CAPTIONS, RETRIEVAL}
    if len(objects) < 2:
        measures -= {RETRIEVAL, USERS_QUESTIONS}
    return measures


def _neighbors(path: Path, data: EvalData) -> dict[str, Neighbors]:
    """Return what the nearest objects of an index are called, of every object, itself and its copies left out."""
    from vae_qwen3vl.search import ShapeIndex
    from vae_qwen3vl.search.neighbors import neighbors_but, neighbors_of_folder

    index = ShapeIndex.open(path)
    if data.folder is not None:
        return neighbors_of_folder(data.folder, index)
    vectors = index.shapes([one.codes for one in data.objects], [one.coords for one in data.objects])
    pairs = zip(data.objects, vectors, strict=True)
    return {one.name: neighbors_but(index, vector, one.name, {}) for one, vector in pairs}


def _is_same(one: SentenceEncoder, other: SentenceEncoder) -> bool:
    """Return whether two sentence models are the same network, by whichever name they were loaded."""
    return all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=False))


def _sentence_encoder(name: str | None) -> SentenceEncoder | None:
    try:
        return load_sentence_encoder(name)
    except SentenceModelUnavailableError as error:
        logger.warning("Sentence-BERT is left out: %s", error)
        return None


def _closed_sets(data: EvalData, settings: EvalSettings) -> list[ClosedSet] | None:
    return read_closed_sets(
        [one.name for one in data.objects],
        questions=settings.questions,
        folder=None if data.folder is None else data.folder.folder,
        split=data.split,
        seed=settings.seed,
    )


def _users_sets(data: EvalData, settings: EvalSettings) -> list[UsersSet] | None:
    file = questions_of(settings.questions, None if data.folder is None else data.folder.folder, data.split)
    sets = [] if file is None else read_users_sets([one.name for one in data.objects], file, seed=settings.seed)
    return sets or None


def _about(model: Qwen3VLWith3DBranch, data: EvalData, settings: EvalSettings) -> dict[str, Any]:
    """Return what decides the results, for the record."""
    branch = model.description()
    keys = (
        "num_layers",
        "encoder_layers",
        "merge",
        "shape_tokens",
        "use_3d_pos",
        "positions",
        "max_3d_tokens",
        "truncate_mode",
    )
    return {
        "data": settings.data,
        "split": data.split,
        "run": None if settings.run is None else str(settings.run),
        "learned_from": data.learned.source,
        "vl_model": model.vl_label,
        "dtype": str(model.vl_model.dtype).removeprefix("torch."),
        "projector": {key: getattr(branch, key) for key in keys},
        "tokenizer": data.vae_hash,
        "prompt": settings.prompt,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
    }
