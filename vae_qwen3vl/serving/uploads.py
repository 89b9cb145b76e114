"""Uploaded files in one folder, with a bound on their number and bytes, and an end.

The folder is all there is to know, so several servers may share it. Names of users are words in a record and never a
path.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sdf_vqvae.utils.files import atomic_path, file_lock, write_json
from sdf_vqvae.utils.strict_files import parse_json

_ID = re.compile(r"file-[0-9a-f]{24}")


class UploadsFullError(ValueError):
    """There is no room for another file."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One file."""

    id: str
    filename: str
    """As the user calls it."""
    bytes: int
    created_at: int
    """Seconds since 1970."""
    expires_at: int
    purpose: str
    owner: str
    """Whose it is; nobody else is told of it."""

    def to_json(self) -> dict[str, object]:
        """Return it in the form of OpenAI's interface."""
        about = asdict(self)
        del about["owner"]
        return {**about, "object": "file", "status": "processed"}


class UploadFolder:
    """The files of a folder.

    Args:
        folder: made where it isn't there; it should be the server's own.
        most_files: bound on their number.
        most_bytes: bound on their bytes together.
        seconds: how long one is kept.
    """

    def __init__(self, folder: Path, *, most_files: int, most_bytes: int, seconds: float) -> None:
        self.folder, self.most_files, self.most_bytes, self.seconds = folder, most_files, most_bytes, seconds
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, data: bytes, filename: str, purpose: str, owner: str) -> Upload:
        """Keep a file.

        Raises:
            UploadsFullError: there is no room; the message says the remedy.
            OSError: the disk is full, or the folder can't be written to.
        """
        now = int(time.time())
        with file_lock(self.folder / ".lock", wait=True):
            kept = self._all()
            if len(kept) >= self.most_files or sum(file.bytes for file in kept) + len(data) > self.most_bytes:
                raise UploadsFullError(
                    f"there is no room for {len(data):,} bytes beside the {len(kept):,} uploads that are kept: "
                    "delete some, wait until they expire, or send the mesh with the chat as a data: address"
                )
            upload = Upload(
                id=f"file-{secrets.token_hex(12)}",
                filename=filename,
                bytes=len(data),
                created_at=now,
                expires_at=now + int(self.seconds),
                purpose=purpose,
                owner=owner,
            )
            with atomic_path(self._content(upload.id)) as temporary:
                temporary.write_bytes(data)
            write_json(self._record(upload.id), asdict(upload))
        return upload

    def get(self, name: str, owner: str) -> Upload | None:
        """Return a file of an owner's, None where there is none of that name."""
        upload = self._read(name) if _ID.fullmatch(name) else None
        return upload if upload is not None and upload.owner == owner else None

    def content(self, upload: Upload) -> bytes | None:
        """Return what is in a file, None where it was deleted since."""
        try:
            return self._content(upload.id).read_bytes()
        except FileNotFoundError:
            return None

    def of_owner(self, owner: str) -> list[Upload]:
        """Return the files of an owner, the newest first."""
        mine = [upload for upload in self._all() if upload.owner == owner]
        return sorted(mine, key=lambda upload: (upload.created_at, upload.id), reverse=True)

    def delete(self, upload: Upload) -> None:
        """Delete a file, if it is still there."""
        self._record(upload.id).unlink(missing_ok=True)
        self._content(upload.id).unlink(missing_ok=True)

    def _all(self) -> list[Upload]:
        """Return all files, and delete those whose time is over."""
        names = [path.stem for path in self.folder.glob("file-*.json") if _ID.fullmatch(path.stem)]
        return [upload for name in names if (upload := self._read(name)) is not None]

    def _read(self, name: str) -> Upload | None:
        record = self._record(name)
        if record.is_symlink() or self._content(name).is_symlink():
            return None  # not written here
        try:
            upload = Upload(**parse_json(record.read_bytes()))
        except FileNotFoundError:
            return None
        if upload.expires_at > time.time():
            return upload
        self.delete(upload)
        return None

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _content(self, name: str) -> Path:
        return self.folder / f"{name}.bin"
