"""How long a large mesh file takes to read, and how much memory: `load_mesh` beside trimesh's readers.

    python benchmarks/speed/mesh_reading.py --megabytes 200 --kinds .glb,.obj,.ply,.text.ply,.stl

A torus of the size asked for is written to a temporary folder, one file a kind; each reading is a process of its own.
Seconds are of the reading alone, the median of `--repeats`; memory is the most that the process held, above what it
held with its libraries imported. Files were just written, so the disk plays no part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import peak_host_bytes

LINES = 2**16  # of text, formatted at a time


def torus(vertex_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices, float32 `[V, 3]`, and the triangles, uint32 `[2 V, 3]`, of a closed surface with waves."""
    side = max(3, round(vertex_count**0.5))
    a, b = np.meshgrid(*[np.linspace(0, 2 * np.pi, side, endpoint=False)] * 2, indexing="ij")
    radius = 0.3 + 0.02 * np.sin(40 * a) * np.cos(30 * b)
    ring = 1 + radius * np.cos(b)
    vertices = np.stack([ring * np.cos(a), ring * np.sin(a), radius * np.sin(b)], axis=-1).reshape(-1, 3)
    number = np.arange(side * side, dtype=np.uint32).reshape(side, side)
    down, right = np.roll(number, -1, axis=0), np.roll(number, -1, axis=1)
    corner = np.roll(down, -1, axis=1)
    faces = np.stack([number, down, corner, number, corner, right], axis=-1).reshape(-1, 3)
    return vertices.astype(np.float32), faces


def write_glb(path: Path, size: int) -> None:
    """Write positions, normals and texture coordinates one after the other, and indices of 32 bits."""
    vertices, faces = torus(size // 56)
    arrays = [vertices, vertices, vertices[:, :2].copy(), faces.reshape(-1)]
    views, accessors, place = [], [], 0
    for array, kind in zip(arrays, ("VEC3", "VEC3", "VEC2", "SCALAR"), strict=True):
        views.append({"buffer": 0, "byteOffset": place, "byteLength": array.nbytes})
        code = 5125 if array.dtype == np.uint32 else 5126
        accessors.append({"bufferView": len(accessors), "componentType": code, "count": len(array), "type": kind})
        place += array.nbytes
    primitive = {"attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2}, "indices": 3}
    text = json.dumps({
        "asset": {"version": "2.0"}, "buffers": [{"byteLength": place}], "bufferViews": views, "accessors": accessors,
        "meshes": [{"primitives": [primitive]}], "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 0,
    }).encode()  # fmt: skip
    text += b" " * (-len(text) % 4)
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 28 + len(text) + place))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", place, b"BIN\0"))
        for array in arrays:
            file.write(array)


def write_obj(path: Path, size: int) -> None:
    """Write lines of `v x y z` and `f a b c`."""
    vertices, faces = torus(size // 78)
    with path.open("w") as file:
        for form, rows in (("v %.6f %.6f %.6f\n", vertices), ("f %d %d %d\n", faces + 1)):
            for start in range(0, len(rows), LINES):
                part = rows[start : start + LINES]
                file.write(form * len(part) % tuple(part.reshape(-1).tolist()))


def write_ply(path: Path, size: int) -> None:
    """Write a binary PLY of floats, with triangles as lists."""
    vertices, faces = torus(size // 38)
    rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"]
    with path.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(vertices)
        file.write(rows)


def write_text_ply(path: Path, size: int) -> None:
    """Write an ASCII PLY of triangles."""
    vertices, faces = torus(size // 75)
    header = ["ply", "format ascii 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"]
    with path.open("w") as file:
        file.write("\n".join(header))
        for form, rows in (("%.6f %.6f %.6f\n", vertices), ("3 %d %d %d\n", faces)):
            for start in range(0, len(rows), LINES):
                part = rows[start : start + LINES]
                file.write(form * len(part) % tuple(part.reshape(-1).tolist()))


def write_stl(path: Path, size: int) -> None:
    """Write a binary STL."""
    vertices, faces = torus(size // 100)
    rows = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows["corners"] = vertices[faces]
    with path.open("wb") as file:
        file.write(bytes(80) + struct.pack("<I", len(rows)))
        file.write(rows)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    ".glb": write_glb,
    ".obj": write_obj,
    ".ply": write_ply,
    ".text.ply": write_text_ply,
    ".stl": write_stl,
}
"""What writes each kind, by how its file's name ends."""
READERS = ("load_mesh", "trimesh")


def read(path: Path, reader: str) -> dict[str, Any]:
    """Read a file in this process and return what it took."""
    import trimesh

    from sdf_vqvae.geometry.mesh import load_mesh

    before, start = peak_host_bytes(), time.perf_counter()
    if reader == "load_mesh":
        mesh = load_mesh(path)
    else:
        mesh = trimesh.load_scene(path, process=False, skip_materials=True).to_mesh()
    seconds = time.perf_counter() - start
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "seconds": seconds,
        "peak_megabytes": round((peak_host_bytes() - before) / 1e6, 1),
    }


def in_a_process(*arguments: str) -> str:
    """Run this program in a process of its own and return what it printed."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return done.stdout


def measure(path: Path, reader: str, repeats: int) -> dict[str, Any]:
    """Read a file some times, each in a process of its own."""
    readings = [json.loads(in_a_process("--read", str(path), "--reader", reader)) for _ in range(repeats)]
    return {
        "kind": "".join(path.suffixes),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "reader": reader,
        "vertices": readings[0]["vertices"],
        "faces": readings[0]["faces"],
        "seconds": round(statistics.median(f["seconds"] for f in readings), 2),
        "peak_megabytes": max(f["peak_megabytes"] for f in readings),
    }


def main() -> None:
    """Write the inputs, measure every reader, write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--megabytes", type=float, default=200, help="size of each file (200)")
    parser.add_argument("--kinds", default=",".join(WRITERS), help=f"with commas between ({','.join(WRITERS)})")
    parser.add_argument("--readers", default=",".join(READERS), help=f"with commas between ({','.join(READERS)})")
    parser.add_argument("--repeats", type=int, default=3, help="readings of each (3)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        print(json.dumps(read(options.read, options.reader)))
        return
    if options.write is not None:
        WRITERS["".join(options.write.suffixes)](options.write, int(options.megabytes * 1e6))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds.split(","):
            if kind not in WRITERS:
                parser.error(f"--kinds are {', '.join(WRITERS)}, got {kind!r}")
            path = Path(folder) / f"torus{kind}"
            in_a_process("--write", str(path), "--megabytes", str(options.megabytes))
            for reader in options.readers.split(","):
                rows.append(measure(path, reader, options.repeats))
                print(rows[-1], flush=True)
            path.unlink()
    print(write_run(options, {"rows": rows}, "cpu"))


if __name__ == "__main__":
    main()
