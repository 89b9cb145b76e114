"""`SparseSDFVQVAE`: sparse distance field -> codes -> sparse distance field -> mesh.

Knows nothing of files (`checkpoint.py`), losses (`training/losses.py`) or language.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.fields.description import CONVERSION_HINT
from sdf_vqvae.model.decoder import SparseSDFDecoder
from sdf_vqvae.model.encoder import SparseSDFEncoder
from sdf_vqvae.model.residual import ResidualDecoder, ResidualEncoder
from sdf_vqvae.quantizers.quantizer import Quantized
from sdf_vqvae.quantizers.registry import make_quantizer
from sdf_vqvae.sparse.coordinates import coords_of_keys, linear_keys
from sdf_vqvae.sparse.tensor import SparseTensor

if TYPE_CHECKING:
    import trimesh

CODEBOOK = "vq.embeddings.weight"
"""Name of the codes `[K, D]` in the state of a tokenizer."""


_OF_CODES = (CODEBOOK, "vq.second.embeddings.weight", "vq.second_from")


def is_training_state(name: str) -> bool:
    """Return whether a tensor of a tokenizer's state belongs to the learning of the codebook, not to the codes."""
    return name.startswith("vq.") and name not in _OF_CODES


class SparseSDFVQVAE(nn.Module):
    """Sparse VQ-VAE on signed distance fields.

    Build it from a `VAEConfig`, or from the keyword arguments of a JSON config's `models.vqvae.args`.
    The architecture is that of the original system (Direct3D-S2's sparse SDF VAE with a codebook in place of the
    Gaussian) or, with `architecture="residual"`, that of `model/residual.py`.
    """

    def __init__(self, config: VAEConfig | None = None, **args: Any) -> None:
        super().__init__()
        if config is not None and args:
            raise ValueError(f"give either a VAEConfig or keyword arguments, not both: {sorted(args)}")
        self.config = config if config is not None else VAEConfig.from_args(args)
        residual = self.config.architecture == "residual"
        self.encoder = ResidualEncoder(self.config) if residual else SparseSDFEncoder(self.config)
        self.decoder = ResidualDecoder(self.config) if residual else SparseSDFDecoder(self.config)
        self.vq = make_quantizer(vars(self.config))
        self._fingerprint: tuple[list[tuple[int, int, int] | None], str] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.vq.embeddings.weight.device

    def fingerprint(self) -> str:
        """Return a SHA-256 over names and values of all weights: codes belong to one fingerprint.

        It is kept until a weight is written or replaced; a write through `.data`, which PyTorch doesn't count, would
        go unseen.
        """
        weights = {n: t for n, t in sorted(self.state_dict(keep_vars=True).items()) if not is_training_state(n)}
        state = [None if t.is_inference() else (id(t), t.data_ptr(), t._version) for t in weights.values()]
        if self._fingerprint is None or None in state or self._fingerprint[0] != state:
            digest = hashlib.sha256()
            for name, tensor in weights.items():
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._fingerprint = state, digest.hexdigest()
        return self._fingerprint[1]

    def field_tensor(self, batch: Mapping[str, Any] | SparseTensor) -> SparseTensor:
        """Read a batch dict into a sparse tensor on the data grid, on the model's device, rows sorted.

        Voxels outside the part of the band that the encoder sees (`input_band`) are left out.

        Raises:
            ValueError: shapes differ, coordinates leave the grid, voxels occur twice, none is left, or the values
                are of another kind of field than the network reads.
        """
        if isinstance(batch, SparseTensor) and self._reads(batch):
            self._check_values(batch.feats)
            x = batch.replace(batch.feats.float())
        else:
            x = self._arranged(batch)
        empty = [i for i, (a, b) in enumerate(_pairs(x.coordinates.row_splits)) if a == b]
        if empty:
            raise ValueError(f"samples {empty} of the batch have no voxel within the band the encoder sees")
        return x

    def _reads(self, field: SparseTensor) -> bool:
        """Return whether the encoder sees a field as it is: all of it, in the order of its rows."""
        whole = self.config.input_band is None or self.config.field.band is None
        here = field.side == self.config.data_resolution and field.device == self.device
        return whole and here and field.coordinates.is_sorted

    def _arranged(self, batch: Mapping[str, Any] | SparseTensor) -> SparseTensor:
        """Return the part of a batch that the encoder sees, rows sorted; errors are those of `field_tensor`."""
        if isinstance(batch, Mapping):
            feats, coords = _read_batch(batch)
        else:  # a sparse tensor, of this library or another
            feats, coords = batch.feats, batch.coords.to(torch.int32)
        feats, coords = feats.to(self.device), coords.to(self.device)
        given = feats
        size = int(coords[:, 0].max()) + 1 if len(coords) else 0
        if self.config.input_band is not None and self.config.field.band is not None:
            seen = feats[:, 0].abs() <= self.config.input_band / self.config.field.band
            feats, coords = feats[seen], coords[seen]
        if len(coords) == 0:
            raise ValueError("the batch has no voxel within the band that the encoder sees")
        self._check_values(given)
        side = max(self.config.data_resolution, int(coords.max()) + 1)
        keys = linear_keys(coords, side)
        if not bool((keys[1:] > keys[:-1]).all()):
            keys, order = torch.sort(keys)
            if bool((keys[1:] == keys[:-1]).any()):
                raise ValueError("the batch holds the same voxel twice")
            feats, coords = feats[order], coords_of_keys(keys, side)
        return SparseTensor(feats.float(), coords, side=self.config.data_resolution, batch_size=size)

    def _check_values(self, feats: Tensor) -> None:
        """Refuse values `[N, 1]` that cannot be of the field that the network reads."""
        low, high = (float(v) for v in torch.aminmax(feats))
        field = self.config.field
        fault = None
        if not math.isfinite(low) or not math.isfinite(high):
            fault = "hold NaN or infinity"
        elif field.kind == "sdf" and low >= 0 and high > 0:
            fault = "are unsigned"
        elif field.unit == "band" and max(-low, high) > 1 + 1e-4:
            fault = "exceed the band"
        if fault:
            raise ValueError(
                f"the distances of the batch ({low:.3g}..{high:.3g}) {fault}, but the VAE reads {field.in_words()}: "
                f"{CONVERSION_HINT}"
            )

    def encode_latent(self, batch: Mapping[str, Any] | SparseTensor) -> SparseTensor:
        """Return the continuous latent vectors `[M, D]` on the latent grid, before quantization."""
        return self.latent_of(self.field_tensor(batch))

    def latent_of(self, field: SparseTensor) -> SparseTensor:
        """Encode a field as `field_tensor` returns it to latent vectors `[M, D]`."""
        latent = self.encoder(field)
        return latent.replace(self.vq.prepare(latent.feats))

    @torch.no_grad()
    def Encode(self, batch: Mapping[str, Any] | SparseTensor) -> SparseTensor:
        """Encode a batch dict (`sparse_sdf [N, 1]`, `sparse_index [N, 3]`, `batch_idx [N]`) to codes.

        Returns:
            Sparse tensor with `.feats [M, 1]` int64 codes (`[M, 2]` of a tokenizer whose cells may have a second
            code, -1 where they have none) and `.coords [M, 4]` int32 (batch, x, y, z) on the
            latent grid, rows sorted by (batch, x, y, z).
        """
        latent = self.encode_latent(batch)
        return latent.replace(self.vq.nearest(latent.feats).view(len(latent), self.vq.columns))

    @torch.no_grad()
    def Decode(self, encoding_indices: SparseTensor) -> SparseTensor:
        """Decode codes, as `Encode` returns them or as floats that hold integers, to the field on the data grid.

        Returns:
            `.feats [N, 1]` float32 in units of the field. Every latent cell is filled (N = 512 M at three levels),
            or, where the decoder predicts occupancy, the neighborhood of the surface.

        Raises:
            ValueError: a code outside the codebook, or coordinates outside the latent grid.
        """
        return self.decode_latent(self.lookup(encoding_indices))

    def lookup(self, encoding_indices: SparseTensor) -> SparseTensor:
        """Return the codebook vectors `[M, D]` of codes `[M, 1]` (see `Encode`) on the latent grid."""
        count, columns = len(encoding_indices.coords), self.vq.columns
        if encoding_indices.feats.numel() != count * columns:
            raise ValueError(
                f"codes have feats [M, {columns}], M = {count} as there are coordinates, got "
                f"{list(encoding_indices.feats.shape)}"
            )
        codes = encoding_indices.feats.reshape(count, columns).to(self.device)
        if codes.is_floating_point():
            codes = codes.round()
        vectors = self.vq.vectors(codes.long())
        if isinstance(encoding_indices, SparseTensor) and encoding_indices.side == self.config.resolution:
            coordinates: Any = encoding_indices.to(self.device).coordinates
        else:
            coordinates = encoding_indices.coords.to(self.device)
        return SparseTensor(vectors, coordinates, side=self.config.resolution)

    def decode_latent(self, latent: SparseTensor) -> SparseTensor:
        """Decode latent vectors `[M, D]`, quantized or not, to the field on the data grid."""
        return self.decoder(latent)

    def forward(self, batch: Mapping[str, Any] | SparseTensor, bypass: bool = False) -> dict[str, Any]:
        """Encode, quantize and decode a batch for training.

        Args:
            batch: see `Encode`.
            bypass: decode the continuous latent instead (the codebook neither used nor updated).

        Returns:
            `reconst_x` (field on the data grid), `latent`, `indices [M]`, `vq_loss` (None where no gradient learns
            the codes), `commitment_loss`, and `occupancy` (a list of `Occupancy`, empty where none is predicted).
        """
        field = self.field_tensor(batch)
        latent = self.latent_of(field)
        if bypass:
            zero = latent.feats.new_zeros(())
            quantized = Quantized(
                feats=latent.feats, indices=torch.empty(0), codebook_loss=None, commitment_loss=zero
            )
        else:
            quantized = self.vq(latent.feats)
        vectors = latent.replace(quantized.feats)
        if isinstance(self.decoder, ResidualDecoder):
            decoded, occupancy = self.decoder.predict(vectors, field.coordinates)
        else:
            decoded, occupancy = self.decode_latent(vectors), []
        return {
            "reconst_x": decoded,
            "latent": latent,
            "indices": quantized.indices,
            "vq_loss": quantized.codebook_loss,
            "commitment_loss": quantized.commitment_loss,
            "occupancy": occupancy,
        }

    def sparse2mesh(
        self,
        recon: SparseTensor,
        voxel_resolution: int | None = None,
        mc_threshold: float | None = None,
    ) -> list[trimesh.Trimesh]:
        """Extract one mesh a sample from a decoded field, in the world cube [-0.5, 0.5]^3.

        Args:
            recon: output of `Decode`.
            voxel_resolution: grid side to read the field on; at most that of the field (the default).
            mc_threshold: level of the surface in units of the field; by default 0 for signed fields. Unsigned
                fields get signs first, so that the surface has one wall; the log says how.

        Raises:
            ValueError: the resolution exceeds the field's, or there is no surface at the level.
        """
        from sdf_vqvae.fields.surface import extract_surface  # and the libraries of meshes, which codes don't need

        return [
            extract_surface(
                feats[:, 0],
                xyz,
                replace(self.config.field, resolution=recon.side),
                voxel_resolution=voxel_resolution,
                mc_threshold=mc_threshold,
            )
            for feats, xyz in recon.samples()
        ]

    def decode_mesh(
        self,
        recon_or_codes: SparseTensor,
        voxel_resolution: int | None = None,
        mc_threshold: float | None = None,
    ) -> list[trimesh.Trimesh]:
        """Extract meshes from a decoded field, or straight from codes or latent vectors (`[M, D]`).

        The grid tells a field from the others; the number of columns tells codes from latent vectors.

        Arguments and errors are those of `sparse2mesh`.
        """
        on_latent_grid = recon_or_codes.side == self.config.latent_resolution
        if not on_latent_grid:
            recon = recon_or_codes
        elif recon_or_codes.feats.ndim == 2 and recon_or_codes.feats.shape[1] == self.config.latent_channels > 1:
            with torch.no_grad():
                recon = self.decode_latent(recon_or_codes)
        else:
            recon = self.Decode(recon_or_codes)
        return self.sparse2mesh(recon, voxel_resolution, mc_threshold)


