"""Fields of the original system: read as what they are, fed to VAEs trained on them, converted by one command."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.codes.pipeline import encode_field, load_shape, voxelize_for
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.folder_conversion import convert_folder
from sdf_vqvae.fields.conversion import convert_field, field_in_world
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.metrics.scores import compare_meshes
from sdf_vqvae.geometry.unsigned import sign_by_flood
from sdf_vqvae.geometry.voxelizer.dense_surface import voxelize_dense
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.model.checkpoint import load_vae_from_config, save_vae
from sdf_vqvae.model.state_dict import to_torchsparse
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor

R = 64
OURS = FieldDescription(kind="sdf", unit="band", band=3.0, sampling="center", resolution=R)
ORIGINAL = FieldDescription(kind="udf", unit="world", band=None, sampling="corner", resolution=R)


def original_file(path: Path, mesh: trimesh.Trimesh, threshold: float = 4.0, resolution: int = R) -> Path:
    """Write a field as the original writes it, with distances of another library.

    Raw and unsigned, at i / (R - 1) - 0.5, below threshold / R.
    """
    import point_cloud_utils  # here, for machines that run the GPU tests alone

    normalized = normalize_mesh(mesh)
    world = trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)
    axis = np.arange(resolution) / (resolution - 1) - 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    distance, _, _ = point_cloud_utils.closest_points_on_mesh(
        points, np.asarray(world.vertices), np.asarray(world.faces, dtype=np.int64)
    )
    kept = distance < threshold / resolution
    index = np.stack(np.unravel_index(np.flatnonzero(kept), (resolution,) * 3), -1)
    np.savez_compressed(
        path,
        sparse_sdf=distance[kept].astype(np.float32)[:, None],
        sparse_index=index.astype(np.int32),
        resolution=resolution,
    )
    return path


@pytest.fixture(scope="module")
def box() -> trimesh.Trimesh:
    mesh = trimesh.creation.box((1.0, 0.7, 0.4))
    mesh.apply_transform(trimesh.transformations.rotation_matrix(0.4, (1, 2, 3)))
    return mesh


@pytest.fixture(scope="module")
def old_file(tmp_path_factory: pytest.TempPathFactory, box: trimesh.Trimesh) -> Path:
    return original_file(tmp_path_factory.mktemp("old") / f"box_r{R}.npz", box, resolution=R)


def in_world(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    normalized = normalize_mesh(mesh)
    return trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)


def original_vae(**change: object) -> SparseSDFVQVAE:
    torch.manual_seed(0)
    args = {"resolution": 8, "model_channels": 64, "num_head_channels": 32, "num_blocks": 1, "num_embeddings": 64}
    return SparseSDFVQVAE(**{**args, **change}).eval()


def test_the_originals_file_reads_as_raw_unsigned_distances(old_file):
    assert SparseSDF.load(old_file).field == ORIGINAL


def test_files_of_its_later_version_read_as_signed(tmp_path, box):
    ours = voxelize_for(original_vae(field={**OURS.to_dict(), "sampling": "corner", "band": 4.0}), box)
    np.savez_compressed(
        tmp_path / "x.npz",
        sparse_sdf=ours.sdf.numpy()[:, None],
        sparse_index=ours.index.numpy(),
        resolution=R,
        edge_mask=np.zeros(len(ours.sdf), dtype=bool),
        extra_band_factor=np.float32(4.0),
    )
    loaded = SparseSDF.load(tmp_path / "x.npz")
    assert loaded.field == FieldDescription(kind="sdf", unit="band", band=4.0, sampling="corner", resolution=R)
    mesh = extract_surface(loaded.sdf, loaded.index, loaded.field)
    assert compare_meshes(mesh, in_world(box)).chamfer_l1 < 0.01


def test_it_feeds_a_vae_trained_on_such_fields_unchanged(old_file):
    vae = original_vae()
    codes = encode_field(vae, SparseSDF.load(old_file))
    assert len(codes.codes) > 50


def test_voxelizing_for_the_originals_vae_gives_the_originals_values(old_file, box):
    """Our exact voxelizer against the distances of another library, sample by sample."""
    there = SparseSDF.load(old_file)
    here = voxelize_for(original_vae(), box, threshold_factor=4.0)
    assert here.field == there.field
    theirs = {tuple(i): d for i, d in zip(there.index.tolist(), there.sdf.tolist(), strict=True)}
    ours = {tuple(i): d for i, d in zip(here.index.tolist(), here.sdf.tolist(), strict=True)}
    assert len(theirs.keys() ^ ours.keys()) <= 2  # samples at the threshold itself
    assert max(abs(ours[k] - theirs[k]) for k in ours.keys() & theirs.keys()) < 1e-6


def test_a_vae_of_the_original_needs_to_be_told_the_threshold(box):
    with pytest.raises(ValueError, match="threshold_factor"):
        voxelize_for(original_vae(), box)
    with pytest.raises(ValueError, match="leave it out"):
        voxelize_for(original_vae(field=OURS.to_dict()), box, threshold_factor=4.0)


def test_a_mismatch_names_both_sides_and_the_command(old_file):
    ours = original_vae(field=OURS.to_dict())
    field = SparseSDF.load(old_file)
    for attempt in (encode_field, lambda vae, f: vae.Encode(f.to_batch()), lambda vae, f: vae(f.to_batch())):
        with pytest.raises(ValueError, match=r"sdf at 64\^3.*vae-qwen3vl convert") as caught:
            attempt(ours, field)
        assert "unsigned" in str(caught.value) or "udf at 64^3" in str(caught.value)


@pytest.mark.parametrize("sampling", ["corner", "center"])
@pytest.mark.parametrize(
    ("kind", "unit", "band"), [("udf", "world", None), ("sdf", "band", 4.0), ("udf", "band", 4.0)]
)
def test_every_description_gives_the_same_surface(box, sampling, kind, unit, band):
    field = FieldDescription(kind=kind, unit=unit, band=band, sampling=sampling, resolution=R)
    source = in_world(box)
    faces, vertices = torch.from_numpy(source.faces.astype(np.int64)), torch.from_numpy(np.asarray(source.vertices))
    made = field_in_world(vertices, faces, field, band=4.0, watertight=True)
    mesh = extract_surface(made.sdf, made.index, field)
    score = compare_meshes(mesh, source)
    assert score.fscore[0.01] > 0.98
    assert mesh.is_watertight
    assert abs(mesh.volume / source.volume - 1) < 0.03
    coarse = extract_surface(made.sdf, made.index, field, voxel_resolution=60)
    assert abs(coarse.bounds - mesh.bounds).max() < 0.5 / 60


def test_an_unsigned_field_gives_one_wall_and_says_how(old_file, box, caplog):
    caplog.set_level(logging.INFO)
    field = SparseSDF.load(old_file)
    vae = original_vae()
    coords = torch.cat([torch.zeros(len(field.index), 1, dtype=torch.int32), field.index], 1)
    decoded = SparseTensor(field.sdf[:, None], coords, side=R)
    (mesh,) = vae.sparse2mesh(decoded)
    assert "signs by flood" in caplog.text
    assert mesh.is_watertight and mesh.body_count == 1
    (walls,) = vae.sparse2mesh(decoded, mc_threshold=1.5 / R)
    assert walls.body_count == 2  # one inside the other: what a level of unsigned distances gives
    assert abs(mesh.volume / in_world(box).volume - 1) < 0.03


@pytest.mark.parametrize(("threshold", "factor", "least"), [(4.0, 1, 0.99), (0.5, 2, 0.97)])
def test_narrow_bands_are_read_on_a_coarser_grid(box, threshold, factor, least):
    source = in_world(box)
    vertices, faces = torch.from_numpy(np.asarray(source.vertices)), torch.from_numpy(source.faces.astype(np.int64))
    field = FieldDescription(kind="udf", unit="world", band=None, sampling="corner", resolution=128)
    made = field_in_world(vertices, faces, field, band=threshold)
    assert sign_by_flood(made.sdf * field.voxels_per_unit, made.index).factor == factor
    assert compare_meshes(extract_surface(made.sdf, made.index, field), source).fscore[0.01] > least


def test_an_open_sheet_becomes_a_thin_closed_shell(tmp_path):
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0.1], [1, 1, 0.3], [0, 1, 0.2]], [[0, 1, 2], [0, 2, 3]], process=False)
    field = SparseSDF.load(original_file(tmp_path / "sheet.npz", sheet))
    signed = sign_by_flood(field.sdf * (R - 1), field.index)
    assert signed.method == "flood+shell"
    mesh = extract_surface(field.sdf, field.index, field.field)
    assert mesh.is_watertight
    assert compare_meshes(mesh, in_world(sheet)).chamfer_l1 < 1 / R


def test_a_field_without_a_surface_is_an_error(old_file):
    field = SparseSDF.load(old_file)
    far = field.sdf > 2 / R
    with pytest.raises(ValueError, match="half a voxel"):
        extract_surface(field.sdf[far], field.index[far], field.field)


def test_conversion_gives_nearly_the_field_of_the_mesh(old_file, box):
    converted = convert_field(SparseSDF.load(old_file), OURS)
    direct = SparseSDF.from_mesh(box, R, device="cpu")
    assert converted.field == direct.field == OURS
    theirs = dict(zip(map(tuple, direct.index.tolist()), direct.sdf.tolist(), strict=True))
    both = [
        (v, theirs[tuple(i)])
        for i, v in zip(converted.index.tolist(), converted.sdf.tolist(), strict=True)
        if tuple(i) in theirs
    ]
    error = np.abs(np.diff(np.array(both), axis=1))
    assert len(both) > 0.95 * len(theirs)
    assert np.mean(error) < 0.05  # in units of the band: 0.15 voxels


@pytest.mark.parametrize("signed", [True, False])
def test_dense_surfaces_get_the_field_that_voxelization_gives(box, signed):
    source = in_world(box).subdivide_to_size(0.5 / R)
    vertices, faces = torch.from_numpy(np.asarray(source.vertices)), torch.from_numpy(source.faces.astype(np.int64))
    exact = voxelize(vertices, faces, resolution=R, band=3.0, signed=signed, watertight=True)
    dense = voxelize_dense(vertices, faces, resolution=R, band=3.0, signed=signed, watertight=True)
    assert torch.equal(dense.index, exact.index)
    assert float((dense.distance - exact.distance).abs().max()) < 1e-3


def test_the_checkpoint_program_prints_the_table_and_writes_safetensors(tmp_path, capsys):
    from vae_qwen3vl.commands.main import main

    vae = original_vae()
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": vae.config.to_args()}}}))
    torch.save({"vae": to_torchsparse(vae.state_dict()), "config": {}}, tmp_path / "old.pt")
    assert main(["checkpoint", str(tmp_path / "old.pt")]) == 2
    assert "--vae_config" in capsys.readouterr().err
    command = ["checkpoint", str(tmp_path / "old.pt"), "--vae_config", str(config)]
    assert main([*command, "-o", str(tmp_path / "new")]) == 0
    table = capsys.readouterr().out
    assert "torchsparse  encoder.downsample.0.out_layers.0.conv.kernel [27, 4, 8] -> " in table
    assert "missing 0" in table
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == vae.fingerprint()
    assert load_vae_from_config(vae_ckpt=tmp_path / "new" / "model.safetensors").fingerprint() == vae.fingerprint()


@pytest.fixture
def dataset(tmp_path, old_file) -> Path:
    folder = tmp_path / "train_sdf_dataset"
    folder.mkdir()
    names = ["aaa", "bbb", "ccc", "ddd", "../../evil", "aaa", "eee"]
    for name in ("aaa", "bbb"):
        shutil.copy(old_file, folder / f"{name}_r{R}.npz")
    (folder / f"ccc_r{R}.npz").write_bytes(b"not a field")
    rows = [
        {
            "sha256": name,
            "captions": json.dumps(["a, box", 'a "box"']),
            "sdf_computed": str(name != "eee"),
            f"r{R}_num_points": "5000",
        }
        for name in names
    ]
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_dataset_is_read_and_feeds_a_vae(dataset):
    fields = FieldFolder(dataset, R)
    assert [row["sha256"] for row in fields.rows] == ["aaa", "bbb", "ccc"]
    assert fields.left_out == {
        "ddd": "its file does not exist",
        "../../evil": "its id is not a plain name",
        "eee": "sdf_computed is not True",
    }
    assert len(encode_field(original_vae(), fields[1]).codes) > 50
    with pytest.raises(ValueError, match="ccc_r64"):
        fields[2]
    with pytest.raises(ValueError, match="more than 100"):
        FieldFolder(dataset, R, max_points=100)


def test_a_dataset_is_converted_and_a_second_run_goes_on(dataset, tmp_path):
    target = tmp_path / "signed"
    done = convert_folder(dataset, target, OURS)
    assert (done.converted, done.kept) == (2, 0)
    assert set(done.failed) == {"ccc", "ddd", "../../evil", "eee"}
    assert "ccc_r64.npz" in done.failed["ccc"]
    rows = {row["sha256"]: row for row in csv.DictReader((target / "metadata.csv").open(encoding="utf-8"))}
    assert json.loads(rows["bbb"]["captions"]) == ["a, box", 'a "box"']
    assert int(rows["bbb"][f"r{R}_num_points"]) == len(SparseSDF.load(target / f"bbb_r{R}.npz").sdf)
    assert "not a readable" in rows["ccc"][f"r{R}_error"]
    assert not [f for f in target.iterdir() if f.name.startswith(".")]
    whole = (target / f"aaa_r{R}.npz").read_bytes()
    (target / f"aaa_r{R}.npz").write_bytes(whole[: len(whole) // 2])
    before = (target / f"bbb_r{R}.npz").stat().st_mtime_ns
    again = convert_folder(dataset, target, OURS)
    assert (again.converted, again.kept) == (1, 1)
    assert (target / f"bbb_r{R}.npz").stat().st_mtime_ns == before


def test_fields_of_another_conversion_are_not_taken_for_done(dataset, tmp_path):
    convert_folder(dataset, tmp_path / "signed", OURS)
    with pytest.raises(ValueError, match=r"aaa_r64\.npz is there already.*band 3.*not.*band 2"):
        convert_folder(dataset, tmp_path / "signed", dataclasses.replace(OURS, band=2.0))


def test_converting_a_dataset_onto_itself_is_refused(dataset):
    with pytest.raises(ValueError, match="the source itself"):
        convert_folder(dataset, dataset, OURS)


def test_the_programs_take_old_files(dataset, tmp_path, capsys):
    from vae_qwen3vl.commands.main import main

    save_vae(original_vae(), tmp_path / "vae")
    weights = str(tmp_path / "vae" / "model.safetensors")
    old = str(dataset / f"aaa_r{R}.npz")
    assert main(["encode", old, "-o", str(tmp_path / "x.safetensors"), "--vae_ckpt", weights, "--device", "cpu"]) == 0
    assert main(["encode", old, "-o", str(tmp_path / "y.safetensors"), "--device", "cpu"]) == 2
    assert not (tmp_path / "y.safetensors").exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert "udf at 64^3" in error and "sdf at 256^3" in error and "vae-qwen3vl convert" in error
    assert main(["convert", old, "-o", str(tmp_path / "new.npz")]) == 0
    assert load_shape(tmp_path / "new.npz").field.resolution == 256
    assert main(["encode", str(tmp_path / "new.npz"), "-o", str(tmp_path / "y.safetensors"), "--device", "cpu"]) == 0
    assert main(["convert", str(dataset), "-o", str(tmp_path / "all"), "--workers", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.split("\n{", 1)[-1].join(["{", ""]))
    assert report["converted"] == 2


def test_a_conversion_of_which_nothing_came_ends_as_an_error(dataset, tmp_path, capsys):
    from vae_qwen3vl.commands.main import main

    for file in dataset.glob("*.npz"):
        file.write_bytes(b"damaged")
    assert main(["convert", str(dataset), "-o", str(tmp_path / "none")]) == 2
    assert "0 converted, 0 there already, " in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_old_fields_give_the_same_on_a_gpu(box):
    vae = original_vae()
    here = voxelize_for(vae, box, threshold_factor=4.0)
    there = voxelize_for(original_vae().cuda(), box, threshold_factor=4.0)
    assert there.sdf.is_cuda
    assert torch.equal(here.index, there.index.cpu())
    assert float((here.sdf - there.sdf.cpu()).abs().max()) < 1e-6
    converted, again = convert_field(here, OURS), convert_field(there, OURS)
    assert torch.equal(converted.index, again.index.cpu())
    assert float((converted.sdf - again.sdf.cpu()).abs().max()) < 1e-5
    mesh, other = (extract_surface(f.sdf, f.index, f.field) for f in (here, there))
    assert len(mesh.faces) == len(other.faces)
    codes, others = encode_field(vae, here), encode_field(original_vae().cuda(), there)
    assert torch.equal(codes.coords, others.coords)
    assert float((codes.codes == others.codes).float().mean()) > 0.99
