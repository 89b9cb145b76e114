"""Promises of the iso-surface: the vertices of scikit-image, closed manifolds, nothing made up."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdf_vqvae.geometry.cube_table import (
    CORNERS,
    EDGES,
    cube_table,
    face_cycles,
    face_segments,
    trace_loops,
    triangulate,
)
from sdf_vqvae.geometry.isosurface import extract_isosurface


def points_of(field: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [N] and index [N, 3] of a dense field."""
    index = np.argwhere(np.ones(field.shape, dtype=bool))
    return torch.from_numpy(field.reshape(-1).copy()), torch.from_numpy(index)


def surface_of(field: np.ndarray, level: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = extract_isosurface(*points_of(field), level=level)
    return vertices.numpy(), faces.numpy()


def slow_isosurface(field: dict[tuple[int, int, int], float], level: float) -> set[tuple]:
    """Plain twin: triangles of grid edges, one cell at a time; each rotated to start at its lowest edge."""
    triangles = set()
    for x, y, z in field:
        corners = [(x + dx, y + dy, z + dz) for dx, dy, dz in CORNERS]
        if not all(corner in field for corner in corners):
            continue
        case = sum(1 << place for place, corner in enumerate(corners) if field[corner] >= level)
        for loop in trace_loops(case):
            for triangle in triangulate(loop):
                edges = [(corners[lower], corners[upper]) for lower, upper in triangle]
                turn = edges.index(min(edges))
                triangles.add(tuple(edges[turn:] + edges[:turn]))
    return triangles


def slow_point(edge: tuple, field: dict[tuple[int, int, int], float], level: float) -> np.ndarray:
    start, end = edge
    fraction = (level - field[start]) / (field[end] - field[start])
    return np.array(start) + fraction * (np.array(end) - np.array(start))


def directed_edges(faces: np.ndarray) -> Counter:
    return Counter((int(f[i]), int(f[(i + 1) % 3])) for f in faces for i in range(3))


def assert_closed_oriented_manifold(vertices: np.ndarray, faces: np.ndarray) -> None:
    edges = directed_edges(faces)
    assert set(edges.values()) == {1}, "each directed edge occurs once"
    assert all((b, a) in edges for a, b in edges), "each edge has its opposite: closed, consistently wound"
    assert set(np.unique(faces)) == set(range(len(vertices))), "no vertex without a face"
    around = defaultdict(dict)
    for a, b, c in faces.tolist():
        around[a][b], around[b][c], around[c][a] = c, a, b
    for ring in around.values():
        start = current = next(iter(ring))
        steps = 0
        while steps == 0 or current != start:
            current, steps = ring[current], steps + 1
        assert steps == len(ring), "the triangles round a vertex form one fan"


def euler_characteristic(vertices: np.ndarray, faces: np.ndarray) -> int:
    return len(vertices) - len(directed_edges(faces)) // 2 + len(faces)


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(side, dtype=np.float64)] * 3, indexing="ij"), axis=-1)


def sphere(side: int, radius: float, center: tuple[float, float, float]) -> np.ndarray:
    return (np.linalg.norm(grid(side) - center, axis=-1) - radius).astype(np.float32)


def smooth_noise(side: int, seed: int) -> np.ndarray:
    """A field with many ambiguous cells and no zero."""
    field = np.random.default_rng(seed).normal(size=(side,) * 3)
    for axis in range(3):
        field = field + 0.6 * np.roll(field, 1, axis)
    return field.astype(np.float32)


def farthest_nearest(points: np.ndarray, others: np.ndarray) -> float:
    """Largest distance (per axis) from one of `points` to its nearest of `others`."""
    from scipy.spatial import cKDTree

    return float(cKDTree(others).query(points, p=np.inf)[0].max())


# ---------------------------------------------------------------- the table


def test_each_of_the_256_cases_joins_its_crossed_edges_as_the_face_rule_says() -> None:
    table = cube_table()
    number = {edge: place for place, edge in enumerate(EDGES)}
    for case in range(256):
        triangles = table.triangle_edges[case, : table.triangle_count[case]]
        crossed = {place for place, (a, b) in enumerate(EDGES) if (case >> a & 1) != (case >> b & 1)}
        assert set(triangles.ravel()) == crossed, case
        edges = directed_edges(triangles)
        assert all(count == 1 for count in edges.values()), case
        rim = {edge for edge in edges if edge[::-1] not in edges}
        assert rim == {(number[a], number[b]) for cycle in face_cycles() for a, b in face_segments(cycle, case)}, case


