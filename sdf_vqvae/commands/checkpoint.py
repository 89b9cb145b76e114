"""The program `checkpoint`: what a tokenizer's weights hold, and whether they fit."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sdf_vqvae.utils.programs import add_run_options, print_json

ABOUT = "Say what a VAE checkpoint holds and whether it fits a config; with -o, write it as safetensors."
EXAMPLES = (
    "  vae-qwen3vl checkpoint vqvae_step0000459.pt --vae_config configs/vae/sdf_vqvae_stage2.json -o my_vae\n"
    "  vae-qwen3vl checkpoint sparse_vae_512.pth --vae_config configs/vae/direct3d_s2_512.json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "vae_ckpt", metavar="FILE", type=Path, help=".safetensors, or .pt/.pth of the original system"
    )
    parser.add_argument("--vae_config", metavar="JSON", help="its configuration (default: config.json beside it)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="folder for model.safetensors and config.json"
    )
    add_run_options(parser, device=False)


def work(options: argparse.Namespace) -> int:
    """Look, and write where asked to."""
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.model.checkpoint import config_beside, load_weights, save_vae
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

    vae = SparseSDFVQVAE(VAEConfig.from_json(options.vae_config or config_beside(options.vae_ckpt)))
    report = load_weights(vae, options.vae_ckpt, codebook_required=False)
    if options.output is not None:
        if report.missing:
            raise ValueError(f"{options.vae_ckpt} holds no codebook, so there is no whole VAE to write")
        save_vae(vae, options.output)
    if options.json:
        print_json(
            {
                **dataclasses.asdict(report),
                "fingerprint": None if report.missing else vae.fingerprint(),
                "output": None if options.output is None else str(options.output),
            }
        )
        return 0
    print(report.table())
    if options.output is not None:
        print(f"written to {options.output}")
    return 0
