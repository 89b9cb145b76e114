"""A triangle mesh to a sparse distance field: exact distances inside a band, signs by winding number.

Works in voxel units with sample (i, j, k) at its integer coordinates. Cost and memory grow with the surface
(triangles and voxels near it), not with the volume of the grid and not with the largest triangle. Signs are those of
the winding number, but no sum over all triangles is made: crossings of vertical rays are counted, and open surfaces
add a sum over their boundary (see `boundary`). Knows nothing of files and of normalization.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry import MAX_RESOLUTION
from sdf_vqvae.geometry.voxelizer.batch import MeshBatch, sizes_by_mesh, split_by_mesh
from sdf_vqvae.geometry.voxelizer.boundary import Boundary, boundary_of
from sdf_vqvae.geometry.voxelizer.boundary_reference import strips_share_reference
from sdf_vqvae.geometry.voxelizer.bricks import Bricks
from sdf_vqvae.geometry.voxelizer.sheets import Skin, looks_inward
from sdf_vqvae.geometry.voxelizer.winding import checked_winding_number
from sdf_vqvae.utils.threads import has_numba

# An inside voxel this close to a face within the solid must not read as zero, which counts as outside.
_SMALLEST_INSIDE = 1e-4
_SHELL_HALF_THICKNESS = 0.5
# Of a closed mesh with a smaller share of the nearest voxels inside, faces that are no solid's skin are looked for.
_NEAR_INSIDE = 0.4
# A voxel this near stands on the surface. Its own winding number means nothing; its surroundings are asked.
_ON_SURFACE = 5e-4
_SURROUNDINGS = (0.05, 0.037, 0.043)
# Interpolated winding numbers this close to the threshold are summed exactly. The largest error of the interpolation
# that was seen on the pack's meshes is 0.0006.
_UNSURE = 0.01
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
        watertight: the mesh is known to be closed, so the search for open sheets is left out unless few of the voxels
            nearest to it are inside.

    Where the surface of the winding number misses more than a tenth of the mesh's area (open sheets), the
    missed faces become a closed shell one voxel thick, joined to the rest as a union.

    Raises:
        ValueError: the resolution is out of 8..1024, the band is not in its range, or no voxel lies within it.
    """
    return voxelize_batch([(vertices, faces, watertight)], resolution=resolution, band=band, signed=signed)[0]


def voxelize_batch(
    meshes: Sequence[tuple[Tensor, Tensor, bool]],
    *,
    resolution: int,
    band: float = 3.0,
    signed: bool = True,
    device: torch.device | None = None,
) -> list[VoxelField]:
    """Do what `voxelize` does for several meshes in one go, which keeps a GPU busy; the same results.

    Args:
        meshes: `(vertices, faces, watertight)` each, as `voxelize` takes them, on one device.
        resolution: grid side R.
        band: half width of the band in voxels.
        signed: as in `voxelize`.
        device: where to compute; by default where the meshes are. They are moved there in one piece.

    Raises:
        ValueError: as `voxelize`, of any of the meshes.
    """
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise ValueError(f"resolution must lie in 8..{MAX_RESOLUTION}, got {resolution}")
    if not 0 < band <= resolution:
        raise ValueError(f"band must be a positive number of voxels, at most the resolution, got {band}")
    if not meshes:
        return []
    batch = MeshBatch.of([(vertices, faces) for vertices, faces, _ in meshes], resolution, device)
    bricks = Bricks(batch, resolution, band)
    index, place = bricks.near()
    mesh = bricks.mesh[place >> 9]
    sizes = sizes_by_mesh(mesh, len(meshes))
    if min(sizes) == 0:
        raise ValueError("no voxel lies within the band of the mesh: it is outside the grid or has no triangle")
    distance = bricks.squared.view(-1)[place].sqrt()
    methods = ["none"] * len(meshes)
    if signed:
        closed = [watertight for _, _, watertight in meshes]
        distance, shells = _signed(bricks, batch, closed, index, place, mesh, distance)
        methods = ["winding+shell" if shell else "winding" for shell in shells]
    parts = zip(index.split(sizes), (distance / band).clamp_(-1, 1).split(sizes), methods, strict=True)
    return [VoxelField(index=i, distance=d, sign_method=method) for i, d, method in parts]


def _signed(
    bricks: Bricks,
    batch: MeshBatch,
    closed: list[bool],
    index: Tensor,
    place: Tensor,
    mesh: Tensor,
    distance: Tensor,
) -> tuple[Tensor, list[bool]]:
    """Return the distances `[N]` with their signs, and which meshes got a shell."""
    is_closed = torch.tensor(closed, device=mesh.device)
    skin = None if all(closed) else Skin(batch, is_closed)
    inward = looks_inward(batch) if skin is None else skin.turned_round
    inside = _inside(bricks, batch, all(closed), index, place, mesh, torch.where(inward, -1, 1))
    thin = is_closed & _is_thin(inside, bricks.squared.view(-1)[place], mesh, len(batch))
    if bool(thin.any()):
        skin = Skin(batch, is_closed & ~thin)
    distance = torch.where(inside, -distance.clamp(min=_SMALLEST_INSIDE), distance)
    # Nothing inside at all: thinner than a voxel, between samples.
    lost = torch.bincount(mesh[inside], minlength=len(batch)) == 0
    missed = lost[batch.face_mesh].nonzero().squeeze(1)
    if skin is not None:
        missed = torch.unique(torch.cat([missed, skin.missed_faces()]))
    if len(missed) == 0:
        return distance, [False] * len(batch)
    owners = batch.face_mesh[missed]
    to_shell = bricks.squared_distance_to(batch.corners[missed], owners).view(-1)[place].sqrt_()
    shells = [size > 0 for size in sizes_by_mesh(owners, len(batch))]
    shell = to_shell - _SHELL_HALF_THICKNESS
    # A flat sheet halfway between samples has all of them on its shell's surface.
    shell = torch.where(shell <= _ON_SURFACE, shell.clamp(max=-_SMALLEST_INSIDE), shell)
    return torch.minimum(distance, shell), shells