def test_no_diagonal_of_the_256_cases_lies_in_a_cube_face() -> None:
    table = cube_table()
    for case in range(256):
        edges = directed_edges(table.triangle_edges[case, : table.triangle_count[case]])
        for a, b in edges:
            if (b, a) in edges:
                corners = [CORNERS[c] for c in (*EDGES[a], *EDGES[b])]
                assert all(len({corner[axis] for corner in corners}) == 2 for axis in range(3)), case


def test_both_cubes_beside_a_face_draw_the_same_segments() -> None:
    for axis, signs in itertools.product(range(3), range(16)):
        low, high = face_cycles()[2 * axis : 2 * axis + 2]
        step = 4 >> axis
        on_high = dict(zip(high, (bool(signs >> i & 1) for i in range(4)), strict=True))
        upper_of_one = sum(1 << corner for corner, positive in on_high.items() if positive)
        lower_of_other = sum(1 << corner - step for corner, positive in on_high.items() if positive)
        ours = {((a[0], a[1]), (b[0], b[1])) for a, b in face_segments(high, upper_of_one)}
        theirs = {
            ((b[0] + step, b[1] + step), (a[0] + step, a[1] + step)) for a, b in face_segments(low, lower_of_other)
        }
        assert ours == theirs


# ---------------------------------------------------------------- against the twin and scikit-image


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("level", [0.0, 0.35])
def test_fast_and_slow_twin_agree_on_a_ragged_set_of_points(level: float, compiled: bool, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr("sdf_vqvae.geometry.isosurface.has_numba", lambda: False)
    rng = np.random.default_rng(3)
    values, index = points_of(smooth_noise(9, seed=1))
    keep = torch.from_numpy(rng.permutation(len(values))[:600])
    values, index = values[keep], index[keep] - 4
    vertices, faces = extract_isosurface(values, index, level=level)
    field = {tuple(i): float(v) for i, v in zip(index.tolist(), values, strict=True)}
    slow = {
        tuple(tuple(np.round(slow_point(edge, field, level), 4)) for edge in triangle)
        for triangle in slow_isosurface(field, level)
    }
    fast = {tuple(tuple(np.round(p, 4)) for p in triangle) for triangle in vertices.double().numpy()[faces]}
    turns = {triangle[i:] + triangle[:i] for triangle in fast for i in range(3)}
    assert len(fast) == len(slow) > 100
    assert slow <= turns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 2**20], ids=["near", "keys of more than 31 bits"])
def test_both_twins_give_the_same_bits_whatever_the_order_of_points(
    spread: int, dtype: torch.dtype, monkeypatch
) -> None:
    values, index = points_of(smooth_noise(12, seed=4))
    rows = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:1500]
    values = torch.cat([values[rows], values.new_tensor([1.0])]).to(dtype)
    index = torch.cat([index[rows], index.new_tensor([[3, 20, spread]])])
    compiled = extract_isosurface(values, index, level=0.1)
    ascending = np.lexsort(index.numpy().T[::-1])
    in_order = extract_isosurface(values[ascending], index[ascending].to(torch.int32), level=0.1)
    monkeypatch.setattr("sdf_vqvae.geometry.isosurface.has_numba", lambda: False)
    plain = extract_isosurface(values, index, level=0.1)
    assert len(plain[1]) > 100
    for ours in (compiled, in_order):
        assert torch.equal(ours[0], plain[0])
        assert torch.equal(ours[1], plain[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.0, -0.4])
def test_vertices_equal_scikit_image_both_ways(seed: int, level: float) -> None:
    from skimage.measure import marching_cubes  # here, for machines that run the GPU tests alone

    field = smooth_noise(14, seed)
    ours, _ = surface_of(field, level)
    # scikit-image adds a vertex in the middle of some ambiguous cells: none of its coordinates is whole.
    theirs = marching_cubes(field, level, allow_degenerate=True)[0]
    on_edges = (theirs == np.round(theirs)).sum(axis=1) >= 2
    assert on_edges.mean() > 0.9
    assert farthest_nearest(ours, theirs) < 1e-5
    assert farthest_nearest(theirs[on_edges], ours) < 1e-5


@pytest.mark.parametrize("shape", ["sphere", "blobs"])
def test_vertices_equal_scikit_image_on_smooth_shapes(shape: str) -> None:
    from skimage.measure import marching_cubes  # here, for machines that run the GPU tests alone

    field = sphere(40, 14.3, (19.6, 20.2, 18.9))
    if shape == "blobs":
        field = np.minimum(field, sphere(40, 6.7, (31.1, 29.7, 30.3)))
    ours, our_faces = surface_of(field)
    theirs, their_faces, _, _ = marching_cubes(field, 0.0)
    assert farthest_nearest(ours, theirs) < 1e-5
    assert farthest_nearest(theirs, ours) < 1e-5
    assert len(ours) == len(theirs)
    assert len(our_faces) == len(their_faces)


