"""The voxelizer against exact references: every voxel of the band, its distance and its sign."""

from __future__ import annotations

import json
from itertools import product

import igl
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="machines that run the GPU tests alone have no Numba")

from sdf_vqvae.geometry.mesh import NormalizedMesh, normalize_mesh
from sdf_vqvae.geometry.voxelizer import boundary_numba, bricks_numba, bricks_reference
from sdf_vqvae.geometry.voxelizer import bricks as bricks_module
from sdf_vqvae.geometry.voxelizer import voxelize as voxelize_module
from sdf_vqvae.geometry.voxelizer.batch import MeshBatch
from sdf_vqvae.geometry.voxelizer.boundary import boundary_of
from sdf_vqvae.geometry.voxelizer.boundary_reference import strips_share_reference
from sdf_vqvae.geometry.voxelizer.bricks import Bricks
from sdf_vqvae.geometry.voxelizer.sheets import Skin, looks_inward
from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize, voxelize_batch

BAND = 3.0


def field_of(mesh: NormalizedMesh, resolution: int, **options) -> VoxelField:
    return voxelize(mesh.vertices, mesh.faces, resolution=resolution, watertight=mesh.watertight, **options)


def world(index, resolution: int) -> np.ndarray:
    return (np.asarray(index, dtype=np.float64) + 0.5) / resolution - 0.5


def voxels(field: VoxelField) -> np.ndarray:
    return field.distance.numpy() * BAND


def exact_distance(mesh: NormalizedMesh, index, resolution: int) -> np.ndarray:
    """Unsigned distances in voxels, from libigl in float64."""
    found = igl.point_mesh_squared_distance(world(index, resolution), mesh.vertices.numpy(), mesh.faces.numpy())
    return np.sqrt(found[0]) * resolution


def whole_grid(resolution: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def rim(field: VoxelField, resolution: int) -> np.ndarray:
    """The voxels next to the stored ones."""
    steps = np.array(list(product((-1, 0, 1), repeat=3)))
    near = np.unique((field.index.numpy()[:, None] + steps).reshape(-1, 3), axis=0)
    near = near[((near >= 0) & (near < resolution)).all(axis=1)]
    side = np.array([resolution**2, resolution, 1])
    return near[~np.isin(near @ side, field.index.numpy().astype(np.int64) @ side)]


def assert_complete_and_exact(mesh: NormalizedMesh, resolution: int) -> VoxelField:
    field = field_of(mesh, resolution, signed=False)
    error = np.abs(voxels(field) - exact_distance(mesh, field.index, resolution))
    assert error.max() < 1e-3
    outside = rim(field, resolution)
    if len(outside):
        assert exact_distance(mesh, outside, resolution).min() > BAND - 1e-3
    return field


def boxes(*centers, extents=(1, 1, 1)) -> trimesh.Trimesh:
    parts = [trimesh.creation.box(extents, transform=trimesh.transformations.translation_matrix(c)) for c in centers]
    return trimesh.util.concatenate(parts)


def batch_of(*meshes: trimesh.Trimesh) -> MeshBatch:
    """Meshes on a grid of 60^3 each."""
    return MeshBatch.of([(m.vertices, m.faces) for m in map(normalize_mesh, meshes)], 60)


def sheet(bumps: int = 0) -> trimesh.Trimesh:
    """A square without thickness, tilted; wavy with bumps."""
    side = np.linspace(-1, 1, 12)
    x, y = (v.reshape(-1) for v in np.meshgrid(side, side, indexing="ij"))
    z = 0.1 * np.sin(bumps * np.pi * x)
    i = np.arange(144).reshape(12, 12)[:-1, :-1].reshape(-1)
    faces = np.concatenate([np.stack([i, i + 12, i + 1], 1), np.stack([i + 1, i + 12, i + 13], 1)])
    square = trimesh.Trimesh(np.stack([x, y, z], 1), faces, process=False)
    square.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 2, 0]))
    return square


@pytest.mark.parametrize("resolution", [8, 30, 64])
def test_every_voxel_of_the_grid_within_the_band_and_no_other(resolution):
    mesh = normalize_mesh(trimesh.creation.torus(1.0, 0.3, major_sections=24, minor_sections=12))
    field = field_of(mesh, resolution, signed=False)
    grid = whole_grid(resolution)
    distance = exact_distance(mesh, grid, resolution)
    np.testing.assert_array_equal(field.index.numpy(), grid[distance <= BAND])  # also: in lexicographic order
    np.testing.assert_allclose(voxels(field), distance[distance <= BAND], atol=1e-4)
    assert field.sign_method == "none" and field.index.dtype == torch.int32 and field.distance.dtype == torch.float32


