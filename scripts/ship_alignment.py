"""Make the shipped projector and adapter of a finished run of train_finetune.py, in less space.

python scripts/ship_alignment.py outputs_3d_align/ep2_lr1e-4_bs2_n500_lora8 -o vae_qwen3vl/weights
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from sdf_vqvae.utils.programs import run_program


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    parser = argparse.ArgumentParser(
        prog="ship_alignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for both")
    return parser


def work(options: argparse.Namespace) -> int:
    """Write projector.safetensors in int8, and lora/, and print their size."""
    from vae_qwen3vl.projector_file import load_projector, save_projector
    from vae_qwen3vl.trained_parts import LORA_FINAL, LORA_NAME, PROJECTOR_FINAL, PROJECTOR_NAME

    projector, description = load_projector(options.run / PROJECTOR_FINAL)
    options.output.mkdir(parents=True, exist_ok=True)
    save_projector(options.output / PROJECTOR_NAME, projector, description, packed=True)
    shutil.rmtree(options.output / LORA_NAME, ignore_errors=True)
    if (options.run / LORA_FINAL).is_dir():
        shutil.copytree(options.run / LORA_FINAL, options.output / LORA_NAME)
    files = [path for path in options.output.rglob("*") if path.suffix in (".safetensors", ".json")]
    print(f"{sum(path.stat().st_size for path in files) / 2**20:.2f} MiB in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program("ship_alignment", work, make_parser().parse_args()))
