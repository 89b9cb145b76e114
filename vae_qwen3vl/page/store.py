"""Files that a page hands to browsers for a while: in memory, under names that can't be guessed.

Knows bytes and names; the oldest go when there are too many bytes.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from urllib.parse import quote


class FileStore:
    """Keeps files until newer ones need their room; used by many threads.

    Args:
        most_bytes: of all files together; the newest is kept however large it is.
    """

    def __init__(self, most_bytes: int = 2**29) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._files: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> str:
        """Keep a file and return the path that leads to it: a token, and the name."""
        key = (secrets.token_urlsafe(16), name)
        with self._lock:
            self._files[key] = data
            self._bytes += len(data)
            while self._bytes > self._most_bytes and len(self._files) > 1:
                _, dropped = self._files.popitem(last=False)
                self._bytes -= len(dropped)
        return f"{key[0]}/{quote(name)}"

    def get(self, token: str, name: str) -> bytes | None:
        """Return a file; None where there is none, or none any more."""
        with self._lock:
            return self._files.get((token, name))
