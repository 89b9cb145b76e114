"""Edits of valid files that keep their syntax: a number, name or line is changed, and lengths are set right again.

Fuzzing by bytes alone rarely gets past the outermost syntax. Shared by `tests/test_fuzz.py`
and `benchmarks/quality/fuzz.py`.
"""

from __future__ import annotations

import ast
import json
import random
import struct
from typing import Any

NASTY: tuple[Any, ...] = (
    0, 1, 2, 3, 5, -1, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 10**9, 10**12, 2**63, 2**64, 0.5, -0.5, 1e-300,
    1e308, float("nan"), float("inf"), True, False, None, "", "a", "0", "../x", "/etc/passwd", "http://a.invalid/b",
    "data:,", [], {}, [0], [[]], {"a": 0}, "nan",
)  # fmt: skip


def edit(suffix: str, data: bytes, chance: random.Random) -> bytes:
    """Return the file with one to four edits; without an idea of its format, the bytes as they are."""
    for _ in range(chance.randint(1, 4)):
        try:
            data = _EDITS[suffix](data, chance)
        except (
            KeyError,
            ValueError,
            IndexError,
            TypeError,
            ArithmeticError,
            struct.error,
            SyntaxError,
            RecursionError,
        ):
            break
    return data


def edit_value(value: Any, chance: random.Random) -> Any:
    """Return a value of JSON with one change somewhere in it."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.dumps(edit_value(json.loads(value), chance))
    if not isinstance(value, dict | list) or not value or chance.random() < 0.05:
        return chance.choice(NASTY)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    kind = chance.random()
    if kind < 0.75:
        changed[key] = edit_value(changed[key], chance)
    elif kind < 0.85:
        del changed[key]
    elif isinstance(changed, list):
        changed += [changed[key]] * chance.choice((1, 3, 100))
    else:
        changed[chance.choice((str(key) + "_", chance.choice(keys)))] = changed[key]
    return changed


def _json(data: bytes, chance: random.Random) -> bytes:
    return json.dumps(edit_value(json.loads(data), chance)).encode()


def _glb(data: bytes, chance: random.Random) -> bytes:
    length = struct.unpack_from("<I", data, 12)[0]
    text = _json(data[20 : 20 + length], chance)
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _safetensors(data: bytes, chance: random.Random) -> bytes:
    length = struct.unpack_from("<Q", data)[0]
    text = _json(data[8 : 8 + length], chance)
    rest = data[8 + length :]
    if chance.random() < 0.3 and rest:
        place = chance.randrange(len(rest))
        rest = rest[:place] + chance.randbytes(1) + rest[place + 1 :]
    return struct.pack("<Q", len(text)) + text + rest


def _request(data: bytes, chance: random.Random) -> bytes:
    path, _, body = data.partition(b"\n")
    return path + b"\n" + (_text(body, chance) if path == b"/v1/files" else _json(body, chance))


def _text(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    kind = chance.random()
    if kind < 0.6:
        words = lines[place].split(b" ")
        words[chance.randrange(len(words))] = str(chance.choice(NASTY)).encode()
        lines[place] = b" ".join(words)
    elif kind < 0.75:
        del lines[place]
    elif kind < 0.9:
        lines[place:place] = [lines[chance.randrange(len(lines))]] * chance.choice((1, 2, 50))
    else:
        lines[place] += b" " + lines[chance.randrange(len(lines))]
    return b"\n".join(lines)


def _members(data: bytes, chance: random.Random) -> bytes:
    """Edit the text of one `.npy` header, or one byte of a member, in what `pack_members` wrote."""
    members = []
    place = 0
    while place < len(data):
        name = data[place : place + 1 + data[place]]
        place += len(name)
        size = int.from_bytes(data[place : place + 4], "little")
        members.append([name, data[place + 4 : place + 4 + size]])
        place += 4 + size
    chosen = chance.choice(members)
    chosen[1] = _npy(chosen[1], chance) if chosen[1][:6] == b"\x93NUMPY" else _one_byte(chosen[1], chance)
    return b"".join(name + len(body).to_bytes(4, "little") + body for name, body in members)


def _npy(data: bytes, chance: random.Random) -> bytes:
    length = struct.unpack_from("<H", data, 8)[0]
    body = data[10 + length :]
    if chance.random() < 0.3 and body:
        return data[: 10 + length] + _one_byte(body, chance)
    header = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    key = chance.choice(["shape", "descr", "fortran_order"])
    if key == "shape":
        numbers = [n for n in NASTY if isinstance(n, int)]
        header[key] = tuple(chance.choice(numbers) for _ in range(chance.randint(0, 3)))
    elif key == "descr":
        header[key] = chance.choice(
            ["|O", "<f8", "<i8", "|b1", "<U4", "<U999999999", "|V0", ">f4", "|S0", "", [("a", "<f4")]]
        )
    else:
        header[key] = chance.choice([True, 1, None])
    text = repr(header).encode()[:60000] + b"\n"
    return data[:8] + struct.pack("<H", len(text)) + text + body


def _one_byte(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + chance.randbytes(1) + data[place + 1 :]


_EDITS = {
    ".json": _json, ".gltf": _json, ".glb": _glb, ".safetensors": _safetensors, ".obj": _text, ".off": _text,
    ".ply": _text, ".stl": _text, ".npz-members": _members, ".pt-members": _members, ".request": _request,
}  # fmt: skip
