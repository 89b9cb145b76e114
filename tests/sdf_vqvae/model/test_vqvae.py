"""Codes are integers on a sorted latent grid, decode alone, survive files, and bad input is refused by name."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.folder import Manifest, read_shard
from sdf_vqvae.codes.pipeline import decode_codes
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.model.checkpoint import load_vae_from_config, load_weights, save_vae
from sdf_vqvae.model.state_dict import read_state_dict
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor

FIELD = {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 64}
ARGS = {
    "resolution": 8,
    "model_channels": 64,
    "num_head_channels": 32,
    "num_blocks": 2,
    "num_embeddings": 64,
    "use_ema_update": True,
    "pool_counts_zero": False,
    "field": FIELD,
    "input_band": 1.75,
}


def sphere_batch(
    radii: tuple[float, ...] = (20.0, 12.0), side: int = 64, band: float = 3.0
) -> dict[str, torch.Tensor]:
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    distance = (grid + 0.5 - side / 2).norm(dim=1)
    parts = [((distance - r) / band, i) for i, r in enumerate(radii)]
    kept = [(d[d.abs() <= 1], grid[d.abs() <= 1], i) for d, i in parts]
    return {
        "sparse_sdf": torch.cat([d for d, _, _ in kept])[:, None],
        "sparse_index": torch.cat([g for _, g, _ in kept]),
        "batch_idx": torch.cat([torch.full((len(d),), i) for d, _, i in kept]),
    }


@pytest.fixture(scope="module")
def vae() -> SparseSDFVQVAE:
    torch.manual_seed(0)
    return SparseSDFVQVAE(**ARGS).eval()


def test_codes_are_sorted_integers_and_look_up_to_codebook_vectors(vae: SparseSDFVQVAE) -> None:
    codes = vae.Encode(sphere_batch())
    assert codes.feats.shape == (len(codes), 1)
    assert not codes.feats.is_floating_point()
    assert codes.coords.dtype == torch.int32
    assert codes.coordinates.is_sorted
    assert codes.side == 8
    assert torch.equal(vae.lookup(codes).feats, vae.vq.embeddings.weight[codes.feats[:, 0]])


def test_the_encoder_sees_its_part_of_the_band_only(vae: SparseSDFVQVAE) -> None:
    batch = sphere_batch()
    inner = batch["sparse_sdf"][:, 0].abs() <= 1.75 / 3
    thin = {k: v[inner] for k, v in batch.items()}
    assert torch.equal(vae.Encode(batch).feats, vae.Encode(thin).feats)


def test_a_batch_gives_the_codes_of_its_samples(vae: SparseSDFVQVAE) -> None:
    both = vae.Encode(sphere_batch()).samples()
    for radius, (codes, xyz) in zip((20.0, 12.0), both, strict=True):
        alone = vae.Encode(sphere_batch((radius,)))
        assert torch.equal(alone.coords[:, 1:], xyz)
        assert float((alone.feats == codes).float().mean()) > 0.99


def test_decoding_needs_codes_alone_and_takes_float_codes(vae: SparseSDFVQVAE) -> None:
    codes = vae.Encode(sphere_batch())
    plain = SparseTensor(codes.feats.float(), codes.coords, side=8)
    assert torch.equal(vae.Decode(codes).feats, vae.Decode(plain).feats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse_index": torch.arange(60, 90).view(10, 3)}, r"0\.\.63"),
        ({"sparse_index": torch.zeros(10, 3, dtype=torch.long)}, "twice"),
        ({"sparse_sdf": torch.ones(10, 1)}, "no voxel"),
        ({"sparse_sdf": torch.ones(9, 1)}, r"\[N, 1\]"),
        ({"batch_idx": torch.full((10,), 1)}, r"samples \[0\]"),
        ({"factor": 2.0}, "factor"),
    ],
)
def test_bad_batches_are_refused(vae: SparseSDFVQVAE, change: dict[str, torch.Tensor], message: str) -> None:
    batch = {
        "sparse_sdf": torch.zeros(10, 1),
        "sparse_index": torch.arange(30).view(10, 3),
        "batch_idx": torch.zeros(10, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        vae.Encode({**batch, **change})
    with pytest.raises(ValueError, match="lacks"):
        vae.Encode({"sparse_sdf": torch.zeros(1, 1)})


def test_codes_outside_the_codebook_are_refused(vae: SparseSDFVQVAE) -> None:
    codes = vae.Encode(sphere_batch())
    with pytest.raises(ValueError, match=r"0\.\.63"):
        vae.Decode(codes.replace(codes.feats + 64))


def test_latent_vectors_decode_to_meshes_and_are_not_taken_for_codes(vae: SparseSDFVQVAE) -> None:
    codes = vae.Encode(sphere_batch((20.0,)))
    latent = vae.lookup(codes)
    assert torch.equal(vae.decode_latent(latent).feats, vae.Decode(codes).feats)
    level = float(vae.Decode(codes).feats.median())
    (from_latent,), (from_codes,) = (vae.decode_mesh(x, mc_threshold=level) for x in (latent, codes))
    assert len(from_latent.faces) == len(from_codes.faces) > 0
    with pytest.raises(ValueError, match=r"codes have feats \[M, 1\]"):
        vae.Decode(latent)


def test_sparse_tensors_of_other_libraries_are_read(vae: SparseSDFVQVAE) -> None:
    batch = sphere_batch((20.0,))
    coords = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], 1)
    foreign = SimpleNamespace(feats=batch["sparse_sdf"], coords=coords)
    assert torch.equal(vae.Encode(foreign).feats, vae.Encode(batch).feats)


def test_meshes_come_from_codes_or_from_the_decoded_field(vae: SparseSDFVQVAE) -> None:
    batch = sphere_batch((20.0,))
    field = SparseTensor(
        batch["sparse_sdf"], torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], 1), side=64
    )
    (mesh,) = vae.sparse2mesh(field)
    assert mesh.is_watertight
    radius = torch.from_numpy(mesh.vertices).norm(dim=1) * 64
    assert float((radius - 20).abs().max()) < 0.1
    (coarse,) = vae.decode_mesh(field, voxel_resolution=32)
    assert abs(coarse.bounds - mesh.bounds).max() < 0.01
    with pytest.raises(ValueError, match="coarser"):
        vae.sparse2mesh(field, voxel_resolution=128)


def test_a_checkpoint_round_trip_keeps_codes_and_fingerprint(vae: SparseSDFVQVAE, tmp_path: Path) -> None:
    save_vae(vae, tmp_path)
    again = load_vae_from_config(vae_ckpt=tmp_path / "model.safetensors", device="cpu")
    assert again.config == vae.config
    assert again.fingerprint() == vae.fingerprint()
    assert torch.equal(again.Encode(sphere_batch()).feats, vae.Encode(sphere_batch()).feats)


def test_the_fingerprint_is_that_of_the_weights_as_they_are_now(vae: SparseSDFVQVAE) -> None:
    changed = copy.deepcopy(vae)
    first = changed.fingerprint()
    assert first == changed.fingerprint() == vae.fingerprint()
    with torch.no_grad():
        changed.vq.embeddings.weight[0, 0] += 1
    second = changed.fingerprint()
    changed.vq.embeddings.weight = torch.nn.Parameter(changed.vq.embeddings.weight + 1)
    third = changed.fingerprint()
    changed.load_state_dict(vae.state_dict())
    assert len({first, second, third}) == 3 and changed.fingerprint() == first


@pytest.mark.parametrize("wrapper", [None, "state_dict", "vae"])
def test_pytorch_checkpoints_load_bare_or_wrapped(vae: SparseSDFVQVAE, tmp_path: Path, wrapper: str | None) -> None:
    state = vae.state_dict()
    torch.save({wrapper: state, "config": {}} if wrapper else state, tmp_path / "vae.pt")
    fresh = SparseSDFVQVAE(vae.config)
    load_weights(fresh, tmp_path / "vae.pt")
    assert fresh.fingerprint() == vae.fingerprint()


def test_a_checkpoint_of_another_architecture_is_refused_with_the_names(vae: SparseSDFVQVAE, tmp_path: Path) -> None:
    save_vae(vae, tmp_path)
    other = SparseSDFVQVAE(**{**ARGS, "num_blocks": 3, "latent_channels": 8})
    with pytest.raises(ValueError, match=r"missing \(decoder.blocks.2.*instead of"):
        load_weights(other, tmp_path / "model.safetensors")


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "a.pt").write_bytes(b"nonsense")
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"x": Path}, protocol=2))
    torch.save({"x": [1, 2]}, tmp_path / "d.pt")
    for name in ("a.pt", "b.safetensors", "c.pt", "d.pt", "absent.pt"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read_state_dict(tmp_path / name)


def test_a_codes_file_round_trip(vae: SparseSDFVQVAE, tmp_path: Path) -> None:
    encoded = vae.Encode(sphere_batch((20.0,)))
    codes = ShapeCodes(
        codes=encoded.feats[:, 0].int(),
        coords=encoded.coords[:, 1:],
        latent_resolution=8,
        data_resolution=64,
        center=(1.0, 2.0, 3.0),
        scale=0.25,
        vae_hash=vae.fingerprint(),
    )
    codes.save(tmp_path / "x.safetensors")
    again = ShapeCodes.load(tmp_path / "x.safetensors")
    assert torch.equal(again.codes, codes.codes)
    assert torch.equal(again.coords, codes.coords)
    assert (again.center, again.scale, again.vae_hash) == (codes.center, codes.scale, codes.vae_hash)
    assert torch.equal(vae.Decode(again.to_sparse_tensor()).feats, vae.Decode(encoded).feats)
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        ShapeCodes.load(tmp_path / "bad.safetensors")


def test_the_last_of_65536_codes_comes_back_from_every_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = SparseSDFVQVAE(**{**ARGS, "num_embeddings": 2**16}).eval()
    latent = vae.encode_latent(sphere_batch((20.0,)))
    with torch.no_grad():
        vae.vq.embeddings.weight[-1] = latent.feats[5]
    encoded = vae.Encode(sphere_batch((20.0,)))
    assert int(encoded.feats[5]) == 2**16 - 1
    numbers, cells = encoded.feats[:, 0].int(), encoded.coords[:, 1:]
    codes = ShapeCodes(
        codes=numbers,
        coords=cells,
        latent_resolution=8,
        data_resolution=64,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash="",
    )
    codes.save(tmp_path / "one.safetensors")
    assert torch.equal(ShapeCodes.load(tmp_path / "one.safetensors").codes, numbers)
    many = CodeCache(
        codes=numbers,
        coords=cells.short(),
        splits=torch.tensor([0, len(numbers)]),
        ids=("a",),
        failures={},
        vae_hash="",
    )
    many.save(tmp_path / "many.safetensors")
    manifest = Manifest(vae_hash="", data_resolution=64, latent_resolution=8, codebook_size=2**16)
    assert torch.equal(read_shard(tmp_path / "many.safetensors", manifest).object(0)[0], numbers)
    expected = vae.vq.embeddings.weight[-1]
    assert torch.equal(vae.lookup(codes.to_sparse_tensor()).feats[5], expected)


def test_an_empty_batch_and_codes_of_another_grid_are_refused(vae: SparseSDFVQVAE) -> None:
    empty = {
        "sparse_sdf": torch.zeros(0, 1),
        "sparse_index": torch.zeros(0, 3, dtype=torch.long),
        "batch_idx": torch.zeros(0, dtype=torch.long),
    }
    with pytest.raises(ValueError, match="holds no voxel"):
        vae.Encode(empty)
    codes = ShapeCodes(
        codes=torch.zeros(1, dtype=torch.int32),
        coords=torch.zeros(1, 3, dtype=torch.int32),
        latent_resolution=16,
        data_resolution=128,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash=vae.fingerprint(),
    )
    with pytest.raises(ValueError, match=r"latent grid of 16\^3"):
        decode_codes(vae, codes)
