"""Bad mesh files: what is wrong with each, what writes it, and words of the line that must be printed about it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

Write = Callable[[Path], object]


def _data(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def _obj(vertices: list[tuple[float, float, float]], faces: list[tuple[int, ...]]) -> bytes:
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + ["f " + " ".join(map(str, face)) for face in faces]
    return "\n".join(lines).encode() + b"\n"


def gltf(uri: str = "box.bin", **changes: Any) -> bytes:
    """Return a glTF of one triangle whose 36 bytes lie at a URI."""
    document = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 36, "uri": uri}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    return json.dumps({**document, **changes}).encode()


TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes()
"""The buffer of `gltf`."""


def glb(document: bytes, binary: bytes = b"") -> bytes:
    """Return a GLB file of JSON and a binary chunk."""
    document += b" " * (-len(document) % 4)
    chunks = struct.pack("<I4s", len(document), b"JSON") + document
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _link_out(path: Path) -> None:
    path.parent.mkdir()
    (path.parent.parent / "elsewhere.bin").write_bytes(TRIANGLE)
    path.with_name("link.bin").symlink_to("../elsewhere.bin")
    path.write_bytes(gltf("link.bin"))


def _truncated_glb(path: Path) -> None:
    content = trimesh.creation.box().export(file_type="glb")
    path.write_bytes(content[: len(content) // 2])


def _truncated_ply(path: Path) -> None:
    content = trimesh.creation.box().export(file_type="ply")
    path.write_bytes(content[: len(content) // 2])


def _with_device(path: Path) -> None:
    path.write_bytes(gltf("pipe.bin"))
    os.mkfifo(path.with_name("pipe.bin"))


def _with_nodes(children: bool, count: int) -> Write:
    def write(path: Path) -> None:
        path.write_bytes(gltf(**many_nodes(children, count)))
        path.with_name("box.bin").write_bytes(TRIANGLE)

    return write


def ply(kind: str, vertices: int, faces: int, body: bytes) -> bytes:
    """Return a PLY file of the given counts and body."""
    header = f"ply\nformat {kind} 1.0\nelement vertex {vertices}\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    return (header + f"element face {faces}\nproperty list uchar int vertex_indices\nend_header\n").encode() + body


def many_nodes(children: bool, count: int) -> dict[str, Any]:
    """Return parts of a glTF whose mesh stands at many places, beside each other or one below the other."""
    nodes = [{"mesh": 0, "children": [i + 1] if children and i + 1 < count else []} for i in range(count)]
    return {"nodes": nodes, "scenes": [{"nodes": [0] if children else list(range(count))}]}


def bad_meshes() -> list[tuple[str, str, Write, str]]:
    """Return what is wrong, the file's name, what writes it and part of the line."""
    corners = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    nan, infinite = [*corners[:2], (0.0, float("nan"), 0.0)], [*corners[:2], (0.0, 1e999, 0.0)]
    line = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]
    texture = [{"uri": "../../etc/passwd"}]
    draco = {"attributes": {"POSITION": 0}, "extensions": {"KHR_draco_mesh_compression": {}}}
    claim = [{"componentType": 5126, "count": 10**9, "type": "VEC3"}]
    return [
        ("an empty file", "empty.glb", _data(b""), "the file is empty"),
        ("a mesh of nothing", "nothing.ply", _data(ply("ascii", 0, 0, b"")), "holds no triangle"),
        ("a mesh of nothing", "nothing.off", _data(b"OFF\n0 0 0\n"), "nothing.off"),
        ("points alone", "points.obj", _data(_obj(corners, [])), "holds no triangle"),
        ("NaN in a vertex", "nan.obj", _data(_obj(nan, [(1, 2, 3)])), "not finite"),
        ("an infinite vertex", "inf.obj", _data(_obj(infinite, [(1, 2, 3)])), "not finite"),
        ("all on a line", "line.obj", _data(_obj(line, [(1, 2, 3)])), "has an area"),
        ("all in a point", "point.obj", _data(_obj([(1, 1, 1)] * 3, [(1, 2, 3)])), "two equal corners"),
        (
            "a face of vertices that don't exist",
            "far.off",
            _data(b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n"),
            "index",
        ),
        ("text named .glb", "text.glb", _data(b"hello, world, this is text\n"), "begins with b'hell'"),
        ("a picture named .stl", "picture.stl", _data(b"\x89PNG\r\n\x1a\n" + bytes(200)), "picture.stl"),
        ("a GLB cut in half", "cut.glb", _truncated_glb, "header claims"),
        ("a PLY cut in half", "cut.ply", _truncated_ply, "cut.ply"),
        ("glTF: a buffer above its folder", "up.gltf", _data(gltf("../../etc/passwd")), "outside its own folder"),
        (
            "glTF: the same, percent-encoded",
            "enc.gltf",
            _data(gltf("%2e%2e/%2e%2e/etc/passwd")),
            "outside its own folder",
        ),
        ("glTF: an absolute path", "abs.gltf", _data(gltf("/etc/passwd")), "outside its own folder"),
        ("glTF: a file:// address", "url.gltf", _data(gltf("file:///etc/passwd")), "only files in its own folder"),
        ("glTF: the network", "net.gltf", _data(gltf("http://127.0.0.1:9/a.bin")), "only files in its own folder"),
        (
            "glTF: a host without a scheme",
            "host.gltf",
            _data(gltf("//127.0.0.1/a.bin")),
            "only files in its own folder",
        ),
        ("glTF: a link out of its folder", "model/link.gltf", _link_out, "outside its own folder"),
        (
            "glTF: a texture above its folder",
            "tex.gltf",
            _data(gltf("data:;base64,AAAA", images=texture)),
            "outside its own folder",
        ),
        ("GLB: a buffer above its folder", "up.glb", _data(glb(gltf("../../etc/passwd"))), "outside its own folder"),
        ("glTF: a buffer that is not there", "lost.gltf", _data(gltf("lost.bin")), "does not exist"),
        ("glTF: a buffer that is a device", "dev.gltf", _with_device, "pipe or a device"),
        (
            "glTF: 12 GB claimed without data",
            "claim.gltf",
            _data(gltf("data:;base64,AAAA", accessors=claim)),
            "claim 12,000,000,000 bytes",
        ),
        (
            "GLB: 12 GB claimed of 36 bytes",
            "claim.glb",
            _data(glb(gltf("data:;base64,AAAA", accessors=[{**claim[0], "bufferView": 0}]))),
            "claim 12,000,000,000 bytes",
        ),
        (
            "GLB: 12 GB claimed of Draco data",
            "draco.glb",
            _data(glb(gltf("data:;base64,AAAA", accessors=claim, meshes=[{"primitives": [draco]}]))),
            "claim 12,000,000,000 bytes",
        ),
        ("glTF: one mesh at 70,000 places", "many.gltf", _with_nodes(False, 70_000), "parts"),
        ("glTF: nodes 2,000 deep", "deep.gltf", _with_nodes(True, 2000), "nested too deep"),
        ("glTF: JSON 100,000 deep", "nested.gltf", _data(b"[" * 100_000), "nested too deep"),
        (
            "PLY: 10^12 vertices claimed",
            "claim.ply",
            _data(ply("binary_little_endian", 10**12, 1, bytes(100))),
            "claims 1,000,000,000,000",
        ),
        (
            "PLY: the same as text",
            "claims.ply",
            _data(ply("ascii", 10**12, 1, b"0 0 0\n")),
            "claims 1,000,000,000,000",
        ),
        (
            "STL: 4 billion triangles claimed",
            "claim.stl",
            _data(bytes(80) + b"\xff" * 4 + bytes(500)),
            "claims 4,294,967,295",
        ),
        ("OFF: 10^12 vertices claimed", "claim.off", _data(b"OFF\n1000000000000 1 0\n0 0 0\n"), "claim.off"),
        ("another kind of file", "paper.docx", _data(b"PK"), "cannot read '.docx'"),
    ]
