"""Files appear whole, for whom the umask lets read them; one program writes to a folder at a time."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch

from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import atomic_path, file_lock, only_writer


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_can_be_read_by_whom_the_umask_lets(tmp_path, umask):
    write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("b")
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name


def test_one_program_at_a_time_writes_to_a_folder_and_no_lock_stays(tmp_path):
    with only_writer(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(OSError, match="another program is writing"), only_writer(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()  # the one who was refused leaves it
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="inside"), only_writer(tmp_path):
        raise ValueError("inside")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_killed_program_left_is_taken_over(tmp_path):
    (tmp_path / ".lock").touch()
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def _count(folder: str, times: int) -> None:
    counter = Path(folder) / "counter"
    for _ in range(times):
        with file_lock(Path(folder) / ".lock", wait=True):
            value = int(counter.read_text())
            counter.write_text(str(value + 1))


def test_processes_that_wait_for_a_lock_never_hold_it_together(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(str(tmp_path), 200)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "counter").read_text() == "800"
    assert not (tmp_path / ".lock").exists()
