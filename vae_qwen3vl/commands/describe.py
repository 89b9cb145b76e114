"""The program `describe`: answers to questions about one shape, or about all that lie in folders."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, naming, print_failures, print_json
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.commands.options import add_dtype, add_language_options, check_records_name, quiet_transformers
from vae_qwen3vl.descriptions.settings import DescribeSettings

if TYPE_CHECKING:
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from vae_qwen3vl.describer import Description
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

ABOUT = """\
Answer questions about a mesh, its field or its codes; or about many of them: files, folders, packs, datasets.

One object: the answer is what is printed. Several: a line each, `NAME: answer`, or with --output a file of records,
written as they come. Run the same command again and it goes on where it was stopped; objects that could not be read
are in the file with the reason, are tried again, and never stop the others."""
EXAMPLES = """\
  vae-qwen3vl describe chair.glb
  vae-qwen3vl describe chair.safetensors --prompt "Which category does it belong to?"
  vae-qwen3vl describe meshes -o answers.jsonl                 a folder, a pack, a dataset of fields or of codes
  vae-qwen3vl describe *.glb --prompts questions.txt --json    several files, several questions: a record a line
  vae-qwen3vl describe chair.glb --candidates 16               the best of 17 answers, which take longer
  vae-qwen3vl describe chair.glb --vl_model Qwen/Qwen3-VL-2B-Instruct --projector_ckpt projector_final.pt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    shared = ("threshold_factor", "up", "vae_config", "vae_ckpt", "vl_model", "projector_ckpt", "lora_dir", "dtype")
    add_options(parser, DescribeSettings, ("sources", "output"), by_hand=shared)
    add_threshold_factor(parser)
    add_up_option(parser)
    questions = parser.add_mutually_exclusive_group()
    questions.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    questions.add_argument("--prompts", metavar="FILE", type=Path, help="several questions, a line each")
    add_options(parser, DescribeSettings, ("max_new_tokens", "abstain", "look_up"))
    add_vae_options(parser)
    add_language_options(parser)
    add_dtype(parser)
    add_options(parser.add_argument_group("choosing among several answers"), CandidateSettings)
    many = parser.add_argument_group("many objects")
    add_options(many, DescribeSettings, ("batch_size", "split", "max_samples"))
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Answer."""
    choice = CandidateSettings(**given(options, CandidateSettings))
    told = given(options, DescribeSettings) | {"prompts": _prompts(options), "choice": choice}
    settings = DescribeSettings(**told)
    quiet_transformers(options.verbose)
    one = len(settings.sources) == 1 and not settings.sources[0].is_dir()
    if one and settings.output is None and len(settings.prompts) < 2:
        return _describe_one(settings, options)
    return _describe_many(settings, options)


def _prompts(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the questions. Raises a ValueError if their file can't be read or has none."""
    if options.prompts is None:
        return (options.prompt,) if options.prompt else ()
    try:
        lines = options.prompts.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"--prompts {options.prompts} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {options.prompts} is no text file (UTF-8)") from error
    questions = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not questions:
        raise ValueError(f"--prompts {options.prompts} has no question: write one a line")
    return questions


def _describe_one(settings: DescribeSettings, options: argparse.Namespace) -> int:
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes, up_of_codes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import Stopwatch, resolve_device
    from vae_qwen3vl.describer import load_describer

    (path,) = settings.sources
    is_codes = path.suffix == CODES_SUFFIX
    source: Any
    with waiting(f"reading {path}"), naming(path):
        if is_codes:  # the libraries of meshes have nothing to do then, and are not imported
            source = ShapeCodes.load(path)
            up = up_of_codes(source, settings.up)
        else:
            from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for

            source = load_shape(path)
            up = up_for(path, source, settings.up)
    target = resolve_device(options.device)
    vae = load_vae_from_config(settings.vae_config, settings.vae_ckpt, target)
    watch = Stopwatch(target)
    codes = source
    if not is_codes:
        with watch("encode"), naming(path):
            codes = encode_field(vae, field_for(vae, source, threshold_factor=settings.threshold_factor, up=up))
    with watch("load language model"):
        parts = settings.vl_model, settings.projector_ckpt, settings.lora_dir
        model = load_describer(vae, *parts, device=target, dtype=settings.dtype, plain_chats=False)
    with watch("describe"):
        words, among = _answer(model, codes, settings)
    if options.json:
        stages = [dataclasses.asdict(cost) for cost in watch.costs]
        about = {"shape": str(path), "up": up.axis, "up_from": up.known_from, "codes": codes.count}
        print_json({**about, **vars(words), **among, "stages": stages})
    else:
        print(up.in_words(), file=sys.stderr)  # the answer alone is the program's output
        print(words.text)
    return 0


def _answer(
    model: Qwen3VLWith3DBranch, codes: ShapeCodes, settings: DescribeSettings
) -> tuple[Description, dict[str, Any]]:
    """Return the answer, and where it was chosen among several, what else there is to say of it."""
    from vae_qwen3vl.describer import describe
    from vae_qwen3vl.processor import DEFAULT_PROMPT

    length, asked = settings.max_new_tokens, (*settings.prompts, model.prompt or DEFAULT_PROMPT)[0]
    if settings.look_up is not None:
        asked = _with_neighbors(asked, settings.look_up, codes)
    if not settings.choice:
        return describe(model, codes, asked, max_new_tokens=length, abstain=settings.abstain), {}
    from vae_qwen3vl.candidates.asking import describe_by_choice
    from vae_qwen3vl.candidates.chooser import Chooser
    from vae_qwen3vl.vae_latent_extractor import codebook

    chooser = Chooser.load(settings.choice, codebook(model.vae_model).detach(), codes.vae_hash, model.device)
    words, choice = describe_by_choice(model, codes, chooser, asked, max_new_tokens=length)
    return words, {"candidates": choice.ranked()}


def _with_neighbors(question: str, index: Path, codes: ShapeCodes) -> str:
    """Return a question behind what the nearest objects of an index are called."""
    from vae_qwen3vl.data.look_up import with_neighbors
    from vae_qwen3vl.search import ShapeIndex
    from vae_qwen3vl.search.neighbors import neighbors_of_shape

    return with_neighbors(question, neighbors_of_shape(ShapeIndex.open(index), codes))


def _describe_many(settings: DescribeSettings, options: argparse.Namespace) -> int:
    from sdf_vqvae.utils.runtime import resolve_device
    from vae_qwen3vl.descriptions.run import Record, describe_all, failure

    def show(record: Record) -> None:
        if options.json:
            print_json(record, indent=None)
        elif "text" in record:
            question = f" {record['prompt']}" if len(settings.prompts) > 1 else ""
            print(f"{record['shape']}:{question} {record['text']}")
        sys.stdout.flush()  # a pipe's reader waits for it

    if settings.output is None:
        report = describe_all(settings, resolve_device(options.device), show)
        return 0 if report.answers else USER_ERROR
    check_records_name(settings.output)
    report = describe_all(settings, resolve_device(options.device))
    if options.json:
        print_json(dataclasses.asdict(report), indent=None)
    else:
        print(
            f"{report.described:,} objects described, {report.kept:,} kept, {len(report.failed):,} failed; "
            f"{report.answers:,} answers added to {settings.output}"
        )
        failures = [failure(name, reason) for name, reason in report.failed.items()]
        print_failures(failures, f"lines with an error in {settings.output}")
    return 0 if report.described or report.kept else USER_ERROR
