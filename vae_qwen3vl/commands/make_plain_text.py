"""The program `make-plain-text`: a language model's own answers, for training to keep them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, positive_int, print_json
from vae_qwen3vl.commands.options import check_records_name, quiet_transformers
from vae_qwen3vl.synthetic.plain_prompts import SPLITS

ABOUT = """\
Ask the untouched language model everyday questions and write down its own answers: the file that training takes as
plain_text. Trained on beside the objects, they hold adapters to what the model said before; so they need no outside
text and fit any language model, but only the one that said them.

Answers are sampled at temperature 1, for on such samples the untouched model is itself the best one. One that has not
ended after 96 tokens is left out rather than cut, which would teach to end early.

Answers come in by the batch, into FILE.part; FILE appears when all are there. The same command goes on with it."""
EXAMPLES = """\
  vae-qwen3vl make-plain-text -o plain_text.jsonl
  vae-qwen3vl make-plain-text -o held_out.jsonl --count 200 --split held_out        other prompts, to measure with"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="JSON Lines file, .jsonl")
    parser.add_argument("--count", type=positive_int, default=2000, metavar="N", help="texts (default %(default)s)")
    parser.add_argument(
        "--vl_model",
        metavar="NAME",
        help="the model that will be trained: a folder, a Hub id, or smollm2-135m (the default, which needs no hub)",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="of the prompts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and answers (default %(default)s)")
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, metavar="N", help="answered together (default %(default)s)"
    )
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Write the texts and report them."""
    from sdf_vqvae.utils.runtime import resolve_device
    from vae_qwen3vl.language.backbone import inference_dtype
    from vae_qwen3vl.language.default_model import resolve_vl_model
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.processor import Processor3D
    from vae_qwen3vl.synthetic.plain_answers import MAX_NEW_TOKENS, write_plain_text

    check_records_name(options.output)
    quiet_transformers(options.verbose)
    device = resolve_device(options.device)
    source = str(resolve_vl_model(options.vl_model))
    model = Qwen3VLWith3DBranch(source, torch_dtype=inference_dtype(device)).to(device).eval()
    report = write_plain_text(
        model,
        Processor3D.from_pretrained(source),
        options.output,
        options.count,
        split=options.split,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    if options.json:
        print_json(asdict(report), indent=None)
    else:
        print(
            f"{report.texts:,} texts in {options.output}; of {report.asked:,} answers {report.unfinished:,} had not "
            f"ended after {MAX_NEW_TOKENS} tokens and were left out"
        )
    return 0 if report.texts else USER_ERROR
