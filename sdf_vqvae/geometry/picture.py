"""Pictures of meshes without OpenGL, a display or a graphics card.

A small rasterizer in NumPy: triangles are projected, cut into square blocks of pixels, tested pixel by pixel
and kept where nearest. Knows triangle meshes and nothing of fields or codes. It draws one material under
fixed lights: no textures, no transparency, no shadows.

Y is up, as in glTF. Azimuth 0 looks at the mesh from +Z; a positive azimuth moves the camera towards +X.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.utils.files import atomic_path

if TYPE_CHECKING:
    import trimesh

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Color = tuple[float, float, float]

CLAY: Color = (0.66, 0.73, 0.81)
"""Default material, sRGB in 0..1."""

_OVERSAMPLING = 2
_MARGIN = 0.07
"""Free share of the picture on each side."""
_DISTANCE = 4.5
"""Camera distance in bounding-sphere radii; larger is flatter."""
_CREASE_COSINE = float(np.cos(np.radians(40.0)))
"""Neighbouring faces that meet at a sharper angle keep separate shading."""
_BLOCK_SIDES = (1, 2, 4, 8, 16)
_CHUNK_PIXELS = 1 << 20
# Directions towards the lights in camera space (right, up, towards the viewer), with their strengths.
_LIGHTS = (((-0.60, 0.75, 0.50), 0.85), ((0.90, 0.10, 0.40), 0.16), ((0.0, -0.2, 1.0), 0.18))
_WRAP = 0.2
"""How far light reaches round an edge, as the cosine at which it ends; 0 is a hard terminator."""
_AMBIENT_BELOW, _AMBIENT_ABOVE = 0.10, 0.26


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A perspective camera and where its picture sits: `pixel = size * (offset + scale * right / depth)`."""

    target: tuple[float, float, float]
    """Point the camera looks at."""
    distance: float
    """From the target, in the mesh's units."""
    azimuth: float
    """Degrees from +Z towards +X."""
    elevation: float
    """Degrees above the horizon."""
    scale: float
    """Picture sides per unit of `right / depth`."""
    offset: tuple[float, float]
    """Where the target falls, in picture sides from the top left."""

    def axes(self) -> Array:
        """Return the camera's right, up and towards-the-viewer directions as rows [3, 3]."""
        turn, rise = np.radians(self.azimuth), np.radians(self.elevation)
        toward = np.array([np.sin(turn) * np.cos(rise), np.sin(rise), np.cos(turn) * np.cos(rise)])
        right = np.array([np.cos(turn), 0.0, -np.sin(turn)])
        return np.stack([right, np.cross(toward, right), toward])

    def project(self, points: Array) -> Array:
        """Return `[P, 3]`: x and y in picture sides (y down) and the depth in front of the camera."""
        seen = (points - np.array(self.target)) @ self.axes().T
        depth = self.distance - seen[:, 2]
        # Points behind the camera have no picture; the caller drops their triangles by depth.
        safe = np.where(depth > 0, depth, np.inf)
        x = self.offset[0] + self.scale * seen[:, 0] / safe
        y = self.offset[1] - self.scale * seen[:, 1] / safe
        return np.stack([x, y, depth], axis=1)


def fit_camera(mesh: trimesh.Trimesh, *, azimuth: float = 35.0, elevation: float = 24.0) -> Camera:
    """Return a camera whose square picture the mesh fills, but for a margin.

    Raises:
        ValueError: The mesh has no faces, or a coordinate isn't finite.
    """
    corners = _corners(mesh).reshape(-1, 3)
    if not len(corners):
        raise ValueError("the mesh has no faces, so there is nothing to point a camera at")
    low, high = corners.min(axis=0), corners.max(axis=0)
    center = (low + high) / 2
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    camera = Camera(
        target=(float(center[0]), float(center[1]), float(center[2])),
        distance=_DISTANCE * radius,
        azimuth=azimuth,
        elevation=elevation,
        scale=1.0,
        offset=(0.0, 0.0),
    )
    seen = camera.project(corners)[:, :2]
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = (1 - 2 * _MARGIN) / max(float((high - low).max()), 1e-12)
    middle = 0.5 - scale * (low + high) / 2
    return Camera(
        target=camera.target,
        distance=camera.distance,
        azimuth=azimuth,
        elevation=elevation,
        scale=scale,
        offset=(float(middle[0]), float(middle[1])),
    )


