"""Two processes, each with half of the batch, train as one process does with all of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import ddp_worker as worker

WORLD = 2
CASES = ["codes", "raw fields", "answers of unequal length", "text alone on one rank"]
MODELS = ["qwen2_vl", "qwen3_vl with LoRA"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, repository):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a machine may not know its own name
    files = [folder / f"rank{rank}.safetensors" for rank in range(WORLD)]
    processes = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(rank), str(WORLD), str(folder / "rendezvous"), str(files[rank])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [load_file(file) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_one_process_on_the_joined_batch(ranks, name, case):
    expected = worker.train(worker.build(name, seed=5), worker.inputs_of(case, 0, 4, 1.0))
    assert any(value.any() for key, value in expected.items() if "marker_vectors" in key)
    for key, value in expected.items():
        for found in ranks:
            torch.testing.assert_close(found[f"{name}/{case}/{key}"], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_halves_differ_so_the_test_above_can_fail(ranks, name):
    key = f"{name}/codes/alone/projector.marker_vectors"
    assert (ranks[0][key] - ranks[1][key]).abs().max() > 1e-3
    mean = (ranks[0][key] + ranks[1][key]) / WORLD
    torch.testing.assert_close(ranks[0][f"{name}/codes/0/projector.marker_vectors"], mean, rtol=1e-3, atol=1e-6)
