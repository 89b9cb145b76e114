"""The exact winding number as a Triton kernel: a block of points a program, all triangles in turn."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_TRIANGLES = 16


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    points, owners, corners, corner_owners, starts, out, n_points, P: tl.constexpr, T: tl.constexpr
):
    """Sum over the triangles of the meshes that this program's points belong to, which follow each other."""
    row = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)  # rows of 3 may pass 2^31
    valid = row < n_points
    px = tl.load(points + row * 3, mask=valid, other=0.0)[:, None]
    py = tl.load(points + row * 3 + 1, mask=valid, other=0.0)[:, None]
    pz = tl.load(points + row * 3 + 2, mask=valid, other=0.0)[:, None]
    total = tl.zeros((P,), dtype=tl.float32)
    mesh = tl.load(owners + row, mask=valid, other=-1)
    end = tl.load(starts + tl.max(mesh, axis=0) + 1)
    first = tl.load(starts + tl.load(owners + tl.program_id(0) * P))
    for start in range(first, end, T):
        face = start + tl.arange(0, T)
        real = face < end
        base = corners + face * 9
        ax = tl.load(base, mask=real, other=0.0)[None, :] - px
        ay = tl.load(base + 1, mask=real, other=0.0)[None, :] - py
        az = tl.load(base + 2, mask=real, other=0.0)[None, :] - pz
        bx = tl.load(base + 3, mask=real, other=0.0)[None, :] - px
        by = tl.load(base + 4, mask=real, other=0.0)[None, :] - py
        bz = tl.load(base + 5, mask=real, other=0.0)[None, :] - pz
        cx = tl.load(base + 6, mask=real, other=0.0)[None, :] - px
        cy = tl.load(base + 7, mask=real, other=0.0)[None, :] - py
        cz = tl.load(base + 8, mask=real, other=0.0)[None, :] - pz
        la = tl.sqrt(ax * ax + ay * ay + az * az)
        lb = tl.sqrt(bx * bx + by * by + bz * bz)
        lc = tl.sqrt(cx * cx + cy * cy + cz * cz)
        det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
        divisor = (
            la * lb * lc
            + (ax * bx + ay * by + az * bz) * lc
            + (bx * cx + by * cy + bz * cz) * la
            + (cx * ax + cy * ay + cz * az) * lb
        )
        angle = libdevice.atan2(det, divisor)
        # Padded triangles have three equal corners: the determinant is rounding alone and must not count either.
        own = tl.load(corner_owners + face, mask=real, other=-2)[None, :] == mesh[:, None]
        total += tl.sum(tl.where(own, angle, 0.0), axis=1)
    tl.store(out + row, total, mask=valid)


def winding_number_triton(points: Tensor, corners: Tensor) -> Tensor:
    """CUDA twin of `winding_reference.winding_number_reference`, in float32. float32 `[P]`"""
    mesh = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    face_mesh = torch.zeros(len(corners), dtype=torch.int64, device=points.device)
    starts = torch.tensor([0, len(corners)], device=points.device)
    return winding_number_of_meshes(points, mesh, corners, face_mesh, starts)


def winding_number_of_meshes(
    points: Tensor, mesh: Tensor, corners: Tensor, face_mesh: Tensor, face_starts: Tensor
) -> Tensor:
    """Return the winding number of its mesh round each point. float32 `[P]`

    Args:
        points: `[P, 3]`.
        mesh: the mesh of each point, int64 `[P]`, ascending.
        corners: triangles of all meshes `[F, 3, 3]`.
        face_mesh: the mesh of each triangle, int64 `[F]`.
        face_starts: where each mesh's triangles begin, int64 `[B + 1]`.
    """
    out = torch.empty(len(points), device=points.device)
    if len(points) == 0:
        return out
    # Few points are shared out among more programs.
    size = 128 if len(points) > 1 << 16 else 32
    with torch.cuda.device(points.device):
        _kernel[(triton.cdiv(len(points), size),)](
            points.float().contiguous(),
            mesh,
            corners.float().contiguous(),
            face_mesh,
            face_starts,
            out,
            len(points),
            size,
            _TRIANGLES,
        )
    return out / (2 * math.pi)
