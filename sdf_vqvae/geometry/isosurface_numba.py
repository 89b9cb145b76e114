"""Marching cubes, compiled for the CPU by Numba; it holds no lock. The table of cases is the caller's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from sdf_vqvae.utils.threads import in_threads

_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


def compiled_surface(
    values: npt.NDArray[Any],
    index: npt.NDArray[Any],
    keys: npt.NDArray[np.int64],
    positive: npt.NDArray[np.bool_],
    strides: tuple[int, int],
    level: float,
    table: tuple[npt.NDArray[Any], ...],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return vertices `[V, 3]` and faces `[F, 3]` of all known cells that are cut.

    Args:
        values: `[N]`.
        index: `[N, 3]`.
        keys: int64 `[N]`, ascending; a step along x, y, z adds the strides of x and y, and 1.
        positive: bool `[N]`.
        strides: see `keys`.
        level: of the surface.
        table: `triangle_count`, `triangle_edges`, `edge_lower`, `edge_upper` and `edge_axis` of `CubeTable`.
    """
    case, columns = np.zeros(len(keys), dtype=np.uint8), np.empty((len(keys), 3), dtype=np.int32)
    in_threads(lambda start, stop: _find_cut(keys, positive, *strides, start, stop, case, columns), len(keys))
    cells = np.flatnonzero(case)
    on_edges, first = np.zeros(len(keys), dtype=np.uint8), np.empty(len(keys), dtype=np.int32)
    count = _number_edges(cells, case, columns, *table, on_edges, first)
    vertices = np.empty((count, 3), dtype=np.float32)
    faces = np.empty((int(table[0][case[cells]].sum()), 3), dtype=np.int64)
    _fill(values, index, float(level), cells, case, columns, *table, on_edges, first, vertices, faces)
    return vertices, faces


@njit(**_COMPILED)
def fill_keys(index: Any, origin: Any, stride_x: int, stride_y: int, keys: Any) -> None:
    """Fill `keys` int64 `[N]` with those of the points `[N, 3]`."""
    for point in range(len(index)):
        keys[point] = (
            (np.int64(index[point, 0]) - origin[0]) * stride_x
            + (np.int64(index[point, 1]) - origin[1]) * stride_y
            + np.int64(index[point, 2])
            - origin[2]
        )


@njit(**_COMPILED)
def _find_cut(
    keys: Any, positive: Any, stride_x: int, stride_y: int, start: int, stop: int, case: Any, columns: Any
) -> None:
    """Find which of the points start..stop are the lowest corner of a known cell whose corners differ in sign.

    The other three columns of the cells stand further along in the keys, and go along them as the points do.

    Args:
        keys: see `compiled_surface`.
        positive: bool `[N]`.
        stride_x: see `keys`.
        stride_y: see `keys`.
        start: first point.
        stop: point after the last.
        case: uint8 `[N]`, zeros; filled from start to stop with the sign cases of cells that are cut.
        columns: int32 `[N, 3]`; filled where there is a case with the places of the lower corners of the columns
            (0, 1), (1, 0) and (1, 1).
    """
    last = len(keys) - 1
    offsets = (stride_y, stride_x, stride_x + stride_y)
    places = np.empty(3, np.int64)
    for column in range(3):
        places[column] = np.searchsorted(keys, keys[start] + offsets[column])
    for point in range(start, min(stop, last)):
        key = keys[point]
        if keys[point + 1] != key + 1:
            continue
        signs = int(positive[point]) + 2 * int(positive[point + 1])
        whole = True
        for column in range(3):
            wanted, at = key + offsets[column], places[column]
            while at < last and keys[at] < wanted:
                at += 1
            places[column] = at
            if at >= last or keys[at] != wanted or keys[at + 1] != wanted + 1:
                whole = False
                break
            signs += (int(positive[at]) + 2 * int(positive[at + 1])) << 2 * (column + 1)
        if whole and 0 < signs < 255:
            case[point] = signs
            columns[point] = places


@njit(**_COMPILED)
def _place(cell: int, columns: Any, corner: int) -> int:
    """Return the place of a corner of a cell."""
    column = corner >> 1
    return (cell if column == 0 else columns[cell, column - 1]) + (corner & 1)


@njit(**_COMPILED)
def _number_edges(
    cells: Any,
    case: Any,
    columns: Any,
    triangle_count: Any,
    triangle_edges: Any,
    edge_lower: Any,
    edge_upper: Any,
    edge_axis: Any,
    on_edges: Any,
    first: Any,
) -> int:
    """Number the cut edges of cells that are cut, by lower end and axis; return how many there are.

    Args:
        cells: `[K]`, their lowest corners.
        case: see `_find_cut`.
        columns: see `_find_cut`.
        triangle_count: see `CubeTable`, as the next four.
        triangle_edges: ditto.
        edge_lower: ditto.
        edge_upper: ditto.
        edge_axis: ditto.
        on_edges: uint8 `[N]`, zeros; gets a bit for each axis along which a cut edge goes up from the point.
        first: int32 `[N]`; gets the number of the first edge that goes up from the point or a later one.
    """
    for cell in cells:
        signs = case[cell]
        for edge in range(len(edge_lower)):
            lower, upper = edge_lower[edge], edge_upper[edge]
            if (signs >> lower ^ signs >> upper) & 1:
                on_edges[_place(cell, columns, lower)] |= 1 << edge_axis[edge]
    count = 0
    for point in range(len(on_edges)):
        first[point] = count
        bits = on_edges[point]
        count += (bits & 1) + (bits >> 1 & 1) + (bits >> 2)
    return count


@njit(**_COMPILED)
def _fill(
    values: Any,
    index: Any,
    level: float,
    cells: Any,
    case: Any,
    columns: Any,
    triangle_count: Any,
    triangle_edges: Any,
    edge_lower: Any,
    edge_upper: Any,
    edge_axis: Any,
    on_edges: Any,
    first: Any,
    vertices: Any,
    faces: Any,
) -> None:
    """Fill vertices and faces; arguments are those of `compiled_surface` and `_number_edges`."""
    numbers = np.empty(len(edge_lower), np.int64)
    face = 0
    for cell in cells:
        signs = case[cell]
        for edge in range(len(edge_lower)):
            lower, upper, axis = edge_lower[edge], edge_upper[edge], edge_axis[edge]
            if (signs >> lower ^ signs >> upper) & 1:
                start = _place(cell, columns, lower)
                bits = on_edges[start]
                number = first[start]
                for before in range(axis):
                    number += bits >> before & 1
                numbers[edge] = number
                a, b = np.float64(values[start]), np.float64(values[_place(cell, columns, upper)])
                for along in range(3):
                    vertices[number, along] = np.float64(index[start, along]) + (
                        (level - a) / (b - a) if along == axis else 0.0
                    )
        for nth in range(triangle_count[signs]):
            for corner in range(3):
                faces[face, corner] = numbers[triangle_edges[signs, nth, corner]]
            face += 1
