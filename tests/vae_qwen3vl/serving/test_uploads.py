"""Uploads are bounded, end, and are their owner's alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vae_qwen3vl.serving.uploads import UploadFolder, UploadsFullError


def folder_at(path: Path, **bounds) -> UploadFolder:
    return UploadFolder(path, **{"most_files": 10, "most_bytes": 1000, "seconds": 60.0, **bounds})


def test_a_file_is_kept_listed_and_deleted_by_its_owner_alone(tmp_path):
    uploads = folder_at(tmp_path / "up")
    mine = uploads.add(b"mesh", "../../etc/a chair.glb", "user_data", "me")
    assert uploads.content(mine) == b"mesh"
    assert uploads.get(mine.id, "you") is None
    assert uploads.of_owner("you") == []
    assert uploads.of_owner("me") == [mine] == folder_at(tmp_path / "up").of_owner("me")
    assert {path.name for path in (tmp_path / "up").iterdir()} == {f"{mine.id}.bin", f"{mine.id}.json"}
    assert "owner" not in mine.to_json()
    uploads.delete(mine)
    assert list((tmp_path / "up").iterdir()) == []
    assert uploads.content(mine) is None


def test_number_and_bytes_are_bounded_and_room_comes_back(tmp_path):
    uploads = folder_at(tmp_path, most_files=2)
    kept = uploads.add(bytes(600), "a.glb", "", "")
    with pytest.raises(UploadsFullError, match="no room for 401 bytes beside the 1 uploads"):
        uploads.add(bytes(401), "b.glb", "", "")
    uploads.add(bytes(400), "b.glb", "", "")
    with pytest.raises(UploadsFullError, match="delete some"):
        uploads.add(b"", "c.glb", "", "")
    uploads.delete(kept)
    uploads.add(b"", "c.glb", "", "")


def test_files_expire(tmp_path, monkeypatch):
    uploads = folder_at(tmp_path)
    old = uploads.add(b"mesh", "a.glb", "", "")
    later = time.time() + 61
    monkeypatch.setattr("vae_qwen3vl.serving.uploads.time.time", lambda: later)
    assert uploads.get(old.id, "") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "file-../../etc/passwd", "file-" + "0" * 23, "", "file-" + "G" * 24])
def test_names_that_are_not_ours_lead_nowhere(tmp_path, name):
    assert folder_at(tmp_path).get(name, "") is None


def test_links_in_the_folder_are_not_followed(tmp_path):
    uploads = folder_at(tmp_path / "up")
    upload = uploads.add(b"mesh", "a.glb", "", "")
    content = tmp_path / "up" / f"{upload.id}.bin"
    content.unlink()
    content.symlink_to("/etc/passwd")
    assert uploads.get(upload.id, "") is None
