"""glTF gives the object that a viewer shows: a model for each feature of the public sample suites, built here."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from gltf_files import CODES, IDENTITY_BIND, Gltf, box
from sdf_vqvae.geometry.formats import gltf_data, gltf_primitives, polygons
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh

HALF = 2**-0.5
UNIT = [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]]
STRIP_BOX = [3, 2, 7, 6, 4, 2, 0, 3, 1, 7, 5, 4, 1, 0]
"""A unit cube as one strip, over the corners (i & 1, i >> 1 & 1, i >> 2) - 0.5."""
CORNERS = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]) - 0.5


def outward(faces: list[int]) -> list[int]:
    """Return a strip that faces outward, whichever way it was written."""
    mesh = trimesh.Trimesh(CORNERS, polygons.strip_triangles(np.array(faces)), process=False)
    return faces if mesh.volume > 0 else [faces[0], *faces]


# -- models: each writes a file whose bounds and signed volume are known -------------------------------------------


def quantized(dtype: str, normalized: bool) -> Any:
    """A 2 x 1 x 1 box in integers, twice; interleaved with padding, as packers write it."""
    model, largest = Gltf().use("KHR_mesh_quantization", required=True), np.iinfo(dtype).max
    scaled = box((2, 1, 1)).vertices + ([1, 0.5, 0.5] if dtype[1] == "u" else 0)
    stored = np.round(scaled * (largest if dtype[1] == "i" else largest / 2))
    padded = np.zeros((8, 4), dtype)
    padded[:, :3] = stored
    view = model.view(padded.tobytes(), byteStride=padded.strides[0])
    position = model._append(
        "accessors",
        {
            "bufferView": view,
            "componentType": CODES[dtype[1:]],
            "normalized": normalized,
            "count": 8,
            "type": "VEC3",
        },
    )
    indices = model.accessor(box().faces.reshape(-1), "<u1")
    mesh = model.mesh({"attributes": {"POSITION": position}, "indices": indices})
    scale = (1 if normalized else 1 / largest) * (2 if dtype[1] == "u" else 1)
    move = np.array([-1, -0.5, -0.5]) if dtype[1] == "u" else np.zeros(3)
    for y in (0, 3):
        model.node(mesh=mesh, scale=[scale] * 3, translation=(move + np.array([0, y, 0])).tolist())
    return model


def sparse(base: bool, index_dtype: str) -> Any:
    """A cube whose top is raised from 0.5 to 2.5 by a sparse accessor, or that is written by one alone."""
    model, cube = Gltf(), box()
    raised = np.where(cube.vertices == [[9, 9, 0.5]], 2.5, cube.vertices)
    places = np.flatnonzero(raised[:, 2] > 1) if base else np.arange(8)
    primitive = model.primitive(cube)
    accessor = model.accessor(cube.vertices, view=base, min=[-0.5] * 3, max=[0.5] * 3)  # min and max are not trusted
    model.sparse(accessor, places, raised[places], index_dtype)
    primitive["attributes"]["POSITION"] = accessor
    model.node(mesh=model.mesh(primitive))
    return model


def interleaved() -> Any:
    """Positions, normals and colors of a vertex beside each other, and an offset into the view."""
    model, cube = Gltf(), box()
    rows = np.concatenate([cube.vertex_normals, cube.vertices, np.ones((8, 2))], axis=1).astype("<f4")
    view = model.view(rows.tobytes(), byteStride=32)
    position = {"bufferView": view, "byteOffset": 12, "componentType": 5126, "count": 8, "type": "VEC3"}
    indices = model.accessor(cube.faces.reshape(-1), "<u4")
    accessor = model._append("accessors", position)
    model.node(mesh=model.mesh({"attributes": {"POSITION": accessor}, "indices": indices}))
    return model


def indexed(dtype: str | None) -> Any:
    """A cube with indices of some type, or without indices."""
    model = Gltf()
    model.node(mesh=model.mesh(model.primitive(box(), dtype)))
    return model


def strip(indices: list[int] | None = None) -> Any:
    """A cube as one strip with an index buffer."""
    model = Gltf()
    primitive = {"attributes": {"POSITION": model.accessor(CORNERS)}, "mode": 5}
    primitive["indices"] = model.accessor(outward(indices or STRIP_BOX), "<u2")
    model.node(mesh=model.mesh(primitive))
    return model


def strip_without_indices() -> Any:
    model = Gltf()
    model.node(mesh=model.mesh({"attributes": {"POSITION": model.accessor(CORNERS[outward(STRIP_BOX)])}, "mode": 5}))
    return model


def fans(restart: str = "") -> Any:
    """A cube as two fans of six triangles about opposite corners."""
    model = Gltf()
    rings = [[0, 2, 6, 4, 5, 1, 3, 2], [7, 3, 1, 5, 4, 6, 2, 3]]
    rings = [ring if _fan_volume(ring) > 0 else [ring[0], *ring[:0:-1]] for ring in rings]
    positions = model.accessor(CORNERS)
    if restart:
        model.use(restart, required=True)
        rings = [[*rings[0], 255, *rings[1]]]
    parts = [{"attributes": {"POSITION": positions}, "indices": model.accessor(r, "<u1"), "mode": 6} for r in rings]
    model.node(mesh=model.mesh(*parts))
    return model


def _fan_volume(ring: list[int]) -> float:
    return float(trimesh.Trimesh(CORNERS, polygons.fan_triangles(np.array(ring)), process=False).volume)


def strips_with_restart() -> Any:
    model = Gltf().use("KHR_mesh_primitive_restart", required=True)
    whole = outward(STRIP_BOX)
    cut = [*whole[:6], 65535, *(whole[4:] if len(whole[:4]) % 2 == 0 else [whole[4], *whole[4:]])]
    primitive = {
        "attributes": {"POSITION": model.accessor(CORNERS)},
        "mode": 5,
        "indices": model.accessor(cut, "<u2"),
    }
    model.node(mesh=model.mesh(primitive))
    return model


def beside_points_and_lines() -> Any:
    model = Gltf()
    far = model.accessor([[9, 9, 9], [8, 8, 8]])
    others = [{"attributes": {"POSITION": far}, "mode": mode} for mode in (0, 1, 2, 3)]
    model.node(mesh=model.mesh(others[0], model.primitive(box()), *others[1:]))
    return model


def many_materials() -> Any:
    """Six primitives that share one array of vertices, of which each uses four."""
    model, cube = Gltf(materials=[{}] * 6), box()
    positions = model.accessor(cube.vertices)
    parts = [
        {"attributes": {"POSITION": positions}, "material": i,
         "indices": model.accessor(cube.faces[2 * i : 2 * i + 2].reshape(-1), "<u2")}
        for i in range(6)
    ]  # fmt: skip
    model.node(mesh=model.mesh(*parts))
    return model


def skinned(**choice: Any) -> Any:
    """A body in centimetres along z, which an armature turns to metres along y, and a hat that is not skinned."""
    model, body = Gltf(), box((100, 100, 200))
    weights = np.zeros((8, 4))
    weights[:, 0] = 1
    primitive = model.skin(model.primitive(body), np.zeros((8, 4)), weights)
    joint = model.node(root=False, name="hips")
    model.node(scale=[0.01] * 3, rotation=[-HALF, 0, 0, HALF], children=[joint])
    skin = {"joints": [joint]}
    if choice.get("bind", True):
        skin["inverseBindMatrices"] = model.accessor(IDENTITY_BIND)
    model.document["skins"] = [skin]
    model.node(
        mesh=model.mesh(primitive), skin=0, translation=[50, 60, 70], scale=[-3, 3, 3]
    )  # its own does not count
    model.box((0.5, 0.5, 0.5), translation=[0, 1.5, 0])
    return model


def bent(weights: str = "<f4", second_set: bool = False, inside: bool = False) -> Any:
    """A column whose upper half follows a joint that is moved by 3 along x, and its middle both joints by halves."""
    model = Gltf()
    column = trimesh.Trimesh(
        np.concatenate([box((1, 1, 1), (0, 0.5, 0)).vertices, box((1, 1, 1), (0, 2.5, 0)).vertices]),
        np.concatenate([box().faces, box().faces + 8]), process=False,
    )  # fmt: skip
    column.vertices[:8] -= [0, 1, 0]
    share = np.clip(column.vertices[:, 1], 0, 1)
    joints, given = np.tile([0, 1, 0, 0], (16, 1)), np.zeros((16, 4))
    given[:, 0], given[:, 1] = 1 - share, share
    scale = 1 if weights == "<f4" else np.iinfo(weights).max
    more = {"dtype": weights, "normalized": weights != "<f4"}
    primitive = model.primitive(column)
    if second_set:
        first = given * [1, 0, 0, 0]
        model.skin(primitive, joints, first, 0)
        model.skin(primitive, np.tile([1, 0, 0, 0], (16, 1)), (given - first)[:, [1, 0, 2, 3]], 1)
    else:
        model.skin(primitive, joints, np.round(given * scale), **more)
    upper = model.node(root=False, translation=[3, 1, 0])
    lower = model.node(root=False, children=[upper], name="lower")
    bind = np.tile(np.eye(4), (2, 1, 1))
    bind[1, 1, 3] = -1  # the upper joint stood at y = 1
    matrices = model.accessor(bind.transpose(0, 2, 1).reshape(2, 16))
    model.document["skins"] = [{"joints": [lower, upper], "skeleton": lower, "inverseBindMatrices": matrices}]
    shown = model.node(root=not inside, mesh=model.mesh(primitive), skin=0)
    if inside:
        model.document["nodes"][lower]["children"].append(shown)
    model.document["scenes"][0]["nodes"].append(lower)
    return model


def mirrored_skin() -> Any:
    model = skinned()
    model.document["nodes"][1]["scale"] = [-0.01, 0.01, 0.01]
    return model


def morphed(where: str, sparse_target: bool = False, normalized: bool = False) -> Any:
    """A cube that a target makes 2 higher on top; half of it by the mesh's weights, all by a node's."""
    model, cube = Gltf(), box()
    moves = np.where(cube.vertices[:, [1]] > 0, [[0, 2.0, 0]], 0)
    if sparse_target:
        top = np.flatnonzero(moves[:, 1])
        target = model.sparse(model.accessor(moves, view=False), top, moves[top], "<u1")
    elif normalized:
        target = model.accessor(np.round(moves / 2 * 127), "<i1", normalized=True)
    else:
        target = model.accessor(moves)
    other = model.accessor(np.full((8, 3), 50.0))
    primitive = model.primitive(cube, targets=[{"POSITION": other}, {"POSITION": target, "NORMAL": other}])
    mesh = model.mesh(primitive, weights=[0, 0.5])
    if where == "none":
        del model.document["meshes"][mesh]["weights"]
    model.node(mesh=mesh, **({"weights": [0, 1]} if where == "node" else {}))
    return model


def morphed_and_skinned() -> Any:
    model = skinned()
    moves = model.accessor(np.full((8, 3), 100.0))
    mesh = model.document["meshes"][0]
    mesh["primitives"][0]["targets"] = [{"POSITION": moves}]
    mesh["weights"] = [0.5]
    return model


def instanced(rotation_dtype: str = "<f4") -> Any:
    """Three boxes of one node: moved, turned a quarter about z, and scaled."""
    model = Gltf().use("EXT_mesh_gpu_instancing", required=True)
    turns = np.array([[0, 0, 0, 1], [0, 0, HALF, HALF], [0, 0, 0, 1]])
    integers = rotation_dtype != "<f4"
    attributes = {
        "TRANSLATION": model.accessor([[0, 0, 0], [5, 0, 0], [10, 0, 0]]),
        "ROTATION": model.accessor(
            np.round(turns * np.iinfo(rotation_dtype).max) if integers else turns, rotation_dtype, normalized=integers
        ),
        "SCALE": model.accessor([[1, 1, 1], [1, 1, 1], [2, 2, -2]]),
        "_ID": model.accessor([0, 1, 2], "<u2"),
    }
    mesh = model.mesh(model.primitive(box((2, 1, 1))))
    model.node(mesh=mesh, translation=[0, 0, 7], extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}})
    return model


def invisible() -> Any:
    model = Gltf().use("KHR_node_visibility")
    hidden = {"KHR_node_visibility": {"visible": False}}
    child = model.box(translation=[9, 0, 0], root=False, extensions={"KHR_node_visibility": {"visible": True}})
    model.node(children=[child], extensions=hidden)
    model.box(translation=[0, 9, 0], extensions=hidden)
    model.box(extensions={"KHR_node_visibility": {"visible": True}})
    return model


def under(**parent: Any) -> Any:
    """A cube below a node of another kind; in the list of nodes it stands before its parent."""
    model = Gltf(cameras=[{"type": "perspective", "perspective": {"yfov": 1, "znear": 1}}])
    child = model.box(root=False)
    grandparent = model.node(root=False, children=[child], **parent)
    model.node(children=[grandparent], translation=[1, 0, 0])
    model.node(camera=0, translation=[99, 0, 0])
    return model


def below_lines() -> Any:
    model = under()
    line = model.mesh({"attributes": {"POSITION": model.accessor([[0, 0, 0], [99, 0, 0]])}, "mode": 1})
    model.document["nodes"][1]["mesh"] = line
    return model


def transformed(kind: str) -> Any:
    """A 2 x 1 x 1 box, moved by (3, 0, 0) after a quarter turn about z and a scale of (1, 2, 3)."""
    model = Gltf()
    if kind == "trs":
        model.box((2, 1, 1), translation=[3, 0, 0], rotation=[0, 0, HALF, HALF], scale=[1, 2, 3])
    else:
        turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
        matrix = trimesh.transformations.translation_matrix([3, 0, 0]) @ turn @ np.diag([1, 2, 3, 1])
        model.box((2, 1, 1), matrix=matrix.T.reshape(-1).tolist())
    return model


def mirrored() -> Any:
    """Boxes mirrored on one, two and three axes, and a mirror below a mirror."""
    model = Gltf()
    for number, scale in enumerate([[-1, 1, 1], [1, -1, -1], [-1, -1, -1]]):
        model.box(scale=scale, translation=[2 * number, 0, 0])
    model.node(children=[model.box(root=False, scale=[1, -1, 1])], scale=[-1, 1, 1], translation=[6, 0, 0])
    return model


def scenes(default: int | None, listed: bool = True) -> Any:
    """Two scenes, the second with the larger box, or none."""
    model = Gltf()
    model.box()
    large = model.box((3, 3, 3), root=False)
    model.document["scenes"].append({"nodes": [large]})
    model.document["scene"] = default
    if default is None:
        del model.document["scene"]
    if not listed:
        del model.document["scenes"]
    return model


def decorated() -> Any:
    """A cube with all that is no geometry: pictures, materials, lights, animations, metadata, names in any script."""
    model = Gltf(
        images=[{"uri": "gone.png"}, {"uri": "data:image/png;base64,AAAA"}], textures=[{"source": 0}],
        extensions={"KHR_lights_punctual": {"lights": [{"type": "point"}]}, "KHR_xmp_json_ld": {"packets": [{}]}},
        animations=[{"channels": [{"sampler": 0, "target": {"node": 0, "path": "scale"}}],
                     "samplers": [{"input": 0, "output": 1}]}],
        extras={"anything": [1, {"two": None}]},
    )  # fmt: skip
    model.accessor([0.0, 1.0])
    model.accessor([[9, 9, 9], [9, 9, 9]])
    transform = {"KHR_texture_transform": {"offset": [0.5, 0], "scale": [9, 9]}}
    material = {
        "pbrMetallicRoughness": {"baseColorTexture": {"index": 0, "extensions": transform}},
        "doubleSided": True,
    }
    model.document["materials"] = [{**material, "extensions": {"KHR_materials_unlit": {}}}]
    primitive = model.primitive(box(), material=0, extensions={"KHR_materials_variants": {"mappings": []}})
    primitive["attributes"] |= {
        "NORMAL": model.accessor(np.zeros((8, 3))), "COLOR_0": model.accessor(np.ones((8, 4))),
        "TEXCOORD_0": model.accessor(np.zeros((8, 2))), "_FEATURE_ID_0": model.accessor(np.zeros(8)),
    }  # fmt: skip
    lod = {"MSFT_lod": {"ids": [1]}, "EXT_mesh_features": {}}
    model.node(mesh=model.mesh(primitive), name="Würfel ❤♻ 立方体", extensions=lod)
    model.use("KHR_texture_transform", "KHR_materials_unlit", "KHR_texture_basisu", required=True)
    return model.use(
        "KHR_lights_punctual", "KHR_xmp_json_ld", "KHR_materials_variants", "MSFT_lod", "EXT_mesh_manifold"
    )


def doubles() -> Any:
    model = Gltf().use("KHR_accessor_float64", required=True)
    primitive = model.primitive(box())
    primitive["attributes"]["POSITION"] = model.accessor(box(center=(4e6, 5e6, 0)).vertices, "<f8")
    model.node(mesh=model.mesh(primitive))
    return model


def draco(required: bool = True) -> Any:
    """A cube in Draco data whose positions are not the first attribute, at a node that is moved."""
    DracoPy = pytest.importorskip("DracoPy")
    model, cube = Gltf(), box()
    data = DracoPy.encode(cube.vertices.astype(np.float32), cube.faces.astype(np.uint32), quantization_bits=20)
    id_of_positions = DracoPy.decode(data).attributes[0]["unique_id"]
    primitive = {
        "attributes": {"POSITION": model.accessor(np.zeros((8, 3)), view=False)},
        "indices": model.accessor(np.zeros(36), "<u2", view=False),
        "extensions": {
            "KHR_draco_mesh_compression": {
                "bufferView": model.view(data),
                "attributes": {"POSITION": id_of_positions},
            }
        },
    }
    model.node(mesh=model.mesh(primitive), translation=[1, 0, 0])
    return model.use("KHR_draco_mesh_compression", required=required)


def draco_of_integers() -> Any:
    """The box of `quantized` in Draco data, whose library widens 16 bits to 32."""
    DracoPy = pytest.importorskip("DracoPy")
    model, stored = Gltf(), np.round(box((2, 1, 1), (1, 0.5, 0.5)).vertices / 2 * 65535).astype(np.uint16)
    view = model.view(DracoPy.encode(stored, box().faces.astype(np.uint32), quantization_bits=16))
    positions = model.accessor(np.zeros((8, 3)), "<u2", view=False, normalized=True)
    extension = {"KHR_draco_mesh_compression": {"bufferView": view, "attributes": {"POSITION": 0}}}
    primitive = {"attributes": {"POSITION": positions}, "indices": model.accessor(np.zeros(36), "<u2", view=False)}
    model.node(mesh=model.mesh({**primitive, "extensions": extension}), scale=[2, 2, 2], translation=[-1, -0.5, -0.5])
    return model.use("KHR_draco_mesh_compression", "KHR_mesh_quantization", required=True)


TWO = [[-1, -0.5, -0.5], [1, 3.5, 0.5]]
TALL = [[-0.5, -0.5, -0.5], [0.5, 0.5, 2.5]]
BODY = [[-0.5, -1, -0.5], [0.5, 1.75, 0.5]]
BENT = [[-0.5, -1, -0.5], [3.5, 3, 0.5]]
TURNED = [[2, -1, -1.5], [4, 1, 1.5]]
MOVED = [[0.5, -0.5, -0.5], [1.5, 0.5, 0.5]]
MODELS: dict[str, tuple[Callable[[], Any], list[list[float]], float]] = {
    **{
        f"positions of {d[1:]}, normalized": (lambda d=d: quantized(d, True), TWO, 4)
        for d in ("|i1", "|u1", "<i2", "<u2")
    },
    **{f"positions of {d[1:]}": (lambda d=d: quantized(d, False), TWO, 4) for d in ("|i1", "|u1", "<i2", "<u2")},
    "positions of doubles": (doubles, [[4e6 - 0.5, 5e6 - 0.5, -0.5], [4e6 + 0.5, 5e6 + 0.5, 0.5]], 1),
    **{f"sparse, indices of {d[1:]}": (lambda d=d: sparse(True, d), TALL, 3) for d in ("|u1", "<u2", "<u4")},
    "sparse without a base": (lambda: sparse(False, "<u2"), TALL, 3),
    "interleaved attributes": (interleaved, UNIT, 1),
    **{f"indices of {d[1:]}": (lambda d=d: indexed(d), UNIT, 1) for d in ("|u1", "<u2", "<u4")},
    "triangles without indices": (lambda: indexed(None), UNIT, 1),
    "a strip": (strip, UNIT, 1),
    "a strip with degenerate triangles": (
        lambda: strip([*STRIP_BOX[:5], *STRIP_BOX[3:]]),
        UNIT,
        1,
    ),
    "a strip without indices": (strip_without_indices, UNIT, 1),
    "fans": (fans, UNIT, 1),
    "strips with restarts": (strips_with_restart, UNIT, 1),
    "fans with restarts": (lambda: fans("EXT_mesh_primitive_restart"), UNIT, 1),
    "triangles beside points and lines": (beside_points_and_lines, UNIT, 1),
    "many materials over the same vertices": (many_materials, UNIT, 1),
    "a skin": (skinned, BODY, 2.125),
    "a skin without bind matrices": (lambda: skinned(bind=False), BODY, 2.125),
    "a skin whose joints are mirrored": (mirrored_skin, BODY, 2.125),
    "a skin that bends": (bent, BENT, 2),
    "a skin with weights of u1": (lambda: bent("|u1"), BENT, 2),
    "a skin with weights of u2": (lambda: bent("<u2"), BENT, 2),
    "a skin with two sets of joints": (lambda: bent(second_set=True), BENT, 2),
    "a skin below its own joints": (lambda: bent(inside=True), BENT, 2),
    "morph targets without weights": (lambda: morphed("none"), UNIT, 1),
    "morph weights of the mesh": (lambda: morphed("mesh"), [[-0.5] * 3, [0.5, 1.5, 0.5]], 2),
    "morph weights of the node": (lambda: morphed("node"), [[-0.5] * 3, [0.5, 2.5, 0.5]], 3),
    "a sparse morph target": (lambda: morphed("node", sparse_target=True), [[-0.5] * 3, [0.5, 2.5, 0.5]], 3),
    "a normalized morph target": (lambda: morphed("mesh", normalized=True), [[-0.5] * 3, [0.5, 1, 0.5]], 1.5),
    "a morph before a skin": (morphed_and_skinned, [[-0.25, -0.5, -1], [1, 1.75, 0.25]], 2.125),
    "instances": (instanced, [[-1, -1, 6], [12, 1, 8]], 2 + 2 + 16),
    "instances turned in i1": (lambda: instanced("|i1"), [[-1, -1, 6], [12, 1, 8]], 2 + 2 + 16),
    "instances turned in i2": (lambda: instanced("<i2"), [[-1, -1, 6], [12, 1, 8]], 2 + 2 + 16),
    "invisible nodes": (invisible, UNIT, 1),
    "a cube under a camera": (lambda: under(camera=0), MOVED, 1),
    "a cube under a light": (lambda: under(extensions={"KHR_lights_punctual": {"light": 0}}), MOVED, 1),
    "a cube under an empty node": (under, MOVED, 1),
    "a cube under lines": (below_lines, MOVED, 1),
    "translation, rotation and scale": (lambda: transformed("trs"), TURNED, 12),
    "a matrix": (lambda: transformed("matrix"), TURNED, 12),
    "mirrored nodes": (mirrored, [[-0.5] * 3, [6.5, 0.5, 0.5]], 4),
    "the scene that is named": (lambda: scenes(1), [[-1.5] * 3, [1.5] * 3], 27),
    "the first scene where none is named": (lambda: scenes(None), UNIT, 1),
    "all nodes where there is no scene": (lambda: scenes(None, listed=False), [[-1.5] * 3, [1.5] * 3], 28),
    "what is no geometry": (decorated, UNIT, 1),
    "Draco": (draco, MOVED, 1),
    "Draco with normalized integers": (draco_of_integers, [[-1, -0.5, -0.5], [1, 0.5, 0.5]], 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_as_a_viewer_shows_it(tmp_path: Path, name: str) -> None:
    build, bounds, volume = MODELS[name]
    mesh = load_mesh(build().save(tmp_path / "model.glb"))
    np.testing.assert_allclose(mesh.bounds, bounds, atol=2e-2 if "1" in name else 1e-4)
    assert mesh.volume == pytest.approx(volume, rel=2e-2 if "1" in name else 1e-4)  # positive: it faces outward
    assert mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64
    assert normalize_mesh(mesh).watertight


# -- containers ----------------------------------------------------------------------------------------------------


def containers() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return ways to write a cube."""
    model = Gltf()
    model.box()
    extra = struct.pack("<I4s", 8, b"PLUS") + b"whatever"
    return {
        "GLB": ("a.glb", model.glb),
        "GLB with a chunk in between": ("a.glb", lambda: model.glb(between=extra)),
        "GLB with bytes behind its end": ("a.glb", lambda: model.glb(after=b"tail" * 3)),
        "GLB with text of odd length": ("a.glb", lambda: model.glb(pad=1)),
        "GLB named .gltf": ("a.gltf", model.glb),
        "glTF named .glb": ("a.glb", model.embedded),
        "glTF with its buffer in it": ("a.gltf", model.embedded),
        "glTF with a buffer of another type": ("a.gltf", lambda: model.embedded("application/gltf-buffer")),
        "glTF with a byte order mark": ("a.gltf", lambda: b"\xef\xbb\xbf" + model.embedded()),
        "glTF with numbers as fractions": (
            "a.gltf",
            lambda: model.embedded().replace(b'"count": 36', b'"count": 36.0'),
        ),
    }


