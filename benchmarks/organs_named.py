"""How many organs of a labeled scan the shipped model names, by how they stand when it sees them.

    python benchmarks/organs_named.py --label organs.nii.gz

As the scanner has them (z is superior), and turned so that superior is +y: as the programs do it (x stays the
patient's right), and from there round +y by a quarter, a half and three quarters. An organ is named
if the words of the answer, up to its first bracket or comma, are those of its label, side and all; `without sides`
leaves left and right away.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from record import write_result
from tqdm import tqdm

from dataset_toolkits.ct_cases import load_case
from dataset_toolkits.ct_layouts import pair_case
from dataset_toolkits.ct_organs import surface_of
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.runtime import resolve_device
from sdf_vqvae.shapes import encode_field
from sdf_vqvae.sparse_sdf import SparseSDF
from vae_qwen3vl.describer import describe, load_describer

SIDES = {"left", "right"}
WAYS = ("as the scanner has it", "turned", "turned, a quarter", "turned, a half", "turned, three quarters")


def words(text: str) -> frozenset[str]:
    """Return the words of a name."""
    return frozenset(re.findall(r"[^\W_]+", re.split(r"[(,;]", text)[0].lower()))


def main() -> None:
    """Print the organs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", type=Path, required=True, help="NIfTI file of labels, with their names beside it")
    parser.add_argument("--device")
    parser.add_argument("--max_organs", type=int, help="the first so many")
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
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
        fields = [scanned, standing]
        while len(fields) < len(WAYS):
            fields.append(quarter_turn(fields[-1]))
        said = [describe(model, encode_field(vae, field)).text for field in fields]
        rows.append({"organ": case.names.of(label), **dict(zip(WAYS, said, strict=True))})
    result: dict[str, Any] = {"organs": len(rows)}
    for way in WAYS:
        right = [words(row[way]) == words(row["organ"]) for row in rows]
        loose = [words(row[way]) - SIDES == words(row["organ"]) - SIDES for row in rows]
        result[way] = {"named": sum(right), "without sides": sum(loose)}
    print(json.dumps(result, indent=1))
    write_result("organs_named", result | {"answers": rows}, options.out)


def quarter_turn(field: SparseSDF) -> SparseSDF:
    """Return a field of samples at cell centers turned round +y by a quarter; its way back is no longer right."""
    x, y, z = field.index.unbind(1)
    index = torch.stack([z, y, field.field.resolution - 1 - x], dim=1)
    order = torch.argsort((index[:, 0].long() * 4096 + index[:, 1]) * 4096 + index[:, 2])
    return SparseSDF(
        sdf=field.sdf[order],
        index=index[order],
        field=field.field,
        center=field.center,
        scale=field.scale,
        watertight=field.watertight,
        sign_method=field.sign_method,
    )


if __name__ == "__main__":
    main()
