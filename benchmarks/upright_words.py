"""What standing the wrong way costs words, and whether the language model itself can tell which way is up.

    python benchmarks/upright_words.py encode PACK --split val -o outputs_upright/turned     # seconds on a GPU
    python benchmarks/upright_words.py measure outputs_upright/turned

The first encodes every mesh of a split in six ways of standing: as it is (it stands along y), and as if another axis
were up; the folder of codes calls them splits `y`, `z`, `-z` and so on. What a mesh with z up is taken for, if nobody
turns it, is the split `-z`: `eval_3d_vl --data_dir outputs_upright/turned --split=-z` says what its words are worth.

The second asks the model about each, greedily, and takes the way of standing whose answer it is surest of (mean
log-likelihood of the answer's words).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result
from tqdm import tqdm

from sdf_vqvae.data import MeshPack
from sdf_vqvae.field_folder import ID_COLUMN, METADATA, write_table
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.runtime import resolve_device
from sdf_vqvae.shapes import voxelize_many_for
from sdf_vqvae.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.upright import UP_AXES, turns_to_upright
from vae_qwen3vl.code_folder import CodeFolder, CodeFolderWriter
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.eval_objects import from_codes
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

STANDS_ALONG = "y"


def turned(vertices: np.ndarray, up: str) -> np.ndarray:
    """Return vertices `[V, 3]` turned as if `up` were up; those of `y` as they are."""
    if up == STANDS_ALONG:
        return vertices
    order, flipped = turns_to_upright(up)[0]
    signs = [-1 if axis in flipped else 1 for axis in range(3)]
    return vertices[:, order] * signs


def encode(options: argparse.Namespace) -> None:
    """Write the folder of codes."""
    vae = load_vae_from_config(device=resolve_device(options.device))
    pack = MeshPack(options.pack)
    entries = pack.select(options.split)[: options.max_samples]
    writer = CodeFolderWriter(options.output, vae)
    rows = []
    for entry in tqdm(entries, unit="mesh"):
        mesh = pack.mesh(entry)
        stands = []
        for up in UP_AXES:
            other = mesh.copy()
            other.vertices = turned(np.asarray(mesh.vertices), up)
            stands.append(other)
        made = voxelize_many_for(vae, stands)
        for up, field in zip(UP_AXES, made, strict=True):
            if isinstance(field, str):
                print(f"{entry.id}, up {up}: {field}", file=sys.stderr)
        fields = {up: field for up, field in zip(UP_AXES, made, strict=True) if isinstance(field, SparseSDF)}
        if not fields:
            continue
        with torch.no_grad():
            codes = vae.Encode(collate_sparse_sdf(list(fields.values())))
        record = entry.record
        for number, up in enumerate(fields):
            own = codes.coords[:, 0] == number
            values, coords = codes.feats[own, 0], codes.coords[own, 1:]
            name = f"{entry.offset}.{up}"
            writer.add(name, values.to("cpu", torch.int32), coords.to("cpu", torch.int16))
            rows.append(
                {ID_COLUMN: name, "split": up, "object": str(entry.offset), "source": entry.source,
                 "captions": json.dumps(record.get("captions") or [record["name"]], ensure_ascii=False)}
            )  # fmt: skip
    writer.flush()
    write_table(options.output / METADATA, rows)


def measure(options: argparse.Namespace) -> None:
    """Print and write how often the likeliest answer belongs to the right way of standing."""
    folder = CodeFolder(options.codes)
    model = load_describer(None, vae_hash=folder.manifest.vae_hash, device=options.device)
    processor = Processor3D.from_pretrained(model.model_name_or_path)
    prompt = model.prompt or DEFAULT_PROMPT
    found: dict[str, dict[str, float]] = {}
    sources: dict[str, str] = {}
    device = next(model.parameters()).device
    for up in UP_AXES:
        data = from_codes(folder, split=up, most=options.max_samples or 0, val_samples=0)
        for start in tqdm(range(0, len(data.objects), options.batch_size), desc=f"up {up}", unit="batch"):
            part = data.objects[start : start + options.batch_size]
            feats, coords = data.batch(part)
            asked = processor([prompt] * len(part), padding_side="left")
            with torch.no_grad():
                said = model.generate(
                    **{key: value.to(device) for key, value in asked.items()},
                    feats_3d=feats.to(device), coords_3d=coords.to(device),
                    max_new_tokens=options.max_new_tokens, do_sample=False,
                    output_logits=True, return_dict_in_generate=True,
                )  # fmt: skip
            words = said.sequences[:, -len(said.logits) :]
            logs = torch.stack([step.float().log_softmax(-1) for step in said.logits], 1)
            own = logs.gather(2, words[..., None])[..., 0]
            ended = words == processor.tokenizer.eos_token_id
            spoken = (ended.cumsum(1) - ended.int()) == 0  # the end itself counts
            means = (own * spoken).sum(1) / spoken.sum(1)
            for one, value in zip(part, means.tolist(), strict=True):
                found.setdefault(one.row["object"], {})[up] = value
                sources[one.row["object"]] = one.row["source"]
    whole = {name: values for name, values in found.items() if len(values) == len(UP_AXES)}
    rows = [name for name in whole if not options.without or sources[name] not in options.without]
    table = np.array([[whole[name][up] for up in UP_AXES] for name in rows])
    right, z, minus_z = (UP_AXES.index(up) for up in ("y", "z", "-z"))
    plain = np.array([sources[name] != "ldraw" for name in rows])
    pairs = ((table[:, right] > table[:, z]) + 0.0 + (table[:, right] > table[:, minus_z])) / 2
    six = table.argmax(1) == right
    result: dict[str, Any] = {
        "objects": len(rows),
        "six": float(six.mean()),
        "y or z": float(pairs.mean()),
        "without ldraw": {
            "objects": int(plain.sum()),
            "six": float(six[plain].mean()),
            "y or z": float(pairs[plain].mean()),
        },
    }
    print(json.dumps(result, indent=1))
    write_result("upright_likelihood", result, options.out)


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("encode")
    first.add_argument("pack", type=Path)
    first.add_argument("--split", default="val")
    first.add_argument("-o", "--output", type=Path, required=True)
    first.set_defaults(work=encode)
    second = commands.add_parser("measure")
    second.add_argument("codes", type=Path)
    second.add_argument("--batch_size", type=int, default=16)
    second.add_argument("--max_new_tokens", type=int, default=24)
    second.add_argument("--without", nargs="*", help="sources to leave out")
    second.add_argument("--out", type=Path)
    second.set_defaults(work=measure)
    for command in (first, second):
        command.add_argument("--max_samples", type=int)
        command.add_argument("--device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = make_parser().parse_args(argv)
    options.work(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
