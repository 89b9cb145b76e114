"""One object through the tokenizer, with its place in source units kept: mesh -> field -> codes -> mesh.

What a program does with one file, as functions. Batches, datasets and scores are elsewhere.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch
import trimesh

from sdf_vqvae.codes import ShapeCodes
from sdf_vqvae.geometry.mesh import to_source_units
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.sparse_sdf import SparseSDF


def voxelize_for(vae: SparseSDFVQVAE, mesh: str | os.PathLike[str] | trimesh.Trimesh) -> SparseSDF:
    """Voxelize a mesh (or file) into the field that a tokenizer reads.

    Only the part of the band that the encoder sees is computed; its values are those of the whole field.

    Raises:
        ValueError: the mesh cannot be used, or the tokenizer reads fields that meshes are not turned into here.
    """
    field = vae.config.field
    if field.unit != "band" or field.band is None or field.sampling != "center":
        raise ValueError(
            f"this VAE reads fields of the original system ({field.to_dict()}): make them with its own tools, "
            "or give a VAE config whose field has unit 'band' and sampling 'center'"
        )
    seen = vae.config.input_band or field.band
    part = SparseSDF.from_mesh(mesh, field.resolution, band=seen, signed=field.kind == "sdf", device=vae.device)
    return replace(part, sdf=part.sdf * (seen / field.band), field=field)


def encode_field(vae: SparseSDFVQVAE, field: SparseSDF) -> ShapeCodes:
    """Encode one object's field to codes (on the CPU).

    Raises:
        ValueError: the field is of another kind than the tokenizer's.
    """
    if field.field != vae.config.field:
        raise ValueError(
            f"the field is {field.field.to_dict()}, but the VAE reads {vae.config.field.to_dict()}: "
            "voxelize the mesh for this VAE"
        )
    encoded = vae.Encode(field.to_batch())
    return ShapeCodes(
        codes=encoded.feats[:, 0].to("cpu", torch.int32),
        coords=encoded.coords[:, 1:].to("cpu", torch.int32),
        latent_resolution=vae.config.latent_resolution,
        data_resolution=vae.config.data_resolution,
        center=field.center,
        scale=field.scale,
        vae_hash=vae.fingerprint(),
    )


def check_codes(vae: SparseSDFVQVAE, codes: ShapeCodes) -> None:
    """Raise a ValueError unless the codes were made by this tokenizer."""
    here = vae.fingerprint()
    if codes.vae_hash != here:
        raise ValueError(
            f"the codes were made by the VAE {codes.vae_hash[:12]}, but this one is {here[:12]}: "
            "give the --vae_config and --vae_ckpt they were made with"
        )


def decode_codes(vae: SparseSDFVQVAE, codes: ShapeCodes) -> SparseTensor:
    """Decode codes to the field on the data grid."""
    check_codes(vae, codes)
    return vae.Decode(codes.to_sparse_tensor(vae.device))


def surface_of(
    vae: SparseSDFVQVAE,
    field: SparseTensor,
    codes: ShapeCodes,
    *,
    voxel_resolution: int | None = None,
    mc_threshold: float | None = None,
) -> trimesh.Trimesh:
    """Extract the surface of a decoded field, in the units and place of the source mesh.

    Args:
        vae: the tokenizer that decoded it.
        field: output of `decode_codes`.
        codes: where it came from; they know center and scale.
        voxel_resolution: see `SparseSDFVQVAE.sparse2mesh`.
        mc_threshold: see `SparseSDFVQVAE.sparse2mesh`.
    """
    (mesh,) = vae.sparse2mesh(field, voxel_resolution, mc_threshold)
    return to_source_units(mesh, codes.center, codes.scale)
