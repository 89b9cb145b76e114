"""Start alignment training as a config says: on its GPUs through Accelerate, or as one process.

    python scripts/run_3d_align_train.py --config configs/3d_align_train.yaml
    python scripts/run_3d_align_train.py --config configs/3d_align_train.yaml --debug
    python scripts/run_3d_align_train.py --config mine.yaml --lr 5e-5 --resume

The config's `accelerate` section says how many processes there are; where fewer GPUs are here, fewer processes
start, and without any it is one process on the CPU. Everything else on the line goes to train_finetune.py.

SIGTERM, SIGINT (Ctrl-C) and SIGHUP go on to the training, which saves a checkpoint and ends; this program ends after
all its processes, with exit code 128 + the signal's number. `--resume` goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.utils.programs import add_version, run_program
from vae_qwen3vl.config import AlignmentConfig

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "configs/3d_align_train.yaml"
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE_SECONDS = 10.0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; unknown flags are the training's."""
    parser = argparse.ArgumentParser(
        prog="run_3d_align_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_version(parser)
    parser.add_argument("--config", default=DEFAULT, metavar="YAML", help=f"settings (default: {DEFAULT})")
    parser.add_argument("--debug", action="store_true", help="one process, and everything that is logged on screen")
    return parser


def launch_command(config: AlignmentConfig, gpus: int, file: Path, *, debug: bool) -> list[str]:
    """Return the command that starts the processes; with several, `file` gets the settings of Accelerate."""
    script = str(ROOT / "vae_qwen3vl" / "train_finetune.py")
    wanted = int(config.accelerate.get("num_processes", 1))
    machines = int(config.accelerate.get("num_machines", 1))
    processes = wanted if machines > 1 else min(wanted, gpus)
    if debug or processes <= 1 or config.accelerate.get("use_cpu"):
        return [sys.executable, script]
    if processes < wanted:
        print(f"{wanted} processes are asked for, {gpus} GPUs are here: {processes} start", file=sys.stderr)
    import yaml  # there, since the config was read

    section: dict[str, Any] = {**config.accelerate, "num_processes": processes}
    file.write_text(yaml.safe_dump(section), encoding="utf-8")
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), script]


def work(options: argparse.Namespace) -> int:
    """Start the training and return its exit code."""
    config = AlignmentConfig.from_file(options.config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "accelerate.yaml"
        command = launch_command(config, torch.cuda.device_count(), file, debug=options.debug)
        flags = ["--config", options.config, *options.rest]
        if os.environ.get("VAE_CKPT"):  # as the original's script has it
            flags += ["--vae_ckpt", os.environ["VAE_CKPT"]]
        if options.debug:
            flags.append("--verbose")
        return run_to_its_end([*command, *flags])


def run_to_its_end(command: list[str]) -> int:
    """Run a command in a process group of its own, and return its exit code.

    Signals that ask this program to end are passed on to all of the group, the second one too, which ends at once;
    a third kills. After a signal nothing of the group is left: what outlives the command by ten seconds is killed.
    """
    received: list[int] = []
    started: list[int] = []
    passed: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for group in started:
            passed.append(number)
            _signal_group(group, number if len(passed) < 3 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}  # from before there is anything to end
    try:
        process = subprocess.Popen(command, start_new_session=True)
        started.append(process.pid)
        if received and not passed:  # while it started
            _signal_group(process.pid, received[0])
        code = process.wait()
        limit = time.monotonic() + _GRACE_SECONDS
        while received and time.monotonic() < limit and _signal_group(process.pid, 0):
            time.sleep(0.05)
        if received:
            _signal_group(process.pid, signal.SIGKILL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else code if code >= 0 else 128 - code


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group (0 only asks), and return whether there is any process in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    """Run the program and return its exit code."""
    options, rest = make_parser().parse_known_args()
    options.rest = rest
    return run_program("run_3d_align_train", work, options)


if __name__ == "__main__":
    sys.exit(main())