@pytest.mark.parametrize("name", containers())
def test_every_container_is_read(tmp_path: Path, name: str) -> None:
    file, write = containers()[name]
    (tmp_path / file).write_bytes(write())
    assert load_mesh(tmp_path / file).volume == pytest.approx(1)


@pytest.mark.parametrize("name", ["Würfel 立方体.gltf", "a b%20c.gltf"])
def test_a_buffer_beside_the_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    model = Gltf()
    model.box()
    assert load_mesh(model.save(tmp_path / name)).volume == pytest.approx(1)


def test_a_longer_binary_chunk_and_a_longer_file_than_the_buffer_are_fine(tmp_path: Path) -> None:
    model = Gltf()
    model.box()
    path = model.save(tmp_path / "a.gltf")
    path.with_suffix(".bin").write_bytes(model.binary + b"more")
    assert load_mesh(path).volume == pytest.approx(1)


# -- what is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (invisible, "meshes of invisible nodes are left out: 2"),
        (beside_points_and_lines, "primitives of points or lines are left out: 4"),
        (lambda: scenes(None), "meshes of nodes outside its scene are left out: 1"),
        (lambda: indexed("<u2").use("ACME_sparkle"), "the extension ACME_sparkle is not known here and left out"),
        (lambda: indexed("<u2").use("CESIUM_RTC"), "the place on the globe that CESIUM_RTC gives is left out"),
    ],
    ids=range(5),
)
def test_what_is_left_out_is_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, build: Callable[[], Any], says: str
) -> None:
    path = build().save(tmp_path / "model.glb")
    with caplog.at_level(logging.WARNING):
        load_mesh(path)
    assert [record.message for record in caplog.records] == [f"{path}: {says}"]


