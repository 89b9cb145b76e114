"""Teach a language model to read a tokenizer's codes, from a pack of captioned meshes.

    python scripts/train_projector.py --pack meshes/ --output_dir outputs/projector --max_seconds 300

Writes `projector.safetensors`, `lora/` and `log.jsonl`. The meshes are encoded once into `--cache` (made if it
is not there). This is the minimal trainer: one device, no resume.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from sdf_vqvae.data import MeshPack, source_weights
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.runtime import resolve_device, seed_everything, setup_logging
from vae_qwen3vl.code_cache import CodeCache, encode_pack
from vae_qwen3vl.data import CaptionedCodes, captions_of
from vae_qwen3vl.default_lm import resolve_vl_model
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.training import AlignmentOptions, AlignmentTrainer


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; training flags are the fields of `AlignmentOptions`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="file of cached codes (default: in the output folder)")
    parser.add_argument("--encode_seconds", type=float, default=float("inf"), help="encode this long at most")
    parser.add_argument("--limit", type=int, help="encode this many objects at most")
    parser.add_argument("--encode_only", action="store_true", help="stop when the cache is written")
    parser.add_argument("--vae_config", help="default: the shipped tokenizer")
    parser.add_argument("--vae_ckpt")
    parser.add_argument("--vl_model", help="default: the embedded language model")
    parser.add_argument("--projector_ckpt", type=Path, help="go on from this projector ...")
    parser.add_argument("--lora_dir", type=Path, help="... and this adapter")
    parser.add_argument("--merge", type=int, default=4, choices=(1, 2, 4), help="cells an axis in one 3D token")
    parser.add_argument("--max_3d_tokens", type=int, default=512, help="3D tokens of an object at most (pooled)")
    parser.add_argument("--projector_layers", type=int, default=2)
    parser.add_argument("--lora_r", type=int, default=8, help="rank of the adapters; 0 for none")
    parser.add_argument("--ldraw_share", type=float, default=0.25, help="share of LDraw parts among the draws")
    parser.add_argument("--max_faces", type=int, default=8000, help="leave out meshes with more faces")
    parser.add_argument("--hold_out", type=int, default=48, help="encoded objects kept from training, for the log")
    parser.add_argument("--device")
    for field in dataclasses.fields(AlignmentOptions):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return parser


def cached_codes(options: argparse.Namespace, pack: MeshPack, device: torch.device) -> CodeCache:
    """Load the cache, or encode the pack's `train` split in a seeded random order."""
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, device)
    path = options.cache or options.output_dir / "codes.safetensors"
    if path.is_file():
        cache = CodeCache.load(path)
        cache.check(vae)
        return cache
    entries = [e for e in pack.select("train") if e.record["faces"] <= options.max_faces]
    weights = source_weights(entries, {"ldraw": options.ldraw_share} if _has_ldraw(entries) else {})
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.multinomial(weights, len(entries), generator=generator).tolist()[: options.limit]
    cache = encode_pack(vae, pack, [entries[i] for i in order], options.encode_seconds)
    cache.save(path)
    return cache


def _has_ldraw(entries: list) -> bool:
    return any(e.source == "ldraw" for e in entries)


def main(argv: list[str] | None = None) -> None:
    """Run the training."""
    options = make_parser().parse_args(argv)
    setup_logging()
    seed_everything(options.seed)
    device = resolve_device(options.device)
    pack = MeshPack(options.pack)
    cache = cached_codes(options, pack, device)
    print(f"{len(cache)} objects, {len(cache.codes) / len(cache):.0f} codes an object, {len(cache.failures)} failed")
    if options.encode_only:
        return
    records = {e.id: e for e in pack.entries}
    captions = {name: captions_of(records[name].record) for name in cache.ids}
    entries = [records[name] for name in cache.ids]
    shares = {"ldraw": options.ldraw_share} if _has_ldraw(entries) else {}
    weights = dict(zip(cache.ids, source_weights(entries, shares).tolist(), strict=True))
    held = set(cache.ids[-options.hold_out :]) if options.hold_out else set()
    data = CaptionedCodes(cache, {k: v for k, v in captions.items() if k not in held}, weights)
    rows = [i for i, name in enumerate(cache.ids) if name in held]
    generator = torch.Generator().manual_seed(options.seed)
    held_out = CaptionedCodes(cache, captions, weights).batch(rows, generator) if rows else None

    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, device)
    source = str(resolve_vl_model(options.vl_model))
    model = Qwen3VLWith3DBranch(
        source,
        vae_model=vae,
        torch_dtype=torch.bfloat16,
        max_3d_tokens=options.max_3d_tokens,
        projector_num_layers=options.projector_layers,
        merge=options.merge,
    ).to(device)
    if options.projector_ckpt is not None:
        model.load_projector(options.projector_ckpt)
        model.max_3d_tokens = options.max_3d_tokens
    if options.lora_dir is not None:
        model.load_lora(options.lora_dir, trainable=True)
    elif options.lora_r:
        model.add_lora(r=options.lora_r, alpha=2 * options.lora_r)
    settings = {f.name: getattr(options, f.name) for f in dataclasses.fields(AlignmentOptions)}
    processor = Processor3D.from_pretrained(source)
    trainer = AlignmentTrainer(model, processor, AlignmentOptions(**settings), options.output_dir)
    log = trainer.run(data, held_out)
    print(log[-1])


if __name__ == "__main__":
    main()
