"""Files appear whole, for whom the umask lets read them; one program writes to a folder at a time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch

from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.files import (
    atomic_folder,
    atomic_path,
    file_lock,
    only_writer,
    sha256_of,
    write_json,
    write_json_lines,
    write_text,
)


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


def test_json_and_text_are_written_to_the_byte_with_the_end_of_their_line(tmp_path):
    value = {"name": "Stuhl für Gäste", "sizes": [1, 0.5]}
    write_json(tmp_path / "plain.json", value)
    assert (tmp_path / "plain.json").read_bytes() == b'{"name": "Stuhl f\\u00fcr G\\u00e4ste", "sizes": [1, 0.5]}\n'
    write_json(tmp_path / "nice.json", value, indent=1, ensure_ascii=False)
    nice = '{\n "name": "Stuhl für Gäste",\n "sizes": [\n  1,\n  0.5\n ]\n}\n'
    assert (tmp_path / "nice.json").read_bytes() == nice.encode()
    write_json_lines(tmp_path / "some.jsonl", iter([value, None]), ensure_ascii=False)
    assert (tmp_path / "some.jsonl").read_bytes() == '{"name": "Stuhl für Gäste", "sizes": [1, 0.5]}\nnull\n'.encode()
    write_text(tmp_path / "words.txt", "für\n")
    assert (tmp_path / "words.txt").read_bytes() == "für\n".encode()


def test_what_cannot_be_written_whole_leaves_the_earlier_file(tmp_path):
    file = tmp_path / "log.jsonl"
    write_json_lines(file, [1, 2])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json_lines(file, [3, object()])
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert file.read_text() == "1\n2\n"


def test_a_folder_takes_the_place_of_the_earlier_one_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made" / "case"
    for text in ("one", "two"):
        with atomic_folder(target) as folder:
            assert folder.parent == target.parent and (text == "one") != target.exists()
            (folder / text).write_text(text)
    with pytest.raises(ValueError, match="inside"), atomic_folder(target) as folder:
        (folder / "three").touch()
        raise ValueError("inside")
    assert [path.name for path in target.parent.iterdir()] == ["case"]
    assert [path.name for path in target.iterdir()] == ["two"]


def test_a_part_of_a_file_has_the_hash_of_its_bytes(tmp_path):
    file = tmp_path / "blob"
    file.write_bytes(b"abc" * 1_000_000)
    for start, size in ((0, None), (3, None), (1_000_000, 2_000_001), (2_999_999, 50), (5, 0)):
        part = (b"abc" * 1_000_000)[start : None if size is None else start + size]
        assert sha256_of(file, start, size) == hashlib.sha256(part).hexdigest()


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


def test_one_program_at_a_time_writes_a_file_and_others_may_write_beside_it(tmp_path):
    with only_writer(tmp_path / "a.jsonl"):
        with pytest.raises(OSError, match="choose another file"), only_writer(tmp_path / "a.jsonl"):
            pass
        with only_writer(tmp_path / "b.jsonl"), only_writer(tmp_path):
            pass
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
