"""A triangle mesh to a sparse distance field: exact distances inside a band, signs by winding number.

Works in voxel units with sample (i, j, k) at its integer coordinates. Cost and memory grow with the surface
(triangles and voxels near it), not with the volume of the grid and not with the largest triangle. Signs are those of
the winding number, but no sum over all triangles is made: crossings of vertical rays are counted, and open surfaces
add a sum over their boundary (see `boundary`). Knows nothing of files and of normalization.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry.boundary import Boundary, boundary_of, strips_share_reference
from sdf_vqvae.geometry.bricks import Bricks
from sdf_vqvae.geometry.sheets import Skin, looks_inward
from sdf_vqvae.geometry.winding import checked_winding_number

MAX_RESOLUTION = 1024
# An inside voxel this close to a face within the solid must not read as zero, which counts as outside.
_SMALLEST_INSIDE = 1e-4
_SHELL_HALF_THICKNESS = 0.5
# A voxel this near stands on the surface. Its own winding number means nothing; its surroundings are asked.
_ON_SURFACE = 5e-4
_SURROUNDINGS = (0.05, 0.037, 0.043)
# Interpolated winding numbers this close to the threshold are summed exactly.
_UNSURE = 0.02
# With more boundary edges than this, libigl's tree over the triangles is quicker on a CPU.
_MOST_EDGES = 5000


@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelField:
    """The voxels within the band of a surface."""

    index: Tensor
    """int32 `[N, 3]`, rows sorted."""
    distance: Tensor
    """float32 `[N]` in -1..1, in units of the band; negative inside."""
    sign_method: str
    """`winding`, `winding+shell` (open parts became a shell one voxel thick) or `none` (unsigned)."""


def voxelize(
    vertices: Tensor,
    faces: Tensor,
    *,
    resolution: int,
    band: float = 3.0,
    signed: bool = True,
    watertight: bool = False,
) -> VoxelField:
    """Compute the distance field of a mesh on the voxels within `band` of it.

    On a CPU it runs in as many threads as PyTorch is set to use.

    Args:
        vertices: `[V, 3]` in the world cube [-0.5, 0.5]^3, equal ones welded; the computation runs on their device.
        faces: int `[F, 3]`.
        resolution: grid side R; samples sit at cell centers, (i + 0.5) / R - 0.5.
        band: half width of the band in voxels.
        signed: negative where the generalized winding number exceeds 0.5 (Jacobson et al., 2013). A mesh whose
            faces look inward as a whole is turned round first.
        watertight: the mesh is known to be closed, so the search for open sheets is left out.

    Where the surface of the winding number misses more than a tenth of the mesh's area (open sheets), the
    missed faces become a closed shell one voxel thick, joined to the rest as a union.

    Raises:
        ValueError: the resolution is out of 8..1024, the band is not in its range, or no voxel lies within it.
    """
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise ValueError(f"resolution must lie in 8..{MAX_RESOLUTION}, got {resolution}")
    if not 0 < band <= resolution:
        raise ValueError(f"band must be a positive number of voxels, at most the resolution, got {band}")
    vertices = (vertices.double() + 0.5) * resolution - 0.5
    faces = faces.long()
    corners = vertices[faces]  # [F, 3, 3]
    bricks = Bricks(corners, resolution, band)
    index, place = bricks.near()
    if len(index) == 0:
        raise ValueError("no voxel lies within the band of the mesh: it is outside the grid or has no triangle")
    distance = bricks.squared.view(-1)[place].sqrt()
    method = "none"
    if signed:
        method = "winding"
        skin = None if watertight else Skin(corners)
        inward = looks_inward(corners) if skin is None else skin.is_turned_round
        inside = _inside(bricks, index, place, vertices, faces, inward=inward, closed=watertight)
        distance = torch.where(inside, -distance.clamp(min=_SMALLEST_INSIDE), distance)
        missed = None if skin is None else skin.missed_faces()
        if missed is not None:
            to_shell = bricks.squared_distance_to(corners[missed]).view(-1)[place].sqrt_()
            distance = torch.minimum(distance, to_shell - _SHELL_HALF_THICKNESS)
            method = "winding+shell"
    return VoxelField(index=index, distance=(distance / band).clamp(-1, 1), sign_method=method)


def _inside(
    bricks: Bricks,
    index: Tensor,
    place: Tensor,
    vertices: Tensor,
    faces: Tensor,
    *,
    inward: bool,
    closed: bool,
) -> Tensor:
    """Return whether the winding number of each voxel exceeds one half, or falls below minus that. bool `[N]`"""
    corners = vertices[faces]
    way = -1 if inward else 1
    if bool((vertices.clamp(0, bricks.resolution - 1) != vertices).any()):
        # Rays could cross the surface where there are no bricks.
        winding = checked_winding_number(index.double(), corners, levels=(0.5 * way,))
    else:
        winding = bricks.crossings().view(-1)[place]
        boundary = None if closed else boundary_of(vertices, faces)
        if boundary is not None and len(boundary):
            winding = _open_winding(winding, bricks, index, place, corners, boundary, 0.5 * way)
    inside = winding * way > 0.5
    touching = (bricks.squared.view(-1)[place] < _ON_SURFACE**2).nonzero().squeeze(1)
    if len(touching):
        sides = torch.tensor([-1, 1], device=place.device)
        around = torch.cartesian_prod(sides, sides, sides) * vertices.new_tensor(_SURROUNDINGS)  # [8, 3]
        points = (index[touching, None].double() + around).reshape(-1, 3)
        everywhere = checked_winding_number(points, corners, levels=(0.5 * way,)) * way > 0.5
        inside[touching] = everywhere.view(-1, len(around)).all(1)
    return inside


def _open_winding(
    crossings: Tensor,
    bricks: Bricks,
    index: Tensor,
    place: Tensor,
    corners: Tensor,
    boundary: Boundary,
    level: float,
) -> Tensor:
    """Return the winding numbers `[N]` of an open surface, on the right side of the level."""
    if place.is_cuda and importlib.util.find_spec("triton") is not None:
        from sdf_vqvae.geometry.boundary_triton import strips_share

        return crossings + strips_share(index, boundary)
    if place.device.type != "cpu":
        return crossings + strips_share_reference(index.double(), boundary)
    if len(boundary) > _MOST_EDGES:
        return checked_winding_number(index.double(), corners, levels=(level,))
    from sdf_vqvae.geometry import boundary_numba

    wanted = torch.zeros_like(bricks.squared, dtype=torch.bool)
    wanted.view(-1)[place] = True
    winding = crossings + boundary_numba.strips_share(bricks.origins, wanted, boundary).view(-1)[place]
    unsure = ((winding - level).abs() < _UNSURE).nonzero().squeeze(1)
    exact = boundary_numba.exact_strips_share(index[unsure].double(), boundary)
    winding[unsure] = crossings[unsure] + exact
    return winding