def render_mesh(
    mesh: trimesh.Trimesh,
    size: int = 640,
    *,
    azimuth: float = 35.0,
    elevation: float = 24.0,
    color: Color = CLAY,
    camera: Camera | None = None,
) -> npt.NDArray[np.uint8]:
    """Return a picture of the mesh on white, uint8 [size, size, 3].

    Both sides of every triangle are lit. Edges are smoothed by drawing at twice the size.

    Args:
        mesh: Any triangle mesh, watertight or not.
        size: Side of the picture in pixels.
        azimuth: Camera direction in degrees from +Z towards +X.
        elevation: Camera height in degrees above the horizon.
        color: Material, sRGB in 0..1.
        camera: Use this camera (see `fit_camera`) instead of framing the mesh; azimuth and elevation are then
        its
            own, and a mesh without faces gives a white picture.

    Raises:
        ValueError: The size is not positive, a coordinate isn't finite, or there is neither a face nor a
        camera.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel; got {size}")
    if camera is None:
        camera = fit_camera(mesh, azimuth=azimuth, elevation=elevation)
    light = _light(_corners(mesh), camera, size * _OVERSAMPLING, _to_linear(np.array(color)))
    # Averaging light, not sRGB values, keeps smoothed edges from looking dark.
    mean: Array = light.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean(axis=3).mean(axis=1)
    picture: npt.NDArray[np.uint8] = np.round(_to_srgb(mean) * 255).astype(np.uint8)
    return picture


def save_comparison(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, trimesh.Trimesh]],
    caption: str | None = None,
    *,
    size: int = 640,
    azimuth: float = 35.0,
    elevation: float = 24.0,
) -> None:
    """Write a PNG with one titled picture per mesh, side by side, and a wrapped caption below.

    All panels share the camera that frames the first mesh, so what differs in the picture differs in the
    meshes. A mesh without faces (a failed prediction) leaves its panel white; the first may not be empty.

    Args:
        path: File to write, replaced whole or not at all.
        panels: Titles and meshes, left to right.
        caption: Text below the panels.
        size: Side of one panel in pixels.
        azimuth: Camera direction in degrees from +Z towards +X.
        elevation: Camera height in degrees above the horizon.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not panels:
        raise ValueError("a comparison needs at least one (title, mesh) panel; got none")
    camera = fit_camera(panels[0][1], azimuth=azimuth, elevation=elevation)
    unit = size / 640
    title_font = ImageFont.load_default(size=round(26 * unit))
    text_font = ImageFont.load_default(size=round(22 * unit))
    pad, title_height, line_height = round(24 * unit), round(52 * unit), round(31 * unit)
    width = len(panels) * size
    lines = _wrap(caption, text_font, width - 2 * pad) if caption else []
    caption_height = len(lines) * line_height + pad + pad // 2 if lines else 0
    sheet = Image.new("RGB", (width, title_height + size + caption_height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, mesh) in enumerate(panels):
        left = number * size
        sheet.paste(Image.fromarray(render_mesh(mesh, size, camera=camera)), (left, title_height))
        draw.text((left + size // 2, title_height // 2 + 4), title, fill=(38, 44, 54), font=title_font, anchor="mm")
        if number:
            draw.line([(left, pad), (left, title_height + size - pad)], fill=(222, 226, 231), width=1)
    top = title_height + size
    if lines:
        draw.line([(pad, top), (width - pad, top)], fill=(222, 226, 231), width=1)
    for number, line in enumerate(lines):
        draw.text((pad, top + pad + number * line_height), line, fill=(70, 77, 88), font=text_font)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _light(corners: Array, camera: Camera, side: int, material: Array) -> Array:
    """Return the linear light [side * side, 3] of every pixel of a square picture, 1 where it is empty."""
    screen = camera.project(corners.reshape(-1, 3)).reshape(-1, 3, 3)
    screen[..., :2] *= side
    in_front = (screen[..., 2] > 1e-3 * camera.distance).all(axis=1)
    corners, screen = corners[in_front], screen[in_front]
    light = np.ones((side * side, 3))
    planes = _planes(screen)
    inverse, face = _rasterize(screen, planes, side)
    pixel = np.flatnonzero(face >= 0)
    if not len(pixel):
        return light
    weights = _weights_at(planes[face[pixel]], pixel, side)
    normal = np.einsum("pi,pij->pj", weights, _smooth_normals(corners)[face[pixel]]) @ camera.axes().T
    sight = _line_of_sight(camera, pixel, side)
    normal = np.where((normal * sight).sum(axis=1, keepdims=True) < 0, -normal, normal)  # both sides are lit
    shade = _shade(normal) * _crevices(inverse, pixel, side)
    light[pixel] = np.clip(shade[:, None] * material, 0, 1)
    return light


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Break text into lines no wider than `width`; a word too wide for a line is broken where it must be."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            candidate = f"{line} {word}" if line else word
            if font.getlength(candidate) <= width:
                line = candidate
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                fitting = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:fitting])
                word = word[fitting:]
            line = word
        lines.append(line)
    return lines


def _corners(mesh: trimesh.Trimesh) -> Array:
    """Return the triangles' corners [F, 3, 3] in double precision."""
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    corners = vertices[faces].reshape(-1, 3, 3)
    if not np.isfinite(corners).all():
        raise ValueError("the mesh has coordinates that are NaN or infinite; repair it first")
    return corners


def _planes(screen: Array) -> Array:
    """Return [F, 3, 3]: per corner the (x, y, 1) coefficients of weight / depth over the picture.

    Weights over depth are linear in the picture, and their sum is 1 / depth. Triangles seen edge-on get
    zeros.
    """
    x, y, depth = screen[..., 0], screen[..., 1], screen[..., 2]
    nx, ny = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    px, py = np.roll(x, -2, axis=1), np.roll(y, -2, axis=1)
    planes = np.stack([ny - py, px - nx, nx * py - px * ny], axis=2)
    double_area = planes[..., 2].sum(axis=1)
    keep = np.abs(double_area) > 1e-12
    factor = np.where(keep, 1 / np.where(keep, double_area, 1.0), 0.0)
    return planes * (factor[:, None] / depth)[..., None]


def _rasterize(screen: Array, planes: Array, side: int) -> tuple[Array, Indices]:
    """Return the largest 1 / depth [side * side] (0 where empty) and the face seen (-1 where empty)."""
    # The positive float32 bits of 1 / depth order like integers; the face number in the low half breaks ties.
    buffer = np.full(side * side, -1, dtype=np.int64)
    for face, left, top, block in _blocks(screen, planes, side):
        step = np.arange(block) + 0.5
        plane = planes[face]
        at_row = plane[..., 1, None] * (top[:, None] + step)[:, None] + plane[..., 2, None]  # [T, 3, k]
        at_column = plane[..., 0, None] * (left[:, None] + step)[:, None]  # [T, 3, k]
        weight = at_row[:, :, :, None] + at_column[:, :, None, :]  # [T, 3, k, k]
        inside = (weight.min(axis=1) >= 0) & ((weight.max(axis=1)) > 0)
        job, row, column = np.nonzero(inside)
        y, x = top[job] + row, left[job] + column
        visible = (x < side) & (y < side)
        job, row, column = job[visible], row[visible], column[visible]
        inverse = weight[job, :, row, column].sum(axis=1).astype(np.float32)
        key = (inverse.view(np.int32).astype(np.int64) << 32) | face[job]
        np.maximum.at(buffer, y[visible] * side + x[visible], key)
    filled = buffer >= 0
    inverse = np.where(filled, (buffer >> 32).astype(np.int32).view(np.float32), 0.0).astype(np.float64)
    return inverse, np.where(filled, buffer & 0xFFFFFFFF, -1)


def _blocks(screen: Array, planes: Array, side: int) -> Iterator[tuple[Indices, Indices, Indices, int]]:
    """Yield (face [T], left [T], top [T], block side): square blocks of pixels that cover all triangles.

    Small triangles take one block of the next size; large ones are tiled, and tiles off the triangle are left
    out.
    """
    low = np.clip(np.ceil(screen[..., :2].min(axis=1) - 0.5), 0, side).astype(np.int64)
    high = np.clip(np.floor(screen[..., :2].max(axis=1) - 0.5), -1, side - 1).astype(np.int64)
    extent = (high - low + 1).max(axis=1)
    drawn = ((high >= low).all(axis=1)) & (planes != 0).any(axis=(1, 2))
    smallest = 0
    for block in _BLOCK_SIDES:
        face = np.flatnonzero(drawn & (extent > smallest) & (extent <= block))
        smallest = block
        yield from _chunks(face, low[face, 0], low[face, 1], block)
    tile = _BLOCK_SIDES[-1]
    large = np.flatnonzero(drawn & (extent > tile))
    across = (high[large] - low[large]) // tile + 1  # [T, 2]
    count = across.prod(axis=1)
    # Tiling in groups keeps memory bounded when many triangles are large.
    group = np.cumsum(count) // _CHUNK_PIXELS
    for number in np.unique(group):
        some = group == number
        owner = np.repeat(np.flatnonzero(some), count[some])
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(count[some]) - count[some], count[some])
        face = large[owner]
        left = low[face, 0] + tile * (nth % across[owner, 0])
        top = low[face, 1] + tile * (nth // across[owner, 0])
        # A weight is largest in the tile's corner that its coefficients point to; below zero there, below
        # everywhere.
        plane = planes[face]
        best_x = left[:, None] + np.where(plane[..., 0] > 0, tile - 0.5, 0.5)
        best_y = top[:, None] + np.where(plane[..., 1] > 0, tile - 0.5, 0.5)
        reachable = (plane[..., 0] * best_x + plane[..., 1] * best_y + plane[..., 2] >= 0).all(axis=1)
        yield from _chunks(face[reachable], left[reachable], top[reachable], tile)


def _chunks(
    face: Indices, left: Indices, top: Indices, block: int
) -> Iterator[tuple[Indices, Indices, Indices, int]]:
    step = max(1, _CHUNK_PIXELS // (block * block))
    for start in range(0, len(face), step):
        part = slice(start, start + step)
        yield face[part], left[part], top[part], block


def _pixel_centers(pixel: Indices, side: int) -> Array:
    return np.stack([pixel % side + 0.5, pixel // side + 0.5, np.ones(len(pixel))], axis=1)


def _weights_at(planes: Array, pixel: Indices, side: int) -> Array:
    """Return the perspective-correct corner weights [P, 3] of the triangles seen at the pixels."""
    weight = np.einsum("pij,pj->pi", planes, _pixel_centers(pixel, side)).clip(min=0)
    total: Array = weight.sum(axis=1, keepdims=True)
    share: Array = weight / np.maximum(total, 1e-300)
    return share


def _line_of_sight(camera: Camera, pixel: Indices, side: int) -> Array:
    """Return the directions [P, 3] from the pixels to the viewer, in camera space, not normalized."""
    place = _pixel_centers(pixel, side)[:, :2] / side - np.array(camera.offset)
    return np.stack([-place[:, 0], place[:, 1], np.full(len(place), camera.scale)], axis=1)


def _smooth_normals(corners: Array) -> Array:
    """Return a unit normal per triangle corner [F, 3, 3]: the mean over the faces that meet there within a crease.

    Corners are taken as one point where they coincide, so a mesh whose vertices were split for export shades
    the same.
    """
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # length: twice the area
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    unit = normal / np.maximum(length, 1e-300)
    flat = corners.reshape(-1, 3)
    low = flat.min(axis=0)
    step = max(float((flat.max(axis=0) - low).max()), 1e-300) / (1 << 20)
    cell = np.round((flat - low) / step).astype(np.int64)
    key = (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]
    order = np.argsort(key, kind="stable")
    start = np.flatnonzero(np.diff(key[order], prepend=-1))
    valence = np.diff(np.append(start, len(order)))
    position = np.arange(len(order)) - np.repeat(start, valence)  # within the point's run
    run_start, run_length = np.repeat(start, valence), np.repeat(valence, valence)

    total = normal[order // 3].copy()
    own = unit[order // 3]
    # One pass per neighbour. Fans of hundreds of slivers are flat caps or poles, where flat shading is right.
    for turn in range(1, min(int(valence.max()), 32)):
        have = np.flatnonzero(run_length > turn)
        other = order[run_start[have] + (position[have] + turn) % run_length[have]] // 3
        alike = (own[have] * unit[other]).sum(axis=1) > _CREASE_COSINE
        total[have] += np.where(alike[:, None], normal[other], 0.0)
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300)
    smooth: Array = np.empty((len(corners), 3, 3))
    smooth.reshape(-1, 3)[order] = total
    return smooth


def _shade(normal: Array) -> Array:
    """Return the light [P] that reaches the viewer from surfaces with these camera-space normals."""
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    up = 0.5 + 0.5 * normal[:, 1]
    shade = _AMBIENT_BELOW + (_AMBIENT_ABOVE - _AMBIENT_BELOW) * up
    for direction, strength in _LIGHTS:
        cosine = normal @ (np.array(direction) / np.linalg.norm(direction))
        shade += strength * ((cosine + _WRAP) / (1 + _WRAP)).clip(min=0)
    return shade


def _crevices(inverse: Array, pixel: Indices, side: int) -> Array:
    """Return a factor [P] for the pixels that darkens what lies just behind its surroundings in the picture."""
    from scipy.ndimage import gaussian_filter

    depth = 1 / inverse[pixel]
    sheet, filled = np.zeros(side * side, dtype=np.float32), np.zeros(side * side, dtype=np.float32)
    sheet[pixel], filled[pixel] = depth, 1.0
    # The blur is wide, so every fourth pixel is enough for it.
    coarse = np.s_[::4, ::4]
    reach = side / 60 / 4
    share = gaussian_filter(filled.reshape(side, side)[coarse], reach)
    blurred = gaussian_filter(sheet.reshape(side, side)[coarse], reach)
    around = blurred[pixel // side // 4, pixel % side // 4] / np.maximum(
        share[pixel // side // 4, pixel % side // 4], 1e-3
    )
    around = np.where(around > 0, around, depth)
    span = max(float(np.ptp(depth)), 1e-12)
    factor: Array = 1 - 0.35 * np.clip((depth - around) / span / 0.12, 0, 1)
    return factor


def _to_linear(color: Array) -> Array:
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def _to_srgb(light: Array) -> Array:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
