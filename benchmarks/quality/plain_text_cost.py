"""What adapters cost the language model's own skills: text without any object, with each adapter and with none.

Each adapter has two rows: as text is answered, for adapters are off where there is no object, and with the adapter
at work, as beside an object.

    vae-qwen3vl make-plain-text -o held_out.jsonl --count 200 --split held_out
    python benchmarks/quality/plain_text_cost.py --records held_out.jsonl --lora a=A/lora_final --lora b=B/lora_final

Two measures, in float32: the mean negative log-likelihood (nats a token) of the answers of the records, end of turn
included, and the perplexity of documentation strings of Python's standard library, read without a chat in pieces of
512 tokens. The strings differ from one Python to the next: compare rows of one table.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device, setup_logging
from vae_qwen3vl.commands.options import quiet_transformers
from vae_qwen3vl.data.collate import collate_codes_caption
from vae_qwen3vl.data.texts import Text, read_plain_texts
from vae_qwen3vl.language.default_model import DEFAULT_LM, resolve_vl_model
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL, Processor3D

MODULES = (
    "argparse", "calendar", "cmd", "configparser", "contextlib", "heapq", "random", "sched", "shelve", "shutil",
    "tempfile", "textwrap", "timeit",
)  # fmt: skip
"""Written in Python in every version; about 20,000 tokens of strings, most of them prose."""
PIECE = 512
NO_ADAPTER = "no adapter"
AT_WORK = ", at work"
"""Ends the name of a row whose adapter is not off."""


def docstrings(modules: Iterable[str] = MODULES) -> str:
    """Return the documentation strings of modules, their classes and functions, in the order of the source."""
    strings = []
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                strings.append(ast.get_docstring(node) or "")
    return "\n\n".join(filter(None, strings))


@torch.no_grad()
def answer_loss(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    texts: Sequence[Text],
    batch_size: int = 8,
    *,
    at_work: bool = False,
) -> tuple[float, int]:
    """Return the mean negative log-likelihood of an answer's token, and how many there are."""
    total, count = 0.0, 0
    items = [{"caption": text.answer, "conversation": text.conversation} for text in texts]
    items.sort(key=lambda item: len(item["caption"]))
    for start in tqdm(range(0, len(items), batch_size), desc="records", leave=False, disable=None):
        batch = collate_codes_caption(items[start : start + batch_size], processor, max_length=None)
        labels = batch.pop("labels").to(model.device)
        total += _summed_loss(_logits(model, at_work, **batch), labels)
        count += int((labels[:, 1:] != IGNORED_LABEL).sum())
    return total / count, count


@torch.no_grad()
def perplexity(
    model: Qwen3VLWith3DBranch, processor: Processor3D, text: str, piece: int = PIECE, *, at_work: bool = False
) -> tuple[float, int]:
    """Return the perplexity of plain text, and how many tokens were predicted: all but the first of each piece."""
    total, count = 0.0, 0
    ids = torch.tensor(processor.encode_text(text), device=model.device)
    for part in tqdm(ids.split(piece), desc="text", leave=False, disable=None):
        if len(part) > 1:
            total += _summed_loss(_logits(model, at_work, input_ids=part[None]), part[None])
            count += len(part) - 1
    return math.exp(total / count), count


def _logits(model: Qwen3VLWith3DBranch, at_work: bool, **batch: Any) -> torch.Tensor:  # [B, S, V]
    """Return what is predicted, by the language model with its adapters or as the branch reads text."""
    read = model.vl_model(**model.build_inputs(**batch).model_kwargs()) if at_work else model(**batch)
    logits: torch.Tensor = read.logits
    return logits


def _summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    shifted = logits[:, :-1].float().transpose(1, 2)  # [B, V, S - 1]
    return float(
        torch.nn.functional.cross_entropy(shifted, labels[:, 1:], ignore_index=IGNORED_LABEL, reduction="sum")
    )


def measure(
    source: str,
    lora: str | None,
    texts: Sequence[Text],
    prose: str,
    *,
    device: torch.device,
    batch_size: int = 8,
    at_work: bool = False,
) -> dict[str, Any]:
    """Return the numbers of one row of the table."""
    model = Qwen3VLWith3DBranch(source)
    if lora is not None:
        model.load_lora(lora)
    model.to(device).eval()
    processor = Processor3D.from_pretrained(source)
    numbers: dict[str, Any] = {}
    if texts:
        loss, count = answer_loss(model, processor, texts, batch_size, at_work=at_work)
        numbers |= {"answer_loss": loss, "answer_tokens": count}
    numbers["perplexity"], numbers["text_tokens"] = perplexity(model, processor, prose, at_work=at_work)
    return numbers


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows, each beside what it lost against no adapter."""
    lines = [f"{'adapter':<20}{'nats/answer token':>19}{'change':>9}{'perplexity':>12}{'change':>9}"]
    base = rows[NO_ADAPTER]
    for name, row in rows.items():
        answers = f"{'-':>19}{'-':>9}"
        if "answer_loss" in row:
            answers = f"{row['answer_loss']:>19.4f}{row['answer_loss'] - base['answer_loss']:>+9.4f}"
        change = row["perplexity"] / base["perplexity"] - 1
        lines.append(f"{name:<20}{answers}{row['perplexity']:>12.3f}{change:>+9.1%}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and record it."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--records", type=Path, help="JSONL of texts without an object that nobody trained on")
    parser.add_argument("--lora", action="append", default=[], metavar="NAME=DIR", help="an adapter; may be repeated")
    parser.add_argument("--vl_model", help=f"language model of the adapters (default: {DEFAULT_LM})")
    parser.add_argument("--batch_size", type=int, default=8, help="records read together (default %(default)s)")
    parser.add_argument("--most_text", type=int, metavar="N", help="of the strings, the first N characters (all)")
    parser.add_argument("--device")
    options = parser.parse_args()
    setup_logging()
    quiet_transformers()
    device = resolve_device(options.device)
    source = str(resolve_vl_model(options.vl_model))
    adapters: dict[str, str | None] = {NO_ADAPTER: None}  # by row
    for given in options.lora:
        name, _, folder = given.partition("=")
        if not name or not Path(folder).is_dir() or name in adapters:
            parser.error(f"--lora {given}: expected another NAME=DIR, with an adapter's folder")
        adapters |= {name: folder, f"{name}{AT_WORK}": folder}
    texts = read_plain_texts(options.records) if options.records else []
    prose = docstrings()[: options.most_text]
    rows = {}
    for name, lora in adapters.items():
        how: dict[str, Any] = {"batch_size": options.batch_size, "at_work": name.endswith(AT_WORK)}
        rows[name] = measure(source, lora, texts, prose, device=device, **how)
    print(table(rows))
    about = {"python": platform.python_version(), "vl_model": options.vl_model or DEFAULT_LM, "piece": PIECE}
    print(write_run(options, about | {"records": len(texts), "rows": rows}))


if __name__ == "__main__":
    main()
