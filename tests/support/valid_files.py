"""Small valid files of every format that is read, and the call that reads each: what fuzzing starts from.

Shared by `tests/test_fuzz.py` and `benchmarks/quality/fuzz.py`.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh

import gltf_files
import server_bodies
from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh
from sdf_vqvae.model.state_dict import read_state_dict, to_canonical
from tiny_tokenizer import SMALL_ARGS
from vae_qwen3vl.projector_file import ProjectorDescription, load_projector, save_projector
from vae_qwen3vl.serving.scans import organs_of, surface_of_organ

MEMBER_FILES = (".npz-members", ".pt-members")
"""Suffixes of targets whose input is the members of a zip archive (see `pack_members`), so that mutations get past
its checksums."""


def two_boxes() -> trimesh.Scene:
    """Return a scene of one mesh that stands at two places."""
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    for x in (-2.0, 2.0):
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    return scene


def bytes_of(save: Callable[[Path], object], suffix: str) -> bytes:
    """Return what `save(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        save(path)
        return path.read_bytes()


def encoded(data: str | bytes) -> bytes:
    """Return text as UTF-8."""
    return data.encode() if isinstance(data, str) else data


def gltf_in_one_file() -> bytes:
    """Return the scene as glTF text whose buffers are in it."""
    files = two_boxes().export(file_type="gltf")
    document = json.loads(files["model.gltf"])
    for buffer in document["buffers"]:
        data = base64.b64encode(files[buffer["uri"]]).decode()
        buffer["uri"] = f"data:application/octet-stream;base64,{data}"
    return json.dumps(document).encode()


def draco_glb() -> bytes:
    """Return the scene as GLB with Draco compression, or nothing where DracoPy is not installed."""
    try:
        return two_boxes().export(file_type="glb", extension_draco=True)
    except (ImportError, TypeError):
        return b""


def gltf_of_everything() -> bytes:
    """Return a GLB with a skin, morph targets, sparse and normalized numbers, strips, instances, invisible nodes."""
    model, box = gltf_files.Gltf(), gltf_files.box()
    posed = model.primitive(box, targets=[{"POSITION": model.sparse(model.accessor(box.vertices), [1], [[0, 2, 0]])}])
    model.skin(posed, np.tile([0, 1, 0, 0], (8, 1)), np.tile([200, 55, 0, 0], (8, 1)), dtype="|u1", normalized=True)
    upper = model.node(root=False, rotation=[0, 0, 0.6, 0.8])
    lower = model.node(children=[upper], scale=[-1, 1, 2])
    binds = model.accessor(np.tile(gltf_files.IDENTITY_BIND, (2, 1)))
    model.document["skins"] = [{"joints": [lower, upper], "inverseBindMatrices": binds}]
    model.node(mesh=model.mesh(posed, weights=[0.5]), skin=0)
    strip = {"attributes": {"POSITION": model.accessor(box.vertices * 127, "|i1", normalized=True)}, "mode": 5}
    strip["indices"] = model.accessor([0, 1, 2, 255, 3, 4, 5, 6], "|u1")
    places = {"TRANSLATION": model.accessor([[0, 0, 0], [3, 0, 0]]), "SCALE": model.accessor([[1, 1, 1], [1, -2, 1]])}
    hidden = model.node(root=False, mesh=0, extensions={"KHR_node_visibility": {"visible": False}})
    instances = {"EXT_mesh_gpu_instancing": {"attributes": places}}
    model.node(mesh=model.mesh(strip, {**strip, "mode": 1}), extensions=instances, children=[hidden])
    model.use("EXT_mesh_primitive_restart", "EXT_mesh_gpu_instancing", "KHR_node_visibility", required=True)
    data: bytes = model.glb()
    return data


def polygons_obj() -> bytes:
    """Return an OBJ with quads, a pentagon, materials, groups, normals and texture coordinates."""
    lines = ["mtllib a.mtl", "o thing", "v 0 0 0", "v 1 0 0", "v 1 1 0", "v 0 1 0", "v 0 0 1", "v 0.5 2e-1 1"]
    lines += ["vt 0 0", "vt 1 1", "vn 0 0 1", "usemtl red", "g left", "f 1/1/1 2/2/1 3/1/1 4/2/1", "s off"]
    lines += ["f 1 2 5", "usemtl blue", "f 1//1 2//1 6//1 3//1 4//1", "f -1 -2 -3", "# end"]
    return "\n".join(lines).encode() + b"\n"


def polygons_ply() -> bytes:
    """Return an ASCII PLY with colors and faces of three, four and five corners."""
    header = ["ply", "format ascii 1.0", "comment TextureFile a.png", "element vertex 5", "property float x"]
    header += ["property float y", "property float z", "property uchar red", "property uchar green"]
    header += ["property uchar blue", "element face 3", "property list uchar int vertex_indices", "end_header"]
    rows = ["0 0 0 1 2 3", "1 0 0 1 2 3", "1 1 0 9 9 9", "0 1 0 0 0 0", "0 0 1 5 5 5"]
    rows += ["3 0 1 4", "4 0 1 2 3", "5 0 1 2 3 4"]
    return "\n".join([*header, *rows]).encode() + b"\n"


def strips_ply(order: str = "<") -> bytes:
    """Return a binary PLY with lists in its vertices, polygons, strips and an element that nobody reads."""
    kind = {"<": "little", ">": "big"}[order]
    header = f"ply\nformat binary_{kind}_endian 1.0\nelement camera 1\nproperty list short double what\n"
    header += "element face 2\nproperty uchar flags\nproperty list uchar ushort vertex_index\nelement vertex 5\n"
    header += "property double x\nproperty list char uchar tags\nproperty float y\nproperty short z\n"
    header += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    body = struct.pack(order + "hdd", 2, 0.5, 1.5)
    body += struct.pack(order + "BB5H", 7, 5, 0, 1, 2, 3, 4) + struct.pack(order + "BB4H", 7, 4, 0, 1, 2, 3)
    for x, y, z in ((0, 0, 0), (3, 0, 0), (3, 3, 0), (1, 1, 0), (0, 3, 1)):
        body += struct.pack(order + "dbBBfh", x, 2, 1, 2, y, z)
    return header.encode() + body + struct.pack(order + "8i", 7, 0, 1, 2, -1, 2, 3, 4)


def polygons_off() -> bytes:
    """Return an OFF with a comment, colors and faces of three, four and five corners."""
    lines = ["COFF # by hand", "5 3 0", "0 0 0 255 0 0 255", "3 0 0 0 0 0 1", "3 3 0 9 9 9 9", "1 1 0 0 0 0 0"]
    lines += ["0 3 0 1 1 1 1", "3 0 1 4 0.5 0.5 0.5", "4 0 1 2 3", "5 0 1 2 3 4 7"]
    return "\n".join(lines).encode() + b"\n"


def binary_off() -> bytes:
    """Return a binary OFF of a triangle and a quad, one with a color."""
    points = struct.pack(">12f", 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0)
    faces = struct.pack(">4ii3f", 3, 0, 1, 2, 3, 0.5, 0.5, 0.5) + struct.pack(">5ii", 4, 0, 1, 2, 3, 0)
    return b"OFF BINARY\n" + struct.pack(">3i", 4, 2, 0) + points + faces


def solids_stl() -> bytes:
    """Return an ASCII STL of two solids, one with a facet of five vertices."""
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1e0 0\nendloop\nendfacet\n"
    five = facet.replace("vertex 1 0 0", "vertex 3 0 0\nvertex 3 3 0\nvertex 1 1 0")
    return f"solid 1 2 3\n{facet}endsolid\nSOLID facet\n{five}endsolid facet\n".encode()


def a_field() -> SparseSDF:
    """Return a field of a few voxels."""
    return SparseSDF(
        sdf=torch.tensor([-0.5, 0.25, 1.0]),
        index=torch.tensor([[0, 1, 2], [3, 4, 15], [5, 5, 5]], dtype=torch.int32),
        field=FieldDescription(kind="sdf", unit="band", band=3.0, sampling="center", resolution=16),
        center=(1.0, 2.0, 3.0),
        scale=0.5,
        watertight=True,
        sign_method="winding",
    )


def original_field() -> bytes:
    """Return a field file of the original system: three keys, compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        sparse_sdf=np.array([[0.001], [0.002]], np.float32),
        sparse_index=np.array([[0, 1, 2], [511, 0, 0]], np.int32),
        resolution=512,
    )
    return buffer.getvalue()


def some_codes() -> ShapeCodes:
    """Return codes of one object on a latent grid of 8^3."""
    return ShapeCodes(
        codes=torch.tensor([1, 0, 31], dtype=torch.int32),
        coords=torch.tensor([[0, 0, 1], [0, 3, 2], [7, 7, 7]], dtype=torch.int32),
        latent_resolution=8,
        data_resolution=32,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash="0123456789abcdef",
    )


def some_cache() -> CodeCache:
    """Return a cache of two objects."""
    return CodeCache(
        codes=torch.tensor([1, 2, 3], dtype=torch.int32),
        coords=torch.tensor([[0, 0, 1], [0, 3, 2], [7, 7, 7]], dtype=torch.int16),
        splits=torch.tensor([0, 2, 3]),
        ids=("a/1", "b/2"),
        failures={"c/3": "no triangle"},
        vae_hash="0123456789abcdef",
    )


def save_some_projector(path: Path) -> None:
    """Write a projector of two small layers."""
    description = ProjectorDescription(latent_dim=2, hidden_size=6, num_layers=2, use_3d_pos=True, prompt="What?")
    save_projector(path, description.build(), description)


def save_some_state(path: Path) -> None:
    """Write a state dict with a kernel in the layout of torchsparse."""
    weights = {
        "module.a.kernel": torch.zeros(27, 2, 3),
        "module.b.weight": torch.ones(2, 2).t(),
        "module.c": torch.ones(()),
    }
    torch.save({"vae": weights}, path)


def save_old_state(path: Path) -> None:
    """Write a state dict in PyTorch's format before 1.6, which is no zip archive."""
    torch.save({"a.weight": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=False)


def a_config() -> bytes:
    """Return a VAE config with all three sections."""
    document = {
        "models": {"vqvae": {"name": "SparseSDFVQVAE", "args": SMALL_ARGS}},
        "dataset": {"name": "SparseSDF", "args": {"resolution": 32, "max_points": 1000}},
    }
    return json.dumps(document, indent=1).encode()


def pack_members(archive: bytes) -> bytes:
    """Return the members of a zip archive one after another, each with its name and length before it."""
    packed = b""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for info in members.infolist():
            data = members.read(info)
            name = info.filename.encode()
            packed += len(name).to_bytes(1, "little") + name + len(data).to_bytes(4, "little") + data
    return packed


def unpack_members(packed: bytes) -> bytes:
    """Return the zip archive (with right checksums) of what `pack_members` wrote, as far as it can be read."""
    buffer = io.BytesIO()
    seen = set()
    with zipfile.ZipFile(buffer, "w") as archive:
        place = 0
        while place < len(packed):
            name = packed[place + 1 : place + 1 + packed[place]].decode("latin-1").replace("\0", "0") or "0"
            place += 1 + packed[place]
            size = int.from_bytes(packed[place : place + 4], "little")
            place += 4
            if name not in seen:
                archive.writestr(name, packed[place : place + size])
            seen.add(name)
            place += size
    return buffer.getvalue()


def nifti(kind: type) -> bytes:
    """Return a small volume of labels; nothing where nibabel is not installed."""
    try:
        import nibabel
    except ImportError:
        return b""
    labels = np.zeros((5, 4, 3), kind)
    labels[1:3, 1:3, 1:] = 2
    image = nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(1, 0)
    data: bytes = image.to_bytes()
    return data


def read_scan(path: Path) -> None:
    """Read the names of a volume's labels, and the surface of the largest one."""
    try:
        organs = organs_of(path, None)
        surface_of_organ(path, None, next(iter(organs)))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def read_mesh(path: Path) -> None:
    """Read and normalize a mesh."""
    normalize_mesh(load_mesh(path))


def read_state(path: Path) -> None:
    """Read a state dict into our layout."""
    to_canonical(read_state_dict(path))


def _meshes() -> dict[str, tuple[str, list[bytes]]]:
    scene, ball = two_boxes(), trimesh.creation.icosphere(subdivisions=0)
    box = trimesh.creation.box()
    glb = encoded(scene.export(file_type="glb"))
    return {
        "glb": (".glb", [glb]),
        "glb_draco": (".glb", [draco_glb()]),
        "glb_features": (".glb", [gltf_of_everything()]),
        "gltf": (".gltf", [gltf_in_one_file()]),
        "obj": (".obj", [encoded(box.export(file_type="obj")), polygons_obj()]),
        "ply_ascii": (".ply", [encoded(box.export(file_type="ply", encoding="ascii")), polygons_ply()]),
        "ply_binary": (".ply", [encoded(ball.export(file_type="ply")), strips_ply("<"), strips_ply(">")]),
        "stl_ascii": (".stl", [encoded(box.export(file_type="stl_ascii")), solids_stl()]),
        "stl_binary": (".stl", [encoded(box.export(file_type="stl"))]),
        "off": (".off", [encoded(box.export(file_type="off")), polygons_off(), binary_off()]),
    }


def targets() -> dict[str, tuple[str, list[bytes], Callable[[Path], object]]]:
    """Return (suffix, valid files, reader) of every format."""
    found: dict[str, tuple[str, list[bytes], Callable[[Path], object]]] = {
        name: (suffix, [data for data in seeds if data], read_mesh) for name, (suffix, seeds) in _meshes().items()
    }
    field = bytes_of(a_field().save, ".npz")
    state, old = bytes_of(save_some_state, ".pt"), bytes_of(save_old_state, ".pt")
    projectors = {suffix: bytes_of(save_some_projector, suffix) for suffix in (".safetensors", ".pt")}
    found |= {
        "field": (".npz", [field, original_field()], SparseSDF.load),
        "field_members": (".npz-members", [pack_members(field), pack_members(original_field())], SparseSDF.load),
        "codes": (".safetensors", [bytes_of(some_codes().save, ".safetensors")], ShapeCodes.load),
        "code_cache": (".safetensors", [bytes_of(some_cache().save, ".safetensors")], CodeCache.load),
        "projector": (".safetensors", [projectors[".safetensors"]], load_projector),
        "projector_members": (".pt-members", [pack_members(projectors[".pt"])], load_projector),
        "state": (".pt", [state, old], read_state),
        "state_members": (".pt-members", [pack_members(state)], read_state),
        "config": (".json", [a_config()], VAEConfig.from_json),
        "scan": (".nii", [nifti(np.uint8), nifti(np.float32)], read_scan),
        "server": (".request", server_bodies.bodies(), server_bodies.send),
    }
    return {name: target for name, target in found.items() if all(target[1]) and target[1]}


def write_input(folder: Path, suffix: str, data: bytes) -> Path:
    """Write one input of a target to a file and return its path."""
    if suffix in MEMBER_FILES:
        data, suffix = unpack_members(data), suffix.removesuffix("-members")
    path = folder / f"input{suffix}"
    path.write_bytes(data)
    return path
