"""What choosing among drawn answers is worth: the likeliest answer beside minimum Bayes risk and the search head.

    python benchmarks/quality/candidates.py draw drawn.jsonl --codes codes --split val --temperatures 0.7 1.0 0.5
    python benchmarks/quality/candidates.py measure drawn.jsonl --codes codes --known train_codes --sentence_model DIR

`draw` keeps 32 answers an object and temperature, objects in an order of its own, and goes on where it stopped.
`measure` chooses among the first 8, 16 and 32 of them in every way that `describe` has, and compares the choices with
the captions: by a sentence model that did not choose (`sentence_bert`; DIR holds all-mpnet-base-v2), by the one that
did (`sentence_bert_chooser`), and by measures that are none. Controls are chosen alike: the answer of another object;
the most frequent captions of `--known` by another object's shape; and, not blind, the captions of the nearest objects
of `--known`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.candidates.choice import choose
from vae_qwen3vl.evaluation.caption_metrics import score_captions
from vae_qwen3vl.evaluation.controls import nearest_by_codes, other_objects, paired_gap
from vae_qwen3vl.evaluation.objects import EvalObject
from vae_qwen3vl.evaluation.summary import interval_of
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, embed, load_sentence_encoder
from vae_qwen3vl.search.vectors import ShapeVectors, shipped_search_weights

DRAWS = 32
COUNTS = (8, 16, 32)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENT = 8
"""Captions of nearest objects that are candidates too, as `describe --neighbors` takes them."""
CHOOSER = "sentence_bert_chooser"
Texts = Sequence[str]
Array = npt.NDArray[np.float64]


def draw(options: argparse.Namespace) -> None:
    """Draw answers about the objects of a split, and keep them."""
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.generation.engine import Engine, Sampling
    from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

    codes = CodeFolder(options.codes)
    model = load_describer(None, vae_hash=codes.manifest.vae_hash, device=options.device)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    content = [{"type": "3d"}, {"type": "text", "text": model.prompt or DEFAULT_PROMPT}]
    messages = [{"role": "user", "content": content}]
    names = sorted(row[ID_COLUMN] for row in codes.table() if row.get("split") == options.split)
    random.Random(0).shuffle(names)
    done = {(record["id"], record["temperature"]) for record in read_drawn(options.drawn)}
    asked = [(name, t) for t in options.temperatures for name in names[: options.most or None]]
    limits: dict[str, int] = {"max_batch": DRAWS + 1, "max_waiting": 2 * DRAWS + 2}
    with Engine(model, processor, codebook=codes.codebook, **limits) as engine, options.drawn.open("a") as file:
        for name, temperature in asked:
            if (name, temperature) in done:
                continue
            shape = codes.manifest.shape(*codes[name])
            started, cpu = time.perf_counter(), time.process_time()
            likeliest = Sampling(max_new_tokens=options.max_new_tokens)
            ways = [likeliest] + [
                Sampling(max_new_tokens=options.max_new_tokens, temperature=temperature, seed=seed)
                for seed in range(DRAWS)
            ]
            answers = [engine.submit(messages, [shape], way) for way in ways]
            for answer in answers:
                answer.text()
            greedy, *texts = processor.decode([answer.token_ids for answer in answers])
            record = {"id": name, "temperature": temperature, "greedy": greedy, "texts": texts}
            spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            file.write(json.dumps({**record, **spent}, ensure_ascii=False) + "\n")
            file.flush()
            print(f"{name[:8]} {temperature} {spent['seconds']:.1f} s: {greedy}", flush=True)


def read_drawn(path: Path) -> list[dict[str, Any]]:
    """Return what `draw` kept; nothing where there is no file yet."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(options: argparse.Namespace) -> None:
    """Choose in every way, and write how near the choices come."""
    drawn = read_drawn(options.drawn)
    temperatures = sorted({record["temperature"] for record in drawn})
    codes, known_codes = CodeFolder(options.codes), CodeFolder(options.known)
    vectors = ShapeVectors.load(*shipped_search_weights(), codes.codebook)
    chooser = load_sentence_encoder(vectors.head.sentence_model)
    judge = load_sentence_encoder(options.sentence_model)
    measured = Measured(codes, known_codes, vectors, chooser, judge)
    results: dict[str, Any] = {
        "chosen_with": chooser.name,
        "measured_with": options.label or Path(judge.name).name,
        "known_objects": len(measured.known),
        "runs": {},
    }
    every: set[str] | None = None
    for temperature in temperatures:
        own = {record["id"] for record in drawn if record["temperature"] == temperature}
        every = own if every is None else every & own
    for temperature in temperatures:
        records = {record["id"]: record for record in drawn if record["temperature"] == temperature}
        results["runs"][f"{temperature:g}"] = measured.of(records)
        if len(temperatures) > 1 and every and len(every) < len(records):
            shared = {name: records[name] for name in records if name in every}
            results["runs"][f"{temperature:g}, objects of all temperatures"] = measured.of(shared)
    for name, run in results["runs"].items():
        print(f"temperature {name}: {run['objects']} objects")
        for row, scores in run["rows"].items():
            gain = run["gains"].get(row)
            said = (
                ""
                if gain is None
                else f"  {100 * gain['mean']:+5.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            )
            numbers = "  ".join(
                f"{key} {100 * scores[key]['mean']:5.1f}" for key in ("sentence_bert", CHOOSER, "meteor", "rouge_l")
            )
            print(f"  {row:58s} {numbers}  cider {scores['cider']['mean']:.2f}{said}")
    write_run(options, results, "cpu")


class Measured:
    """The objects, and choices among texts about them as numbers."""

    def __init__(
        self,
        codes: CodeFolder,
        known: CodeFolder,
        vectors: ShapeVectors,
        chooser: SentenceEncoder,
        judge: SentenceEncoder,
    ) -> None:
        self.codes, self.vectors, self.chooser, self.judge = codes, vectors, chooser, judge
        self.captions = {row[ID_COLUMN]: captions_of_row(row) for row in codes.table()}
        rows = [row for row in known.table() if row.get("split") == "train" and row[ID_COLUMN] in known]
        self.known = [_object(known, row[ID_COLUMN], captions_of_row(row)) for row in rows if captions_of_row(row)]
        self._embedded: dict[tuple[str, str], Tensor] = {}
        self._known_vectors = vectors([one.codes for one in self.known], [one.coords for one in self.known])

    def of(self, records: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the measures of all ways to choose, and what they gain over the likeliest answer."""
        names = sorted(records)
        own = [_object(self.codes, name, self.captions[name]) for name in names]
        said = [text for record in records.values() for text in (record["greedy"], *record["texts"])]
        self._vectors_of([*said, *(one.captions[0] for one in self.known)])  # many at a time, which is faster
        toward = self.vectors([one.codes for one in own], [one.coords for one in own])  # [O, E]
        others = other_objects(len(names))
        near = (toward @ self._known_vectors.T).topk(LENT, dim=1).indices.tolist()
        lent = [[self.known[number].captions[0] for number in row] for row in near]
        histogram = nearest_by_codes(own, self.known, len(self.codes.codebook))
        frequent = [text for text, _ in Counter(one.captions[0] for one in self.known).most_common(COUNTS[1] + 1)]
        rows: dict[str, Texts] = {"likeliest": [records[name]["greedy"] for name in names]}
        first_draw = [records[name]["texts"][0] for name in names]
        rows["one draw"] = first_draw
        for count in COUNTS:
            among = [[records[name]["greedy"], *records[name]["texts"][:count]] for name in names]
            for weight in WEIGHTS if count == COUNTS[1] else (0.0, 0.5, 1.0):
                rows[f"{count} draws, shape weight {weight:g}"] = self._chosen(among, toward, weight)
            with_lent = [[*texts, *words] for texts, words in zip(among, lent, strict=True)]
            rows[f"{count} draws and {LENT} neighbors, shape weight 0.5"] = self._chosen(with_lent, toward, 0.5)
        for weight in (0.0, 0.5):
            chosen = rows[f"{COUNTS[1]} draws, shape weight {weight:g}"]
            rows[f"another object's: {COUNTS[1]} draws, shape weight {weight:g}"] = [chosen[n] for n in others]
            alike = [frequent] * len(names)
            rows[f"most frequent captions, another's shape, weight {weight:g}"] = self._chosen(
                alike, toward[others], weight
            )
        rows["another object's: likeliest"] = [rows["likeliest"][n] for n in others]
        rows["most frequent caption"] = [frequent[0]] * len(names)
        rows["not blind: nearest by codes"] = [self.known[number].captions[0] for number in histogram]
        rows["not blind: nearest by search head"] = [words[0] for words in lent]
        for weight in (0.0, 0.5, 1.0):
            wide = (toward @ self._known_vectors.T).topk(COUNTS[1] + 1, dim=1).indices.tolist()
            alike = [[self.known[number].captions[0] for number in row] for row in wide]
            rows[f"not blind: {COUNTS[1] + 1} nearest, shape weight {weight:g}"] = self._chosen(alike, toward, weight)
        captions = [self.captions[name] for name in names]
        self._vectors_of([text for texts in (*rows.values(), *captions) for text in texts], self.judge)
        scores = {row: self._scores(texts, captions) for row, texts in rows.items()}
        greedy = scores["likeliest"]["sentence_bert"]
        gains = {
            row: paired_gap(own_scores["sentence_bert"], greedy).rounded()
            for row, own_scores in scores.items()
            if row != "likeliest"
        }
        cpu = [record["cpu_seconds"] for record in records.values() if record.get("cpu_seconds")]
        return {
            "objects": len(names),
            "cpu_seconds_of_33_answers": round(float(np.median(cpu)), 2) if cpu else None,
            "rows": {row: {key: interval_of(values) for key, values in own.items()} for row, own in scores.items()},
            "gains": gains,
        }

    def _chosen(self, among: Sequence[Texts], toward: Tensor, weight: float) -> list[str]:
        return [
            choose(list(texts), self._vectors_of(texts), vector, weight).text
            for texts, vector in zip(among, toward, strict=True)
        ]

    def _vectors_of(self, texts: Texts, encoder: SentenceEncoder | None = None) -> Tensor:
        """Return the texts' vectors `[n, E]`; each text is read once."""
        reader = encoder or self.chooser
        new = [text for text in dict.fromkeys(texts) if (reader.name, text) not in self._embedded]
        keys = [(reader.name, text) for text in new]
        self._embedded |= zip(keys, embed(reader, new), strict=True)
        return torch.stack([self._embedded[reader.name, text] for text in texts])

    def _likeness(self, texts: Texts, captions: Sequence[Texts], encoder: SentenceEncoder) -> Array:
        """Return each text's cosine with the caption that is closest to it, as `sentence_similarities` does."""
        said = self._vectors_of(texts, encoder)
        best = [
            float((self._vectors_of(own, encoder) @ vector).max()) for own, vector in zip(captions, said, strict=True)
        ]
        return np.array(best)

    def _scores(self, texts: Texts, captions: Sequence[Texts]) -> dict[str, Array]:
        scores = score_captions(list(texts), [list(own) for own in captions])
        return {
            "sentence_bert": self._likeness(texts, captions, self.judge),
            CHOOSER: self._likeness(texts, captions, self.chooser),
            **{name: score for name, score in scores.items() if isinstance(score, np.ndarray)},
        }


def _object(codes: CodeFolder, name: str, captions: Sequence[str]) -> EvalObject:
    own, coords = codes[name]
    return EvalObject(name=name, codes=own.long(), coords=coords.int(), captions=tuple(captions))


def main() -> None:
    """Draw, or measure."""
    parser = measuring_parser(__doc__, __file__)
    steps = parser.add_subparsers(dest="step", required=True)
    drawing = steps.add_parser("draw", help="draw answers and keep them")
    drawing.add_argument("drawn", type=Path, help="file of what was drawn, .jsonl")
    drawing.add_argument("--codes", type=Path, required=True, help="folder of cached codes")
    drawing.add_argument("--split", default="val")
    drawing.add_argument("--temperatures", type=float, nargs="+", default=[0.7])
    drawing.add_argument("--max_new_tokens", type=int, default=24)
    drawing.add_argument("--most", type=int, default=0, help="objects, 0 for all")
    drawing.add_argument("--device")
    drawing.set_defaults(work=draw)
    measuring = steps.add_parser("measure", help="choose among them and measure the choices")
    measuring.add_argument("drawn", type=Path, help="file of what was drawn, .jsonl")
    measuring.add_argument("--codes", type=Path, required=True, help="folder of cached codes of the same objects")
    measuring.add_argument("--known", type=Path, required=True, help="folder of cached codes of training objects")
    measuring.add_argument("--sentence_model", required=True, help="another one than that of the search head")
    measuring.add_argument("--label", help="what to call it")
    measuring.set_defaults(work=measure)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
