"""Model the example objects and write them as GLB files.

    python examples/make_examples.py [--output FOLDER]

Every object is a union of closed parts, each swept from a curve: `loft` joins rings of points and closes both
ends, and the other shapes are ways to place the rings. Y is up, units are metres, and the same code writes
the same bytes.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Point = Sequence[float] | Array


@dataclass(frozen=True, kw_only=True)
class Part:
    """A closed surface of one material."""

    vertices: Array  # [V, 3]
    faces: npt.NDArray[np.int64]  # [F, 3], wound outwards
    color: tuple[float, float, float] = (0.8, 0.8, 0.8)

    def moved(self, offset: Point) -> Part:
        """Return the part shifted."""
        return Part(vertices=self.vertices + np.asarray(offset), faces=self.faces, color=self.color)

    def turned(self, degrees: float) -> Part:
        """Return the part turned about the Y axis."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        return Part(vertices=self.vertices @ turn.T, faces=self.faces, color=self.color)

    def mirrored(self) -> Part:
        """Return the part seen in a mirror across the plane x = 0."""
        return Part(vertices=self.vertices * (-1, 1, 1), faces=self.faces[:, ::-1], color=self.color)

    def painted(self, color: tuple[float, float, float]) -> Part:
        """Return the part in another color."""
        return Part(vertices=self.vertices, faces=self.faces, color=color)


# ---------------------------------------------------------------- shapes


def loft(rings: Array, *, first: Point | None = None, last: Point | None = None, ring_closed: bool = False) -> Part:
    """Join rings of points [S, P, 3] into a closed surface.

    Args:
        rings: Cross-sections in order.
        first: Tip that closes the first ring (default: its middle).
        last: Tip that closes the last ring (default: its middle).
        ring_closed: Join the last ring to the first instead of closing the ends.
    """
    count, points = rings.shape[:2]
    number = np.arange(count * points).reshape(count, points)
    below = number if ring_closed else number[:-1]
    above = np.roll(number, -1, axis=0) if ring_closed else number[1:]
    a, b = below, np.roll(below, -1, axis=1)
    d, c = above, np.roll(above, -1, axis=1)
    faces = [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)]
    vertices = [rings.reshape(-1, 3)]
    if not ring_closed:
        tips = [rings[0].mean(axis=0) if first is None else first, rings[-1].mean(axis=0) if last is None else last]
        vertices.append(np.asarray(tips, dtype=np.float64))
        start, end = np.full(points, count * points), np.full(points, count * points + 1)
        faces += [
            np.stack([np.roll(number[0], -1), number[0], start], -1),
            np.stack([number[-1], np.roll(number[-1], -1), end], -1),
        ]
    joined, surface = np.concatenate(vertices), np.concatenate(faces)
    corners = joined[surface]  # [F, 3, 3]
    outward = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) > 0
    return Part(vertices=joined, faces=surface if outward else surface[:, ::-1])


def circle(segments: int, roundness: float = 1.0) -> Array:
    """Return a unit circle [segments, 2]; a lower roundness moves it towards a square."""
    angle = np.arange(segments) * (2 * np.pi / segments)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1).round(12)
    return np.sign(around) * np.abs(around) ** roundness


def smoothed(points: Sequence[Point], rounds: int = 3, ring: bool = False) -> Array:
    """Return a polyline with its corners cut `rounds` times; an open one keeps its ends."""
    line = np.asarray(points, dtype=np.float64)
    for _ in range(rounds):
        following = np.roll(line, -1, axis=0) if ring else line[1:]
        before = line if ring else line[:-1]
        cut = np.stack([0.75 * before + 0.25 * following, 0.25 * before + 0.75 * following], axis=1)
        cut = cut.reshape(-1, line.shape[1])
        line = cut if ring else np.concatenate([line[:1], cut, line[-1:]])
    return line


def lathe(profile: Array, segments: int) -> Part:
    """Turn a profile of (radius, height) about the Y axis; it starts and ends on the axis."""
    return loft(_turned_rings(profile[1:-1], segments), first=(0, profile[0, 1], 0), last=(0, profile[-1, 1], 0))


def lathe_ring(profile: Array, segments: int) -> Part:
    """Turn a closed profile of (radius, height) that stays off the axis: a ring or an open shell."""
    return loft(_turned_rings(profile, segments), ring_closed=True)


def _turned_rings(profile: Array, segments: int) -> Array:
    around = circle(segments)
    rings = np.zeros((len(profile), segments, 3))
    rings[..., 0] = profile[:, :1] * around[:, 0]
    rings[..., 1] = profile[:, 1:]
    rings[..., 2] = profile[:, :1] * around[:, 1]
    return rings


