"""The program `python -m vae_qwen3vl.make_questions`: a pack's records to a file of questions that training reads.

Knows packs and files; how questions are made is in `question_making`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdf_vqvae.archives import one_line, parse_json, regular_file
from sdf_vqvae.data import MeshPack
from sdf_vqvae.progress import follow
from sdf_vqvae.runtime import atomic_path
from vae_qwen3vl.captions import pick
from vae_qwen3vl.mesh_facts import measure_mesh
from vae_qwen3vl.programs import USER_ERROR, add_version, check_records_name, positive_int, run_program
from vae_qwen3vl.question_making import KINDS, YES_NO, balance, make_questions
from vae_qwen3vl.questions import ANATOMY, LANGUAGES, KnownObject, Question
from vae_qwen3vl.strict_files import named_number

PROGRAM = "python -m vae_qwen3vl.make_questions"
ABOUT = """\
Make questions and answers about the objects of a pack, by rule: from each object's record (name, category,
tags, captions, collection, organ and side) and from measures of its mesh. Every answer is true by one of the
two; what neither decides is not asked. Yes/no questions come in pairs, one right and one wrong.

The file is what `records=` of the datasets reads, or `conversations.jsonl` beside a dataset's table. Objects
that can't be read are left out, and listed with their reasons in FILE with the ending .failed.jsonl."""
EXAMPLES = f"""\
examples:
  {PROGRAM} shapes -o train_codes/conversations.jsonl --limit ldraw=2000
  {PROGRAM} shapes -o questions.jsonl --split val --languages en --kinds name yes_no
  {PROGRAM} shapes -o organs.jsonl --anatomy_terms anatomy_terms.json --limit ldraw=0

kinds: {", ".join(KINDS[: len(KINDS) - len(YES_NO)])};
       yes_no, which is {", ".join(YES_NO)}"""
FAILED = ".failed.jsonl"
_ALL_YES_NO = "yes_no"


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """What to make questions of, and which."""

    pack: Path
    output: Path
    split: str = "train"
    seed: int = 0
    languages: tuple[str, ...] = LANGUAGES
    kinds: tuple[str, ...] = KINDS
    limits: Mapping[str, int] = field(default_factory=dict)
    """Source -> at most so many of its objects, drawn by the seed."""
    max_samples: int | None = None
    anatomy_terms: Path | None = None
    """JSON: anatomical term -> sentences. Without it the kind `anatomy` is not asked."""


@dataclass(frozen=True, kw_only=True)
class QuestionReport:
    """What was made."""

    objects: int
    questions: int
    sources: dict[str, int]
    """Source -> objects."""
    kinds: dict[str, dict[str, int]]
    """Kind -> language -> questions."""
    yes_no: int
    yes: int
    failed: dict[str, str]
    """Object -> why nothing is asked about it."""


def write_questions(settings: QuestionSettings) -> QuestionReport:
    """Make the questions of a pack's split and write them, one record a line.

    Raises:
        ValueError: the pack, the split, a source or a setting is wrong; or no object can be read.
    """
    terms = None if settings.anatomy_terms is None else read_terms(settings.anatomy_terms)
    failed: dict[str, str] = {}
    objects = list(_known(settings, failed))
    if not objects:
        some = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:2])
        raise ValueError(f"{settings.pack} has no object to ask about" + (f" ({some})" if some else ""))
    made = make_questions(
        objects, seed=settings.seed, languages=settings.languages, kinds=settings.kinds, terms=terms
    )
    _write_lines(settings.output, [question.record() for question in made])
    beside = settings.output.with_name(settings.output.stem + FAILED)
    if failed:
        _write_lines(beside, [{"sample_id": name, "reason": why} for name, why in failed.items()])
    else:
        beside.unlink(missing_ok=True)  # of an earlier run
    asked, yes = balance(made)
    return QuestionReport(
        objects=len(objects),
        questions=len(made),
        sources=dict(sorted(Counter(known.source for known in objects).items())),
        kinds=_counts(made),
        yes_no=asked,
        yes=yes,
        failed=failed,
    )


def read_terms(path: Path) -> dict[str, list[str]]:
    """Read a table of anatomical terms: a JSON object of term -> list of sentences.

    Raises:
        ValueError: the file is something else.
    """
    file = regular_file(path, "table of anatomical terms")
    try:
        terms = parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(error)}") from error
    if not isinstance(terms, dict) or not all(
        isinstance(found, list) and all(isinstance(text, str) for text in found) for found in terms.values()
    ):
        raise ValueError(f"{file} must be a JSON object of term: list of sentences")
    return terms


def _known(settings: QuestionSettings, failed: dict[str, str]) -> Iterator[KnownObject]:
    """Yield what is known of the chosen objects, in the pack's order, and note those that fail."""
    from dataset_toolkits.mesh_sources import ID, pack_items

    pack = MeshPack(settings.pack)
    records = {entry.id: entry for entry in pack.entries}
    items = list(pack_items(settings.pack))
    first: dict[str, str] = {}
    splits: dict[str, set[str]] = {}
    for item in items:
        splits.setdefault(item.row[ID], set()).add(item.row["split"])
    names = {split for found in splits.values() for split in found}
    if settings.split not in names:
        raise ValueError(
            f"--split {settings.split}: {settings.pack} has no such split; it has {', '.join(sorted(names))}"
        )
    chosen = _chosen([item.row["id"] for item in items if item.row["split"] == settings.split], settings)
    wanted = [item for item in items if item.row["id"] in chosen and item.row["split"] == settings.split]
    for item in follow(wanted, "measure"):
        name, entry = item.row[ID], records[item.row["id"]]
        try:
            if len(splits[name]) > 1:
                raise ValueError(f"its mesh is also in the splits {', '.join(sorted(splits[name]))}")
            if first.setdefault(name, entry.id) != entry.id:
                raise ValueError(f"it has the mesh of {first[name]}")
            yield KnownObject.from_record(entry.record, measure_mesh(pack.mesh(entry)), sample_id=name)
        except ValueError as error:
            failed[entry.id] = one_line(error)


def _chosen(ids: Sequence[str], settings: QuestionSettings) -> set[str]:
    """Return the objects that the limits leave, the same ones for the same seed; a larger limit keeps them."""
    by_source: dict[str, list[str]] = {}
    for name in ids:
        by_source.setdefault(name.partition("/")[0], []).append(name)
    for source in settings.limits:
        if source not in by_source:
            raise ValueError(f"--limit {source}: the split has no such source; it has {', '.join(sorted(by_source))}")
    kept: list[str] = []
    for source, names in by_source.items():
        names.sort(key=lambda name: (pick(settings.seed, "object", name), name))
        kept += names[: settings.limits.get(source, len(names))]
    kept.sort(key=lambda name: (pick(settings.seed, "sample", name), name))
    return set(kept[: settings.max_samples])


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _counts(made: Sequence[Question]) -> dict[str, dict[str, int]]:
    counts = Counter((question.kind, question.language) for question in made)
    found = {kind: {language: counts[kind, language] for language in LANGUAGES} for kind in KINDS}
    return {kind: each for kind, each in found.items() if any(each.values())}


# -- the program -----------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(PROGRAM, work, make_parser().parse_args(argv))


def work(options: argparse.Namespace) -> int:
    """Make the questions and report them."""
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
        print(json.dumps(asdict(found), ensure_ascii=False))
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


if __name__ == "__main__":
    sys.exit(main())