def test_signed_distance_of_a_cube_is_the_formula():
    resolution = 50
    field = field_of(normalize_mesh(trimesh.creation.box()), resolution)
    beyond = np.abs(world(field.index, resolution)) - 0.475
    expected = np.linalg.norm(beyond.clip(min=0), axis=1) + beyond.max(axis=1).clip(max=0)
    np.testing.assert_allclose(voxels(field), expected * resolution, atol=2e-4)
    assert field.sign_method == "winding"


def test_signed_distance_of_a_ball_is_the_formula():
    resolution = 96
    field = field_of(normalize_mesh(trimesh.creation.icosphere(subdivisions=5)), resolution)
    expected = np.linalg.norm(world(field.index, resolution), axis=1) - 0.475
    np.testing.assert_allclose(voxels(field), expected * resolution, atol=0.05)  # the facets are that flat


def test_overlapping_boxes_are_one_solid():
    resolution = 64
    mesh = normalize_mesh(boxes((0, 0, 0), (0.5, 0.3, 0.2)))
    field = field_of(mesh, resolution)
    points = world(field.index, resolution) / mesh.scale + mesh.center
    inside = (np.abs(points) < 0.5).all(axis=1) | (np.abs(points - [0.5, 0.3, 0.2]) < 0.5).all(axis=1)
    np.testing.assert_array_equal(voxels(field) < 0, inside)


def test_a_zero_is_outside_and_a_face_within_a_solid_is_no_zero():
    # Corners of the boxes stand exactly on samples; the two share a wall of which both sides are inside.
    resolution, side = 64, 20 / 64
    mesh = boxes((-side / 2, 0, 0), (side / 2, 0, 0), extents=(side, side, side))
    vertices = torch.from_numpy(np.array(mesh.vertices) + 0.5 / resolution)
    field = voxelize(vertices, torch.from_numpy(np.array(mesh.faces)), resolution=resolution)
    index, value = field.index.numpy(), voxels(field)
    wall = (index[:, 0] == 32) & (np.abs(index[:, 1:] - 32) < 7).all(axis=1)
    assert wall.sum() == 13**2 and (value[wall] < 0).all() and (value[wall] > -1e-3).all()
    skin = (index[:, 0] == 12) & (np.abs(index[:, 1:] - 32) < 10).all(axis=1)
    assert skin.any() and np.abs(value[skin]).max() < 1e-3
    assert not np.signbit(value[value == 0]).any()


def test_slivers_and_faces_without_area_are_exact():
    random = np.random.default_rng(0)
    for width in (1e-2, 1e-4, 1e-6, 1e-8, 0.0):
        along, away = random.normal(size=(2, 3))
        a, b = -0.2 * along / np.linalg.norm(along), 0.2 * along / np.linalg.norm(along)
        corners = np.stack([a, b, a + random.uniform(0, 1) * (b - a) + width / 256 * away])
        field = voxelize(torch.from_numpy(corners), torch.tensor([[0, 1, 2]]), resolution=256, signed=False)
        share = (((world(field.index, 256) - a) @ (b - a)) / ((b - a) @ (b - a))).clip(0, 1)
        distance = np.linalg.norm(world(field.index, 256) - a - share[:, None] * (b - a), axis=1) * 256
        np.testing.assert_allclose(voxels(field), distance, atol=3 * width + 2e-4)
        ends = ((world(field.index, 256) - a) @ (b - a)) / ((b - a) @ (b - a))
        assert ends.min() < 0 and ends.max() > 1  # the rounded ends are there


def test_faces_with_corners_on_a_line_are_that_line():
    # Rounding alone tells which way such a face looks, also along the line itself.
    random = np.random.default_rng(0)
    for _ in range(40):
        a, b = random.integers(-1500, 1500, (2, 3)) / 4095 * 0.95
        corners = np.stack([a, b, (a + b) / 2])[random.permutation(3)]
        field = voxelize(torch.from_numpy(corners), torch.tensor([[0, 1, 2]]), resolution=128, signed=False)
        points = world(field.index, 128)
        share = (((points - a) @ (b - a)) / ((b - a) @ (b - a))).clip(0, 1)
        distance = np.linalg.norm(points - a - share[:, None] * (b - a), axis=1) * 128
        np.testing.assert_allclose(voxels(field), distance, atol=2e-4)


