"""The program `pack-model`: all parts of a model in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.utils.programs import add_run_options, print_json
from vae_qwen3vl.commands.options import add_language_options, quiet_transformers

ABOUT = "Write a model into one folder: language model, projector, adapter, tokenizers. transformers opens it."
EXAMPLES = (
    "  vae-qwen3vl pack-model -o my_model\n"
    "  vae-qwen3vl pack-model -o my_model --vl_model outputs_3d_vl/ep10_lr0.001_bs8_n0_lora8\n"
    "  vae-qwen3vl pack-model -o my_model --vl_model Qwen/Qwen3-VL-2B-Instruct --projector_ckpt projector_final.pt "
    "--by_name"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--by_name",
        action="store_true",
        help="write the language model's name instead of its weights, and no tokenizer that every installation has",
    )
    parser.add_argument(
        "--merge_adapter", action="store_true", help="add the adapter into the language model's weights"
    )
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser, device=False)


def work(options: argparse.Namespace) -> int:
    """Write the folder."""
    from vae_qwen3vl.pretrained.packing import pack

    if options.by_name and options.merge_adapter:
        raise ValueError("--merge_adapter changes the language model's weights, so --by_name can't stand for them")
    quiet_transformers(options.verbose)
    pack(
        options.output,
        vl_model=options.vl_model,
        projector=options.projector_ckpt,
        lora=options.lora_dir,
        vae_config=options.vae_config,
        vae_ckpt=options.vae_ckpt,
        merge_adapter=options.merge_adapter,
        by_name=options.by_name,
    )
    files = {str(f.relative_to(options.output)): f.stat().st_size for f in options.output.rglob("*") if f.is_file()}
    if options.json:
        print_json({"folder": str(options.output), "bytes": sum(files.values()), "files": files})
    else:
        print(f"{options.output}: {len(files)} files, {sum(files.values()) / 1e6:.1f} MB")
    return 0
