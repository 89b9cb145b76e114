"""One object through the tokenizer, with its place in source units kept: mesh -> field -> codes -> mesh.

What a program does with one file, as functions. Batches, datasets and scores are elsewhere.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import trimesh

from sdf_vqvae.codes.shape_codes import ShapeCodes, check_codes, codes_of_cells
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.objects import Place
from sdf_vqvae.fields.conversion import convert_field, field_in_world
from sdf_vqvae.fields.description import CONVERSION_HINT, FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import NormalizedMesh, load_mesh, normalize_mesh, to_source_units
from sdf_vqvae.geometry.up import AUTO, UP_AXES, Up, up_of
from sdf_vqvae.geometry.upright_network import guess_up, usual_up
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize_batch
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.errors import brief

logger = logging.getLogger(__name__)


class FieldReader(Protocol):
    """What a tokenizer says of the fields that it reads; to make one, its network is not needed."""

    @property
    def config(self) -> VAEConfig:
        """Its configuration, with the description of the field."""

    @property
    def device(self) -> torch.device:
        """Where fields are made."""


def load_shape(path: str | os.PathLike[str]) -> trimesh.Trimesh | SparseSDF:
    """Read a mesh file, or a field file (`.npz`).

    Raises:
        ValueError: see `load_mesh` and `SparseSDF.load`.
    """
    return Place(path=Path(path), name=os.fspath(path)).load()


def field_for(
    vae: FieldReader,
    shape: trimesh.Trimesh | SparseSDF,
    *,
    threshold_factor: float | None = None,
    up: Up | None = None,
) -> SparseSDF:
    """Return the field that a tokenizer reads: a mesh voxelized, or a field, resampled where it is of another grid.

    Args:
        vae: the tokenizer.
        shape: the object.
        threshold_factor: see `voxelize_for`.
        up: the axis of the source that points up; None leaves a mesh as it is (y), and a field as it was made.

    Raises:
        ValueError: see `voxelize_for`, `as_read` and `settle_up`.
    """
    if not isinstance(shape, trimesh.Trimesh):
        shape = as_read(vae.config, shape)
    settled = None if up is None else settle_up(up, shape)
    if isinstance(shape, trimesh.Trimesh):
        field = voxelize_for(
            vae, shape, threshold_factor=threshold_factor, up="y" if settled is None else settled.axis
        )
    else:
        field = shape if settled is None else shape.turned(settled.axis)
    return field if settled is None else replace(field, up_from=settled.known_from)


def up_for(path: str | os.PathLike[str], shape: trimesh.Trimesh | SparseSDF, asked: str | None = None) -> Up:
    """Return which axis of a shape's source points up, as programs take it.

    Args:
        path: the shape's file.
        shape: what is in it.
        asked: what `--up` says, None where it isn't given: then a field is taken as it was made.

    Raises:
        ValueError: see `up_of` and `settle_up`.
    """
    if asked is None and not isinstance(shape, trimesh.Trimesh):
        return Up(axis=shape.up, known_from=shape.up_from or "fields stand along y where they don't say otherwise")
    return settle_up(up_of(path, asked), shape)


def settle_up(up: Up, shape: trimesh.Trimesh | SparseSDF) -> Up:
    """Return `up` as one of `UP_AXES`: where it is `AUTO` or `USUAL`, by looking at the shape.

    Raises:
        ValueError: see `guess_up` and, for fields, `extract_surface`.
    """
    if up.axis in UP_AXES:
        return up
    if not isinstance(shape, trimesh.Trimesh):
        surface = extract_surface(shape.sdf, shape.index, shape.field)
        shape = to_source_units(surface, shape.center, shape.scale, shape.up)
    look = guess_up if up.axis == AUTO else usual_up
    try:
        guess = look(shape)
    except (ValueError, IndexError):
        # Either something is wrong with the mesh, which this says, or its numbers are too large or too small.
        normalized = normalize_mesh(shape)
        guess = look(trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False))
    return up.guessed(guess.up, guess.probability)


def voxelize_for(
    vae: FieldReader,
    mesh: str | os.PathLike[str] | trimesh.Trimesh,
    *,
    threshold_factor: float | None = None,
    up: str = "y",
) -> SparseSDF:
    """Voxelize a mesh (or file) into the field that a tokenizer reads.

    Only the part of the band that the encoder sees is computed; its values are those of the whole field.

    Args:
        vae: the tokenizer.
        mesh: path or mesh, in any units.
        threshold_factor: half width in voxels of the stored shell, for tokenizers of the original system, whose
            files don't record it: the value that their training data was made with.
        up: the axis of the mesh that points up. By default nothing is turned, whatever the file's format.

    Raises:
        ValueError: the mesh cannot be used; or the tokenizer's field has no recorded band and `threshold_factor`
            is not given, or it has one and another is asked for.
    """
    source = mesh if isinstance(mesh, trimesh.Trimesh) else load_mesh(mesh)
    return voxelize_normalized(vae, normalize_mesh(source, up), threshold_factor=threshold_factor)


def voxelize_normalized(
    vae: FieldReader, mesh: NormalizedMesh, *, threshold_factor: float | None = None
) -> SparseSDF:
    """Voxelize a mesh that stands in the world cube; see `voxelize_for`."""
    return field_in_world(
        mesh.vertices.to(vae.device),
        mesh.faces.to(vae.device),
        vae.config.field,
        band=_band_for(vae, threshold_factor),
        watertight=mesh.watertight,
        center=mesh.center,
        scale=mesh.scale,
        up=mesh.up,
    )


def voxelize_many_for(
    vae: SparseSDFVQVAE,
    meshes: Sequence[trimesh.Trimesh],
    *,
    threshold_factor: float | None = None,
    ups: Sequence[Up] = (),
) -> list[SparseSDF | str]:
    """Voxelize several meshes into the fields that a tokenizer reads, on a GPU in one go.

    Arguments are those of `field_for`; without `ups`, nothing is turned.

    Returns:
        For each mesh its field, or in one line why it can't be used.

    Raises:
        ValueError: `threshold_factor` does not fit the tokenizer.
    """
    field, band = vae.config.field, _band_for(vae, threshold_factor)
    fields: list[SparseSDF | str] = []
    ready: list[tuple[int, NormalizedMesh]] = []
    together = vae.device.type == "cuda" and field.sampling == "center" and field.unit == "band"
    settled_ups: list[Up | None] = [*ups] or [None] * len(meshes)
    for number, (mesh, up) in enumerate(zip(meshes, settled_ups, strict=True)):
        fields.append("")
        try:
            if not together:
                fields[number] = field_for(vae, mesh, threshold_factor=threshold_factor, up=up)
                continue
            settled = settled_ups[number] = None if up is None else settle_up(up, mesh)
            ready.append((number, normalize_mesh(mesh, "y" if settled is None else settled.axis)))
        except ValueError as error:
            fields[number] = brief(error)
    if not ready:
        return fields
    parts = [(m.vertices, m.faces, m.watertight) for _, m in ready]
    signed = field.kind == "sdf"
    try:
        voxelized = voxelize_batch(parts, resolution=field.resolution, band=band, signed=signed, device=vae.device)
    except ValueError:  # one of them has no voxel: find out which
        return [_or_reason(vae, mesh, threshold_factor, up) for mesh, up in zip(meshes, settled_ups, strict=True)]
    share = band / field.voxels_per_unit
    for (number, mesh), band_field in zip(ready, voxelized, strict=True):
        up = settled_ups[number]
        fields[number] = SparseSDF(
            sdf=(band_field.distance.double() * share).float(),
            index=band_field.index,
            field=field,
            center=mesh.center,
            scale=mesh.scale,
            watertight=mesh.watertight,
            sign_method=band_field.sign_method,
            up=mesh.up,
            up_from="" if up is None else up.known_from,
        )
    return fields


def _or_reason(
    vae: SparseSDFVQVAE, mesh: trimesh.Trimesh, threshold_factor: float | None, up: Up | None
) -> SparseSDF | str:
    try:
        return field_for(vae, mesh, threshold_factor=threshold_factor, up=up)
    except ValueError as error:
        return brief(error)


def _band_for(vae: FieldReader, threshold_factor: float | None) -> float:
    """Return how much of the band to compute, in voxels. Raises a ValueError where that is unknown."""
    field = vae.config.field
    if threshold_factor is not None and field.band not in (None, threshold_factor):
        raise ValueError(
            f"threshold_factor={threshold_factor:g}, but this VAE reads fields of band {field.band:g}: leave it out"
        )
    band = vae.config.input_band or field.band or threshold_factor
    if band is None:
        raise ValueError(
            "this VAE reads fields of the original system, whose band is not recorded: give --threshold_factor, the "
            "value its training data was made with (0.01 by default in the original's first version, 4.0 later)"
        )
    return band


def as_read(config: VAEConfig, field: SparseSDF) -> SparseSDF:
    """Return a field as a tokenizer of that configuration reads it.

    A signed field of a grid up to twice as coarse or as fine is resampled (see `convert_field`), as far from the
    surface as the encoder sees, which is logged once: a coarser one has no detail below its own voxels.

    Raises:
        ValueError: it is of a kind that the tokenizer doesn't read; the message names both. See `convert_field`, too.
    """
    given, read = field.field, config.field
    if given == read:
        return field
    if not given.is_read_as(read):
        raise ValueError(f"the field is {given.in_words()}, but the VAE reads {read.in_words()}: {CONVERSION_HINT}")
    _say_resampled(given, read)
    return convert_field(field, read, band=config.input_band)


@functools.cache
def _say_resampled(given: FieldDescription, read: FieldDescription) -> None:
    """Log, once a process, that fields of one description are resampled to another."""
    lost = f": no detail below 1/{given.resolution} is in them" if given.resolution < read.resolution else ""
    logger.warning("fields of %s are resampled to %s, which the VAE reads%s", given.in_words(), read.in_words(), lost)


def encode_field(vae: SparseSDFVQVAE, field: SparseSDF) -> ShapeCodes:
    """Encode one object's field to codes (on the CPU).

    Raises:
        ValueError: the field is of another kind than the tokenizer's.
    """
    field = as_read(vae.config, field)
    encoded = vae.Encode(field.to_batch())
    return ShapeCodes(
        codes=codes_of_cells(encoded),
        coords=encoded.coords[:, 1:].to("cpu", torch.int32),
        latent_resolution=vae.config.latent_resolution,
        data_resolution=vae.config.data_resolution,
        center=field.center,
        scale=field.scale,
        vae_hash=vae.fingerprint(),
        up=field.up,
        up_from=field.up_from,
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
    """Extract the surface of a decoded field, in the units, place and axes of the source mesh.

    Args:
        vae: the tokenizer that decoded it.
        field: output of `decode_codes`.
        codes: where it came from; they know center, scale and up.
        voxel_resolution: see `SparseSDFVQVAE.sparse2mesh`.
        mc_threshold: see `SparseSDFVQVAE.sparse2mesh`.
    """
    (mesh,) = vae.sparse2mesh(field, voxel_resolution, mc_threshold)
    return to_source_units(mesh, codes.center, codes.scale, codes.up)
