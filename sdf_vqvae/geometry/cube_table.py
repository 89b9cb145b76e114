"""The 256 ways a surface can cut one cube, worked out from one rule per cube face.

Knows a single cube with signed corners and nothing of grids, values or meshes. Nothing is tabulated by hand:
on each face the crossed edges are joined by directed segments, the segments of the six faces close into
loops, and every loop is cut into triangles.

Numbering. Corner `c` sits at `(c >> 2 & 1, c >> 1 & 1, c & 1)`, so corners are in lexicographic order of (x,
y, z). Case `k` has corner `c` positive where bit `c` of `k` is set. An edge runs from its lower corner along
one axis.

The face rule. Seen from outside, counter-clockwise, every run of positive corners on a face is cut off from
the rest by one segment. The rule reads only the four signs of the face, so the two cubes that share it draw
the same segments (in opposite directions): whatever the signs, neighbouring cubes fit together without a gap.
On an ambiguous face (signs alternate) it parts the positive corners and joins the negative ones, which keeps
thin solid parts whole.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

Edge = tuple[int, int]
"""(lower corner, upper corner)."""

CORNERS: tuple[tuple[int, int, int], ...] = tuple(
    (corner >> 2 & 1, corner >> 1 & 1, corner & 1) for corner in range(8)
)
EDGES: tuple[Edge, ...] = tuple(
    (corner, corner | step) for corner in range(8) for step in (4, 2, 1) if not corner & step
)


@dataclass(frozen=True, kw_only=True)
class CubeTable:
    """Triangles of all 256 sign cases, as arrays ready for gathering."""

    triangle_count: np.ndarray
    """[256] number of triangles of each case."""
    triangle_edges: np.ndarray
    """[256, T, 3] edge numbers, wound so that normals point to positive corners; unused rows are 0."""
    edge_lower: np.ndarray
    """[12] lower corner of each edge."""
    edge_upper: np.ndarray
    """[12] upper corner of each edge."""
    edge_axis: np.ndarray
    """[12] axis along which each edge runs."""


def face_cycles() -> list[tuple[int, int, int, int]]:
    """Return the corners of the six faces, each counter-clockwise as seen from outside the cube."""
    cycles = []
    for axis, side in itertools.product(range(3), range(2)):
        step, first, second = 4 >> axis, 4 >> (axis + 1) % 3, 4 >> (axis + 2) % 3
        base = step * side
        cycle = (base, base | first, base | first | second, base | second)
        cycles.append(cycle if side else (cycle[0], cycle[3], cycle[2], cycle[1]))
    return cycles


def face_segments(cycle: tuple[int, int, int, int], case: int) -> list[tuple[Edge, Edge]]:
    """Return the directed segments on one face: each cuts off one run of positive corners.

    A segment starts where the cycle leaves the run and ends where it entered, which winds the finished
    triangles so that their normals point towards the positive side.
    """
    positive = [bool(case >> corner & 1) for corner in cycle]
    segments = []
    for start in range(4):
        if not positive[start] or positive[start - 1]:
            continue
        last = start
        while positive[(last + 1) % 4]:
            last += 1
        entered = _edge(cycle[start - 1], cycle[start])
        left = _edge(cycle[last % 4], cycle[(last + 1) % 4])
        segments.append((left, entered))
    return segments


def trace_loops(case: int) -> list[list[Edge]]:
    """Return the closed loops of crossed edges of one case, each starting at its lowest edge."""
    following = dict(segment for cycle in face_cycles() for segment in face_segments(cycle, case))
    loops = []
    while following:
        edge = min(following)
        loop = []
        while edge in following:
            loop.append(edge)
            edge = following.pop(edge)
        loops.append(loop)
    return loops


def triangulate(loop: list[Edge]) -> list[tuple[Edge, Edge, Edge]]:
    """Cut a loop into triangles with the shortest diagonals, none of which lies in a face of the cube.

    A diagonal inside a face could be drawn by the neighbouring cube as well, and four triangles would meet in
    it.
    """
    cut: dict[tuple[int, int], tuple[float, list[tuple[int, int, int]]] | None] = {}
    for width in range(1, len(loop)):
        for first in range(len(loop) - width):
            last = first + width
            cut[first, last] = _best_cut(loop, first, last, cut)
    best = cut[0, len(loop) - 1]
    assert best is not None, f"no triangulation without a diagonal in a cube face: {loop}"
    return [(loop[a], loop[b], loop[c]) for a, b, c in best[1]]


def _best_cut(
    loop: list[Edge],
    first: int,
    last: int,
    cut: dict[tuple[int, int], tuple[float, list[tuple[int, int, int]]] | None],
) -> tuple[float, list[tuple[int, int, int]]] | None:
    """Return the cheapest triangulation of the sub-polygon first..last, None where its chord is forbidden."""
    if last == first + 1:
        return 0.0, []
    closing = last - first == len(loop) - 1
    if not closing and _share_a_face(loop[first], loop[last]):
        return None
    chord = 0.0 if closing else _squared_distance(loop[first], loop[last])
    best = None
    for middle in range(first + 1, last):
        left, right = cut[first, middle], cut[middle, last]
        if left is None or right is None:
            continue
        cost = left[0] + right[0] + chord
        if best is None or cost < best[0]:
            best = cost, [*left[1], *right[1], (first, middle, last)]
    return best


def _edge(one: int, other: int) -> Edge:
    return (one, other) if one < other else (other, one)


def _share_a_face(one: Edge, other: Edge) -> bool:
    corners = (*one, *other)
    return any(len({corner & step for corner in corners}) == 1 for step in (4, 2, 1))


def _squared_distance(one: Edge, other: Edge) -> float:
    middles = [np.add(CORNERS[lower], CORNERS[upper]) / 2 for lower, upper in (one, other)]
    return float(np.square(middles[0] - middles[1]).sum())


@functools.cache
def cube_table() -> CubeTable:
    """Return the table of all 256 cases (worked out on first use, then kept)."""
    number = {edge: position for position, edge in enumerate(EDGES)}
    cases = [
        [[number[edge] for edge in triangle] for loop in trace_loops(case) for triangle in triangulate(loop)]
        for case in range(256)
    ]
    count = np.array([len(triangles) for triangles in cases], dtype=np.int64)
    edges = np.zeros((256, int(count.max()), 3), dtype=np.int64)
    for case, triangles in enumerate(cases):
        edges[case, : len(triangles)] = np.reshape(triangles, (-1, 3))
    lower, upper = np.array(EDGES, dtype=np.int64).T
    axis = np.array([{4: 0, 2: 1, 1: 2}[high - low] for low, high in EDGES], dtype=np.int64)
    return CubeTable(triangle_count=count, triangle_edges=edges, edge_lower=lower, edge_upper=upper, edge_axis=axis)