def tube(
    path: Sequence[Point] | Array,
    size: Sequence[float] | Array,
    *,
    flat: Point,
    segments: int = 20,
    roundness: float = 1.0,
) -> Part:
    """Sweep an ellipse along a path that lies in a plane.

    Args:
        path: Points [S, 3].
        size: Half extents (in the plane, out of it), one pair or one per point.
        flat: Normal of the plane.
        segments: Points around.
        roundness: 1 is an ellipse, less is boxier.
    """
    line = np.asarray(path, dtype=np.float64)
    extents = np.broadcast_to(np.asarray(size, dtype=np.float64), (len(line), 2))
    normal = np.asarray(flat, dtype=np.float64) / np.linalg.norm(flat)
    along = np.gradient(line, axis=0)
    side = np.cross(normal, along)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    around = circle(segments, roundness)
    rings = line[:, None] + (extents[:, :1] * around[:, 0])[..., None] * side[:, None]
    return loft(rings + (extents[:, 1:] * around[:, 1])[..., None] * normal)


def rounded_box(size: Point, center: Point = (0, 0, 0), *, radius: float, steps: int = 4) -> Part:
    """Return a box whose edges are rounded."""
    half = np.asarray(size, dtype=np.float64) / 2
    bend = np.linspace(0, np.pi / 2, steps + 1)
    levels = [(radius * (1 - np.sin(t)), -half[1] + radius * (1 - np.cos(t))) for t in bend]
    levels += [(inset, -height) for inset, height in reversed(levels)]
    corner = np.concatenate([bend + quarter * np.pi / 2 for quarter in range(4)])
    sign = np.sign(np.stack([np.cos(corner), np.sin(corner)], axis=1).round(9))
    quadrant = np.repeat([(1, 1), (-1, 1), (-1, -1), (1, -1)], steps + 1, axis=0)
    sign = np.where(sign == 0, quadrant, sign)
    rings = []
    for inset, height in levels:
        reach = radius - inset + 1e-3 * radius
        flat = sign * (half[[0, 2]] - radius) + reach * np.stack([np.cos(corner), np.sin(corner)], axis=1)
        rings.append(np.stack([flat[:, 0], np.full(len(flat), height), flat[:, 1]], axis=1))
    return loft(np.array(rings)).moved(center)


def bent(part: Part, bend: Callable[[Array], Array]) -> Part:
    """Return the part with its vertices moved by a function of [V, 3]."""
    return Part(vertices=bend(part.vertices), faces=part.faces, color=part.color)


def wing(
    root: Point, tip: Point, *, root_chord: float, tip_chord: float, thickness: float, up: Point, steps: int = 8
) -> Part:
    """Return a wing with a rounded nose and a blunt tail edge; chords run along -Z from the given leading points."""
    around = circle(32)
    nose = 0.5 * (1 - around[:, 0])  # 0 at the leading edge, 1 at the trailing edge
    section = 1.48 * (np.sqrt(nose) - nose) * (1 - 0.35 * nose)
    # Edges thinner than a voxel of a coarse grid would come back ragged.
    blunt = 0.028 * np.minimum(1, 2.5 * np.abs(around[:, 1]))
    normal = np.asarray(up, dtype=np.float64)
    rings = []
    for share in np.linspace(0, 1, steps):
        chord = root_chord + (tip_chord - root_chord) * share
        if share > 0.97:
            chord *= 0.94
        lead = (1 - share) * np.asarray(root, dtype=np.float64) + share * np.asarray(tip, dtype=np.float64)
        half = np.sign(around[:, 1]) * np.maximum(section * chord * thickness, blunt)
        ring = lead + half[:, None] * normal
        ring[:, 2] -= nose * chord
        rings.append(ring)
    return loft(np.array(rings))


# ---------------------------------------------------------------- objects

WOOD, DARK_WOOD = (0.72, 0.50, 0.30), (0.45, 0.29, 0.17)
PORCELAIN, BRASS, CREAM = (0.20, 0.42, 0.55), (0.74, 0.58, 0.30), (0.95, 0.91, 0.80)
WHITE, RED, STEEL, GLASS = (0.93, 0.93, 0.94), (0.78, 0.16, 0.13), (0.55, 0.58, 0.62), (0.25, 0.45, 0.62)


