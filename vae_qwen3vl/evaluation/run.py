"""An evaluation of the language side: objects are asked about, rebuilt and measured, and a folder has the results.

Knows nothing of command lines.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vae_qwen3vl.config import AlignmentConfig

if TYPE_CHECKING:
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from vae_qwen3vl.evaluation.interview import Understanding
    from vae_qwen3vl.evaluation.meshes import Reconstruction
    from vae_qwen3vl.evaluation.objects import EvalData
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.processor import Processor3D

logger = logging.getLogger(__name__)

WORDS, RESULTS, SUMMARY = "generated.txt", "eval_results.jsonl", "eval_summary.json"


_PICTURES = 24


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which files a model is made of, and where results go."""

    vl_model: str | None
    vae_config: str | None
    vae_ckpt: str | None
    projector: str | None
    lora: str | None
    run: Path | None
    """The run that they are of, where that is known."""
    output: Path


def interview(
    options: argparse.Namespace,
    config: AlignmentConfig,
    data: EvalData,
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    prompt: str,
    run: Path | None = None,
) -> tuple[Understanding, dict[str, Any]]:
    """Ask the model about all objects; return what it said and its measures."""
    from vae_qwen3vl.data.texts import RECORDS
    from vae_qwen3vl.evaluation.closed_sets import answers_of, closed_questions, closed_sets
    from vae_qwen3vl.evaluation.controls import OWN, bag_of_words
    from vae_qwen3vl.evaluation.interview import Interviewer
    from vae_qwen3vl.evaluation.summary import (
        FORMULAS,
        repeated_answers,
        summarize_captions,
        summarize_closed,
        summarize_retrieval,
    )
    from vae_qwen3vl.language.sentence_encoder import SentenceModelUnavailableError, embed, load_sentence_encoder

    objects, measures = data.objects, set(options.measures)
    bare = sum(not one.captions for one in objects)
    captioned = not bare
    if 0 < bare < len(objects):
        logger.warning("%d of %d objects have no caption: captions and retrieval aren't measured", bare, len(objects))
    measured, encoder = captioned and "captions" in measures, None
    if measured:
        try:
            encoder = load_sentence_encoder()
        except SentenceModelUnavailableError as error:
            logger.warning("Sentence-BERT is left out: %s", error)
    asking = Interviewer(
        model=model,
        processor=processor,
        data=data,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        seed=config.seed,
        embed=bag_of_words if encoder is None else lambda texts: embed(encoder, texts).numpy(),
    )
    said = asking.descriptions(prompt, controls=measured)
    settings = {
        "data": options.data_path or config.data_dir or "a random shape",
        "split": data.split,
        "run": None if run is None else str(run),
        "learned_from": data.learned.source,
        "vl_model": model.vl_label,
        "dtype": str(model.vl_model.dtype).removeprefix("torch."),
        "projector": describe_projector(model),
        "tokenizer": data.vae_hash,
        "prompt": prompt,
        "max_new_tokens": options.max_new_tokens,
        "seed": config.seed,
    }
    summary: dict[str, Any] = {"settings": settings, "objects": len(objects), "trained_on": data.seen}
    if measured:
        settings["sentence_model"] = None if encoder is None else encoder.name
        summary["captions"] = summarize_captions(said, [one.captions for one in objects], encoder)
    beside = None if data.folder is None else data.folder.folder
    asked = options.questions or (None if beside is None else beside / f"conversations_{data.split}.jsonl")
    if "closed_sets" in measures and asked is not None and (options.questions or asked.is_file()):
        of_training = beside is not None and (beside / RECORDS).is_file()
        known = closed_questions(beside / RECORDS) if beside is not None and of_training else []
        own = {one.name for one in objects}
        known = [record for record in known if record["sample_id"] not in own]  # they must not answer for themselves
        lent = answers_of(known) if of_training and said.neighbors is not None else None
        summary["closed"] = {}
        for each in closed_sets(closed_questions(asked), [one.name for one in objects], known, seed=config.seed):
            said.closed.append(asking.answer(each))
            summary["closed"][each.kind] = summarize_closed(said.closed[-1], _lent(lent, said, data, each.kind))
    if captioned and "retrieval" in measures and len(objects) > 1:
        asking.retrieve(said)
        summary["retrieval"] = summarize_retrieval(said)
    if len(summary) > 3:
        summary["formulas"] = FORMULAS
    repeated = repeated_answers(said.texts[OWN], [one.captions for one in objects])
    if repeated is not None:
        summary["repeated_answers"] = repeated
    return said, summary


def _lent(
    answers: Mapping[str, Mapping[str, str]] | None, said: Understanding, data: EvalData, kind: str
) -> dict[str, str] | None:
    """Return object -> the answer of its nearest training object."""
    if answers is None or said.neighbors is None:
        return None
    own = answers.get(kind, {})
    pairs = zip(data.objects, said.neighbors, strict=True)
    return {one.name: own[near.name] for one, near in pairs if near.name in own}


