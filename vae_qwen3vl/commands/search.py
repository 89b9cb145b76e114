"""The program `search`: the objects of an index that are most like words, or like a shape."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import add_run_options, naming, positive_int, print_json
from sdf_vqvae.utils.progress import waiting
from vae_qwen3vl.commands.options import quiet_transformers

if TYPE_CHECKING:
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from vae_qwen3vl.search import Hit, ShapeIndex

ABOUT = "Find the objects of an index that are most like an English description, or like a shape."
EXAMPLES = (
    '  vae-qwen3vl search my_index "a wooden chair"\n'
    "  vae-qwen3vl search my_index chair.glb -k 20\n"
    '  vae-qwen3vl search my_index "a spiral staircase" --page found.html    with a picture of each'
)
_WIDEST = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("index", metavar="INDEX", type=Path, help="what `vae-qwen3vl index` made")
    parser.add_argument(
        "query", metavar="QUERY", help="English words; or a mesh file, field file (.npz) or codes file"
    )
    parser.add_argument("-k", type=positive_int, default=10, metavar="N", help="how many objects (10)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write a page with pictures of them (.html)")
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Search."""
    from vae_qwen3vl.search import ShapeIndex

    if options.page is not None and options.page.suffix != ".html":
        raise ValueError(f"--page {options.page}: a page ends in .html")
    quiet_transformers(options.verbose)
    index = ShapeIndex.open(options.index)
    hits = _hits(index, options)
    if options.page is not None:
        from vae_qwen3vl.search.page import write_results

        write_results(options.page, options.query, index, hits, functools.partial(_vae, options))
    if options.json:
        about: dict[str, Any] = {"index": str(options.index), "objects": len(index), "query": options.query}
        print_json({**about, "hits": [dataclasses.asdict(hit) for hit in hits]})
        return 0
    if hits:
        print(_table(hits))
    if options.page is not None:
        print(f"pictures: {options.page}", file=sys.stderr)
    return 0


def _hits(index: ShapeIndex, options: argparse.Namespace) -> list[Hit]:
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX
    from sdf_vqvae.data.field_file import FIELD_SUFFIX
    from sdf_vqvae.geometry.mesh import READABLE

    path = Path(options.query)
    if path.suffix.lower() not in (*READABLE, FIELD_SUFFIX, CODES_SUFFIX):
        return index.by_words(options.query, options.k)
    return index.by_shape(_codes(path, options), options.k)


def _codes(path: Path, options: argparse.Namespace) -> ShapeCodes:
    """Return the codes of a file's shape."""
    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes

    if path.suffix == CODES_SUFFIX:
        return ShapeCodes.load(path)
    with naming(path):
        with waiting(f"reading {path}"):
            source = load_shape(path)
            up = up_for(path, source, options.up)
        print(up.in_words(), file=sys.stderr)
        vae = _vae(options)
        with waiting(f"encoding {path}"):
            return encode_field(vae, field_for(vae, source, threshold_factor=options.threshold_factor, up=up))


def _vae(options: argparse.Namespace) -> SparseSDFVQVAE:
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    return load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)


def _table(hits: list[Hit]) -> str:
    from sdf_vqvae.evaluation.page import as_text

    rows = [["score", "name", "words", "where"]]
    return as_text(rows + [[f"{hit.score:.3f}", *map(_short, (hit.name, hit.about)), hit.source] for hit in hits])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else line[: _WIDEST - 1] + "…"