def test_a_face_shrunk_to_a_point_is_a_point():
    corners = torch.full((3, 3), 0.1, dtype=torch.float64)
    field = voxelize(corners, torch.tensor([[0, 1, 2]]), resolution=40, signed=False)
    np.testing.assert_allclose(voxels(field), np.linalg.norm(world(field.index, 40) - 0.1, axis=1) * 40, atol=1e-4)


def test_a_huge_slanted_face_costs_its_area_and_not_its_box():
    corners = torch.tensor([[-0.47, -0.47, -0.47], [0.47, 0.4, -0.3], [-0.3, 0.47, 0.47]], dtype=torch.float64)
    field = voxelize(corners, torch.tensor([[0, 1, 2]]), resolution=512, signed=False)
    bricks = Bricks(MeshBatch.of([(corners, torch.tensor([[0, 1, 2]]))], 512), 512, BAND)
    assert bricks.squared.numel() < 4 * len(field.index)
    assert len(field.index) < 512**3 / 100
    share = np.random.default_rng(0).permutation(len(field.index))[:2000]
    mesh = NormalizedMesh(
        vertices=corners, faces=torch.tensor([[0, 1, 2]]), center=(0.0, 0.0, 0.0), scale=1.0, watertight=False
    )
    np.testing.assert_allclose(voxels(field)[share], exact_distance(mesh, field.index[share], 512), atol=1e-3)


@pytest.mark.parametrize("shape", ["sheet", "boxes", "ball"])
def test_compiled_steps_equal_their_plain_twins(shape):
    shapes = {"sheet": sheet(2), "boxes": boxes((0, 0, 0), (0.5, 0.3, 0.2)), "ball": trimesh.creation.icosphere()}
    mesh = normalize_mesh(shapes[shape])
    turned = normalize_mesh(trimesh.creation.cone(1, 2))
    batch = MeshBatch.of([(m.vertices, m.faces) for m in (turned, mesh, turned)], 60)
    one, other = (Bricks(batch, 60, BAND, using=module) for module in (bricks_numba, bricks_reference))
    assert torch.equal(one.origins, other.origins)
    torch.testing.assert_close(one.squared, other.squared, atol=1e-4, rtol=1e-5)
    assert torch.equal(one.crossings(), other.crossings())
    assert torch.equal(one.near()[0], other.near()[0])


def test_a_batch_has_the_fields_of_its_meshes():
    open_ball = trimesh.creation.icosphere(subdivisions=2)
    open_ball.update_faces(np.asarray(open_ball.triangles_center)[:, 2] < 0.7)
    turned = trimesh.creation.torus(1.0, 0.3)
    turned.invert()
    shapes = (sheet(), boxes((0, 0, 0), (0.5, 0.3, 0.2)), open_ball, turned, sheet(2), trimesh.creation.box())
    meshes = [normalize_mesh(shape) for shape in shapes]
    fields = voxelize_batch([(m.vertices, m.faces, m.watertight) for m in meshes], resolution=52)
    for mesh, field in zip(meshes, fields, strict=True):
        alone = field_of(mesh, 52)
        assert alone.sign_method == field.sign_method and torch.equal(alone.index, field.index)
        torch.testing.assert_close(alone.distance, field.distance, atol=1e-6, rtol=0)
    assert voxelize_batch([], resolution=52) == []


def test_without_numba_it_is_slow_and_the_same(monkeypatch, caplog):
    colander = trimesh.creation.icosphere(subdivisions=2)
    colander.update_faces(np.random.default_rng(0).random(len(colander.faces)) < 0.8)
    meshes = [normalize_mesh(colander), normalize_mesh(boxes((0, 0, 0), (0.5, 0.3, 0.2)))]
    before = [field_of(mesh, 40) for mesh in meshes]
    for module in ("bricks", "voxelize", "winding"):
        monkeypatch.setattr(f"sdf_vqvae.geometry.voxelizer.{module}.has_numba", lambda: False)
    bricks_module._warn_of_numba.cache_clear()
    for one, other in zip(before, [field_of(mesh, 40) for mesh in meshes], strict=True):
        assert torch.equal(one.index, other.index)
        torch.testing.assert_close(one.distance, other.distance, atol=1e-5, rtol=0)
    assert [r.message for r in caplog.records if "Numba is not installed" in r.message] == [
        "Numba is not installed, so voxelizing on this CPU takes many times as long: pip install numba"
    ]


