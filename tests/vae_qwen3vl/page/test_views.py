"""What a browser draws: right places, right colours, valid GLB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.files import sha256_of
from vae_qwen3vl.page import ASSETS, asset_text
from vae_qwen3vl.page.views import (
    CLAY,
    ERROR_COLORS,
    block_glb,
    code_colors,
    error_colors,
    in_world,
    linear,
    mesh_glb,
    top_of_scale,
)


def read(data: bytes) -> trimesh.Trimesh:
    return trimesh.load(io.BytesIO(data), file_type="glb", force="mesh", process=False)


def codes(**more) -> ShapeCodes:
    settings = {"center": (1.0, 2.0, 3.0), "scale": 0.5, "up": "z", **more}
    cells = torch.tensor([[0, 0, 0], [3, 1, 2]], dtype=torch.int32)
    numbers = torch.tensor([4, 9], dtype=torch.int32)
    return ShapeCodes(codes=numbers, coords=cells, latent_resolution=4, data_resolution=32, vae_hash="", **settings)


def test_a_view_is_a_matte_mesh_with_the_same_triangles():
    ball = trimesh.creation.icosphere(subdivisions=2)
    seen = read(mesh_glb(ball.vertices, ball.faces))
    assert len(seen.faces) == len(ball.faces)
    assert np.allclose(seen.vertices, ball.vertices, atol=1e-6)
    material = seen.visual.material
    assert (material.metallicFactor, material.doubleSided) == (0, True)


def test_blocks_stand_at_the_cells_of_their_codes():
    colors = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    seen = read(block_glb(codes(), colors))
    assert len(seen.faces) == 2 * 12
    for number, cell in enumerate(codes().coords.numpy()):
        block = seen.vertices[8 * number : 8 * number + 8]
        assert np.allclose(block.mean(axis=0), (cell + 0.5) / 4 - 0.5, atol=1e-6)
        assert np.ptp(block, axis=0).max() < 1 / 4  # a gap to its neighbors
    assert seen.is_volume and seen.volume > 0


def test_the_source_stands_where_its_codes_stand():
    # z is up in the source, so it is y inside, and the center is the origin.
    assert np.allclose(in_world([[1, 2, 3], [1, 2, 5]], codes()), [[0, 0, 0], [0, 1, 0]])


def test_codes_that_are_alike_have_like_colors():
    angle = torch.linspace(0, 2 * torch.pi, 65)[:-1]
    circle = torch.stack([angle.cos(), angle.sin(), 0.01 * angle], dim=1)
    colors = code_colors(circle)
    assert colors.shape == (64, 3) and colors.min() >= 0 and colors.max() <= 1
    next_to = np.linalg.norm(colors - np.roll(colors, 1, axis=0), axis=1)
    opposite = np.linalg.norm(colors - np.roll(colors, 32, axis=0), axis=1)
    assert np.median(next_to) < 0.3 * np.median(opposite)
    assert len(np.unique(np.round(colors, 6), axis=0)) > 50


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (7, 2)])
def test_codebooks_of_any_shape_have_colors(shape):
    assert np.isfinite(code_colors(torch.rand(shape))).all()


def test_a_scale_of_errors_ends_at_a_round_number_above_them():
    assert top_of_scale(np.full(100, 1e-5)) == pytest.approx(0.005)
    assert top_of_scale(np.full(100, 0.013)) == pytest.approx(0.02)
    assert top_of_scale(np.full(100, 0.05)) == pytest.approx(0.05)
    assert top_of_scale(np.full(100, 3.0)) == pytest.approx(0.1)


def test_error_colors_run_from_clay_to_the_last_and_stay_there():
    colors = error_colors(np.array([0.0, 0.02, 1.0]), 0.02)
    assert np.allclose(colors[0], linear(np.array(CLAY)))
    assert np.allclose(colors[1:], linear(np.array(ERROR_COLORS[-1])))


def test_the_viewer_is_the_file_that_its_note_names():
    note = asset_text("README.md")
    assert sha256_of(ASSETS / "model-viewer.min.js") in note
    assert "Apache License" in asset_text("model-viewer.LICENSE")
    assert {Path(path).suffix for path in (ASSETS / "examples").iterdir()} == {".glb"}
