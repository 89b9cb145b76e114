"""Checkpoints of a training run: everything that the next step depends on, in files that hold no code.

A checkpoint is a folder `checkpoints/step_0001000` with `model.safetensors` (weights and the quantizer's averages),
`average_*.safetensors`, `optimizer.safetensors`, `state.json`, and for each process `rank_0.safetensors` (random
generators, recent latent vectors) and `rank_0.json` (its place in the data). It gets its name only when complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdf_vqvae.utils.archives import read_safetensors, write_safetensors
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import parse_json

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "checkpoints"
_PREFIX = "step_"
_UNFINISHED = "unfinished"
_REMOVED = "removed"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One checkpoint, read back."""

    model: dict[str, Tensor]
    averages: list[dict[str, Tensor]]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """What is the same for all processes."""
    rank_state: dict[str, Any]
    """This process's place in the data."""
    rank_tensors: dict[str, Tensor]


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the complete checkpoints of a run folder, ascending."""
    folder = run / FOLDER
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(n.removeprefix(_PREFIX)) for n in names if n.removeprefix(_PREFIX).isdigit())


def path_of(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / FOLDER / f"{_PREFIX}{step:07d}"


def unfinished_folder(run: Path) -> Path:
    """Return where a checkpoint is written before it gets its name."""
    return run / FOLDER / _UNFINISHED


def write(
    run: Path,
    step: int,
    accelerator: Accelerator,
    *,
    model: nn.Module,
    averages: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    rank_state: Mapping[str, Any],
    rank_tensors: Mapping[str, Tensor],
    keep: int,
) -> None:
    """Write a checkpoint (all processes together) and remove all but the latest `keep`.

    Args:
        run: the run folder.
        step: the checkpoint's number.
        accelerator: the processes. The first one writes what is the same for all.
        model: whose state is kept.
        averages: modules whose states are kept beside it.
        optimizer: of the model's parameters.
        state: plain values that are the same for all processes; `processes`, their number, is added.
        rank_state: this process's plain values.
        rank_tensors: this process's tensors.
        keep: how many checkpoints stay.
    """
    folder, rank = unfinished_folder(run), accelerator.process_index
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_safetensors(folder / "model.safetensors", _tensors(model))
        for number, average in enumerate(averages):
            write_safetensors(folder / f"average_{number}.safetensors", _tensors(average))
        if optimizer is not None:
            write_safetensors(folder / "optimizer.safetensors", optimizer_tensors(model, optimizer))
        shared = {**state, "processes": accelerator.num_processes, "averages": len(averages)}
        write_json(folder / "state.json", shared)
    write_safetensors(folder / f"rank_{rank}.safetensors", dict(rank_tensors))
    write_json(folder / f"rank_{rank}.json", dict(rank_state))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = path_of(run, step)
        if final.exists():
            _remove(run, step)
        folder.rename(final)
        for old in checkpoint_steps(run)[:-keep]:
            _remove(run, old)
    accelerator.wait_for_everyone()


def _remove(run: Path, step: int) -> None:
    """Remove a checkpoint; a program that dies meanwhile leaves none that has its name and lacks files."""
    removed = run / FOLDER / _REMOVED
    shutil.rmtree(removed, ignore_errors=True)
    path_of(run, step).rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def read_state(run: Path, step: int) -> dict[str, Any]:
    """Read what a checkpoint says for all processes alike.

    Raises:
        ValueError: the file is missing or damaged, or lacks the number of processes.
    """
    folder = path_of(run, step)
    try:
        state = parse_json((folder / "state.json").read_bytes())
    except OSError as error:
        raise ValueError(f"{folder} is not a whole checkpoint: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("processes"), int):
        raise ValueError(f"{folder} is not a whole checkpoint: its state.json has no number of processes")
    return state


def read(run: Path, step: int, rank: int) -> Snapshot:
    """Read a checkpoint for one process.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder, state = path_of(run, step), read_state(run, step)
    try:
        rank_state = parse_json((folder / f"rank_{rank}.json").read_bytes())
        count = int(state["averages"])
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint: {error}") from error
    optimizer = folder / "optimizer.safetensors"
    return Snapshot(
        model=read_safetensors(folder / "model.safetensors", "checkpoint")[0],
        averages=[
            read_safetensors(folder / f"average_{number}.safetensors", "checkpoint")[0] for number in range(count)
        ],
        optimizer=read_safetensors(optimizer, "checkpoint")[0] if optimizer.is_file() else {},
        state=state,
        rank_state=rank_state,
        rank_tensors=read_safetensors(folder / f"rank_{rank}.safetensors", "checkpoint")[0],
    )


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's random generators: the CPU's, and a CUDA device's."""
    states = {"cpu_generator": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda_generator"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators to what `generator_states` returned."""
    torch.set_rng_state(states["cpu_generator"])
    if device.type == "cuda" and "cuda_generator" in states:
        torch.cuda.set_rng_state(states["cuda_generator"], device)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors under the names of their parameters, e.g. `exp_avg/decoder.out_layer.weight`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors back where `optimizer_tensors` took them from."""
    parameters = dict(model.named_parameters())
    for place, value in tensors.items():
        key, name = place.split("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step count on the CPU.
        device = value.device if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.to(device)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
