"""Faces as exporters leave them, made into surfaces: what stands twice counts once, and neighbors look the same way.

Knows welded vertices and faces alone. A mesh that looks inward as a whole is left so: the voxelizer turns it round.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sdf_vqvae.geometry.voxelizer.winding import checked_winding_number

logger = logging.getLogger(__name__)

_OPEN = 0.05
"""Share of a surface's area that its holes may have for it to count as closed but for damage."""
_CLEAR = 2 / 3
"""Share of a part's area that has to look one way for that to be the way it was meant."""
_FLAT = 1e-6
"""Volume over area^1.5 below which a part has no outside."""
_ASKED = 32
"""Faces of a part that are asked how deep it lies within solids."""
_WITHIN = 0.5
"""How deep, in solids, it has to lie by most of them."""
_BEHIND = 1e-6
"""How far from a face that is asked, in units of the mesh's size."""


def repair_faces(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the faces of a surface, and whether it is closed.

    1. Faces that stand in the same place and look the same way count once.
    2. Where every face of a closed surface, or some of them, stand beside their own reverse (also as polygons that
       are cut into other triangles), one of each counts: exporters write both sides. So where holes have less than a
       twentieth of the area. Sheets with two sides stay as they are: their winding number is 0, so they become a
       shell, while one side alone could enclose something.
    3. Parts (faces joined by edges of two), closed but for holes as small, whose faces don't all look the same way
       are made to: as most of the area does, or where there is no clear majority, outward.
    4. Closed parts that look the other way than the mesh does are turned round unless they lie within its solid:
       there they are cavities, elsewhere mirrored parts whose faces were not turned. Their own cavities go with them.

    Args:
        vertices: float64 `[V, 3]` of size about 1, equal ones welded.
        faces: int64 `[F, 3]`, three different vertices each.

    Returns:
        Faces int64 `[G, 3]`, those of the input in their order where nothing was to repair; and whether every edge
        has two faces that run along it in opposite directions.
    """
    if is_watertight(faces):
        return _outward(vertices, faces, _Edges.of(faces)), True
    count = len(faces)
    same, reverse = _repeated(faces)
    if same.any():
        faces, reverse = faces[~same], _renumbered(reverse, ~same)
    edges = _Edges.of(faces)
    single = faces
    if edges.count.max() > 2 or (reverse >= 0).any():
        single = _single_sided(vertices, faces, reverse)
        edges = edges if single is faces else _Edges.of(single)
    turned = _turned(vertices, single, edges, np.ones(len(single), dtype=bool))
    if turned.any():
        single = np.where(turned[:, None], single[:, ::-1], single)
        edges = _Edges.of(single)
    if len(single) != count or turned.any():
        logger.debug(
            "%d faces: %d stand twice, %d beside their reverse, %d turned round",
            *(count, count - len(faces), len(faces) - len(single), turned.sum()),
        )
    return _outward(vertices, single, edges), is_watertight(single)


def is_watertight(faces: np.ndarray) -> bool:
    """Return whether every directed edge of `[F, 3]` faces occurs once, and once in the other direction."""
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    size = int(faces.max()) + 1
    keys = 2 * (np.minimum(start, end) * size + np.maximum(start, end)) + (start > end)
    keys.sort()
    forward, backward = keys[::2], keys[1::2]
    if len(forward) != len(backward) or (forward & 1).any() or (backward != forward + 1).any():
        return False
    return bool((forward[1:] != forward[:-1]).all())


# -- edges and parts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Edges:
    """The undirected edges of faces, as runs of a sorted list of the faces' sides."""

    face: np.ndarray
    """The face of each side. int64 `[3 F]`"""
    backward: np.ndarray
    """Whether the side runs from the larger to the smaller vertex. bool `[3 F]`"""
    place: np.ndarray
    """Side -> `faces.reshape(-1)`, whose vertex it starts from. int64 `[3 F]`"""
    first: np.ndarray
    """Where the run of each edge begins. int64 `[E]`"""
    count: np.ndarray
    """How many faces each edge has. int64 `[E]`"""

    @classmethod
    def of(cls, faces: np.ndarray) -> _Edges:
        start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
        size = int(faces.max()) + 1 if len(faces) else 1
        keys = np.minimum(start, end) * size + np.maximum(start, end)
        place = np.argsort(keys, kind="stable")
        keys = keys[place]
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
        return cls(
            face=place // 3,
            backward=(start > end)[place],
            place=place,
            first=first,
            count=np.diff(np.append(first, len(keys))),
        )

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the two faces of every edge that has two, and whether they run along it in opposite directions."""
        first = self.first[self.count == 2]
        return self.face[first], self.face[first + 1], self.backward[first] != self.backward[first + 1]

    def balanced(self, part: np.ndarray, count: int) -> np.ndarray:
        """Return which parts are closed at edges of other than two faces: their own run there as often back as forth.

        So are boxes that touch in an edge. `part`: of each face, int64 `[F]`, `count` of them -> bool `[count]`
        """
        chosen = self.count != 2
        side = self.sides(chosen)
        owner = part[self.face[side]]
        keys = np.repeat(np.flatnonzero(chosen), self.count[chosen]) * count + owner
        shared, place = np.unique(keys, return_inverse=True)
        surplus = np.bincount(place, np.where(self.backward[side], -1, 1), minlength=len(shared))
        return np.bincount(shared[surplus != 0] % count, minlength=count) == 0

    def sides(self, chosen: np.ndarray) -> np.ndarray:
        """Return the sides of the chosen edges. bool `[E]` -> bool `[3 F]`"""
        return np.repeat(chosen, self.count)


def _components(left: np.ndarray, right: np.ndarray, size: int) -> tuple[int, np.ndarray]:
    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
    number, labels = connected_components(graph, directed=False)
    return int(number), labels


def _area_vectors(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = vertices[faces].transpose(1, 0, 2)
    vectors: np.ndarray = np.cross(b - a, c - a) / 2
    return vectors


# -- faces that stand twice --------------------------------------------------------------------------------------


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return numbers as pseudorandom ones (splitmix64), sums of which tell sets apart. uint64"""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _repeated(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which faces stand as an earlier one does, bool `[F]`, and the earlier face that each is the reverse of.

    The second is int64 `[F]`, -1 for none.
    """
    same, reverse = np.zeros(len(faces), dtype=bool), np.full(len(faces), -1)
    sums = _mixed(np.arange(faces.max() + 1))[faces].sum(axis=1)
    order = np.argsort(sums, kind="stable")
    equal = sums[order[1:]] == sums[order[:-1]]
    if not equal.any():
        return same, reverse
    some = np.sort(order[np.append(equal, False) | np.append(False, equal)])
    corners = faces[some]
    # The smallest vertex first, without turning the face round.
    corners = np.take_along_axis(corners, (corners.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    flipped = corners[:, 1] > corners[:, 2]
    sets = np.where(flipped[:, None], corners[:, [0, 2, 1]], corners)
    # Sorted by their vertices, then by the way they look, then as they stood.
    order = np.lexsort((flipped, *sets.T))
    some, sets, flipped = some[order], sets[order], flipped[order]
    alike = np.append(False, (sets[1:] == sets[:-1]).all(axis=1))
    again = alike & np.append(False, flipped[1:] == flipped[:-1])
    same[some[again]] = True
    some, alike = some[~again], alike[~again]  # of each set of vertices one or two are left
    second = np.flatnonzero(alike)
    pair = np.stack([some[second - 1], some[second]])
    reverse[pair.max(axis=0)] = pair.min(axis=0)
    return same, reverse


def _renumbered(reverse: np.ndarray, kept: np.ndarray) -> np.ndarray:
    number = np.cumsum(kept) - 1
    return np.where(reverse >= 0, number[reverse], -1)[kept]


def _single_sided(vertices: np.ndarray, faces: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    """Return the faces with one side only of what is closed then."""
    beside = _polygons_beside(faces, reverse)
    kept = beside < 0
    if kept.all():
        return faces
    counting = faces[kept]
    doubled = np.zeros(len(faces), dtype=bool)
    doubled[beside[~kept]] = True
    edges = _Edges.of(counting)
    inner = np.flatnonzero(~np.isin(np.arange(len(edges.face)), edges.first))
    count, body = _components(edges.face[inner - 1], edges.face[inner], len(counting))
    crowded = np.bincount(body[edges.face[edges.sides(edges.count > 2)]], minlength=count) > 0
    candidates = np.bincount(body[doubled[kept]], minlength=count) > 0
    chosen = candidates & ~crowded
    if not chosen.any():
        return faces
    turned = _turned(vertices, counting, edges, ~doubled[kept])
    oriented = np.where(turned[:, None], counting[:, ::-1], counting)
    chosen &= _hole_area(vertices, oriented, body, count) <= _OPEN * np.bincount(
        body, np.linalg.norm(_area_vectors(vertices, counting), axis=1), minlength=count
    )
    number = np.cumsum(kept) - 1
    body_of = body[number[np.where(kept, np.arange(len(faces)), beside)]]
    single = faces.copy()
    single[kept] = np.where(chosen[body][:, None], oriented, counting)
    return single[kept | ~chosen[body_of]]


def _polygons_beside(faces: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    """Return for each face one that it stands beside with the other side out, int64 `[F]`, -1 where it counts.

    Beside `reverse`, polygons: faces joined across edges that only they have, without a vertex inside. Two with the
    same outline, once reversed, are two sides of one polygon, however each is cut into triangles.
    """
    kept = np.flatnonzero(reverse < 0)
    left = faces[kept]
    edges = _Edges.of(left)
    if edges.count.max(initial=0) <= 2:
        return reverse
    a, b, opposed = edges.pairs()
    count, polygon = _components(a[opposed], b[opposed], len(left))
    inner = edges.count == 2
    inner[inner] = opposed
    outline = edges.sides(~inner)
    place, owner = edges.place[outline], polygon[edges.face[outline]]
    start, end = left.reshape(-1)[place], np.roll(left, -1, axis=1).reshape(-1)[place]
    size = int(faces.max()) + 1
    ahead, back = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)
    np.add.at(ahead, owner, _mixed(start * size + end))
    np.add.at(back, owner, _mixed(end * size + start))
    flat = np.bincount(polygon, minlength=count) == np.bincount(owner, minlength=count) - 2
    some = np.flatnonzero(flat & (ahead != back))
    has_twin = np.isin(ahead[some], back[some])
    some = some[has_twin]
    if len(some) == 0:
        return reverse
    # Of two polygons the one with the smaller sum counts; a third of the same kind stays.
    order = some[np.argsort(ahead[some], kind="stable")]
    where = np.searchsorted(ahead[order], back[some]).clip(max=len(order) - 1)
    twin = order[where]
    doubled = (ahead[twin] == back[some]) & (ahead[some] > back[some])
    stands_for = np.full(count, -1)
    stands_for[some[doubled]] = twin[doubled]
    first_face = np.full(count, -1)
    first_face[polygon[::-1]] = np.arange(len(left))[::-1]
    beside = reverse.copy()
    dropped = stands_for[polygon] >= 0
    beside[kept[dropped]] = kept[first_face[stands_for[polygon[dropped]]]]
    # What was the reverse of a face that is dropped now stands beside the other polygon too.
    after = (reverse >= 0) & (beside[reverse] >= 0)
    beside[after] = beside[reverse[after]]
    return beside


def _hole_area(vertices: np.ndarray, faces: np.ndarray, body: np.ndarray, count: int) -> np.ndarray:
    """Return the area of the holes of each body. float64 `[count]`

    A hole is a loop of edges that have another number of faces than two; its area is that of its vector.
    """
    edges = _Edges.of(faces)
    place = edges.place[edges.sides(edges.count != 2)]
    start, end = faces.reshape(-1)[place], np.roll(faces, -1, axis=1).reshape(-1)[place]
    loops, label = _components(start, end, len(vertices))
    label = label[start]
    some = np.zeros(loops, dtype=np.int64)
    some[label] = start  # a vertex of each loop, so that little cancels
    origin = vertices[some[label]]
    vectors = np.cross(vertices[start] - origin, vertices[end] - origin) / 2
    total = np.stack([np.bincount(label, vectors[:, axis], minlength=loops) for axis in range(3)], axis=1)
    owner = np.zeros(loops, dtype=np.int64)
    owner[label] = body[place // 3]
    return np.bincount(owner, np.linalg.norm(total, axis=1), minlength=count)


# -- neighbors that look the same way ----------------------------------------------------------------------------


def _turned(vertices: np.ndarray, faces: np.ndarray, edges: _Edges, votes: np.ndarray) -> np.ndarray:
    """Return which faces are to be turned round for neighbors to look the same way. bool `[F]`

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        edges: theirs.
        votes: whose direction says how a part was meant. bool `[F]`
    """
    size = len(faces)
    nothing = np.zeros(size, dtype=bool)
    a, b, opposed = edges.pairs()
    if opposed.all() and votes.all():
        return nothing
    # Every face twice, as it is and turned round; neighbors join the copies that look the same way.
    left, right = np.concatenate([a, a + size]), np.concatenate([b, b + size])
    right = np.where(np.tile(opposed, 2), right, (right + size) % (2 * size))
    count, label = _components(left, right, 2 * size)
    as_it_is, turned = label[:size], label[size:]
    part = np.minimum(as_it_is, turned)
    back = as_it_is > turned  # in the part's first copy this face is turned round
    vectors = _area_vectors(vertices, faces)
    area = np.linalg.norm(vectors, axis=1)
    mixed = np.bincount(part, back, minlength=count) * np.bincount(part, ~back, minlength=count) > 0
    silent = np.bincount(part, votes, minlength=count) == 0
    asked = (mixed | silent) & (np.bincount(part[as_it_is == turned], minlength=count) == 0)
    whole = np.bincount(part, area, minlength=count)
    middle = vertices[faces].mean(axis=1)
    center = np.stack([np.bincount(part, area * middle[:, k], minlength=count) for k in range(3)], axis=1)
    center = center / np.maximum(whole, np.finfo(np.float64).tiny)[:, None]
    volume = np.einsum("fk,fk->f", middle - center[part], vectors) / 3
    volume = np.bincount(part, np.where(back, -volume, volume), minlength=count)
    weight = np.where(votes, area, 0.0)
    against = np.bincount(part, np.where(back, weight, 0.0), minlength=count)
    total = np.bincount(part, weight, minlength=count)
    outward = (np.maximum(against, total - against) < _CLEAR * total) | (total == 0)
    outward &= np.abs(volume) > _FLAT * whole**1.5
    other_copy = np.where(outward, volume < 0, against > total - against)
    asked &= _hole_area(vertices, np.where(back[:, None], faces[:, ::-1], faces), part, count) <= _OPEN * whole
    return asked[part] & (back != other_copy[part])


def _outward(vertices: np.ndarray, faces: np.ndarray, edges: _Edges) -> np.ndarray:
    """Return the faces, closed parts turned round that look the other way than the mesh and are no cavity."""
    a, b, opposed = edges.pairs()
    count, part = _components(a, b, len(faces))
    if count == 1:
        return faces
    closed = edges.balanced(part, count)
    closed &= np.bincount(part[a[~opposed]], minlength=count) == 0
    vectors = _area_vectors(vertices, faces)
    middle = vertices[faces].mean(axis=1)
    signed = np.einsum("fk,fk->f", middle, vectors) / 3
    volume = np.bincount(part, signed, minlength=count)
    area = np.bincount(part, np.linalg.norm(vectors, axis=1), minlength=count)
    way = -1 if signed.sum() < 0 else 1
    some = closed & (np.abs(volume) > _FLAT * area**1.5)
    inward = some & (way * volume < 0)
    if not inward.any():
        return faces
    order = np.argsort(part, kind="stable")
    share = (np.arange(_ASKED) + 0.5) / _ASKED

    def depth(asked: np.ndarray) -> np.ndarray:
        """Return how many solids the parts lie in, inverted ones counted negative: the median over points in them."""
        first, last = (np.searchsorted(part[order], asked, side=side) for side in ("left", "right"))
        rows = order[(first[:, None] + share * (last - first)[:, None]).astype(np.int64)].reshape(-1)
        own = np.sign(volume[asked]).repeat(_ASKED)
        normal = vectors[rows] / np.maximum(np.linalg.norm(vectors[rows], axis=1, keepdims=True), 1e-300)
        # Inside the part: beside its faces there, even those that lie in a face of the solid around it.
        points = middle[rows] - own[:, None] * _BEHIND * normal
        winding = checked_winding_number(
            torch.from_numpy(points), torch.from_numpy(vertices[faces]), levels=(-1.5, -0.5, 0.5, 1.5)
        )
        return np.asarray(np.median((way * (winding.numpy() - own)).reshape(-1, _ASKED), axis=1))

    asked = np.flatnonzero(inward)
    turned = asked[depth(asked) < _WITHIN]
    if len(turned) == 0:
        return faces
    asked = np.flatnonzero(some & ~inward)
    turned = np.append(turned, asked[depth(asked) < -_WITHIN])  # the cavities of what is turned
    faces_turned = np.isin(part, turned)
    logger.debug("%d faces of parts that look inward are turned round", faces_turned.sum())
    return np.where(faces_turned[:, None], faces[:, ::-1], faces)
