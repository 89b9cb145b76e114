"""How well the shipped tokenizer rebuilds held-out meshes, beside the ceiling of the representation.

python benchmarks/reconstruction.py --pack ../shared/data/shapes --split test --count 50
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from record import RESULTS, write_result
from tqdm import tqdm

from sdf_vqvae.data import MeshPack
from sdf_vqvae.evaluation import ROWS, evaluate_reconstruction, summarize
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.runtime import setup_logging


def main() -> None:
    """Print a table with a row for ceiling, continuous and discrete, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=50, help="meshes, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=100_000, help="points on each surface")
    parser.add_argument("--vae_config")
    parser.add_argument("--vae_ckpt")
    parser.add_argument("--device")
    parser.add_argument("--name", default="reconstruction", help="name of the JSON")
    parser.add_argument("--out", type=Path, help="folder for the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    setup_logging()
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    pack = MeshPack(options.pack)
    entries = pack.select(options.split)
    chosen = np.random.default_rng(options.seed).permutation(len(entries))[: options.count]
    partial = (options.out or RESULTS) / f".{options.name}.{vae.fingerprint()[:12]}.jsonl"
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in partial.read_text().splitlines()] if partial.is_file() else []
    known = {line["id"]: line for line in done}
    lines = []
    for i in tqdm(sorted(chosen), unit="mesh"):
        line = known.get(entries[i].id)
        if line is None:
            result = evaluate_reconstruction(vae, pack.mesh(entries[i]), samples=options.samples)
            line = {"id": entries[i].id, **result.to_dict()}
            with partial.open("a") as file:
                file.write(json.dumps(line) + "\n")
        lines.append(line)
    table = summarize(lines)
    print(f"{'row':<12}{'CD-L1':>10}{'F@0.005':>10}{'F@0.01':>10}{'F@0.02':>10}{'NC':>8}{'failed':>8}")
    for row in ROWS:
        t = table[row]
        print(
            f"{row:<12}{t['chamfer_l1 mean']:>10.5f}"
            + "".join(f"{t[f'fscore@{x} mean']:>10.4f}" for x in ("0.005", "0.01", "0.02"))
            + f"{t['normal_consistency mean']:>8.4f}{int(t['failed']):>8}"
        )
    codes = [line["codes"] for line in lines]
    print(f"codes an object: median {int(np.median(codes))}, largest {max(codes)}")
    summary = {"table": table, "median_codes": float(np.median(codes)), "objects": lines}
    print(write_result(options.name, summary, options.out))
    partial.unlink()


if __name__ == "__main__":
    main()