def describe_projector(model: Qwen3VLWith3DBranch) -> dict[str, Any]:
    """Return what of the 3D branch decides an answer."""
    about = model.description()
    keys = ("num_layers", "merge", "shape_tokens", "use_3d_pos", "positions", "max_3d_tokens", "truncate_mode")
    return {key: getattr(about, key) for key in keys}


def rebuild(
    options: argparse.Namespace,
    config: AlignmentConfig,
    parts: Parts,
    data: EvalData,
    vae: SparseSDFVQVAE | None,
    device: torch.device,
) -> dict[str, Reconstruction]:
    """Decode every object's codes to a mesh in the output folder.

    Raises:
        ValueError: the tokenizer that is named is not the one of the codes.
    """
    from sdf_vqvae.evaluation.shapes import list_shapes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.progress import follow
    from vae_qwen3vl.evaluation.meshes import reconstruct, true_shapes

    vae = vae or load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
    if vae.fingerprint() != data.vae_hash:
        raise ValueError(
            f"the codes of {config.data_dir} are of the VAE {data.vae_hash[:12]}, this one is "
            f"{vae.fingerprint()[:12]}: give its --vae_config and --vae_ckpt"
        )
    listed = [] if options.shapes is None else list_shapes(options.shapes, resolution=vae.config.data_resolution)
    truths = true_shapes(data.objects, listed)
    found = {}
    for number, one in enumerate(follow(data.objects, "meshes")):
        found[one.name] = reconstruct(
            vae,
            one,
            truth=truths.get(one.name),
            path=parts.output / f"recon_mesh_{number}.obj",
            voxel_resolution=options.voxel_resolution,
            mc_threshold=options.mc_threshold,
            draw=number < _PICTURES,
        )
    return found


def reconstruction_means(rebuilt: Mapping[str, Reconstruction]) -> dict[str, Any]:
    """Return how many meshes were made, and the mean scores of the three rows where there are any."""
    from sdf_vqvae.evaluation.rebuild import ROWS

    if not rebuilt:
        return {}
    scored = [one.scores for one in rebuilt.values() if one.scores is not None]
    made: dict[str, Any] = {
        "objects": len(rebuilt),
        "without_mesh": sum(one.error is not None for one in rebuilt.values()),
        "scored": len(scored),
    }
    for row in ROWS if scored else ():
        names = [name for name in scored[0][row] if name.startswith(("chamfer", "fscore"))]
        means = {name: sum(one[row][name] for one in scored) / len(scored) for name in names}
        made[row] = {name: float(f"{value:.6g}") for name, value in means.items()}
    return made


def make_records(
    data: EvalData,
    model: Qwen3VLWith3DBranch,
    said: Understanding,
    rebuilt: Mapping[str, Reconstruction],
) -> list[dict[str, Any]]:
    """Return one plain record an object."""
    from vae_qwen3vl.evaluation.controls import OWN

    answers: dict[str, dict[str, Any]] = {}
    for each in said.closed:
        best = each.scores[OWN].argmax(axis=1)
        for place, name in enumerate(each.asked.names):
            answer, expected = each.asked.candidates[best[place]], each.asked.answers[place]
            answers.setdefault(name, {})[each.asked.kind] = {
                "question": each.asked.questions[place],
                "answer": answer,
                "expected": expected,
                "right": answer == expected,
            }
    records = []
    for number, one in enumerate(data.objects):
        record: dict[str, Any] = {
            "idx": number,
            "sample_id": one.name,
            "prompt": said.prompt,
            "generated": said.texts[OWN][number],
            "codes": len(one.codes),
            "tokens_3d": int(model.count_3d_tokens(*data.batch([one]))[0]) - 2,
        }
        if one.captions:
            record |= {"gt_caption": one.captions[0], "captions": list(one.captions)}
        controls = {row: texts[number] for row, texts in said.texts.items() if row != OWN}
        record |= {"controls": controls} if controls else {}
        record |= {"answers": answers[one.name]} if one.name in answers else {}
        made = rebuilt.get(one.name)
        if made is not None:
            record["mesh"] = made.file
            record |= {"mesh_error": made.error} if made.error else {}
            record |= {"reconstruction": made.scores} if made.scores is not None else {}
        records.append(record)
    return records


def write_results(
    output: Path,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    rebuilt: Mapping[str, Reconstruction],
) -> None:
    """Write the words, the records, the summary and the page."""
    from sdf_vqvae.utils.files import write_json, write_json_lines, write_text
    from vae_qwen3vl.evaluation.report import REPORT, write_report

    write_text(output / WORDS, "".join(" ".join(str(record["generated"]).split()) + "\n" for record in records))
    write_json_lines(output / RESULTS, records, ensure_ascii=False)
    write_json(output / SUMMARY, summary, indent=1, ensure_ascii=False)
    write_report(output / REPORT, summary, records, rebuilt)
