"""The 3D tokenizer: mesh or volume <-> sparse signed distance field <-> discrete codes.

Knows nothing of language; `vae_qwen3vl` builds on it. Names are loaded when first used, so that programs answer
`--help` at once.
"""

from typing import TYPE_CHECKING

from sdf_vqvae.utils.lazy import names_from

if TYPE_CHECKING:
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.fields.description import FieldDescription
    from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE
    from sdf_vqvae.sparse.tensor import SparseTensor

__all__ = [
    "FieldDescription",
    "ShapeCodes",
    "SparseSDF",
    "SparseSDFVQVAE",
    "SparseTensor",
    "VAEConfig",
    "collate_sparse_sdf",
    "load_vae_from_config",
]

_HOMES = {
    "FieldDescription": "sdf_vqvae.fields.description",
    "ShapeCodes": "sdf_vqvae.codes.shape_codes",
    "SparseSDF": "sdf_vqvae.fields.sparse_sdf",
    "SparseSDFVQVAE": "sdf_vqvae.model.vqvae",
    "SparseTensor": "sdf_vqvae.sparse.tensor",
    "VAEConfig": "sdf_vqvae.config.architecture",
    "collate_sparse_sdf": "sdf_vqvae.fields.sparse_sdf",
    "load_vae_from_config": "sdf_vqvae.model.checkpoint",
}

__getattr__, __dir__ = names_from(__name__, _HOMES)