def chair() -> list[Part]:
    """Return a four-legged wooden chair with a curved slatted back."""
    seat = rounded_box((0.44, 0.035, 0.42), (0, 0.45, 0), radius=0.016)
    parts = [bent(seat, lambda v: v - np.outer(0.10 * (0.22**2 - v[:, 0] ** 2), (0, 1, 0))).painted(WOOD)]
    height = np.linspace(0, 1, 10)[:, None]
    for x, z in ((-1, 1), (1, 1), (-1, -1), (1, -1)):
        top, foot = np.array([x * 0.185, 0.445, z * 0.175]), np.array([x * 0.215, 0.0, z * 0.205])
        across = np.cross(top - foot, (0, 1, 0))
        width = 0.013 + 0.009 * np.sin(np.pi * (0.15 + 0.75 * height))
        leg = tube(foot + (top - foot) * height, np.repeat(width, 2, axis=1), flat=across)
        parts.append(leg.painted(DARK_WOOD))
    rails = [([(x, 0.20, z) for x in np.linspace(-0.20, 0.20, 6)], (0, 0, 1)) for z in (-0.19, 0.19)]
    rails += [([(x, 0.16, z) for z in np.linspace(-0.19, 0.19, 6)], (1, 0, 0)) for x in (-0.203, 0.203)]
    for rail, flat in rails:
        parts.append(tube(rail, (0.009, 0.009), flat=flat, segments=16).painted(DARK_WOOD))
    for side in (-0.185, 0.185):
        lean = [(side, 0.44, -0.175), (side, 0.62, -0.185), (side, 0.80, -0.225), (side, 0.96, -0.275)]
        post = smoothed(lean, 2)
        parts.append(tube(post, (0.016, 0.014), flat=(1, 0, 0)).painted(DARK_WOOD))
    for up, back, tall in ((0.90, -0.258, 0.085), (0.77, -0.219, 0.05), (0.66, -0.196, 0.05)):
        parts.append(_slat(0.38, tall, 0.016).moved((0, up, back)).painted(WOOD))
    return parts


def _slat(width: float, tall: float, thick: float) -> Part:
    """Return a flat bar along X that bows backwards in the middle."""
    x = np.linspace(-width / 2, width / 2, 24)
    path = np.stack([x, 0 * x, -0.035 * (1 - (2 * x / width) ** 2)], axis=1)
    return tube(path, (thick / 2, tall / 2), flat=(0, 1, 0), segments=24, roundness=0.5)


def mug() -> list[Part]:
    """Return a mug with a handle; the object with the most faces (about 20,000)."""
    outside = [(0, 0), (0.026, 0), (0.038, 0), (0.041, 0.004), (0.0415, 0.012), (0.0425, 0.050), (0.0425, 0.091)]
    rim = [(0.0425, 0.095), (0.0405, 0.0965), (0.0385, 0.095)]
    inside = [(0.0385, 0.091), (0.0380, 0.050), (0.0372, 0.014), (0.034, 0.007), (0.024, 0.006), (0, 0.006)]
    body = lathe(smoothed([*outside, *rim, *inside], 3), 64)
    curve = smoothed(
        [
            (0.0405, 0.078),
            (0.052, 0.080),
            (0.071, 0.078),
            (0.076, 0.056),
            (0.070, 0.031),
            (0.053, 0.022),
            (0.0400, 0.021),
        ],
        3,
    )
    path = np.column_stack([curve, np.zeros(len(curve))])
    handle = tube(path, (0.0042, 0.0075), flat=(0, 0, 1), segments=40)
    return [body.painted(PORCELAIN), handle.painted(PORCELAIN)]


def lamp() -> list[Part]:
    """Return a table lamp: turned foot, open shade with a wall, bulb, and the spider that holds the shade."""
    base = [(0, 0), (0.070, 0), (0.085, 0), (0.086, 0.012), (0.060, 0.024), (0.022, 0.036), (0.016, 0.060)]
    vase = [(0.034, 0.100), (0.040, 0.135), (0.022, 0.175), (0.012, 0.200), (0.010, 0.240), (0.010, 0.290)]
    socket = [(0.017, 0.296), (0.017, 0.325), (0.012, 0.330), (0, 0.330)]
    foot = smoothed([*base, *vase, *socket], 2)
    bulb = smoothed(
        [(0, 0.325), (0.011, 0.325), (0.012, 0.340), (0.026, 0.365), (0.027, 0.390), (0.013, 0.405), (0, 0.405)]
    )
    # Rings along both walls keep the triangles of the shade from being slivers.
    outer, inner = np.linspace((0.150, 0.270), (0.088, 0.450), 12), np.linspace((0.083, 0.450), (0.145, 0.270), 12)
    walls = np.concatenate([outer, inner])
    parts = [
        lathe(foot, 48).painted(BRASS),
        lathe(bulb, 40).painted(WHITE),
        lathe_ring(walls, 72).painted(CREAM),
    ]
    for turn in range(3):
        arm = tube(
            [(x, 0.428, 0) for x in np.linspace(-0.003, 0.092, 5)], (0.0025, 0.0025), flat=(0, 0, 1), segments=10
        )
        parts.append(arm.turned(120 * turn + 20).painted(BRASS))
    stem = tube([(0, y, 0) for y in np.linspace(0.395, 0.455, 5)], (0.004, 0.004), flat=(0, 0, 1), segments=16)
    knob = lathe(smoothed([(0, 0.450), (0.008, 0.450), (0.011, 0.459), (0.007, 0.469), (0, 0.470)]), 24)
    return [*parts, stem.painted(BRASS), knob.painted(BRASS)]


