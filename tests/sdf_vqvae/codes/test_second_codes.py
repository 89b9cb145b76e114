"""Cells with two codes: in files, in folders, and back to the mesh."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.folder import CodeFolder, Manifest, read_shard
from sdf_vqvae.codes.pipeline import decode_codes, encode_field, surface_of, voxelize_for
from sdf_vqvae.codes.shape_codes import ShapeCodes, check_codes
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.model.checkpoint import load_vae_from_config, save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from tiny_tokenizer import saved_with_second_codes
from vae_qwen3vl.__main__ import main
from vae_qwen3vl.data.datasets_3d import CachedCodesDataset
from vae_qwen3vl.evaluation.objects import from_codes
from vae_qwen3vl.evaluation.reconstruction import reconstruct
from vae_qwen3vl.export.shape_vocabulary import in_order
from vae_qwen3vl.vae_latent_extractor import codebook_vectors, extract_3d_latent

BOX = trimesh.creation.box((1, 0.6, 0.4))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return saved_with_second_codes(BOX, tmp_path_factory.mktemp("vae")).parent


@pytest.fixture(scope="module")
def vae(weights) -> SparseSDFVQVAE:
    return load_vae_from_config(weights / "config.json", weights / "model.safetensors", "cpu")


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    BOX.export(folder / "box.ply")
    trimesh.creation.icosphere(2).export(folder / "ball.ply")
    (folder / "metadata.csv").write_text("file,up,captions\nbox.ply,y,a box\nball.ply,y,a ball\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights, meshes) -> CodeFolder:
    output = tmp_path_factory.mktemp("codes")
    which = ["--vae_config", str(weights / "config.json"), "--vae_ckpt", str(weights / "model.safetensors")]
    assert main(["encode", str(meshes), "-o", str(output), "--device", "cpu", *which]) == 0
    return CodeFolder(output)


def test_a_file_of_codes_decodes_to_the_mesh_of_the_codes_themselves(vae, meshes, tmp_path):
    codes = encode_field(vae, voxelize_for(vae, meshes / "box.ply"))
    second = codes.codes[:, 1]
    assert 0 < int((second >= 0).sum()) < len(second) and int(second.min()) == -1
    assert codes.count == len(codes.coords) + int((second >= 0).sum())
    codes.save(tmp_path / "box.safetensors")
    again = ShapeCodes.load(tmp_path / "box.safetensors")
    assert torch.equal(again.codes, codes.codes) and torch.equal(again.coords, codes.coords)
    direct = vae.Decode(vae.Encode(voxelize_for(vae, meshes / "box.ply").to_batch()))
    through = decode_codes(vae, again)
    assert torch.equal(through.feats, direct.feats)
    without = decode_codes(vae, ShapeCodes(**{**vars(again), "codes": _without_second(again.codes)}))
    assert not torch.equal(without.feats, direct.feats)
    assert len(surface_of(vae, through, again).faces)


def _without_second(codes: torch.Tensor) -> torch.Tensor:
    return torch.stack([codes[:, 0], torch.full_like(codes[:, 0], -1)], dim=1)


def test_language_reads_the_first_code_of_each_cell(vae, meshes):
    field = voxelize_for(vae, meshes / "box.ply")
    codes = encode_field(vae, field)
    expected = vae.vq.embeddings.weight[codes.codes[:, 0].long()]
    assert torch.equal(codebook_vectors(codes.codes, vae), expected)
    feats, coords = extract_3d_latent(field.to_batch(), vae)
    assert torch.equal(feats, expected) and torch.equal(coords[:, 1:], codes.coords)
    assert sorted(in_order(codes)) == sorted(codes.first.tolist())


def test_a_folder_of_codes_has_both(folder, vae, meshes):
    rows = {row["file"]: row for row in folder.table()}
    assert folder.manifest.second_codes == 16
    for name in ("box.ply", "ball.ply"):
        alone = encode_field(vae, voxelize_for(vae, meshes / name))
        codes, coords = folder[rows[name][ID_COLUMN]]
        assert torch.equal(codes, alone.codes) and torch.equal(coords.int(), alone.coords)
        assert int(rows[name]["codes"]) == alone.count
    item = CachedCodesDataset(folder)[0]
    assert item["codes"].ndim == 1 and len(item["codes"]) == len(item["coords"])


def test_what_is_evaluated_is_rebuilt_from_both(folder, vae, tmp_path):
    data = from_codes(folder, split=None, most=0)
    feats, _ = data.batch(data.objects)
    assert len(feats) == sum(len(one.coords) for one in data.objects)
    one = data.objects[0]
    assert reconstruct(vae, one, path=tmp_path / "rebuilt.ply").error is None
    expected = vae.sparse2mesh(vae.Decode(folder.manifest.shape(one.codes, one.coords).to_sparse_tensor()))[0]
    rebuilt = trimesh.load_mesh(tmp_path / "rebuilt.ply", process=False)
    assert len(rebuilt.faces) == len(expected.faces)


def test_weights_of_eight_bits_keep_both_codebooks(vae, tmp_path):
    save_vae(vae, tmp_path, torch.int8)
    again = load_vae_from_config(tmp_path / "config.json", tmp_path / "model.safetensors", "cpu")
    for ours, theirs in ((vae.vq, again.vq), (vae.vq.second, again.vq.second)):
        assert torch.equal(theirs.embeddings.weight, ours.embeddings.weight.half().float())


def test_codes_of_one_a_cell_and_of_two_are_told_apart(folder, vae, meshes, tmp_path):
    about = json.loads((folder.folder / "manifest.json").read_text())
    del about["second_codes"]
    (shard,) = folder.folder.glob("codes-*.safetensors")
    with pytest.raises(ValueError, match="one code a cell or two"):
        read_shard(shard, Manifest._of_values(about))
    with pytest.raises(ValueError, match="second_codes must be a number"):
        Manifest._of_values(about | {"second_codes": "many"})
    about["codebook_size"] = 1
    with pytest.raises(ValueError, match="outside the codebook"):
        read_shard(shard, Manifest._of_values(about | {"second_codes": 16}))
    codes = encode_field(vae, voxelize_for(vae, meshes / "box.ply"))
    for wrong, why in ((codes.first, "codes a cell"), (codes.codes.clamp(min=16), r"must lie in 0\.\.15")):
        with pytest.raises(ValueError, match=why):
            check_codes(vae, ShapeCodes(**{**vars(codes), "codes": wrong}))


def test_files_of_one_code_a_cell_are_byte_for_byte_those_of_before_second_codes(tmp_path):
    """Their SHA-256 as commit d037040 wrote them."""
    codes, coords = torch.tensor([3, 0, 31]).int(), torch.tensor([[0, 1, 2], [0, 1, 3], [7, 0, 5]]).int()
    ShapeCodes(
        codes=codes,
        coords=coords,
        latent_resolution=8,
        data_resolution=32,
        center=(0.5, 0.0, -1.0),
        scale=2.0,
        vae_hash="one",
        up="z",
        up_from="--up",
    ).save(tmp_path / "object")
    CodeCache(
        codes=codes,
        coords=coords.short(),
        splits=torch.tensor([0, 1, 3]),
        ids=("a", "b"),
        failures={"c": "no mesh"},
        vae_hash="one",
        ups=(Up(axis="y", known_from="x"), Up(axis="z", known_from="--up")),
    ).save(tmp_path / "shard")
    Manifest(vae_hash="one", data_resolution=32, latent_resolution=8, codebook_size=32).save(tmp_path)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert digests == {
        "object": "12201a72ef4b5df144c48bc02598d7e2835bd471c84e3aaca46a75290e7855bd",
        "shard": "da55d1462b1d1b36b4654a0ac24b1921887f870ba23e4a6aa2d36cfcf7222cc3",
        "manifest.json": "0b63aab75bfe5c758f9bae3639a72e59d8d5e9b7a4819c7dea016bc325e876d4",
    }


@given(
    cells=st.lists(st.integers(0, 8**3 - 1), min_size=1, max_size=40, unique=True).map(sorted),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_codes_survive_their_files(cells, data, tmp_path_factory):
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 31), st.integers(-1, 15)), min_size=len(cells), max_size=len(cells))
    )
    place = torch.tensor(cells)
    coords = torch.stack([place // 64, place // 8 % 8, place % 8], dim=1)
    shape = ShapeCodes(
        codes=torch.tensor(rows, dtype=torch.int32),
        coords=coords.int(),
        latent_resolution=8,
        data_resolution=32,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash="one",
    )
    path = tmp_path_factory.mktemp("file") / "codes.safetensors"
    shape.save(path)
    assert torch.equal(ShapeCodes.load(path).codes, shape.codes)
    cache = CodeCache(
        codes=shape.codes,
        coords=shape.coords.short(),
        splits=torch.tensor([0, len(cells)]),
        ids=("a",),
        failures={},
        vae_hash="one",
    )
    cache.save(path)
    assert torch.equal(CodeCache.load(path).object(0)[0], shape.codes)


@pytest.mark.parametrize("codes", [torch.zeros(3, 3), torch.zeros(2, 1), torch.tensor([[-1, 2], [0, 1]])])
def test_codes_of_other_forms_are_refused(codes):
    with pytest.raises(ValueError, match="codes"):
        ShapeCodes(
            codes=codes.int(),
            coords=torch.zeros(len(codes), 3).int(),
            latent_resolution=8,
            data_resolution=32,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            vae_hash="one",
        )
