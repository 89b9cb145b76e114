"""Which way is up, in the programs: taken, said, refused, and undone on the way back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.codes import pipeline
from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.up import UP_AXES, lay_back
from sdf_vqvae.geometry.upright_network import UpGuess
from tiny_tokenizer import saved_with_a_surface
from vae_qwen3vl.commands.main import main

CELL = 4 / 0.95 / 8
"""A latent cell, in units of `tall`."""


def tall(up: str = "y") -> trimesh.Trimesh:
    """A box of 2 x 4 x 1 with a nose to the right and to the front, away from the origin, whose axis `up` is up."""
    parts = [trimesh.creation.box((2, 4, 1)), trimesh.creation.box((0.7, 0.7, 0.7))]
    parts[1].apply_translation((1, 1.4, 0.4))
    mesh = trimesh.util.concatenate(parts)
    mesh.apply_translation((10, 3, -5))
    vertices = lay_back(np.asarray(mesh.vertices), up)
    return trimesh.Trimesh(vertices, mesh.faces, process=False)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    return saved_with_a_surface(tall(), tmp_path_factory.mktemp("vae"))


@pytest.fixture
def run(capsys, tokenizer_file):
    def run_program(*arguments: str | Path) -> tuple[int, str, str]:
        options = ["--vae_ckpt", str(tokenizer_file), "--device", "cpu"]
        code = main([*(str(argument) for argument in arguments), *options])
        return code, *capsys.readouterr()

    return run_program


@pytest.fixture
def looks_like(monkeypatch):
    """Make both guesses: from all six axes, and from the usual two."""

    def guesses(six: str, usual: str) -> None:
        monkeypatch.setattr(pipeline, "guess_up", lambda _: UpGuess(up=six, probability=0.614))
        monkeypatch.setattr(pipeline, "usual_up", lambda _: UpGuess(up=usual, probability=0.973))

    return guesses


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    return {row["file"]: row for row in CodeFolder(folder).table()}


@pytest.mark.parametrize(
    ("up", "suffix"), list(zip(UP_AXES, ["obj", "ply", "stl", "off", "glb", "ply"], strict=True))
)
def test_the_way_back_leads_to_the_axes_of_the_source(tmp_path, run, up, suffix):
    tall("y").export(tmp_path / "y.ply")
    tall(up).export(tmp_path / f"source.{suffix}")
    assert run("encode", tmp_path / "y.ply", "-o", tmp_path / "y.safetensors", "--up", "y")[0] == 0
    code, out, err = run("encode", tmp_path / f"source.{suffix}", "-o", tmp_path / "a.safetensors", "--up", up)
    assert code == 0, err
    assert f"up: {up} of the source (--up)\n" in out
    codes, expected = (ShapeCodes.load(tmp_path / f"{name}.safetensors") for name in ("a", "y"))
    assert torch.equal(codes.codes, expected.codes) and torch.equal(codes.coords, expected.coords)
    assert run("decode", tmp_path / "a.safetensors", "-o", tmp_path / "back.off")[0] == 0
    np.testing.assert_allclose(trimesh.load(tmp_path / "back.off").bounds, tall(up).bounds, atol=1.2 * CELL)


def test_what_was_taken_is_said_and_where_it_is_known_from(tmp_path, run, looks_like):
    looks_like(six="-x", usual="z")
    tall().export(tmp_path / "a.glb")
    tall().export(tmp_path / "a.stl")

    def said(name: str, *options: str) -> tuple[str, str, str]:
        found = json.loads(run("encode", tmp_path / name, "-o", tmp_path / "c.safetensors", "--json", *options)[1])
        return found["up"], found["up_from"], ShapeCodes.load(tmp_path / "c.safetensors").up

    assert said("a.glb") == ("y", "glTF files stand along y", "y")
    assert said("a.stl") == ("z", "y or z by the shape, 97 % sure", "z")
    assert said("a.stl", "--up", "auto") == ("-x", "auto by the shape, 61 % sure", "-x")
    assert said("a.glb", "--up", "-z") == ("-z", "--up", "-z")
    out = run("encode", tmp_path / "a.stl", "-o", tmp_path / "c.safetensors")[1]
    assert "up: z of the source (y or z by the shape, 97 % sure); --up says otherwise\n" in out


def test_a_mesh_that_cannot_be_used_is_refused_for_what_it_lacks_and_not_for_how_it_looks(tmp_path, run):
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    code, _, err = run("encode", tmp_path / "line.obj", "-o", tmp_path / "c.safetensors")
    assert code == 2 and "line.obj: no face of the mesh has an area" in err


def test_an_unknown_axis_is_refused_by_the_parser(tmp_path, run, capsys):
    with pytest.raises(SystemExit):
        run("encode", tmp_path / "a.glb", "-o", "c.safetensors", "--up", "w")
    assert "--up: it must be one of x, y, z, -x, -y, -z, or auto; got 'w'" in capsys.readouterr().err


def test_a_field_is_turned_as_its_mesh_would_be(tmp_path, run, looks_like):
    looks_like(six="x", usual="y")
    field = SparseSDF.from_mesh(tall("z"), 32, device="cpu")
    field.save(tmp_path / "lies.npz")
    assert run("encode", tmp_path / "lies.npz", "-o", tmp_path / "as_it_is.safetensors")[0] == 0
    assert ShapeCodes.load(tmp_path / "as_it_is.safetensors").up == "y"
    out = run("encode", tmp_path / "lies.npz", "-o", tmp_path / "field.safetensors", "--up", "z")[1]
    assert "up: z of the source (--up)\n" in out
    tall("z").export(tmp_path / "lies.ply")
    run("encode", tmp_path / "lies.ply", "-o", tmp_path / "mesh.safetensors", "--up", "z")
    one, other = (ShapeCodes.load(tmp_path / f"{name}.safetensors") for name in ("field", "mesh"))
    assert torch.equal(one.coords, other.coords) and (one.codes == other.codes).float().mean() > 0.9
    assert (one.up, one.scale) == (other.up, other.scale) and one.center == pytest.approx(other.center)
    run("encode", tmp_path / "lies.npz", "-o", tmp_path / "auto.safetensors", "--up", "auto")
    assert ShapeCodes.load(tmp_path / "auto.safetensors").up == "x"


def test_codes_cannot_be_turned(tmp_path, run):
    tall("z").export(tmp_path / "a.ply")
    run("encode", tmp_path / "a.ply", "-o", tmp_path / "a.safetensors", "--up", "z")
    code, _, err = run("describe", tmp_path / "a.safetensors", "--up", "x")
    assert code == 2
    assert "--up x: the codes are of an object that stands along z of its source, and can't be turned" in err


def test_codes_that_do_not_say_it_stand_along_y(tmp_path, run):
    from sdf_vqvae.utils.archives import read_safetensors, write_safetensors

    tall().export(tmp_path / "a.ply")
    run("encode", tmp_path / "a.ply", "-o", tmp_path / "new.safetensors", "--up", "z")
    tensors, metadata = read_safetensors(tmp_path / "new.safetensors", "codes", ("codes", "coords"))
    about = json.loads(metadata["shape_codes"])
    del about["up"], about["up_from"]
    write_safetensors(tmp_path / "old.safetensors", tensors, {"shape_codes": json.dumps(about)})
    assert ShapeCodes.load(tmp_path / "old.safetensors").up == "y"
    about["up"] = "up"
    write_safetensors(tmp_path / "bad.safetensors", tensors, {"shape_codes": json.dumps(about)})
    with pytest.raises(ValueError, match="up must be one of x, y, z"):
        ShapeCodes.load(tmp_path / "bad.safetensors")


@pytest.fixture
def meshes(tmp_path) -> Path:
    """One object in five files, and a table that says how three of them stand."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    says = {"x.ply": "X", "z.off": "z", "bad.obj": "sideways", "plain.stl": "", "y.glb": ""}
    for number, (name, up) in enumerate(says.items()):
        mesh = tall(up.lower() if up.lower() in UP_AXES else "y")
        mesh.apply_scale(1 + number / 7)
        mesh.export(folder / name)
    write_table(
        folder / "metadata.csv", [{"file": name, "up": up, "captions": "A box."} for name, up in says.items()]
    )
    return folder