def _is_thin(inside: Tensor, squared: Tensor, mesh: Tensor, count: int) -> Tensor:
    """Return whether much of each closed mesh may be thinner than the grid can hold. bool `[B]`

    Half of the voxels within a voxel of a surface are inside, unless the surface's other side is as near.
    """
    near = squared <= 1
    within = torch.bincount(mesh[inside & near], minlength=count)
    return within < _NEAR_INSIDE * torch.bincount(mesh[near], minlength=count)


def _inside(
    bricks: Bricks, batch: MeshBatch, closed: bool, index: Tensor, place: Tensor, mesh: Tensor, way: Tensor
) -> Tensor:
    """Return whether the winding number of each voxel exceeds one half. bool `[N]`

    Args:
        bricks: what is known of the voxels.
        batch: the meshes.
        closed: all of them are.
        index: the voxels, int32 `[N, 3]`.
        place: where they stand in the bricks, int64 `[N]`.
        mesh: the mesh of each, int64 `[N]`.
        way: -1 for a mesh that is to be turned round, else 1. `[B]`
    """
    corners = batch.corners
    if bool((batch.vertices.clamp(0, bricks.resolution - 1) != batch.vertices).any()):
        # Rays could cross the surface where there are no bricks.
        winding = batch.winding_number(index.double(), mesh, corners)
    else:
        winding = bricks.crossings().view(-1)[place]
        boundary = None if closed else boundary_of(batch)
        if boundary is not None and len(boundary):
            winding = _open_winding(winding, bricks, batch, index, place, mesh, boundary)
    inside = winding * way[mesh] > 0.5
    touching = (bricks.squared.view(-1)[place] < _ON_SURFACE**2).nonzero().squeeze(1)
    if len(touching):
        sides = torch.tensor([-1, 1], device=place.device)
        around = torch.cartesian_prod(sides, sides, sides) * batch.vertices.new_tensor(_SURROUNDINGS)  # [8, 3]
        points = (index[touching, None].double() + around).reshape(-1, 3)
        owner = mesh[touching].repeat_interleave(len(around))
        everywhere = batch.winding_number(points, owner, corners) * way[owner] > 0.5
        inside[touching] = everywhere.view(-1, len(around)).all(1)
    return inside


def _open_winding(
    crossings: Tensor,
    bricks: Bricks,
    batch: MeshBatch,
    index: Tensor,
    place: Tensor,
    mesh: Tensor,
    boundary: Boundary,
) -> Tensor:
    """Return the winding numbers `[N]` of open surfaces, on the right side of 0.5 and of -0.5."""
    if place.is_cuda and importlib.util.find_spec("triton") is not None:
        return _winding_by_triton(crossings, bricks, index, place, mesh, boundary)
    starts = batch.face_starts.tolist()
    parts = []
    rows = split_by_mesh(torch.arange(len(place), device=place.device), mesh, len(batch))
    for number, row in enumerate(rows):
        own = boundary.of_mesh(number)
        points = index[row].double()
        if place.device.type != "cpu":
            parts.append(crossings[row] + strips_share_reference(points, own))
        elif len(own) > _MOST_EDGES or not has_numba():
            triangles = batch.corners[starts[number] : starts[number + 1]]
            parts.append(checked_winding_number(points, triangles, levels=(0.5, -0.5)))
        else:
            parts.append(_interpolated_winding(crossings[row], bricks, number, place[row], points, own))
    return torch.cat(parts)


def _winding_by_triton(
    crossings: Tensor, bricks: Bricks, index: Tensor, place: Tensor, mesh: Tensor, boundary: Boundary
) -> Tensor:
    """Do the work of `_open_winding` on CUDA."""
    from sdf_vqvae.geometry.voxelizer.boundary_triton import interpolated_strips_share, strips_share

    share = interpolated_strips_share(bricks.origins, bricks.mesh, bricks.places(), bricks.resolution, boundary)
    if share is None:
        return crossings + strips_share(index, mesh, boundary)
    winding = crossings + share.view(-1)[place]
    unsure = ((winding.abs() - 0.5).abs() < _UNSURE).nonzero().squeeze(1)
    winding[unsure] = crossings[unsure] + strips_share(index[unsure], mesh[unsure], boundary)
    return winding


def _interpolated_winding(
    crossings: Tensor, bricks: Bricks, number: int, place: Tensor, points: Tensor, boundary: Boundary
) -> Tensor:
    """Return the winding numbers `[N]` of one open mesh on the CPU."""
    from sdf_vqvae.geometry.voxelizer import boundary_numba

    if len(boundary) == 0:
        return crossings.double()
    first, last = torch.searchsorted(bricks.mesh, place.new_tensor([number, number + 1])).tolist()
    wanted = torch.zeros(last - first, bricks.squared.shape[1], dtype=torch.bool, device=place.device)
    place = place - first * bricks.squared.shape[1]
    wanted.view(-1)[place] = True
    share = boundary_numba.strips_share(bricks.origins[first:last].contiguous(), wanted, boundary)
    winding = crossings + share.view(-1)[place]
    unsure = ((winding.abs() - 0.5).abs() < _UNSURE).nonzero().squeeze(1)
    winding[unsure] = crossings[unsure] + boundary_numba.exact_strips_share(points[unsure], boundary)
    return winding
