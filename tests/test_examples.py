"""Promises of the example objects: the files are what the program writes, closed, recognizably sized and small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

NAMES = ("chair", "mug", "lamp", "rocket", "plane")
# Longest side over each side of the bounding box (x, y, z), from the objects' dimensions.
PROPORTIONS = {
    "chair": (2.1, 1.0, 1.9),
    "mug": (1.0, 1.26, 1.43),
    "lamp": (1.6, 1.0, 1.6),
    "rocket": (2.9, 1.0, 2.9),
    "plane": (1.1, 3.4, 1.0),
}


def load(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, force="mesh", process=False)
    mesh.merge_vertices()
    return mesh


@pytest.fixture(scope="module")
def rewritten(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the program has just written."""
    folder = tmp_path_factory.mktemp("examples")
    command = [sys.executable, str(repository / "examples" / "make_examples.py"), "--output", str(folder)]
    report = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    assert all(f"{name}.glb" in report for name in NAMES)
    return folder


def test_no_other_meshes_are_shipped(repository: Path, rewritten: Path) -> None:
    for folder in (repository / "examples", rewritten):
        assert {path.stem for path in folder.glob("*.glb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_rewriting_gives_the_same_geometry(name: str, repository: Path, rewritten: Path) -> None:
    shipped, again = (
        trimesh.load(folder / f"{name}.glb", force="mesh", process=False)
        for folder in (repository / "examples", rewritten)
    )
    assert np.array_equal(shipped.faces, again.faces)
    assert np.allclose(shipped.vertices, again.vertices, rtol=0, atol=1e-5 * shipped.scale)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_sane_closed_mesh(name: str, repository: Path) -> None:
    path = repository / "examples" / f"{name}.glb"
    mesh = load(path)
    assert path.stat().st_size < 300_000
    assert 1_000 <= len(mesh.faces) <= 22_000
    assert np.isfinite(mesh.vertices).all()
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    parts = mesh.split(only_watertight=False)
    assert all(part.volume > 0 for part in parts), "every part is wound outwards"
    assert (mesh.area_faces > 0).all()
    assert np.allclose(mesh.extents.max() / mesh.extents, PROPORTIONS[name], rtol=0.06)


def test_parts_hang_together(repository: Path) -> None:
    """No part floats: the boxes of the parts, a little widened, form one connected group."""
    for name in NAMES:
        mesh = load(repository / "examples" / f"{name}.glb")
        boxes = np.array([part.bounds for part in mesh.split(only_watertight=False)])
        low, high = boxes[:, 0] - 1e-3 * mesh.scale, boxes[:, 1] + 1e-3 * mesh.scale
        touch = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(axis=2)
        reached = np.zeros(len(boxes), dtype=bool)
        reached[0] = True
        for _ in boxes:
            reached = touch[reached].any(axis=0)
        assert reached.all(), name


def test_one_example_has_about_twenty_thousand_faces(repository: Path) -> None:
    assert max(len(load(repository / "examples" / f"{name}.glb").faces) for name in NAMES) >= 20_000


@pytest.mark.slow
def test_a_dataset_of_your_own_trains_both_ways(default_lm: Path, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "examples" / "custom_dataset.py")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    losses = {line[4]: [float(x) for x in line.split("losses ")[1].split(", ")] for line in run.stdout.splitlines()}
    assert set(losses) == {"A", "B"}
    assert all(len(own) == 2 and 0 < own[1] < own[0] for own in losses.values())
