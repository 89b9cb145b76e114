"""What the default model says about held-out meshes, as it comes, beside the authors' captions.

    python benchmarks/descriptions.py --pack ../shared/data/shapes --split test --count 10

Two blind controls stand beside each description: the same prompt about another object's codes, and the loss of
the true caption with its own and with the other's codes. Only differences from the controls mean understanding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from record import write_result
from tqdm import tqdm

from sdf_vqvae.data import MeshPack
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.runtime import resolve_device, setup_logging
from sdf_vqvae.shapes import encode_field, voxelize_for
from vae_qwen3vl.data import CaptionedBatch, captions_of
from vae_qwen3vl.default_lm import resolve_vl_model
from vae_qwen3vl.describer import describe, load_describer
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.vae_latent_extractor import codebook_vectors


@torch.no_grad()
def main() -> None:
    """Print the table and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=10, help="meshes, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--projector_ckpt", help="default: the shipped one")
    parser.add_argument("--lora_dir")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="folder for the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    setup_logging()
    device = resolve_device(options.device)
    vae = load_vae_from_config(device=device)
    model = load_describer(vae, projector=options.projector_ckpt, lora=options.lora_dir, device=device)
    processor = Processor3D.from_pretrained(str(resolve_vl_model()))
    pack = MeshPack(options.pack)
    entries = pack.select(options.split)
    chosen = np.random.default_rng(options.seed).permutation(len(entries))[: options.count]
    objects = [entries[i] for i in sorted(chosen)]
    codes = [encode_field(vae, voxelize_for(vae, pack.mesh(e))) for e in tqdm(objects, unit="mesh")]

    def caption_loss(shape: int, caption: str) -> float:
        sparse = codes[shape].to_sparse_tensor(device)
        batch = CaptionedBatch(codes=sparse.feats[:, 0], coords=sparse.coords, captions=[caption])
        encoded = processor([model.prompt or DEFAULT_PROMPT], batch.captions)
        inputs = {name: tensor.to(device) for name, tensor in encoded.items()}
        feats = codebook_vectors(batch.codes, vae)
        return float(model(**inputs, feats_3d=feats, coords_3d=batch.coords)["loss"])

    rows = []
    for i, entry in enumerate(objects):
        other = (i + 1) % len(objects)
        caption = captions_of(entry.record)[0]
        rows.append(
            {
                "id": entry.id,
                "caption": caption,
                "description": describe(model, codes[i], max_new_tokens=40).text,
                "about_another": describe(model, codes[other], max_new_tokens=40).text,
                "caption_loss": caption_loss(i, caption),
                "caption_loss_another": caption_loss(other, caption),
            }
        )
        print(f"{entry.id}\n  author:      {caption}\n  description: {rows[-1]['description']}")
    own = float(np.mean([r["caption_loss"] for r in rows]))
    control = float(np.mean([r["caption_loss_another"] for r in rows]))
    print(f"loss of the true caption: {own:.3f} with its object, {control:.3f} with another's")
    distinct = len({r["description"] for r in rows})
    print(f"{distinct} distinct descriptions of {len(rows)} objects")
    summary = {"caption_loss": own, "caption_loss_another": control, "distinct": distinct, "objects": rows}
    print(write_result("descriptions", summary, options.out))


if __name__ == "__main__":
    main()