def test_nothing_is_said_of_what_is_no_geometry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_mesh(decorated().save(tmp_path / "model.glb"))
    assert not caplog.records


def test_vertices_that_no_joint_moves_follow_the_first_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = skinned()
    primitive = model.document["meshes"][0]["primitives"][0]
    model.skin(primitive, np.zeros((8, 4)), np.zeros((8, 4)))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(load_mesh(model.save(tmp_path / "a.glb")).bounds, BODY, atol=1e-6)
    assert "vertices without a weight follow the first joint of their skin: 8" in caplog.text


# -- what is refused -----------------------------------------------------------------------------------------------


def changed(build: Callable[[], Any], change: Callable[[dict[str, Any]], object]) -> Callable[[], Any]:
    """Return a builder of a model whose document is changed."""

    def write() -> Any:
        model = build()
        change(model.document)
        return model

    return write


def cube() -> Any:
    return indexed("<u2")


def set_in(*keys: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def only(mode: int) -> Any:
    model = Gltf()
    model.node(
        mesh=model.mesh({"attributes": {"POSITION": model.accessor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])}, "mode": mode})
    )
    return model


def with_index(value: int, dtype: str) -> Any:
    model = Gltf()
    primitive = model.primitive(box())
    faces = box().faces.reshape(-1).copy()
    faces[5] = value
    primitive["indices"] = model.accessor(faces, dtype)
    model.node(mesh=model.mesh(primitive))
    return model


