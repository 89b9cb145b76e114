"""What a browser draws: meshes in the world cube as GLB, codes as coloured blocks, errors as colours.

All views of an object stand in the same cube, y up, so one camera serves them all. Knows meshes, codes and colours;
nothing of pages.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.geometry.up import stand_up

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

CLAY = (0.63, 0.70, 0.78)
"""Material of every mesh, sRGB."""
ERROR_COLORS = (CLAY, (0.98, 0.80, 0.33), (0.91, 0.38, 0.18), (0.55, 0.09, 0.35))
"""From no error to the largest on the scale, at equal steps, sRGB: a good surface looks as the input does."""
_LEAST_TOP, _MOST_TOP = 0.005, 0.1
"""Of a scale of errors: it never ends within a voxel of 256³, so good surfaces look good."""
_BLOCK = 0.86
"""Side of a code's block in cells: gaps tell neighbors apart."""
_CHROMA, _LIGHTNESS, _LIGHT_SPREAD = 0.13, 0.70, 0.13
"""Of codes' colours in OKLab."""
# OKLab (Ottosson, 2020) to linear sRGB.
_OKLAB_TO_LMS = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                          [1, -0.0894841775, -1.2914855480]])  # fmt: skip
_LMS_TO_RGB = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                        [-0.0041960863, -0.7034186147, 1.7076147010]])  # fmt: skip
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_SIDES = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                   [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


def in_world(vertices: Floats, codes: ShapeCodes) -> Floats:  # [V, 3]
    """Return points of an object's source where its codes have them: in the world cube, y up."""
    return stand_up(np.asarray(vertices, dtype=np.float64) - np.asarray(codes.center), codes.up) * codes.scale


def mesh_glb(
    vertices: Floats, faces: npt.NDArray[np.int64], *, colors: Floats | None = None, smooth: bool = False
) -> bytes:
    """Return a mesh in the world cube as GLB: one matte material, seen from both sides.

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        colors: of the vertices, linear RGB in 0..1 `[V, 3]`; None makes it clay.
        smooth: shade over the edges, for fine surfaces; else every face is flat.
    """
    shown = trimesh.Trimesh(vertices, faces, process=False)
    base = [1.0, 1.0, 1.0, 1.0] if colors is not None else [*linear(np.array(CLAY)).tolist(), 1.0]
    material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=base, metallicFactor=0.0, roughnessFactor=0.75, doubleSided=True
    )
    shown.visual = trimesh.visual.TextureVisuals(material=material)
    if colors is not None:
        rgba = np.concatenate([np.round(colors * 255), np.full((len(colors), 1), 255.0)], axis=1)
        shown.visual.vertex_attributes["color"] = rgba.astype(np.uint8)
    data: bytes = shown.export(file_type="glb", include_normals=smooth)
    return data


def block_glb(codes: ShapeCodes, colors: Floats) -> bytes:
    """Return a block for each code at its cell, as GLB.

    Args:
        codes: the object.
        colors: of its codes, linear RGB `[M, 3]`: see `code_colors`.
    """
    side = 1 / codes.latent_resolution
    centers = (codes.coords.double().numpy() + 0.5) * side - 0.5  # [M, 3]
    vertices = centers[:, None] + _CORNERS * (_BLOCK * side / 2)  # [M, 8, 3]
    faces = np.arange(len(centers))[:, None, None] * len(_CORNERS) + _SIDES  # [M, 12, 3]
    return mesh_glb(vertices.reshape(-1, 3), faces.reshape(-1, 3), colors=np.repeat(colors, len(_CORNERS), axis=0))


def code_colors(codebook: Tensor) -> Floats:  # [K, D] -> [K, 3]
    """Return a colour for each entry of a codebook, linear RGB: entries that are alike look alike.

    The three directions in which the entries differ most (principal components) become two of hue and one of
    lightness, each spread evenly over its range.
    """
    table = codebook.detach().double().cpu()
    centered = table - table.mean(dim=0)
    width = min(3, *centered.shape)
    _, _, directions = torch.pca_lowrank(centered, q=width, center=False, niter=8)
    ranks = (centered @ directions).argsort(dim=0).argsort(dim=0).double()  # [K, width]
    spread = torch.zeros(len(table), 3, dtype=torch.float64)
    spread[:, :width] = 2 * ranks / max(1, len(table) - 1) - 1  # in -1..1
    hue, lightness = spread[:, :2].numpy() * _CHROMA, _LIGHTNESS + spread[:, 2].numpy() * _LIGHT_SPREAD
    cone = np.concatenate([lightness[:, None], hue], axis=1) @ _OKLAB_TO_LMS.T
    return np.clip(cone**3 @ _LMS_TO_RGB.T, 0, 1)


def top_of_scale(distance: Floats) -> float:
    """Return where a scale of errors ends: a round number (1, 2 or 5) that 99 of 100 vertices stay below."""
    largest = float(np.clip(np.percentile(distance, 99), _LEAST_TOP, _MOST_TOP))
    power = 10.0 ** math.floor(math.log10(largest))
    return next(power * step for step in (1, 2, 5, 10) if largest <= power * step * (1 + 1e-9))


def error_colors(distance: Floats, top: float) -> Floats:  # [V] -> [V, 3]
    """Return the colours of distances on a scale that ends at `top`, linear RGB."""
    place = np.clip(distance / top, 0, 1) * (len(ERROR_COLORS) - 1)
    steps = linear(np.array(ERROR_COLORS))
    return np.stack([np.interp(place, np.arange(len(steps)), steps[:, c]) for c in range(3)], axis=1)


def linear(color: Floats) -> Floats:
    """Return sRGB in 0..1 as linear light, which is what glTF has."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
