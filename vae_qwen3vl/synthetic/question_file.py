"""A file of questions about the objects of a pack.

Knows packs and files; how questions are made is in `questions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.objects import by_content, pack_objects
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import regular_file, write_json_lines
from sdf_vqvae.utils.progress import follow
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic.known_object import KnownObject
from vae_qwen3vl.synthetic.mesh_facts import measure_mesh
from vae_qwen3vl.synthetic.questions import KINDS, Question, balance, make_questions
from vae_qwen3vl.synthetic.settings import QuestionSettings
from vae_qwen3vl.synthetic.wordings import LANGUAGES, set_of_split

FAILED = ".failed.jsonl"


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
    questions = make_questions(
        objects,
        seed=settings.seed,
        languages=settings.languages,
        kinds=settings.kinds,
        terms=terms,
        wordings=settings.wordings or set_of_split(settings.split),
    )
    write_json_lines(settings.output, (question.record() for question in questions), ensure_ascii=False)
    beside = settings.output.with_name(settings.output.stem + FAILED)
    if failed:
        reasons = ({"sample_id": name, "reason": why} for name, why in failed.items())
        write_json_lines(beside, reasons, ensure_ascii=False)
    else:
        beside.unlink(missing_ok=True)  # of an earlier run
    asked, yes = balance(questions)
    return QuestionReport(
        objects=len(objects),
        questions=len(questions),
        sources=dict(sorted(Counter(known.source for known in objects).items())),
        kinds=_counts(questions),
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
        raise ValueError(f"{file}: {brief(error)}") from error
    if not isinstance(terms, dict) or not all(
        isinstance(found, list) and all(isinstance(text, str) for text in found) for found in terms.values()
    ):
        raise ValueError(f"{file} must be a JSON object of term: list of sentences")
    return terms


def _known(settings: QuestionSettings, failed: dict[str, str]) -> Iterator[KnownObject]:
    """Yield what is known of the chosen objects, in the pack's order, and note those that fail."""
    pack = MeshPack(settings.pack)
    records = {entry.id: entry.record for entry in pack.entries}
    meshes = [by_content(mesh) for mesh in pack_objects(pack)]
    splits: dict[str, set[str]] = {}
    for mesh in meshes:
        splits.setdefault(mesh.id, set()).add(mesh.row["split"])
    names = set().union(*splits.values())
    if settings.split not in names:
        raise ValueError(
            f"--split {settings.split}: {settings.pack} has no such split; it has {', '.join(sorted(names))}"
        )
    meshes = [mesh for mesh in meshes if mesh.split == settings.split]
    chosen = _chosen([mesh.row["id"] for mesh in meshes], settings)
    first: dict[str, str] = {}
    for mesh in follow([mesh for mesh in meshes if mesh.row["id"] in chosen], "measure"):
        name = mesh.row["id"]
        try:
            if len(splits[mesh.id]) > 1:
                raise ValueError(f"its mesh is also in the splits {', '.join(sorted(splits[mesh.id]))}")
            if first.setdefault(mesh.id, name) != name:
                raise ValueError(f"it has the mesh of {first[mesh.id]}")
            yield KnownObject.from_record(records[name], measure_mesh(mesh.there.mesh()), sample_id=mesh.id)
        except ValueError as error:
            failed[name] = brief(error)


def _chosen(ids: Sequence[str], settings: QuestionSettings) -> set[str]:
    """Return the objects that the limits leave, the same ones for the same seed; a larger limit keeps them."""
    by_source: dict[str, list[str]] = {}
    for name in ids:
        by_source.setdefault(name.partition("/")[0], []).append(name)
    for source in settings.limits:
        if source not in by_source:
            raise ValueError(f"--limit {source}: the split has no such source; it has {', '.join(sorted(by_source))}")
    chosen: list[str] = []
    for source, names in by_source.items():
        names.sort(key=lambda name: (pick(settings.seed, "object", name), name))
        chosen += names[: settings.limits.get(source, len(names))]
    chosen.sort(key=lambda name: (pick(settings.seed, "sample", name), name))
    return set(chosen[: settings.max_samples])


def _counts(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    counts = Counter((question.kind, question.language) for question in questions)
    by_kind = {kind: {language: counts[kind, language] for language in LANGUAGES} for kind in KINDS}
    return {kind: each for kind, each in by_kind.items() if any(each.values())}
