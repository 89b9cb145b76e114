"""Streams draw the same objects whoever asks, and go on exactly where they stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.config.training import THIN
from sdf_vqvae.data.field_file import field_file_name
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.objects import Place
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.training.field_stream import FieldStream
from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws, augmented, prepare
from sdf_vqvae.training.mesh_stream import MeshStream
from sdf_vqvae.training.thin_shapes import part


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    trimesh.creation.box((1, 0.6, 0.3)).export(folder / "box.ply")
    trimesh.creation.icosphere(2).export(folder / "ball.ply")
    trimesh.creation.cylinder(0.3, 1.0).export(folder / "rod.ply")
    return folder


def draws_of(folder: Path, made: float = 0.0, **how: float) -> MeshDraws:
    files = sorted(folder.iterdir())
    places = [Place(path=file, name=str(file)) for file in files]
    return MeshDraws(places, torch.ones(len(files)), Augmentation(**how), seed=3, made=made)


def stream_of(folder: Path, made: float = 0.0, **more: float) -> MeshStream:
    settings = {"echo": 1, "buffer": 40, **more}
    draws = draws_of(folder, made, rotation=0.5, stretch=0.5)
    return MeshStream(draws, resolution=16, band=3.0, device=torch.device("cpu"), **settings)


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_a_draw_depends_on_its_number_alone(meshes: Path) -> None:
    a, b = draws_of(meshes, rotation=1.0), draws_of(meshes, rotation=1.0)
    _ = a[4]
    for number in (0, 7):
        first, second = a[number], b[number]
        assert first[1] == second[1]
        assert torch.equal(first[2][0], second[2][0])
    assert not torch.equal(a[0][2][0], a[1][2][0])


@pytest.mark.parametrize("made", [0.0, 0.12])
def test_a_stream_goes_on_where_it_stopped(meshes: Path, made: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        MeshDraws, "shape", lambda _, number, __, **___: part((0, 0, 0), (0.4, 0.2, 0.1 + number / 2000))
    )
    one, other = stream_of(meshes, made), stream_of(meshes, made)
    one.draw(50)
    state = one.state()
    assert (made > 0) == any(one.draws[number][1] == THIN for number in state["kept"])
    expected = one.draw(60)
    other.restore(state)
    assert same(expected, other.draw(60))


def test_draws_go_by_the_errors_that_they_are_told(meshes: Path) -> None:
    stream = stream_of(meshes, echo=100, by_error=2.0)
    stream.draw(1)
    assert stream.learn is not None
    stream.learn([0.1])
    worst = 5
    for _ in range(40):
        stream.draw(8)
        stream.learn([0.4 if place == worst else 0.1 for place, _ in stream._untold])
    stream.draw(400)
    often = [place for place, _ in stream._untold].count(worst)
    assert len(stream.kept) == 40
    assert 400 * 16 / 55 * 0.6 < often < 400 * 16 / 55 * 1.5


def test_a_stream_that_goes_by_errors_goes_on_where_it_stopped(meshes: Path) -> None:
    def learn(stream: MeshStream) -> None:
        assert stream.learn is not None
        stream.learn([0.01 * (number % 7) for _, number in stream._untold])

    one, other = (stream_of(meshes, by_error=1.0) for _ in range(2))
    for _ in range(5):
        one.draw(10)
        learn(one)
    state = json.loads(json.dumps(one.state()))
    expected = [one.draw(20), learn(one), one.draw(20)]
    other.restore(state)
    found = [other.draw(20), learn(other), other.draw(20)]
    assert same(expected[0] + expected[2], found[0] + found[2])


def test_without_errors_draws_are_those_of_a_stream_that_knows_none(meshes: Path) -> None:
    stream = stream_of(meshes)
    assert stream.learn is None
    assert stream._untold == []
    assert same(stream.draw(30), stream_of(meshes, by_error=0.0).draw(30))


def test_errors_of_replaced_objects_are_not_taken_for_those_of_new_ones(meshes: Path) -> None:
    stream = stream_of(meshes, by_error=1.0)
    stream.draw(32)
    told = list(stream._untold)
    place, number = told[0]
    stream.kept[place] = (number + 1000, stream.kept[place][1])
    stream._learn([0.5] * len(told))
    assert math.isnan(float(stream.errors[place]))
    stream.draw(1)
    with pytest.raises(ValueError, match="shorter"):
        stream._learn([])


def test_shapes_made_by_rule_have_their_share_and_change_no_other_draw(
    meshes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        MeshDraws, "shape", lambda _, number, __, **___: part((0, 0, 0), (0.4, 0.2, 0.1 + number / 2000))
    )
    plain, mixed = draws_of(meshes), draws_of(meshes, made=0.25)
    made = [number for number in range(200) if mixed[number][1] == THIN]
    assert 35 <= len(made) <= 65
    assert not any(plain[number][1] == THIN for number in range(20))
    prepared = prepare([mixed[number] for number in range(32)])
    assert prepared.made == [number for number in made if number < 32]
    assert sorted(prepared.made + prepared.numbers) == list(range(32))
    stream = stream_of(meshes, made=0.25)
    stream.draw(1)
    kept = dict(stream.kept)
    index, distance = mixed.shape(made[1], 16).field(16)
    assert torch.equal(kept[made[1]][0], index.short()) and torch.equal(kept[made[1]][1], distance.half())


def test_processes_draw_different_objects(meshes: Path) -> None:
    first, second = (stream_of(meshes, rank=rank, world_size=2) for rank in (0, 1))
    first.draw(1), second.draw(1)
    numbers = [{n for n, _ in stream.kept} for stream in (first, second)]
    assert numbers[0] == set(range(0, 64, 2))
    assert numbers[1] == set(range(1, 64, 2))


def test_symmetries_keep_distances_and_stay_in_the_grid(meshes: Path) -> None:
    stream = stream_of(meshes)
    for index, sdf in stream.draw(20):
        assert int(index.min()) >= 0
        assert int(index.max()) < 16
        assert len(torch.unique(index.long(), dim=0)) == len(index) == len(sdf)


def test_augmentation_turns_and_stretches_and_nothing_else() -> None:
    mesh = trimesh.creation.box((1, 2, 3))
    rng = np.random.default_rng(0)
    assert augmented(mesh, Augmentation(), rng) is mesh
    turned = augmented(mesh, Augmentation(rotation=1.0), rng)
    assert turned.volume == pytest.approx(6)
    assert turned.area == pytest.approx(mesh.area)
    factors = augmented(mesh, Augmentation(stretch=1.0), rng).extents / mesh.extents
    assert np.all((factors > 0.74) & (factors < 1.34))
    assert np.ptp(factors) > 0


def test_what_cannot_be_used_is_named_and_replaced(
    meshes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in meshes.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "broken.ply").write_bytes(b"ply\nnonsense")
    stream = stream_of(tmp_path)
    assert len(stream.draw(5)) == 5
    assert "broken.ply" in caplog.text
    empty = prepare([(0, "x", "no face")])
    assert empty.numbers == []
    assert empty.failed == {"x": "no face"}


def test_a_folder_of_broken_meshes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.ply").write_bytes(b"ply\nnonsense")
    with pytest.raises(ValueError, match="none of 3200 meshes"):
        stream_of(tmp_path).draw(1)


def field_folder(folder: Path) -> FieldFolder:
    description = FieldDescription(kind="sdf", unit="band", band=3.0, sampling="center", resolution=16)
    for number in range(5):
        index = torch.tensor([[number, 1, 2], [number, 3, 2]], dtype=torch.int32)
        field = SparseSDF(
            sdf=torch.tensor([0.1, -0.1]) * (number + 1),
            index=index,
            field=description,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            watertight=True,
            sign_method="winding",
        )
        field.save(folder / field_file_name(f"object{number}", 16))
    return FieldFolder(folder, 16)


def test_prepared_fields_come_once_an_epoch_in_a_new_order_and_resume(tmp_path: Path) -> None:
    fields = field_folder(tmp_path)
    stream = FieldStream(fields, device=torch.device("cpu"), seed=0)
    epochs = [[int(index[0, 0]) for index, _ in stream.draw(5)] for _ in range(4)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert stream.epoch == 4
    state = stream.state()
    expected = stream.draw(7)
    other = FieldStream(fields, device=torch.device("cpu"), seed=0)
    other.restore(state)
    assert same(expected, other.draw(7))
    parts = [FieldStream(fields, device=torch.device("cpu"), seed=0, rank=r, world_size=2).draw(2) for r in (0, 1)]
    assert len({int(index[0, 0]) for part in parts for index, _ in part}) == 4