def test_a_table_says_how_each_object_of_a_dataset_stands(tmp_path, run, meshes, looks_like):
    looks_like(six="x", usual="y")
    assert run("encode", meshes, "-o", tmp_path / "codes")[0] == 0
    rows = table_of(tmp_path / "codes")
    assert {name: (row["up"], row["up_from"]) for name, row in rows.items() if row["codes"]} == {
        "x.ply": ("x", "column up"),
        "z.off": ("z", "column up"),
        "plain.stl": ("y", "y or z by the shape, 97 % sure"),
        "y.glb": ("y", "glTF files stand along y"),
    }
    assert rows["bad.obj"]["codes_error"].startswith("its column up must be one of x, y, z, -x, -y, -z, or auto")
    codes = CodeFolder(tmp_path / "codes")
    first, *others = (codes[row["sha256"]] for row in rows.values() if row["codes"])
    for own in others:  # the same object, larger
        assert torch.equal(own[1], first[1]) and (own[0] == first[0]).float().mean() > 0.9


def test_codes_of_objects_that_stand_otherwise_do_not_go_into_one_folder(tmp_path, run, meshes, looks_like):
    looks_like(six="x", usual="y")
    assert run("encode", meshes, "-o", tmp_path / "codes")[0] == 0
    code, out, _ = run("encode", meshes, "-o", tmp_path / "codes", "--json")
    assert code == 0 and json.loads(out)["kept"] == 4
    code, _, err = run("encode", meshes, "-o", tmp_path / "codes", "--up", "z")
    assert code == 2 and "not z (--up): give another --output" in err
    code, _, err = run("encode", meshes, "-o", tmp_path / "codes", "--up", "auto")
    assert code == 2 and "not auto (--up): give another --output" in err