def _pairs(splits: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(splits))


def _read_batch(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return feats `[N, 1]` and coords int32 `[N, 4]` of a batch dict."""
    missing = [k for k in ("sparse_sdf", "sparse_index", "batch_idx") if k not in batch]
    if missing:
        raise ValueError(f"the 3D batch lacks {missing}; it has {sorted(batch)}")
    if batch.get("factor") not in (None, 1, 1.0):
        raise ValueError(f"factor={batch['factor']} is not supported; voxelize at the VAE's resolution instead")
    sdf, index, batch_idx = (torch.as_tensor(batch[k]) for k in ("sparse_sdf", "sparse_index", "batch_idx"))
    if sdf.numel() == 0:
        raise ValueError("the 3D batch holds no voxel")
    sdf = sdf.reshape(len(sdf), -1)
    if sdf.shape[1] != 1 or index.ndim != 2 or index.shape[1] != 3 or not len(sdf) == len(index) == len(batch_idx):
        raise ValueError(
            "a 3D batch has sparse_sdf [N, 1], sparse_index [N, 3] and batch_idx [N], got "
            f"{list(sdf.shape)}, {list(index.shape)} and {list(batch_idx.shape)}"
        )
    coords = torch.cat([batch_idx.reshape(-1, 1).to(torch.int32), index.to(torch.int32)], dim=1)
    return sdf, coords