def sparse_beyond() -> Any:
    model = cube()
    model.sparse(model.document["meshes"][0]["primitives"][0]["attributes"]["POSITION"], [8], [[0, 0, 0]])
    return model


def two_parents(document: dict[str, Any]) -> None:
    document["nodes"] += [{"children": [0]}, {"children": [0]}]
    document["scenes"][0]["nodes"] = [1, 2]


def circle(document: dict[str, Any]) -> None:
    document["nodes"] += [{"children": [2]}, {"children": [1]}]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        f"required: {name}": (lambda name=name: cube().use(name, required=True), f"requires the extension {name}")
        for name in ("ACME_sparkle", "KHR_gaussian_splatting", "KHR_gaussian_splatting_compression_spz_2")
    },
    **{
        f"used: {name}": (lambda name=name: cube().use(name), f"uses {name}, which changes its geometry")
        for name in ("MPEG_accessor_timed", "EXT_primitive_voxels", "WEB3D_quantized_attributes")
    },
    "parts moved by articulations": (
        changed(
            cube,
            set_in(
                "extensions",
                value={
                    "AGI_articulations": {"articulations": [{"stages": [{"type": "xRotate", "initialValue": 30}]}]}
                },
            ),
        ),
        "AGI_articulations",
    ),
    "version 1.0": (
        changed(cube, set_in("asset", value={"version": "1.0"})),
        "only version 2 of glTF is read, not '1.0'",
    ),
    "no version": (changed(cube, set_in("asset", value={})), "only version 2"),
    "minVersion 2.1": (changed(cube, set_in("asset", "minVersion", value="2.1")), "needs a reader of glTF '2.1'"),
    "points alone": (lambda: only(0), "holds no triangle (primitives of points or lines are left out: 1)"),
    "lines alone": (lambda: only(3), "holds no triangle"),
    "only invisible": (
        changed(cube, set_in("nodes", 0, "extensions", value={"KHR_node_visibility": {"visible": False}})),
        "holds no triangle (meshes of invisible nodes are left out: 1)",
    ),
    "an empty scene": (
        changed(cube, set_in("scenes", 0, value={})),
        "holds no triangle (meshes of nodes outside its scene are left out: 1)",
    ),
    "a mesh without nodes": (
        changed(cube, lambda d: [d.pop(k) for k in ("nodes", "scenes", "scene")]),
        "holds no triangle",
    ),
    "no indices at all": (changed(cube, set_in("accessors", 0, "count", value=0)), "holds no triangle"),
    "an unknown mode": (lambda: only(7), "mode 7"),
    "a restart of u1": (lambda: with_index(255, "<u1"), "restart of a primitive by index 255"),
    "a restart of u2": (lambda: with_index(65535, "<u2"), "restart of a primitive by index 65,535"),
    "a restart of u4": (lambda: with_index(2**32 - 1, "<u4"), "restart of a primitive by index 4,294,967,295"),
    "an index beyond the vertices": (lambda: with_index(8, "<u2"), "names vertex 8 of 8"),
    "indices that are floats": (lambda: with_index(1, "<f4"), "stored as float32"),
    "indices that are no threes": (changed(cube, set_in("accessors", 0, "count", value=35)), "35 corners"),
    "positions of two numbers": (changed(cube, set_in("accessors", 1, "type", value="VEC2")), "2 numbers a row"),
    "an accessor beyond its view": (
        changed(cube, set_in("accessors", 1, "count", value=9)),
        "needs 108 bytes of its view",
    ),
    "a view beyond its buffer": (
        changed(cube, set_in("bufferViews", 0, "byteLength", value=10**6)),
        "claims bytes 0 to",
    ),
    "a stride that is too short": (
        changed(cube, set_in("bufferViews", 1, "byteStride", value=4)),
        "a stride of 4 bytes",
    ),
    "a buffer that is not there": (
        changed(cube, set_in("bufferViews", 1, "buffer", value=1)),
        "names number 1 of its buffers",
    ),
    "a buffer without data": (
        changed(
            changed(cube, lambda d: d["buffers"].append({"byteLength": 96})),
            set_in("bufferViews", 1, "buffer", value=1),
        ),
        "buffer 1 has no data",
    ),
    "an accessor that is not there": (
        changed(cube, set_in("meshes", 0, "primitives", 0, "attributes", "POSITION", value=9)),
        "names number 9 of its accessors",
    ),
    "a mesh that is not there": (changed(cube, set_in("nodes", 0, "mesh", value=3)), "names number 3 of its meshes"),
    "a scene that is not there": (changed(cube, set_in("scene", value=3)), "names number 3 of its scenes"),
    "a child that is not there": (
        changed(cube, set_in("nodes", 0, "children", value=[5])),
        "names number 5 of its nodes",
    ),
    "nodes in a circle": (changed(cube, circle), "hang below each other in a circle"),
    "a node below itself": (changed(cube, set_in("nodes", 0, "children", value=[0])), "in a circle"),
    "a node below two": (changed(cube, two_parents), "hangs below two nodes, 1 and 2"),
    "a node twice in the scene": (changed(cube, set_in("scenes", 0, "nodes", value=[0, 0])), "names a node twice"),
    "a child that the scene names": (
        changed(under, lambda d: d["scenes"][0]["nodes"].append(0)),
        "names node 0, which hangs below node 1",
    ),
    "a matrix that is no movement": (
        changed(cube, set_in("nodes", 0, "matrix", value=[1, 0, 0, 1, *[0] * 11, 1])),
        "which is no movement",
    ),
    "a matrix of NaN": (changed(cube, set_in("nodes", 0, "matrix", value=[float("nan")] * 16)), "16 finite numbers"),
    "a matrix against its rotation": (
        changed(lambda: transformed("matrix"), set_in("nodes", 0, "translation", value=[9, 9, 9])),
        "says something else",
    ),
    "a rotation of zero": (changed(cube, set_in("nodes", 0, "rotation", value=[0, 0, 0, 0])), "quaternion 0"),
    "visibility that is no yes or no": (
        changed(cube, set_in("nodes", 0, "extensions", value={"KHR_node_visibility": {"visible": "false"}})),
        "says 'false'",
    ),
    "a skin for a mesh without weights": (
        changed(skinned, lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("WEIGHTS_0")),
        "without JOINTS_0",
    ),
    "a joint that is not there": (changed(bent, lambda d: d["skins"][0]["joints"].pop()), "names joint 1 of 1"),
    "too few bind matrices": (changed(bent, lambda d: d["accessors"][-1].update(count=1)), "are 1, for 2 joints"),
    "weights that are too many": (
        changed(lambda: morphed("mesh"), set_in("nodes", 0, "weights", value=[1, 2, 3])),
        "3 weights for 2",
    ),
    "a morph target of other length": (
        changed(lambda: morphed("node"), lambda d: d["accessors"][0].update(count=7)),
        "7 rows for 8 vertices",
    ),
    "instances of different numbers": (
        changed(instanced, set_in("accessors", 0, "count", value=2)),
        "2 different numbers of places",
    ),
    "instances of a skinned mesh": (
        changed(
            skinned,
            set_in("nodes", 2, "extensions", value={"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 0}}}),
        ),
        "repeats a skinned mesh",
    ),
    "sparse indices beyond the rows": (sparse_beyond, "names row 8 of 8"),
    "a Draco attribute that is not there": (lambda: changed_draco(), "Draco data of primitive 0 of its mesh 0"),
}


def changed_draco() -> Any:
    model = draco()
    extension = model.document["meshes"][0]["primitives"][0]["extensions"]["KHR_draco_mesh_compression"]
    extension["attributes"]["POSITION"] = 77
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build, says = REFUSED[name]
    path = build().save(tmp_path / "model.glb")
    with pytest.raises(ValueError) as error:
        load_mesh(path)
    assert says in str(error.value) and "model.glb" in str(error.value) and "\n" not in str(error.value)


def test_draco_without_its_library_uses_the_plain_arrays_or_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = draco(required=False)
    path = model.save(tmp_path / "packed.glb")
    plain = model.primitive(box())
    model.document["meshes"][0]["primitives"][0] |= plain
    beside = model.save(tmp_path / "beside.glb")
    monkeypatch.setattr(gltf_primitives, "_draco_is_installed", lambda: False)
    np.testing.assert_allclose(load_mesh(beside).bounds, MOVED)
    with pytest.raises(ValueError, match=r"pip install 'vae-qwen3vl\[training\]'"):
        load_mesh(path)
    model.use("KHR_draco_mesh_compression", required=True)
    with pytest.raises(ValueError, match=r"pip install 'vae-qwen3vl\[training\]'"):
        load_mesh(model.save(beside))


# -- time and memory -----------------------------------------------------------------------------------------------


def test_only_the_bytes_of_the_geometry_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decorated()
    model.view(bytes(2**20))  # a picture
    read = []
    plain = gltf_data._InFile.read
    monkeypatch.setattr(
        gltf_data._InFile, "read", lambda self, start, length: read.append(length) or plain(self, start, length)
    )
    load_mesh(model.save(tmp_path / "a.glb"))
    assert sum(read) == 8 * 12 + 36 * 2


def test_vertices_that_many_meshes_share_are_read_once_and_kept_by_those_that_use_them(tmp_path: Path) -> None:
    model = Gltf()
    boxes = trimesh.util.concatenate([box(center=(2 * i, 0, 0)) for i in range(100)])
    positions = model.accessor(boxes.vertices)
    for i in range(100):
        indices = model.accessor(boxes.faces[12 * i : 12 * i + 12].reshape(-1), "<u4")
        model.node(mesh=model.mesh({"attributes": {"POSITION": positions}, "indices": indices}))
    mesh = load_mesh(model.save(tmp_path / "a.glb"))
    assert len(mesh.vertices) == 800 and mesh.volume == pytest.approx(100)


def test_many_sparse_morph_targets_take_no_memory_of_their_own(tmp_path: Path) -> None:
    model, ball = Gltf(), trimesh.creation.icosphere(subdivisions=3)
    targets = []
    for i in range(200):  # all of them together claim forty times the file
        target = model.accessor(ball.vertices, view=False)
        targets.append({"POSITION": model.sparse(target, [i], [[0, 0, 0.5]], "<u2")})
    primitive = model.primitive(ball, targets=targets)
    model.node(mesh=model.mesh(primitive, weights=[1] * 200))
    mesh = load_mesh(model.save(tmp_path / "a.glb"))
    np.testing.assert_allclose(mesh.vertices[:200] - ball.vertices[:200], [[0, 0, 0.5]] * 200, atol=1e-6)


def test_nodes_as_deep_as_a_long_chain_are_read(tmp_path: Path) -> None:
    model = Gltf()
    below = model.box(root=False, translation=[1, 0, 0])
    for _ in range(998):
        below = model.node(root=False, children=[below], translation=[1, 0, 0])
    model.node(children=[below], translation=[1, 0, 0])
    np.testing.assert_allclose(load_mesh(model.save(tmp_path / "a.glb")).bounds[0], [999.5, -0.5, -0.5])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = cube().save(tmp_path / "a.glb")
    data = gltf_data.GltfData(path, gltf_data.OwnFolder(tmp_path))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="ended while it was read"):
        data.array(1)
    assert json.loads(json.dumps(data.document)) == data.document
