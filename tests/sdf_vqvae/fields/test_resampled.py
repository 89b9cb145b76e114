"""Fields of a grid twice as coarse or as fine, read by a tokenizer as if they had been made for it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
import trimesh

from sdf_vqvae.codes.encoding import encode_dataset
from sdf_vqvae.codes.pipeline import _say_resampled, as_read, encode_field
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.objects import StoredObject, objects_at
from sdf_vqvae.evaluation.rebuild import rebuild, score_rebuilt
from sdf_vqvae.fields.conversion import convert_field
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.resample import double_field
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.coordinates import linear_keys
from tests.support.tiny_tokenizer import args


@pytest.fixture(scope="module")
def fine_vae() -> SparseSDFVQVAE:
    """A tokenizer of 64^3 fields."""
    torch.manual_seed(0)
    return SparseSDFVQVAE(**args()).eval()


@pytest.fixture(scope="module")
def ring() -> trimesh.Trimesh:
    """A torus, curved everywhere, that fills its cube as no symmetry would."""
    mesh = trimesh.creation.torus(major_radius=1.0, minor_radius=0.4)
    mesh.apply_transform(trimesh.transformations.euler_matrix(0.4, 0.7, 0.2))
    return mesh


@pytest.fixture(autouse=True)
def said_anew() -> None:
    """Let every test log what is logged once."""
    _say_resampled.cache_clear()


def made(mesh: trimesh.Trimesh, side: int, **options) -> SparseSDF:
    return SparseSDF.from_mesh(mesh, side, device="cpu", **options)


def voxels_apart(one: SparseSDF, other: SparseSDF) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far two fields are apart where both are known, in voxels, and which of the other's are known."""
    side = one.field.resolution
    ours, theirs = (linear_keys(torch.nn.functional.pad(f.index, (1, 0)), side) for f in (one, other))
    known = torch.isin(theirs, ours)
    row = torch.searchsorted(ours, theirs[known])
    return (one.sdf[row] - other.sdf[known]).abs() * (other.field.band or 1.0), known


