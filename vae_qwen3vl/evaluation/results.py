"""What an evaluation found about each object as plain records, and the folder that holds all of it.

`generated.txt` has a line an object, `eval_results.jsonl` a record, `eval_summary.json` the measures, and
`report.html` shows both. Knows files; runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdf_vqvae.codes.shape_codes import code_count
from sdf_vqvae.evaluation.page import REPORT
from sdf_vqvae.utils.files import write_json, write_json_lines, write_text
from vae_qwen3vl.answer_confidence import four_digits
from vae_qwen3vl.evaluation.controls import OWN
from vae_qwen3vl.evaluation.free_answers import declines, yes_or_no
from vae_qwen3vl.evaluation.interview import Interview
from vae_qwen3vl.evaluation.objects import EvalObject
from vae_qwen3vl.evaluation.reconstruction import Reconstruction
from vae_qwen3vl.evaluation.report import write_report

DECLINING = "that it can't be seen"
"""What is expected where a shape does not show it."""
WORDS, RESULTS, SUMMARY = "generated.txt", "eval_results.jsonl", "eval_summary.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    records: list[dict[str, Any]]
    """One an object, plain values for JSON."""
    summary: dict[str, Any]
    """Settings and measures, plain values for JSON."""
    reconstructions: Mapping[str, Reconstruction]
    """Object -> its mesh from the codes, where meshes were asked for."""


def make_records(
    objects: Sequence[EvalObject], said: Interview, reconstructions: Mapping[str, Reconstruction]
) -> list[dict[str, Any]]:
    """Return one plain record an object."""
    answers = _answers(said)
    records = []
    for number, one in enumerate(objects):
        record: dict[str, Any] = {
            "idx": number,
            "sample_id": one.name,
            "prompt": said.prompt,
            "generated": said.texts[OWN][number],
            "mean_probability": four_digits(said.probabilities[number]),
            "codes": code_count(one.codes),
            "tokens_3d": said.tokens[number],
        }
        if one.captions:
            record |= {"gt_caption": one.captions[0], "captions": list(one.captions)}
        controls = {row: texts[number] for row, texts in said.texts.items() if row != OWN}
        record |= {"controls": controls} if controls else {}
        record |= {"answers": answers[one.name]} if one.name in answers else {}
        if one.name in reconstructions:
            rebuilt = reconstructions[one.name]
            record["mesh"] = rebuilt.file
            record |= {"mesh_error": rebuilt.error} if rebuilt.error else {}
            record |= {"reconstruction": rebuilt.scores} if rebuilt.scores is not None else {}
        records.append(record)
    return records


def _answers(said: Interview) -> dict[str, dict[str, Any]]:
    """Return object -> kind of question -> the likeliest answer, or what was said, beside the right one."""
    answers: dict[str, dict[str, Any]] = {}
    for answered in said.closed or ():
        asked, best = answered.asked, answered.scores[OWN].argmax(axis=1)
        for place, name in enumerate(asked.names):
            answer, expected = asked.candidates[best[place]], asked.answers[place]
            answers.setdefault(name, {})[asked.kind] = {
                "question": asked.questions[place],
                "answer": answer,
                "expected": expected,
                "right": answer == expected,
            }
    for users in said.users or ():
        for place, name in enumerate(users.asked.names):
            text, question = users.texts[OWN][place], users.asked.questions[place]
            if users.asked.declined:
                expected, right = DECLINING, declines(text)
            else:
                yes = users.asked.yes[place]
                expected, right = users.asked.answers[yes], yes_or_no(text, question) == yes
            answers.setdefault(name, {})[f"{users.asked.kind} {users.asked.language}"] = {
                "question": question,
                "answer": text,
                "expected": expected,
                "right": right,
            }
    return answers


def write_results(folder: str | os.PathLike[str], found: Evaluation) -> None:
    """Write the words, the records, the summary and the page."""
    target = Path(folder)
    write_text(target / WORDS, "".join(" ".join(record["generated"].split()) + "\n" for record in found.records))
    write_json_lines(target / RESULTS, found.records, ensure_ascii=False)
    write_json(target / SUMMARY, found.summary, indent=1, ensure_ascii=False)
    write_report(target / REPORT, found.summary, found.records, found.reconstructions)
