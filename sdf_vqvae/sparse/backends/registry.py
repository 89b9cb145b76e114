"""The backends by the names that `SPARSE_BACKEND` takes. A new one is a module beside this one and a row here."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sdf_vqvae.sparse.backends import numba_backend, spconv_backend, torch_backend, triton_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet


class Backend(Protocol):
    """What the module of a backend defines."""

    def unfit(self, device_type: str) -> str:
        """Return why it doesn't run on a kind of device, as the end of a sentence; empty if it does."""
        ...

    def lacking(self) -> str:
        """Return, in a sentence, what has to be installed before it runs; empty if nothing."""
        ...

    def convolve(self, feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
        """Convolve features `[N, Cin]` to `[N, Cout]` on the same voxels, the same numbers as `torch_backend`."""
        ...


BACKENDS: dict[str, Backend] = {
    "torch": torch_backend,
    "numba": numba_backend,
    "spconv": spconv_backend,
    "triton": triton_backend,
}
"""From the slowest to the fastest: where none is asked for, the last that runs is taken."""
