"""Codes of many objects in one file."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.folder import Manifest, read_shard

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def cache() -> CodeCache:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0, 30, 20, 40, 25])
    total = int(sizes.sum())
    cells = torch.randperm(12**3, generator=generator)[:total]
    return CodeCache(
        codes=torch.randint(0, 64, (total,), generator=generator, dtype=torch.int32),
        coords=torch.stack([cells // 144, cells // 12 % 12, cells % 12], dim=1).short(),
        splits=torch.cumsum(sizes, 0),
        ids=NAMES,
        failures={"e": "the mesh has no faces"},
        vae_hash="one",
    )


def test_a_cache_survives_its_file_and_a_stale_one_is_refused(cache: CodeCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "codes.safetensors")
    again = CodeCache.load(tmp_path / "codes.safetensors")
    assert (again.ids, again.failures, again.vae_hash) == (cache.ids, cache.failures, "one")
    for i in range(len(cache)):
        assert all(torch.equal(x, y) for x, y in zip(cache.object(i), again.object(i), strict=True))
    manifest = Manifest(vae_hash="one", data_resolution=96, latent_resolution=12, codebook_size=64)
    assert read_shard(tmp_path / "codes.safetensors", manifest).ids == NAMES
    with pytest.raises(ValueError, match=r"codes\.safetensors is stale: made by the VAE one, not two"):
        read_shard(tmp_path / "codes.safetensors", replace(manifest, vae_hash="two"))
    with pytest.raises(ValueError, match="outside the codebook or the latent grid"):
        read_shard(tmp_path / "codes.safetensors", replace(manifest, latent_resolution=11))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a code cache"):
        CodeCache.load(tmp_path / "bad.safetensors")