def test_faces_agree_with_scikit_image_outside_ambiguous_cells() -> None:
    """The patch of a cell has the same rim, hence the same loops; which diagonals fill a loop is free."""
    from skimage.measure import marching_cubes  # here, for machines that run the GPU tests alone

    compared = 0
    for case in range(1, 255):
        ambiguous = any(len(face_segments(cycle, case)) == 2 for cycle in face_cycles())
        opposite = sorted(len(loop) for loop in trace_loops(case)) == [3, 3]  # may be a tunnel inside
        if ambiguous or opposite:
            continue
        magnitude = np.random.default_rng(case).uniform(0.3, 0.7, size=8)
        field = np.array([m if case >> c & 1 else -m for c, m in enumerate(magnitude)], dtype=np.float32)
        patches = []
        theirs = marching_cubes(field.reshape(2, 2, 2), 0.0, gradient_direction="descent")[:2]
        for vertices, faces in (surface_of(field.reshape(2, 2, 2)), theirs):
            edges = directed_edges(faces)
            rim = [edge for edge in edges if edge[::-1] not in edges]
            named = {tuple(tuple(np.round(vertices[end], 4).tolist()) for end in edge) for edge in rim}
            patches.append((len(faces), named))
        assert patches[0] == patches[1], case
        compared += 1
    assert compared == 126


# ---------------------------------------------------------------- topology


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    field=arrays(
        np.float32,
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.one_of(st.just(0.0), st.floats(-1, 1, width=32)),
    )
)
def test_any_field_with_a_positive_border_gives_a_closed_oriented_manifold(field: np.ndarray) -> None:
    field = np.pad(field, 1, constant_values=1.0)
    if field.min() >= 0:
        with pytest.raises(ValueError, match="nothing crosses"):
            surface_of(field)
        return
    vertices, faces = surface_of(field)
    assert_closed_oriented_manifold(vertices, faces)
    assert np.isfinite(vertices).all()
    assert volume(vertices, faces) >= -1e-6


@pytest.mark.parametrize("signs_seed", range(4))
def test_random_signs_give_a_closed_oriented_manifold(signs_seed: int) -> None:
    signs = np.random.default_rng(signs_seed).choice([-1.0, 1.0], size=(12, 12, 12)).astype(np.float32)
    vertices, faces = surface_of(np.pad(signs, 1, constant_values=1.0))
    assert_closed_oriented_manifold(vertices, faces)
    assert volume(vertices, faces) > 0


def test_a_sphere_has_its_radius_volume_and_topology() -> None:
    center = (15.3, 16.1, 15.8)
    vertices, faces = surface_of(sphere(32, 11.4, center))
    radius = np.linalg.norm(vertices - center, axis=1)
    assert np.abs(radius - 11.4).max() < 0.1
    assert euler_characteristic(vertices, faces) == 2
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 11.4**3, rel=0.01)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    outward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a - np.array(center))
    assert (outward > 0).all()
    assert_closed_oriented_manifold(vertices, faces)


def test_a_torus_has_one_handle() -> None:
    p = grid(40) - (19.7, 19.4, 20.2)
    ring = np.hypot(p[..., 0], p[..., 1]) - 11.2
    vertices, faces = surface_of((np.hypot(ring, p[..., 2]) - 4.6).astype(np.float32))
    assert euler_characteristic(vertices, faces) == 0
    assert_closed_oriented_manifold(vertices, faces)


def test_a_narrow_band_gives_the_same_surface_as_the_full_grid() -> None:
    field = sphere(32, 11.4, (15.3, 16.1, 15.8))
    values, index = points_of(field)
    band = values.abs() < 1.8
    sparse = extract_isosurface(values[band], index[band])
    full = extract_isosurface(values, index)
    assert torch.equal(sparse[0], full[0])
    assert torch.equal(sparse[1], full[1])


# ---------------------------------------------------------------- zeros, missing data, inputs


def test_a_zero_counts_as_positive() -> None:
    field = np.ones((3, 3, 3), dtype=np.float32)
    field[1, 1, 1] = -1.0
    field[2, 1, 1] = 0.0
    vertices, _ = surface_of(field)
    assert len(vertices) == 6
    assert [2.0, 1.0, 1.0] in vertices.tolist()
    field[1, 1, 1] = 0.0
    with pytest.raises(ValueError, match="nothing crosses level 0"):
        surface_of(field)


