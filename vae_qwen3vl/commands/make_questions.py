"""The program `make-questions`: a pack's records to a file of questions that training reads."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sdf_vqvae.utils.programs import USER_ERROR, positive_int, print_json
from sdf_vqvae.utils.strict_files import named_number
from vae_qwen3vl.commands.options import check_records_name
from vae_qwen3vl.synthetic.claims import KINDS, YES_NO
from vae_qwen3vl.synthetic.questions import ANATOMY, LANGUAGES

if TYPE_CHECKING:
    from vae_qwen3vl.synthetic.question_file import QuestionReport

ABOUT = """\
Make questions and answers about the objects of a pack, by rule: from each object's record (name, category,
tags, captions, collection, organ and side) and from measures of its mesh. Every answer is true by one of the
two; what neither decides is not asked. Yes/no questions come in pairs, one right and one wrong.

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
    parser.add_argument("pack", metavar="PACK", type=Path, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="JSON Lines file, .jsonl")
    parser.add_argument("--split", default="train", help="only objects of this split (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same file (default 0)")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="default: both")
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
    parser.add_argument("--max_samples", type=positive_int, metavar="N", help="at most N objects of all")
    parser.add_argument(
        "--anatomy_terms", type=Path, metavar="JSON", help=f"term -> sentences; without it no questions `{ANATOMY}`"
    )
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def work(options: argparse.Namespace) -> int:
    """Make the questions and report them."""
    from vae_qwen3vl.synthetic.question_file import QuestionSettings, write_questions

    check_records_name(options.output)
    kinds = [kind for name in options.kinds for kind in (YES_NO if name == _ALL_YES_NO else (name,))]
    found = write_questions(
        QuestionSettings(
            pack=options.pack,
            output=options.output,
            split=options.split,
            seed=options.seed,
            languages=tuple(options.languages),
            kinds=tuple(dict.fromkeys(kinds)),
            limits=dict(options.limit),
            max_samples=options.max_samples,
            anatomy_terms=options.anatomy_terms,
        )
    )
    if options.json:
        print_json(asdict(found), indent=None)
    else:
        _print(found, options.output)
    return 0 if found.questions else USER_ERROR


def _print(found: QuestionReport, output: Path) -> None:
    print(f"{'kind':<14}" + "".join(f"{language:>9}" for language in LANGUAGES))
    for kind, counts in found.kinds.items():
        print(f"{kind:<14}" + "".join(f"{counts[language]:>9,}" for language in LANGUAGES))
    share = f", {found.yes / found.yes_no:.1%} of {found.yes_no:,} yes/no answers are yes" if found.yes_no else ""
    made = f"{found.questions:,} questions about {found.objects:,} objects in {output}"
    print(f"{made}{share}; {len(found.failed)} failed")
    for name, reason in list(found.failed.items())[:10]:
        print(f"  {name}: {reason}")


def _limit(text: str) -> tuple[str, int]:
    found = named_number(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=N, such as ldraw=2000")
    return found
