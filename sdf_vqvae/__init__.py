"""The 3D tokenizer: mesh or volume <-> sparse signed distance field <-> discrete codes.

Knows nothing of language; `vae_qwen3vl` builds on it.
"""

from sdf_vqvae.codes import ShapeCodes
from sdf_vqvae.config import VAEConfig
from sdf_vqvae.field import FieldDescription
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.sparse_sdf import SparseSDF, collate_sparse_sdf

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