def test_vertices_that_meet_at_a_zero_stay_distinct() -> None:
    field = -np.ones((3, 3, 3), dtype=np.float32)
    field[1, 1, 1] = 0.0
    vertices, faces = surface_of(field)
    assert vertices.tolist() == [[1.0, 1.0, 1.0]] * 6
    assert_closed_oriented_manifold(vertices, faces)


def test_no_surface_is_made_up_where_a_corner_is_missing() -> None:
    values, index = points_of(sphere(16, 5.3, (7.4, 7.7, 7.1)))
    known = index[:, 0] <= 7
    vertices, faces = extract_isosurface(values[known], index[known])
    full_vertices, full_faces = extract_isosurface(values, index)
    inside = (full_vertices[full_faces][..., 0] <= 7).all(dim=1)
    assert len(faces) == int(inside.sum())
    assert vertices[:, 0].max() <= 7
    edges = directed_edges(faces.numpy())
    rim = {v for edge in edges if edge[::-1] not in edges for v in edge}
    assert rim
    assert all(vertices[v, 0] == 7 for v in rim)


def test_one_missing_corner_removes_its_cell_only() -> None:
    field = np.array([-1, 1, 1, 1, 1, 1, 1, 1], dtype=np.float32).reshape(2, 2, 2)
    values, index = points_of(field)
    assert len(extract_isosurface(values, index)[1]) == 1
    for missing in range(8):
        keep = torch.arange(8) != missing
        with pytest.raises(ValueError, match="nothing crosses"):
            extract_isosurface(values[keep], index[keep])


def test_order_offset_and_index_type_do_not_matter() -> None:
    values, index = points_of(smooth_noise(8, seed=5))
    vertices, faces = extract_isosurface(values, index)
    shuffle = torch.from_numpy(np.random.default_rng(0).permutation(len(values)))
    moved = index[shuffle].int() + torch.tensor([100, -50, 7], dtype=torch.int32)
    again, same_faces = extract_isosurface(values[shuffle], moved)
    assert torch.equal(faces, same_faces)
    assert torch.allclose(again - torch.tensor([100.0, -50.0, 7.0]), vertices, atol=1e-5)
    assert (again.dtype, same_faces.dtype) == (torch.float32, torch.int64)


def test_half_precision_fields_work() -> None:
    values, index = points_of(sphere(12, 4.3, (5.5, 5.5, 5.5)))
    vertices, faces = extract_isosurface(values.bfloat16(), index, level=0.1)
    assert_closed_oriented_manifold(vertices.numpy(), faces.numpy())


def test_no_crossing_says_the_level_and_the_range() -> None:
    values, index = points_of(sphere(8, 2.0, (3.5, 3.5, 3.5)))
    with pytest.raises(ValueError, match=r"nothing crosses level 9: .* run from -1\.13\d* to 4\.06"):
        extract_isosurface(values, index, level=9.0)
    with pytest.raises(ValueError, match="band must reach two voxels"):
        extract_isosurface(values[::2], index[::2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v, i: (v[:, None], i), r"values must be floating point \[N\]"),
        (lambda v, i: (v.int(), i), r"values must be floating point \[N\]"),
        (lambda v, i: (v, i.float()), r"index must be integer \[N, 3\]"),
        (lambda v, i: (v, i[:, :2]), r"index must be integer \[N, 3\]"),
        (lambda v, i: (v[1:], i), "one row per point; got 7 and 8"),
        (lambda v, i: (v[:0], i[:0]), "no points"),
        (lambda v, i: (v, torch.cat([i[:1], i[:7]])), "1 of 8 index rows repeat a point"),
        (lambda v, i: (torch.where(v > 0, torch.nan, v), i), "NaN or infinite"),
        (lambda v, i: (v, i * 2**40), "too many for 64-bit keys"),
    ],
)
def test_wrong_input_is_refused_by_name(spoil, message: str) -> None:
    values, index = points_of(np.array([-1, 1, 1, 1, 1, 1, 1, 1], dtype=np.float32).reshape(2, 2, 2))
    with pytest.raises(ValueError, match=message):
        extract_isosurface(*spoil(values, index))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gives_the_same_surface_as_the_cpu() -> None:
    values, index = points_of(smooth_noise(40, seed=2))
    vertices, faces = extract_isosurface(values, index, level=0.1)
    on_cuda = extract_isosurface(values.cuda(), index.cuda(), level=0.1)
    assert on_cuda[0].device.type == "cuda"
    assert torch.equal(on_cuda[0].cpu(), vertices)
    assert torch.equal(on_cuda[1].cpu(), faces)
