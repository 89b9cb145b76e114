"""Marching cubes over the known cells of a sparse grid.

Knows values at integer grid points and nothing of world units, bands or meshes. A cell takes part only where
all eight of its corners are given: no value is ever made up outside, so no surface appears at the rim of the
data. No dense grid is built and memory is linear in the number of points. Numba compiles a twin for the CPU.
"""

from __future__ import annotations

import functools

import torch

from sdf_vqvae.geometry.cube_table import cube_table
from sdf_vqvae.utils.threads import has_numba


def extract_isosurface(
    values: torch.Tensor,  # [N]
    index: torch.Tensor,  # [N, 3]
    *,
    level: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the surface on which the field equals `level`, as triangles.

    A point is positive (outside) where `value >= level`, so a value equal to the level counts as positive.
    Each grid edge whose ends differ in sign carries one vertex at `lower + (level - a) / (b - a)`, with `a`
    at the end of lower index and `b` at the other, shared by all triangles around it. The result is a closed
    orientable 2-manifold wherever all cut cells are known. Where a value equals the level exactly, vertices
    of several edges coincide in position yet stay distinct; merging them by position can make the mesh
    non-manifold.

    Args:
        values: Field at the points, [N], any floating dtype, finite.
        index: Integer grid coordinates of the points, [N, 3], in any order, each at most once.
        level: Value of the surface, in units of the field.

    Returns:
        Vertices `[V, 3]` float32 in index units (the sample with index i is at coordinate i) and faces `[F,
        3]` int64, with normals pointing towards larger values. Vertices are ordered by grid edge, so equal
        inputs give equal outputs on every device.

    Raises:
        ValueError: The shapes don't fit, a point is given twice, a value isn't finite, or nothing crosses the
        level.
    """
    _check(values, index)
    compiled = values.device.type == "cpu" and has_numba()
    level_here = torch.tensor(level, dtype=values.dtype, device=values.device)
    keys, strides = _keys(index, compiled)
    if not bool((keys[1:] > keys[:-1]).all()):
        keys, order = _sorted(keys, compiled)
        repeated = int((keys[1:] == keys[:-1]).sum())
        if repeated:
            raise ValueError(f"{repeated} of {len(index)} index rows repeat a point; give each point once")
        values, index = values[order], index[order]
    positive = values >= level_here
    surface = _compiled_surface if compiled else _surface
    vertices, faces = surface(values, index, keys, positive, strides, level_here)
    if not len(faces):
        raise ValueError(_no_crossing(values, level))
    return vertices, faces


def _compiled_surface(
    values: torch.Tensor,
    index: torch.Tensor,
    keys: torch.Tensor,
    positive: torch.Tensor,
    strides: tuple[int, int],
    level: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compiled twin of `_surface`."""
    from sdf_vqvae.geometry.isosurface_numba import compiled_surface

    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    arrays = values.contiguous().numpy(), index.contiguous().numpy(), keys.numpy(), positive.numpy()
    table = tuple(part.numpy() for part in _table(values.device))
    vertices, faces = compiled_surface(*arrays, strides, float(level), table)
    return torch.from_numpy(vertices), torch.from_numpy(faces)


def _surface(
    values: torch.Tensor,  # [N]
    index: torch.Tensor,  # [N, 3]
    keys: torch.Tensor,  # [N]
    positive: torch.Tensor,  # [N]
    strides: tuple[int, int],
    level: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vertices [V, 3] and faces [F, 3] of points in the order of their keys."""
    corners, case = _cut_cells(keys, positive, strides)  # [K, 8], [K]
    count, triangle_edges, edge_lower, edge_upper, edge_axis = _table(values.device)
    cell = torch.repeat_interleave(count[case])  # [F]
    first = torch.cumsum(count[case], 0) - count[case]
    nth = torch.arange(len(cell), device=cell.device) - first[cell]
    edges = triangle_edges[case[cell], nth]  # [F, 3]
    lower = corners[cell[:, None], edge_lower[edges]]
    edge_id = lower * 3 + edge_axis[edges]  # [F, 3]

    end = torch.full((3 * len(keys),), -1, dtype=torch.int64, device=keys.device)
    end[edge_id.flatten()] = corners[cell[:, None], edge_upper[edges]].flatten()  # always the same value
    used = end >= 0
    vertex_of_edge = torch.cumsum(used, 0) - 1
    crossed = torch.nonzero(used)[:, 0]  # [V]
    start_point = crossed // 3
    vertices = _crossing_points(values[start_point], values[end[crossed]], index[start_point], crossed % 3, level)
    return vertices, vertex_of_edge[edge_id]


def _check(values: torch.Tensor, index: torch.Tensor) -> None:
    if values.ndim != 1 or not values.is_floating_point():
        raise ValueError(
            f"values must be floating point [N]; got {values.dtype} {list(values.shape)}; "
            "squeeze a trailing channel first"
        )
    if index.ndim != 2 or index.shape[1] != 3 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be integer [N, 3]; got {index.dtype} {list(index.shape)}")
    if len(values) != len(index):
        raise ValueError(f"values and index must have one row per point; got {len(values)} and {len(index)}")
    if values.device != index.device:
        raise ValueError(f"values and index must be on one device; got {values.device} and {index.device}; use .to()")
    if not len(values):
        raise ValueError("no points were given, so there is no surface; check that the field isn't empty")
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{bad} of {len(values)} values are NaN or infinite; a surface needs finite values")


def _no_crossing(values: torch.Tensor, level: float) -> str:
    low, high = float(values.min()), float(values.max())
    if low < level <= high:
        return (
            f"nothing crosses level {level:g}: the {len(values)} values run from {low:g} to {high:g}, but no "
            "cell with all eight corners known is cut; the band must reach two voxels to each side"
        )
    return (
        f"nothing crosses level {level:g}: the {len(values)} values run from {low:g} to {high:g}; "
        "choose a level inside that range"
    )


def _keys(index: torch.Tensor, compiled: bool) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return a key for each point [N], ascending along x, then y, then z, and the key strides of x and y."""
    low, high = torch.aminmax(index, dim=0)
    origin = low.long()
    # One spare column per axis, so that a step of +1 never lands on a point of the next row.
    extent = (high.long() - origin + 2).tolist()
    if extent[0] * extent[1] * extent[2] >= 2**63:
        raise ValueError(f"the index spans {extent} points along x, y, z: too many for 64-bit keys")
    stride_x, stride_y = extent[1] * extent[2], extent[2]
    if compiled:
        from sdf_vqvae.geometry.isosurface_numba import fill_keys

        keys = torch.empty(len(index), dtype=torch.int64)
        fill_keys(index.contiguous().numpy(), origin.numpy(), stride_x, stride_y, keys.numpy())
    else:
        x, y, z = (index.long() - origin).unbind(1)
        keys = x * stride_x + y * stride_y + z
    return keys, (stride_x, stride_y)


def _sorted(keys: torch.Tensor, compiled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys [N] in ascending order, and the order [N]."""
    if not compiled or int(keys.max()) >= 2**31:
        return torch.sort(keys)
    # NumPy sorts numbers alone several times faster than PyTorch sorts them with their places.
    both = (keys << 32).add_(torch.arange(len(keys)))
    both.numpy().sort()
    return both >> 32, both & (2**32 - 1)


def _cut_cells(
    keys: torch.Tensor,  # [N]
    positive: torch.Tensor,  # [N]
    strides: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the corners [K, 8] (positions in `keys`) and the sign cases [K] of all known cells that are cut.

    In sorted order a point's z-neighbour is the next entry or absent, so the four columns of a cell (8
    corners) take three searches. Cells drop out as soon as a corner is missing.
    """
    stride_x, stride_y = strides
    has_above = torch.zeros_like(positive)
    has_above[:-1] = keys[1:] == keys[:-1] + 1
    base = torch.nonzero(has_above)[:, 0]  # [K]
    columns = [base]
    for offset in (stride_y, stride_x, stride_x + stride_y):
        wanted = keys[columns[0]] + offset
        found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        complete = torch.nonzero((keys[found] == wanted) & has_above[found])[:, 0]
        columns = [column[complete] for column in (*columns, found)]
    # A column's two corners are one number of 0..3; the order of columns (00, 01, 10, 11) is that of the
    # corners.
    column_case = positive.to(torch.uint8)
    column_case[:-1] += 2 * column_case[1:].clone()
    case = torch.zeros(len(columns[0]), dtype=torch.int64, device=keys.device)
    for place, column in enumerate(columns):
        case += column_case[column].long() << 2 * place
    cut = torch.nonzero((case > 0) & (case < 255))[:, 0]
    low = torch.stack([column[cut] for column in columns], dim=1)  # [K, 4]
    return torch.stack([low, low + 1], dim=2).flatten(1), case[cut]


def _crossing_points(
    a: torch.Tensor,  # [V]
    b: torch.Tensor,  # [V]
    start: torch.Tensor,  # [V, 3]
    axis: torch.Tensor,  # [V]
    level: torch.Tensor,
) -> torch.Tensor:
    """Return the points [V, 3] at which the line from `a` at `start` to `b` one step on meets the level."""
    a, b, level = a.double(), b.double(), level.double()
    fraction = (level - a) / (b - a)
    return start.double().scatter_add(1, axis[:, None], fraction[:, None]).float()


@functools.lru_cache(maxsize=8)
def _table(device: torch.device) -> tuple[torch.Tensor, ...]:
    table = cube_table()
    parts = (
        table.triangle_count,
        table.triangle_edges,
        table.edge_lower,
        table.edge_upper,
        table.edge_axis,
    )
    return tuple(torch.from_numpy(part).to(device) for part in parts)