def test_a_linear_field_is_doubled_exactly_where_its_eight_neighbors_are_known():
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(12)] * 3, indexing="ij"), -1).reshape(-1, 3)
    index = grid[torch.rand(len(grid), generator=generator) < 0.85]
    slope = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    shuffled = index[torch.randperm(len(index), generator=generator)]
    values, fine = double_field((shuffled.double() + 0.5) / 12 @ slope, shuffled, 12)
    assert torch.allclose(values, (fine.double() + 0.5) / 24 @ slope)
    there = {tuple(row) for row in index.tolist()}
    expected = [
        [x, y, z]
        for x in range(1, 23)
        for y in range(1, 23)
        for z in range(1, 23)
        if all(
            ((x - 1) // 2 + a, (y - 1) // 2 + b, (z - 1) // 2 + c) in there
            for a in (0, 1)
            for b in (0, 1)
            for c in (0, 1)
        )
    ]
    assert fine.tolist() == expected  # sorted, too


@pytest.mark.parametrize(
    ("given", "wanted", "band", "mean"), [(64, 128, 3.0, 0.04), (128, 64, 3.0, 0.02), (128, 64, 1.75, 0.01)]
)
def test_a_resampled_field_is_nearly_that_of_the_mesh(ring, given, wanted, band, mean):
    truth = made(ring, wanted)
    truth = replace(truth, sdf=truth.sdf[(seen := truth.sdf.abs() * 3 <= band)], index=truth.index[seen])
    resampled = convert_field(made(ring, given), truth.field, band=band)
    assert (resampled.field, resampled.center, resampled.scale) == (truth.field, truth.center, truth.scale)
    apart, known = voxels_apart(resampled, truth)
    assert float(known.float().mean()) > 0.98  # a whole shell
    assert float(apart.mean()) < mean
    assert float(apart.max()) < 0.5


def test_an_open_sheet_survives_a_coarser_grid():
    """A shell one voxel of the finer grid thick lies between most samples of the coarser one."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5).apply_translation([0, 0, 1.2])
    for turn in (0.0, 0.4):
        sheet = trimesh.Trimesh([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]])
        mesh = trimesh.util.concatenate([sheet, ball])
        mesh.apply_transform(trimesh.transformations.rotation_matrix(turn, [1, 0.7, 0.2]))
        fine, truth = made(mesh, 128), made(mesh, 64)
        area = [
            extract_surface(field.sdf, field.index, field.field).area
            for field in (convert_field(fine, truth.field, band=1.75), truth)
        ]
        assert area[0] == pytest.approx(area[1], rel=0.05)


def test_an_encoder_gets_every_voxel_that_it_sees(ring, fine_vae):
    truth = made(ring, 64)
    for given in (made(ring, 32), made(ring, 128), made(ring, 64, band=2.0)):
        resampled = as_read(fine_vae.config, given)
        seen = truth.sdf.abs() * 3 <= 1.5
        apart, known = voxels_apart(resampled, replace(truth, sdf=truth.sdf[seen], index=truth.index[seen]))
        assert float(known.float().mean()) > 0.995
        assert float(apart.mean()) < 0.1


def test_what_is_lost_is_said_once(ring, fine_vae, caplog):
    coarse = made(ring, 32)
    with caplog.at_level(logging.WARNING):
        codes = encode_field(fine_vae, coarse)
        encode_field(fine_vae, coarse)
    (said,) = caplog.messages
    assert "sdf at 32^3" in said and "sdf at 64^3" in said and "no detail below 1/32" in said
    assert codes.data_resolution == 64 and codes.scale == coarse.scale
    with caplog.at_level(logging.WARNING):
        encode_field(fine_vae, made(ring, 128))
    assert "no detail" not in caplog.messages[-1]


@pytest.mark.parametrize("options", [{"signed": False, "resolution": 64}, {"resolution": 16}, {"resolution": 256}])
def test_what_cannot_be_resampled_is_refused_with_both_sides_and_the_command(ring, fine_vae, options):
    with pytest.raises(ValueError, match=r"but the VAE reads sdf at 64\^3.*vae-qwen3vl convert"):
        as_read(fine_vae.config, SparseSDF.from_mesh(ring, device="cpu", **options))


@pytest.fixture
def mixed(ring, tmp_path):
    """A dataset whose objects have fields of one grid, of another, and of both."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, sides in {"both": (32, 64), "coarse": (32,), "fine": (128,), "far": (16,)}.items():
        for side in sides:
            made(ring, side).save(folder / f"{name}_r{side}.npz")
    rows = [f'{name},"[""a ring""]",True,5,9' for name in ("both", "coarse", "fine", "far")]
    (folder / "metadata.csv").write_text(
        "sha256,captions,sdf_computed,r64_num_points,r32_num_points\n" + "\n".join(rows)
    )
    return folder


def test_a_dataset_of_both_grids_is_encoded_whole(mixed, tmp_path, fine_vae):
    strict, fields = FieldFolder(mixed, 64), FieldFolder(mixed, 64, resampled=True)
    assert [row["sha256"] for row in strict.rows] == ["both"]
    assert {row["sha256"]: fields.side(row["sha256"]) for row in fields.rows} == {
        "both": 64,
        "coarse": 32,
        "fine": 128,
    }
    assert fields.left_out == {"far": "its field is of 16^3, not of 64^3"}
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": fine_vae.config.to_args()}}})
    )
    done = encode_dataset(
        EncodeSettings(source=mixed, output=tmp_path / "codes", vae_config=str(config), devices=("cpu",))
    )
    assert (done.encoded, set(done.failed)) == (3, {"far"})
    items = {item.id: item.place for item in objects_at(mixed, resolution=64)}
    assert {name for name, place in items.items() if place is None} == {"far"}


def test_evaluation_measures_against_the_given_field(mixed, fine_vae):
    """The ceiling of a resampled field says what resampling loses, where it said that nothing is lost."""
    (coarse,) = (item for item in objects_at(mixed, resolution=64) if item.id == "coarse")
    assert isinstance(coarse, StoredObject)
    score = score_rebuilt(rebuild(fine_vae, coarse), samples=5000)
    assert 0 < score["ceiling"]["chamfer_l1"] < 0.02
    assert score["faces"] > 0 and score["truth_is_field"]


def test_the_default_config_and_that_of_512_read_each_others_fields():
    coarse, fine = (VAEConfig.from_json(f"configs/vae/sdf_vqvae_{side}.json").field for side in (256, 512))
    assert coarse.is_read_as(fine) and fine.is_read_as(coarse)
    assert not replace(coarse, resolution=128).is_read_as(fine)