def test_threads_change_nothing():
    shapes = [normalize_mesh(sheet()), normalize_mesh(boxes((0, 0, 0), (0.5, 0.3, 0.2)))]
    threads = torch.get_num_threads()
    fields = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            fields.append([field_of(mesh, 60) for mesh in shapes])
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*fields, strict=True):
        assert torch.equal(one.index, other.index) and torch.equal(one.distance, other.distance)


def assert_signs_of_the_exact_sum(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> None:
    """Every voxel's sign, from rays and the boundary, against libigl's sum over all faces."""
    batch = MeshBatch.of([(torch.from_numpy(vertices), torch.from_numpy(faces))], resolution)
    bricks = Bricks(batch, resolution, BAND)
    index, place = bricks.near()
    edges = boundary_of(batch)
    found = bricks.crossings().view(-1)[place] + strips_share_reference(index.double(), edges)
    exact = igl.winding_number(vertices, faces, world(index, resolution))
    off_surface = bricks.squared.view(-1)[place].sqrt().numpy() > 1e-3
    np.testing.assert_allclose(found.numpy()[off_surface], exact[off_surface], atol=1e-4)
    if len(edges):
        wanted = torch.zeros_like(bricks.squared, dtype=torch.bool)
        wanted.view(-1)[place] = True
        share = boundary_numba.strips_share(bricks.origins, wanted, edges).view(-1)[place]
        quick = bricks.crossings().view(-1)[place] + share
        np.testing.assert_allclose(quick.numpy()[off_surface], exact[off_surface], atol=0.005)
        compiled = boundary_numba.exact_strips_share(index.double(), edges)
        torch.testing.assert_close(compiled, strips_share_reference(index.double(), edges), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans(), st.booleans())
def test_the_winding_number_of_any_soup_of_triangles(seed, count, on_samples, joined):
    # Corners on samples put rays exactly through edges and corners, and edges exactly below samples.
    resolution, random = 24, np.random.default_rng(seed)
    corners = random.uniform(1, 22, (3 * count, 3))
    if on_samples:
        corners = corners.round()
    faces = random.integers(0, len(corners), (2 * count, 3)) if joined else np.arange(3 * count).reshape(-1, 3)
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    if len(faces):
        vertices, welded = np.unique((corners + 0.5) / resolution - 0.5, axis=0, return_inverse=True)
        assert_signs_of_the_exact_sum(vertices, welded.reshape(-1)[faces], resolution)


def test_signs_of_open_and_thin_shapes_are_those_of_the_exact_sum():
    ball = trimesh.creation.icosphere(subdivisions=3)
    ball.update_faces(np.asarray(ball.triangles_center)[:, 2] < 0.7)
    colander = trimesh.creation.icosphere(subdivisions=3)
    colander.update_faces(np.random.default_rng(0).random(len(colander.faces)) < 0.8)
    plates = boxes((0, 0, 0), (0, 0, 0.12), extents=(1, 1, 0.1))
    thin = boxes((0, 0, 0), extents=(1, 1, 0.01))
    for shape, resolution in ((ball, 40), (colander, 40), (plates, 64), (thin, 100), (sheet(2), 60)):
        mesh = normalize_mesh(shape)
        assert_signs_of_the_exact_sum(mesh.vertices.numpy(), mesh.faces.numpy(), resolution)


def test_an_open_mesh_has_the_field_of_the_exact_sum_whichever_way_it_takes(monkeypatch):
    colander = trimesh.creation.icosphere(subdivisions=4)
    colander.update_faces(np.random.default_rng(0).random(len(colander.faces)) < 0.8)
    mesh = normalize_mesh(colander)
    quick = field_of(mesh, 64)
    monkeypatch.setattr(voxelize_module, "_MOST_EDGES", 0)  # libigl's tree
    tree = field_of(mesh, 64)
    assert torch.equal(quick.index, tree.index)
    winding = igl.winding_number(mesh.vertices.numpy(), mesh.faces.numpy(), world(quick.index, 64))
    sure = (np.abs(winding - 0.5) > 1e-6) & (np.abs(voxels(quick)) > 1e-3)
    assert sure.mean() > 0.98 and quick.sign_method == "winding"
    for field in (quick, tree):
        np.testing.assert_array_equal((voxels(field) < 0)[sure], (winding > 0.5)[sure])


def test_a_closed_mesh_asks_for_no_winding_number_off_its_surface(monkeypatch):
    asked = []
    original = MeshBatch.winding_number

    def counted(batch, points, *rest):
        asked.append(len(points) // 8)
        return original(batch, points, *rest)

    monkeypatch.setattr(MeshBatch, "winding_number", counted)
    field = field_of(normalize_mesh(trimesh.creation.icosphere(subdivisions=3)), 128)
    assert sum(asked) == (field.distance.abs() * BAND < 5e-4).sum() < len(field.index) / 1000


def test_an_open_sheet_becomes_a_closed_shell_one_voxel_thick():
    resolution = 64
    mesh = normalize_mesh(sheet())
    field = field_of(mesh, resolution)
    assert field.sign_method == "winding+shell"
    expected = exact_distance(mesh, field.index, resolution) - 0.5
    np.testing.assert_allclose(voxels(field), expected, atol=1e-3)
    assert (exact_distance(mesh, field.index, resolution) <= BAND).all()  # the band is round the mesh, not the shell


def test_a_wavy_sheet_is_closed_nearly_everywhere():
    mesh = normalize_mesh(sheet(bumps=2))
    field = field_of(mesh, 64)
    # Hollows of the waves are skin of what the winding number calls inside, the rest becomes the shell: near the
    # sheet some voxel is inside. Where the one ends and the other begins a gap may stay.
    inside = field.index.numpy()[voxels(field) < 0]
    vertices = (mesh.vertices.numpy() + 0.5) * 64 - 0.5
    away = np.linalg.norm(vertices[:, None] - inside[None], axis=2).min(axis=1)
    assert np.mean(away < 1) > 0.9 and away.max() < BAND


def test_a_sheet_joined_to_a_solid_is_a_shell_and_the_solid_stays():
    wall = sheet()
    wall.apply_translation([3, 0, 0])
    mesh = normalize_mesh(trimesh.util.concatenate([boxes((0, 0, 0)), wall]))
    field = field_of(mesh, 100)
    source = world(field.index, 100) / mesh.scale + mesh.center
    assert field.sign_method == "winding+shell"
    in_box = (np.abs(source) < 0.5).all(axis=1)
    assert (voxels(field)[in_box] < 0).all()
    corner = np.abs(source).max(axis=1) < 0.5 - 2.6 / 100 / mesh.scale
    assert (voxels(field)[corner] < -2.5).all()


def test_a_small_hole_makes_no_shell():
    ball = trimesh.creation.icosphere(subdivisions=4)
    ball.update_faces(np.arange(len(ball.faces)) > 3)
    assert len(Skin(batch_of(ball), torch.tensor([False])).missed_faces()) == 0
    assert field_of(normalize_mesh(ball), 64).sign_method == "winding"


@pytest.mark.parametrize("hole", [False, True])
def test_a_mesh_turned_inside_out_has_the_same_field(hole):
    ball = trimesh.creation.icosphere(subdivisions=3)
    if hole:
        ball.update_faces(np.asarray(ball.triangles_center)[:, 2] < 0.9)
    turned = trimesh.Trimesh(ball.vertices, ball.faces[:, ::-1], process=False)
    open_ones = torch.zeros(3, dtype=torch.bool)
    judge = (lambda batch: Skin(batch, open_ones).turned_round) if hole else looks_inward
    assert judge(batch_of(turned, ball, turned)).tolist() == [True, False, True]
    one, other = field_of(normalize_mesh(ball), 64), field_of(normalize_mesh(turned), 64)
    assert torch.equal(one.index, other.index) and (one.distance < 0).any()
    torch.testing.assert_close(one.distance, other.distance, atol=1e-4, rtol=0)


def test_a_hollow_in_a_solid_stays_hollow():
    hollow = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    shell = trimesh.util.concatenate(
        [trimesh.creation.icosphere(subdivisions=3), trimesh.Trimesh(hollow.vertices, hollow.faces[:, ::-1])]
    )
    field = field_of(normalize_mesh(shell), 64)
    radius = np.linalg.norm(world(field.index, 64), axis=1) / 0.475
    assert ((voxels(field) < 0) == (radius > 0.5))[(radius > 0.3) & (radius < 0.7) & (abs(radius - 0.5) > 0.01)].all()


def test_parts_beyond_the_grid_are_clipped():
    box = trimesh.creation.box()
    field = voxelize(
        torch.from_numpy(np.array(box.vertices) * 0.6 + 0.3), torch.from_numpy(np.array(box.faces)), resolution=36
    )
    assert int(field.index.min()) >= 0 and int(field.index.max()) == 35
    deep = (world(field.index, 36) > 0.1).all(axis=1)
    assert (voxels(field)[deep] < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 7}, "8..1024"),
        ({"resolution": 1025}, "8..1024"),
        ({"resolution": 64, "band": 0}, "band"),
        ({"resolution": 64, "band": float("nan")}, "band"),
    ],
)
def test_what_cannot_be_voxelized_is_an_error(options, message):
    box = normalize_mesh(trimesh.creation.box())
    with pytest.raises(ValueError, match=message):
        voxelize(box.vertices, box.faces, **options)


