"""What does a trained model say about shapes, and is it more than a model that does not see them would say?

    python vae_qwen3vl/eval_3d_vl.py --config configs/3d_align_train.yaml --output_dir ./eval_out
    python vae_qwen3vl/eval_3d_vl.py --data_dir train_codes --max_eval_samples 0 --output_dir ./eval_out
    python vae_qwen3vl/eval_3d_vl.py --data_path one_batch.pt --prompt "Describe this 3D shape in one sentence:"
    python vae_qwen3vl/eval_3d_vl.py --save_mesh

Objects are those of --data_dir (a folder of cached codes or a dataset of fields; the split test, else val, else all,
but nothing that the weights learned from, which the run's objects.json says, unless there is nothing else; --split
train asks for just that), of one batch in --data_path, or, where neither is given, one random shape to try the path.
The model is the run that the config's output_run names (auto, or nothing: the latest one of its settings), rebuilt
from that run's folder alone; or that of --projector_ckpt, with the adapter beside it or in --lora_dir; or, without
any of these, the shipped one.

--output_dir gets generated.txt (a line an object), eval_results.jsonl, eval_summary.json and report.html; with
--save_mesh also recon_mesh_{i}.obj, decoded from the very codes that were described, with scores where the true
shape is at hand. Objects with captions are measured against them, beside blind controls: no 3D, another object's 3D,
shuffled coordinates, one answer for all. Only what is above those comes from the shape.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vae_qwen3vl.config import AlignmentConfig, add_alignment_options, flag_of, given_settings, read_alignment_config
from vae_qwen3vl.programs import add_run_options, add_version, positive_int, quiet_transformers, run_program

if TYPE_CHECKING:
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from vae_qwen3vl.eval_meshes import Reconstruction
    from vae_qwen3vl.eval_objects import EvalData
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.processor import Processor3D
    from vae_qwen3vl.understanding import Understanding

logger = logging.getLogger(__name__)

PROGRAM = "eval_3d_vl"
OUTPUT = "eval_3d_vl_out"
IN_RUN = "eval_out"
WORDS, RESULTS, SUMMARY = "generated.txt", "eval_results.jsonl", "eval_summary.json"
MEASURES = ("captions", "closed_sets", "retrieval")
_PICTURES = 24
_SETTINGS = (
    *("vl_model", "vae_config", "vae_ckpt", "data_dir", "output_run", "prompt"),
    *("max_3d_tokens", "use_3d_pos", "projector_layers", "truncate_mode", "seed", "val_samples"),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser: the settings of training that concern an evaluation, and its own."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    add_alignment_options(parser, only=_SETTINGS)
    model = parser.add_argument_group("the trained model")
    model.add_argument("--projector_ckpt", metavar="FILE", help="trained projector (default: the run's, or shipped)")
    model.add_argument("--lora_dir", metavar="DIR", help="LoRA trained with it; none: without (default: beside it)")
    data = parser.add_argument_group("objects")
    data.add_argument("--data_path", metavar="FILE", help="a .pt batch: sparse_sdf, sparse_index, batch_idx")
    data.add_argument("--split", help="of --data_dir (default: test, else val, else all; never what was trained on)")
    data.add_argument("--max_eval_samples", type=int, default=20, metavar="N", help="the first N; 0 for all (20)")
    data.add_argument(
        "--questions",
        metavar="JSONL",
        type=Path,
        help="of make_questions about these objects (default: conversations_{split}.jsonl in --data_dir)",
    )
    data.add_argument(
        "--shapes", metavar="PATH", type=Path, help="their true meshes, to score --save_mesh: a pack, folder or file"
    )
    own = parser.add_argument_group("the evaluation")
    own.add_argument("--output_dir", metavar="DIR", help=f"default: the run's {IN_RUN}/, else {OUTPUT}/")
    own.add_argument("--max_new_tokens", type=positive_int, default=128, metavar="N", help="of an answer (128)")
    own.add_argument("--batch_size", type=positive_int, default=16, metavar="N", help="objects at a time (16)")
    own.add_argument(
        "--measures", nargs="+", choices=MEASURES, default=MEASURES, help="default: all that the data allows"
    )
    own.add_argument("--save_mesh", action="store_true", help="rebuild meshes from the codes, and keep them")
    own.add_argument("--voxel_resolution", type=positive_int, metavar="R", help="of the meshes (default: the data's)")
    own.add_argument("--mc_threshold", type=float, metavar="T", help="iso value, in units of the field (default: 0)")
    add_run_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(PROGRAM, work, make_parser().parse_args(argv))


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


def parts_of(options: argparse.Namespace, config: AlignmentConfig) -> Parts:
    """Return the model's files: flags over the run's folder over the config over what is shipped.

    Raises:
        ValueError: the run does not exist or has not ended.
    """
    from vae_qwen3vl.learned_objects import run_of
    from vae_qwen3vl.run_files import ARGUMENTS, PROJECTOR_FINAL, run_to_evaluate
    from vae_qwen3vl.starting_weights import settled

    given = given_settings(options)
    projector, run, output = options.projector_ckpt, run_of(options.projector_ckpt), options.output_dir
    if projector is None and (config.output_run is not None or options.config is not None):
        # The settings of the file alone: flags of an evaluation say what is evaluated, not what was trained.
        of_file = config if options.config is None else AlignmentConfig.from_file(options.config)
        run = run_to_evaluate(settled(replace(of_file, output_run=config.output_run)))
        projector, output = str(run / PROJECTOR_FINAL), output or str(run / IN_RUN)
    known = run is not None and (run / ARGUMENTS).is_file()
    trained = AlignmentConfig.from_file(run / ARGUMENTS) if run is not None and known else config
    model = {key: given.get(key, getattr(trained, key)) for key in ("vl_model", "vae_config", "vae_ckpt")}
    return Parts(**model, projector=projector, lora=options.lora_dir, run=run, output=Path(output or OUTPUT))


def work(options: argparse.Namespace) -> int:
    """Evaluate."""
    from sdf_vqvae.runtime import resolve_device
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

    config = read_alignment_config(options)
    parts = parts_of(options, config)
    quiet_transformers(options.verbose)
    device = resolve_device(options.device)
    data, vae = open_data(options, config, parts, device)
    model = load_describer(vae, parts.vl_model, parts.projector, parts.lora, device=device, vae_hash=data.vae_hash)
    given = given_settings(options)
    override(model, given)
    prompt = given.get("prompt") or model.prompt or config.prompt or DEFAULT_PROMPT
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    said, summary = interview(options, config, data, model, processor, prompt, parts.run)
    parts.output.mkdir(parents=True, exist_ok=True)
    rebuilt = rebuild(options, config, parts, data, vae, device) if options.save_mesh else {}
    records = make_records(data, model, said, rebuilt)
    summary["reconstruction"] = reconstruction_means(rebuilt)
    write_results(parts.output, records, summary, rebuilt)
    print(json.dumps(summary, ensure_ascii=False) if options.json else spoken(records, summary, parts.output))
    return 0


def open_data(
    options: argparse.Namespace, config: AlignmentConfig, parts: Parts, device: torch.device
) -> tuple[EvalData, SparseSDFVQVAE | None]:
    """Return the objects, and the tokenizer if one was needed for them.

    Raises:
        ValueError: there is no such data, or it is of another tokenizer than the one that is named.
    """
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.align_data import cached_codes, check_data
    from vae_qwen3vl.eval_objects import from_batch, from_codes, from_fields, random_shape
    from vae_qwen3vl.learned_objects import learned_from

    if options.data_path is None and config.data_dir is not None:
        check_data(config)
        folder = cached_codes(config)
        chosen: dict[str, Any] = {
            "split": options.split,
            "most": max(0, options.max_eval_samples),
            "learned": learned_from(_trained_parts(parts), config.val_samples),
        }
        if folder is not None:
            return from_codes(folder, **chosen), None
        vae = load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
        return from_fields(config.data_dir, vae, **chosen), vae
    vae = load_vae_from_config(parts.vae_config, parts.vae_ckpt, device)
    if options.data_path is not None:
        return from_batch(options.data_path, vae), vae
    print("no --data_dir and no --data_path: one random shape, which no caption fits", file=sys.stderr)
    return random_shape(vae, seed=config.seed), vae


def _trained_parts(parts: Parts) -> list[str | None]:
    """Return the files that say what was learned from; where there are none, the shipped ones do."""
    from vae_qwen3vl.describer import NO_LORA

    lora = None if parts.lora == NO_LORA else parts.lora
    return [part for part in (parts.projector, lora) if part is not None] or [None]


def override(model: Qwen3VLWith3DBranch, given: Mapping[str, Any]) -> None:
    """Take over what the command line says of the 3D branch.

    Raises:
        ValueError: it contradicts the projector's file.
    """
    fixed = {"use_3d_pos": model.projector.use_3d_pos, "projector_layers": model.projector.num_layers}
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise ValueError(
                f"{flag_of(key, given[key])}: the projector was trained with {flag_of(key, value)}; leave it out"
            )
    model.max_3d_tokens = given.get("max_3d_tokens", model.max_3d_tokens)
    model.truncate_mode = given.get("truncate_mode", model.truncate_mode)


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
    from vae_qwen3vl.blind_controls import OWN, bag_of_words
    from vae_qwen3vl.captions import RECORDS
    from vae_qwen3vl.closed_sets import answers_of, closed_questions, closed_sets
    from vae_qwen3vl.sentence_similarity import SentenceModelUnavailableError, embed, load_sentence_encoder
    from vae_qwen3vl.understanding import Interviewer
    from vae_qwen3vl.understanding_summary import (
        FORMULAS,
        repeated_answers,
        summarize_captions,
        summarize_closed,
        summarize_retrieval,
    )

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
    from sdf_vqvae.evaluation_shapes import list_shapes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.progress import follow
    from vae_qwen3vl.eval_meshes import reconstruct, true_shapes

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
    from sdf_vqvae.evaluation import ROWS

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
    from vae_qwen3vl.blind_controls import OWN

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
    from sdf_vqvae.runtime import atomic_path
    from vae_qwen3vl.understanding_report import REPORT, write_report

    texts = {
        WORDS: "".join(" ".join(str(record["generated"]).split()) + "\n" for record in records),
        RESULTS: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        SUMMARY: json.dumps(summary, ensure_ascii=False, indent=1) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_report(output / REPORT, summary, records, rebuilt)


def spoken(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], output: Path) -> str:
    """Return what the terminal shows: the first descriptions, the tables, and where the rest is."""
    from sdf_vqvae.report_page import as_text
    from vae_qwen3vl.understanding_tables import titled_tables

    lines = []
    for record in records[:20]:
        lines.append(f"{record['idx']}: {' '.join(str(record['generated']).split())}")
        if "gt_caption" in record:
            lines.append(f"   authors: {record['gt_caption']}")
    for title, table in titled_tables(summary):
        lines += ["", title, as_text(table)]
    if summary["reconstruction"]:
        lines += ["", *_reconstruction_lines(summary["reconstruction"])]
    if "repeated_answers" in summary:
        lines += ["", f"warning: {summary['repeated_answers']['warning']}"]
    return "\n".join([*lines, "", str(output)])


def _reconstruction_lines(found: Mapping[str, Any]) -> list[str]:
    """Return how many meshes were made, and a table of the scores where there are any."""
    from sdf_vqvae.evaluation import ROWS
    from sdf_vqvae.report_page import as_text

    lines = [f"meshes: {found['objects']} objects, {found['without_mesh']} without one, {found['scored']} scored"]
    rows = [row for row in ROWS if row in found]
    if rows:
        names = list(found[rows[0]])
        table = [["", *names], *([row, *(f"{found[row][name]:.4g}" for name in names)] for row in rows)]
        lines.append(as_text(table))
    return lines


if __name__ == "__main__":
    sys.exit(main())