def test_shards_of_earlier_versions_stand_along_y(tmp_path):
    one = torch.ones(1, dtype=torch.int32)
    place = torch.zeros(1, 3, dtype=torch.int16)
    old = CodeCache(codes=one, coords=place, splits=torch.tensor([0, 1]), ids=("a",), failures={}, vae_hash="h")
    old.save(tmp_path / "codes.safetensors")
    assert CodeCache.load(tmp_path / "codes.safetensors").ups == ()


def test_fields_of_a_dataset_stand_as_they_were_made_unless_their_table_says_otherwise(tmp_path, run):
    folder = tmp_path / "fields"
    folder.mkdir()
    for name in ("made", "said"):
        up = "z" if name == "made" else "y"
        SparseSDF.from_mesh(tall("z"), 32, up=up, device="cpu").save(folder / f"{name}_r32.npz")
    rows = [
        {"sha256": name, "file": name, "up": up, "captions": "A box."} for name, up in (("made", ""), ("said", "z"))
    ]
    write_table(folder / "metadata.csv", rows)
    assert run("encode", folder, "-o", tmp_path / "codes")[0] == 0
    codes = CodeFolder(tmp_path / "codes")
    assert torch.equal(codes["made"][1], codes["said"][1])
    assert [row["up"] for row in table_of(tmp_path / "codes").values()] == ["z", "z"]


def test_evaluation_takes_objects_as_they_stand(tmp_path, run):
    tall("z").export(tmp_path / "a.ply")
    options = ["--samples", "500", "--workers", "1", "--pictures", "0", "--up", "z"]
    assert run("evaluate", tmp_path / "a.ply", "-o", tmp_path / "out", *options)[0] == 0
    record = json.loads((tmp_path / "out" / "objects.jsonl").read_text())
    assert (record["up"], record["up_from"]) == ("z", "--up")
    code, _, err = run("evaluate", tmp_path / "a.ply", "-o", tmp_path / "out", *options[:-1], "x")
    assert code == 2 and "another up" in err