def test_no_voxel_is_an_error():
    box = normalize_mesh(trimesh.creation.box())
    with pytest.raises(ValueError, match="no voxel"):
        voxelize(box.vertices + 5, box.faces, resolution=64)


def reference_meshes(folder, per_source: int) -> list[tuple[str, NormalizedMesh]]:
    DracoPy = pytest.importorskip("DracoPy")
    records = [json.loads(line) for line in (folder / "shapes" / "meshes.jsonl").read_text().splitlines()]
    sources: dict[str, list[dict]] = {}
    for record in records:
        if record["split"] == "test" and record["faces"] < 6000:
            sources.setdefault(record["id"].split("/")[0], []).append(record)
    chosen = [
        r for name in sorted(sources) for r in sources[name][:: max(1, len(sources[name]) // per_source)][:per_source]
    ]
    meshes = []
    with (folder / "shapes" / "meshes.bin").open("rb") as blob:
        for record in chosen:
            blob.seek(record["offset"])
            decoded = DracoPy.decode(blob.read(record["size"]))
            mesh = trimesh.Trimesh(np.asarray(decoded.points) / 4095 - 0.5, decoded.faces, process=False)
            meshes.append((record["id"], normalize_mesh(mesh)))
    return meshes


@pytest.mark.slow
def test_real_meshes_agree_with_point_cloud_utils(reference_data):
    import point_cloud_utils  # here, for machines that run the GPU tests alone

    resolution = 64
    for name, mesh in reference_meshes(reference_data, per_source=1):
        unsigned = assert_complete_and_exact(mesh, resolution)
        vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
        points = world(unsigned.index, resolution)
        distance, _, _ = point_cloud_utils.closest_points_on_mesh(points, vertices, faces)
        np.testing.assert_allclose(voxels(unsigned), distance * resolution, atol=1e-3, err_msg=name)
        if mesh.watertight:
            field = field_of(mesh, resolution)
            winding = igl.winding_number(vertices, faces, points)
            away = distance * resolution > 1e-3
            np.testing.assert_array_equal((voxels(field) < 0)[away], (winding > 0.5)[away], err_msg=name)
            # Its sign comes from winding numbers too, its distance from elsewhere: it is sure off the surface.
            signed, _, _ = point_cloud_utils.signed_distance_to_mesh(points, vertices, faces)
            sure = (distance * resolution > 0.1) & ((winding > 0.5) == (signed < 0))
            np.testing.assert_array_equal((voxels(field) < 0)[sure], (signed < 0)[sure], err_msg=name)


@pytest.mark.parametrize("shape", [sheet(), boxes((0, 0, 0), (0.5, 0.3, 0.2))], ids=["sheet", "boxes"])
def test_every_tensor_stays_on_the_device_of_the_vertices(shape):
    # A tensor made without saying where would land on the default device, and break the next operation.
    mesh = normalize_mesh(shape)
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        field = field_of(mesh, 60)
    finally:
        torch.set_default_device(before)
    assert field.index.device == field.distance.device == mesh.vertices.device
