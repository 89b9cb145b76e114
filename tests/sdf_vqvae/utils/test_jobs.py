"""Items through workers: all come back once, failures cost themselves alone, a full disk stops the run."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sdf_vqvae.utils.files import atomic_path
from sdf_vqvae.utils.jobs import DIED_TWICE, Done, devices_for, run_jobs
from sdf_vqvae.utils.workers import disk_is_full

POOLS = [{"workers": 1}, {"workers": 2, "devices": ("cuda:0", "cuda:1")}]


def squares(device: str) -> Callable[[int], tuple[int, str]]:
    return functools.partial(_square, device=device)


def _square(item: int, device: str) -> tuple[int, str]:
    return item * item, device


def moody(device: str, folder: Path | None = None) -> Callable[[str], str]:
    return functools.partial(_moody, folder=folder)


def _moody(item: str, folder: Path | None) -> str:
    """Do what the item says."""
    if item == "bad":
        raise ValueError("not\na shape")
    if item == "unreadable":
        raise OSError("nobody can read it")
    if item == "large":
        raise MemoryError
    if item == "large for PyTorch":
        torch.empty(2**60)
    if item == "full":
        raise ValueError("cannot be saved") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if item == "library":
        raise ImportError("pip install it")
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "kill once":
        assert folder is not None
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            return "survived"
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refusing(device: str) -> Callable[[int], int]:
    raise ValueError(f"{device} is no place to work")


def dying(device: str) -> Callable[[int], int]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _sorted(done: Iterator[Done]) -> list[Done]:
    return sorted(done, key=lambda one: one.number)


@pytest.mark.parametrize("pool", POOLS)
def test_every_item_comes_back_once_with_its_number(pool):
    done = _sorted(run_jobs(squares, range(7), **pool))
    assert [(one.number, one.result[0], one.error) for one in done] == [(n, n * n, "") for n in range(7)]
    assert {one.result[1] for one in done} <= set(pool.get("devices", ["cpu"]))


def test_items_are_drawn_as_they_are_needed():
    drawn = []
    items = (drawn.append(n) or n for n in itertools.count())
    done = run_jobs(squares, items, workers=2)
    for _ in range(5):
        next(done)
    assert len(drawn) <= 5 + 2
    done.close()


def test_a_failed_item_costs_itself_alone():
    items = ["a", "bad", "unreadable", "large", "large for PyTorch", "b"]
    done = _sorted(run_jobs(moody, items))
    assert [one.result for one in done] == ["a", None, None, None, None, "b"]
    assert [one.error for one in done[:4]] == ["", "not a shape", "nobody can read it", "out of memory: MemoryError"]
    assert done[4].error.startswith("out of memory: ")


def test_a_dead_worker_costs_no_other_item_and_what_it_held_is_tried_once_more(tmp_path):
    make = functools.partial(moody, folder=tmp_path)
    done = _sorted(run_jobs(make, ["a", "kill once", "bad", "kill", "b"], workers=2))
    assert [one.result for one in done] == ["a", "survived", None, None, "b"]
    assert [one.error for one in done] == ["", "", "not a shape", f"{DIED_TWICE} (SIGKILL)", ""]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_run_and_says_how_to_go_on(workers):
    items = itertools.chain(["a", "b", "full"], itertools.repeat("c"))
    with pytest.raises(OSError, match=r"^the disk is full \(cannot be saved\); the \d+ items .* goes on") as caught:
        list(run_jobs(moody, items, workers=workers))
    assert disk_is_full(caught.value)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_missing_library_stops_the_run(workers):
    with pytest.raises(ImportError, match=r"^pip install it$"):
        list(run_jobs(moody, ["library"], workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_be_made_stops_the_run(workers):
    with pytest.raises(ValueError, match=r"^cpu is no place to work$"):
        list(run_jobs(refusing, [1, 2], workers=workers))


@pytest.mark.slow
def test_workers_that_die_as_they_start_stop_the_run():
    with pytest.raises(OSError, match=r"die as they start \(SIGKILL\)"):
        list(run_jobs(dying, [1], workers=2))


def test_no_items_are_no_work():
    assert list(run_jobs(squares, [])) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "number of workers must be at least 1, got 0"),
        ({"devices": ()}, "no device"),
        ({"engine": "slurm"}, "engine 'slurm' is unknown; use local or ray"),
    ],
)
def test_wrong_arguments_are_refused_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        run_jobs(squares, [1], **wrong)


def test_a_full_disk_is_known_through_the_writing_of_files(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert disk_is_full(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert not disk_is_full(OSError(errno.EACCES, "no"))


def test_more_gpus_than_there_are_is_an_error():
    present = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"{present + 1} GPUs were asked for, but PyTorch sees {present}"):
        devices_for(present + 1)
    assert devices_for(0) == ("cpu",)
    assert devices_for(None) == devices_for(-1) == (tuple(f"cuda:{n}" for n in range(present)) or ("cpu",))


@pytest.mark.slow
def test_ray_does_the_same_and_survives_a_lost_worker(tmp_path):
    pytest.importorskip("ray")
    make = functools.partial(moody, folder=tmp_path)
    done = _sorted(run_jobs(make, ["a", "kill once", "bad", "kill", "b"], workers=2, engine="ray"))
    assert [one.result for one in done] == ["a", "survived", None, None, "b"]
    assert [one.error for one in done] == ["", "", "not a shape", f"{DIED_TWICE} (its actor was lost)", ""]