def rocket() -> list[Part]:
    """Return a storybook rocket: four swept fins, two portholes and a hollow nozzle."""
    hull = smoothed(
        [
            (0, 0.30),
            (0.20, 0.30),
            (0.27, 0.31),
            (0.36, 0.60),
            (0.42, 1.05),
            (0.40, 1.60),
            (0.30, 2.10),
            (0.13, 2.50),
            (0, 2.68),
        ]
    )
    spire = lathe(smoothed([(0, 2.52), (0.035, 2.52), (0.030, 2.70), (0.008, 2.95), (0, 2.96)], 2), 24)
    bell = [(0.13, 0.34), (0.15, 0.22), (0.22, 0.06), (0.235, 0.05), (0.205, 0.05), (0.125, 0.22), (0.10, 0.34)]
    parts = [
        lathe(hull, 72).painted(WHITE),
        spire.painted(RED),
        lathe_ring(smoothed(bell, 2, ring=True), 56).painted(STEEL),
    ]
    outline = smoothed([(0.24, 1.00), (0.50, 0.78), (0.66, 0.46), (0.72, 0.0)], 2)
    inner = smoothed([(0.24, 0.40), (0.36, 0.34), (0.50, 0.22), (0.66, 0.0)], 2)
    share = np.linspace(0, 1, len(outline))[:, None]
    middle, half = (outline + inner) / 2, np.linalg.norm(outline - inner, axis=1, keepdims=True) / 2
    across = (outline - inner) / (2 * half)
    around = circle(28, 0.7)
    # Each ring runs round the fin from its outer to its inner outline.
    rings = np.zeros((len(outline), len(around), 3))
    rings[..., :2] = middle[:, None] + half[:, None] * around[:, :1] * across[:, None]
    rings[..., 2] = (0.040 - 0.022 * share) * around[:, 1]
    fin = loft(rings).painted(RED)
    parts += [fin.turned(45 + 90 * quarter) for quarter in range(4)]
    for height, size in ((1.72, 0.105), (1.36, 0.125)):
        reach = float(np.interp(height, hull[2:-2, 1], hull[2:-2, 0]))
        ring = 0.80 * size * circle(10) * 0.28 + (size, 0)
        window = lathe(
            smoothed([(0, -0.04), (0.9 * size, -0.04), (0.9 * size, 0.012), (0.5 * size, 0.03), (0, 0.035)], 2), 36
        )
        for piece, color in ((lathe_ring(ring, 36), STEEL), (window, GLASS)):
            # The axis of a turned part is Y: lay it down towards +Z.
            parts.append(bent(piece, lambda v: v[:, [0, 2, 1]] * (1, -1, 1)).moved((0, height, reach)).painted(color))
    return parts


