"""The program `make-questions`: a pack's records to a file of questions that training reads."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, print_json
from sdf_vqvae.utils.settings import add_options, given
from sdf_vqvae.utils.strict_files import named_number
from vae_qwen3vl.commands.options import check_records_name
from vae_qwen3vl.synthetic.questions import KINDS, YES_NO
from vae_qwen3vl.synthetic.settings import QuestionSettings
from vae_qwen3vl.synthetic.wordings import LANGUAGES

if TYPE_CHECKING:
    from vae_qwen3vl.synthetic.question_file import QuestionReport

ABOUT = """\
Make questions and answers about the objects of a pack, by rule: from each object's record (name, category,
tags, captions, collection, organ and side) and from measures of its mesh. Every answer is true by one of the
two; what neither decides is not asked. Yes/no questions come in pairs, one right and one wrong. What a shape
can't hold (colour, material, price, ...) is asked too, and answered by saying so.

The file is what `records=` of the datasets reads, or `conversations.jsonl` beside a dataset's table. Objects
that can't be read are left out, and listed with their reasons in FILE with the ending .failed.jsonl."""
EXAMPLES = f"""\
  vae-qwen3vl make-questions shapes -o train_codes/conversations.jsonl --limit ldraw=2000
  vae-qwen3vl make-questions shapes -o questions.jsonl --split val --languages en --kinds name yes_no
  vae-qwen3vl make-questions shapes -o organs.jsonl --anatomy_terms anatomy_terms.json --limit ldraw=0

kinds: {", ".join(KINDS[: len(KINDS) - len(YES_NO)])};
       yes_no, which is {", ".join(YES_NO)}"""
_ALL_YES_NO = "yes_no"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, QuestionSettings, ("pack", "output", "split", "wordings", "seed", "languages"))
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=(*KINDS, _ALL_YES_NO),
        default=KINDS,
        metavar="KIND",
        help="default: all, see below",
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="SOURCE=N",
        type=_limit,
        help="at most N objects of a source, drawn by the seed; may be repeated",
    )
    add_options(parser, QuestionSettings, ("max_samples", "anatomy_terms"))
    add_run_options(parser, device=False)


def work(options: argparse.Namespace) -> int:
    """Make the questions and report them."""
    from vae_qwen3vl.synthetic.question_file import write_questions

    kinds = [kind for name in options.kinds for kind in (YES_NO if name == _ALL_YES_NO else (name,))]
    settings = QuestionSettings(
        **given(options, QuestionSettings), kinds=tuple(dict.fromkeys(kinds)), limits=dict(options.limit)
    )
    check_records_name(settings.output)
    report = write_questions(settings)
    if options.json:
        print_json(asdict(report), indent=None)
    else:
        _print(report, settings.output)
    return 0 if report.questions else USER_ERROR


def _print(report: QuestionReport, output: Path) -> None:
    print(f"{'kind':<14}" + "".join(f"{language:>9}" for language in LANGUAGES))
    for kind, counts in report.kinds.items():
        print(f"{kind:<14}" + "".join(f"{counts[language]:>9,}" for language in LANGUAGES))
    share = f", {report.yes / report.yes_no:.1%} of {report.yes_no:,} yes/no answers are yes" if report.yes_no else ""
    written = f"{report.questions:,} questions about {report.objects:,} objects in {output}"
    print(f"{written}{share}; {len(report.failed)} failed")
    for name, reason in list(report.failed.items())[:10]:
        print(f"  {name}: {reason}")


def _limit(text: str) -> tuple[str, int]:
    limit = named_number(text)
    if limit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=N, such as ldraw=2000")
    return limit
