"""How many organs of a labeled scan the shipped model names, by how they stand when it sees them.

    python benchmarks/quality/organs_named.py --label organs.nii.gz

As the scanner has them (z is superior); turned so that superior is +y, as the programs do it (x stays the patient's
right); and from there turned by half round +y. An organ is named if the words of the answer, up to its first bracket
or comma, are those of its label, side and all; `without sides` leaves left and right away.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sdf_vqvae.codes.pipeline import encode_field
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.preprocessing.ct.cases import load_case
from sdf_vqvae.preprocessing.ct.layouts import pair_case
from sdf_vqvae.preprocessing.ct.organs import surface_of
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device
from vae_qwen3vl.describer import describe, load_describer

SIDES = {"left", "right"}
WAYS = ("as the scanner has it", "turned", "turned, and by half round +y")


def words(text: str) -> frozenset[str]:
    """Return the words of a name; a vertebra is one of the vertebrae."""
    words_of_name = re.findall(r"[^\W_]+", re.split(r"[(,;]", text)[0].lower())
    return frozenset("vertebrae" if word == "vertebra" else word for word in words_of_name)


def main() -> None:
    """Print the organs and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--label", type=Path, required=True, help="NIfTI file of labels, with their names beside it")
    parser.add_argument("--device")
    parser.add_argument("--max_organs", type=int, help="the first so many")
    options = parser.parse_args()
    device = resolve_device(options.device)
    case = load_case(pair_case(None, options.label, None), with_image=False)
    assert case.masks is not None
    vae = load_vae_from_config(device=device)
    model = load_describer(vae, device=device)
    rows: list[dict[str, Any]] = []
    for label in tqdm(case.masks.labels(case.names)[: options.max_organs], unit="organ"):
        surface = surface_of(case, label)
        scanned, standing = (SparseSDF.from_label(surface, 256, up=up, device=device) for up in ("y", "z"))
        said = [
            describe(model, encode_field(vae, field), max_new_tokens=24).text
            for field in (scanned, standing, half_turn(standing))
        ]
        rows.append({"organ": case.names.of(label), **dict(zip(WAYS, said, strict=True))})
    result: dict[str, Any] = {"organs": len(rows)}
    for way in WAYS:
        right = [words(row[way]) == words(row["organ"]) for row in rows]
        loose = [words(row[way]) - SIDES == words(row["organ"]) - SIDES for row in rows]
        result[way] = {"named": sum(right), "without sides": sum(loose)}
    print(json.dumps(result, indent=1))
    write_run(options, result | {"answers": rows})


def half_turn(field: SparseSDF) -> SparseSDF:
    """Return a field of samples at cell centers turned by half round +y; its way back is no longer right."""
    last = field.field.resolution - 1
    x, y, z = field.index.long().unbind(1)
    index = torch.stack([last - x, y, last - z], dim=1)
    order = ((index[:, 0] * (last + 1) + index[:, 1]) * (last + 1) + index[:, 2]).argsort()
    return dataclasses.replace(field, sdf=field.sdf[order], index=index[order].int())


if __name__ == "__main__":
    main()