def plane() -> list[Part]:
    """Return an airliner with swept wings, two hollow engine nacelles and a tail. It flies towards +Z."""
    nose = [(0, 3.00), (0.16, 2.99), (0.27, 2.80), (0.31, 2.45), (0.32, 1.80)]
    tail = [(0.32, -1.20), (0.27, -2.00), (0.13, -2.80), (0.05, -3.05), (0, -3.06)]
    spine = smoothed([*nose, *tail])
    rings = _turned_rings(spine[1:-1], 48)[:, :, [0, 2, 1]]
    lift = np.interp(-rings[..., 2], [1.2, 3.05], [0.0, 0.20])  # the tail rises
    droop = np.interp(rings[..., 2], [2.2, 3.0], [0.0, 0.07])
    rings[..., 1] += lift - droop
    body = loft(rings, first=(0, -0.07, 3.0), last=(0, 0.2, -3.06)).painted(WHITE)
    span = {"root_chord": 1.45, "tip_chord": 0.42, "thickness": 0.11}
    right = [
        wing((0.12, -0.16, 0.95), (2.75, 0.12, -0.95), **span, up=(0, 1, 0), steps=12),
        wing((0.04, 0.20, -2.05), (1.08, 0.30, -2.72), root_chord=0.78, tip_chord=0.34, thickness=0.10, up=(0, 1, 0)),
    ]
    outside = [(0.160, 0.36), (0.195, 0.34), (0.205, 0.10), (0.180, -0.34), (0.145, -0.46)]
    inside = [(0.090, -0.46), (0.110, -0.20), (0.115, 0.20), (0.120, 0.34)]
    cowl = smoothed([*outside, *inside], 2, ring=True)
    spinner = [(0, 0.16), (0.03, 0.12), (0.045, 0.05), (0.15, 0.04)]
    core = smoothed([*spinner, (0.15, -0.10), (0.08, -0.30), (0.05, -0.52), (0, -0.60)], 2)
    place = (0.98, -0.34, 0.62)
    for profile, make, color in ((cowl, lathe_ring, WHITE), (core, lathe, STEEL)):
        engine = bent(make(profile, 36), lambda v: v[:, [0, 2, 1]] * (1, -1, 1))
        right.append(engine.moved(place).painted(color))
    strut = {"root_chord": 0.80, "tip_chord": 0.70, "thickness": 0.07}
    pylon = wing((0.98, -0.20, 0.72), (0.98, -0.075, 0.28), **strut, up=(1, 0, 0), steps=5)
    fin = wing((0, 0.22, -1.95), (0, 1.25, -2.72), root_chord=1.00, tip_chord=0.42, thickness=0.09, up=(1, 0, 0))
    parts = [body, fin.painted(RED)]
    for piece in (*right, pylon):
        parts += [piece, piece.mirrored()]
    return parts


OBJECTS: dict[str, Callable[[], list[Part]]] = {
    "chair": chair,
    "mug": mug,
    "lamp": lamp,
    "rocket": rocket,
    "plane": plane,
}


# ---------------------------------------------------------------- files


def to_glb(parts: Sequence[Part], name: str) -> bytes:
    """Return a binary glTF 2.0 file: one node, one primitive per color, 16-bit indices."""
    colors = list(dict.fromkeys(part.color for part in parts))
    chunks: list[bytes] = []
    views: list[dict[str, int]] = []
    accessors: list[dict[str, object]] = []

    def add(data: npt.NDArray[np.generic], target: int, **accessor: object) -> int:
        raw = data.tobytes()
        views.append({"buffer": 0, "byteOffset": sum(map(len, chunks)), "byteLength": len(raw), "target": target})
        chunks.append(raw + b"\0" * (-len(raw) % 4))
        accessors.append({"bufferView": len(views) - 1, **accessor})
        return len(accessors) - 1

    primitives = []
    for number, color in enumerate(colors):
        group = [part for part in parts if part.color == color]
        starts = np.cumsum([0] + [len(part.vertices) for part in group])
        points = np.concatenate([part.vertices for part in group]).astype("<f4")
        faces = np.concatenate([part.faces + start for part, start in zip(group, starts, strict=False)])
        if len(points) > 65535:
            raise ValueError(f"{name}: {len(points)} vertices of one color don't fit 16-bit indices; use fewer")
        low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        position = add(points, 34962, componentType=5126, count=len(points), type="VEC3", min=low, max=high)
        indices = add(faces.astype("<u2"), 34963, componentType=5123, count=faces.size, type="SCALAR")
        primitives.append({"attributes": {"POSITION": position}, "indices": indices, "material": number})

    # glTF stores linear color.
    finish = [
        {"baseColorFactor": [round(c**2.2, 4) for c in color] + [1.0], "metallicFactor": 0.0} for color in colors
    ]
    blob = b"".join(chunks)
    document = {
        "asset": {"version": "2.0", "generator": "make_examples.py"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": primitives}],
        "materials": [{"pbrMetallicRoughness": material, "doubleSided": False} for material in finish],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(blob))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob


def make_parser() -> argparse.ArgumentParser:
    """Return the command line of this program."""
    parser = argparse.ArgumentParser(description="Write the example objects as GLB files.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder to write to (default: beside this file)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write all example objects and print their sizes."""
    folder = make_parser().parse_args(argv).output
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in OBJECTS.items():
        parts = build()
        data = to_glb(parts, name)
        (folder / f"{name}.glb").write_bytes(data)
        faces = sum(len(part.faces) for part in parts)
        print(f"{name}.glb  {len(parts)} parts  {faces} faces  {len(data) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
