"""Promises of the renderer: what is nearer hides what is behind, the picture is framed, files are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from sdf_vqvae.geometry.picture import _wrap, fit_camera, render_mesh, save_comparison


def ball(center: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 1.0) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    mesh.apply_translation(center)
    return mesh


def drawn(picture: np.ndarray) -> np.ndarray:
    return (picture != 255).any(axis=2)


def test_a_ball_fills_the_frame_as_a_disc_on_white() -> None:
    picture = render_mesh(ball(), size=200)
    assert picture.shape == (200, 200, 3)
    assert picture.dtype == np.uint8
    mask = drawn(picture)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert rows[0] == pytest.approx(14, abs=2)
    assert rows[-1] == pytest.approx(185, abs=2)
    assert columns[0] == pytest.approx(14, abs=2)
    assert mask.sum() == pytest.approx(np.pi / 4 * 172**2, rel=0.03)
    assert (picture[0, 0] == 255).all()


def test_the_frame_does_not_depend_on_units_or_place() -> None:
    mesh = trimesh.creation.torus(1.0, 0.3)
    before = render_mesh(mesh, size=120)
    mesh.apply_scale(1000.0)
    mesh.apply_translation([5000.0, 70.0, -900.0])
    after = render_mesh(mesh, size=120)
    assert np.abs(before.astype(int) - after.astype(int)).mean() < 0.1


def test_the_nearer_surface_hides_the_farther_one() -> None:
    """Seen from +Z, a small plate in front of a large tilted one shows whole, in any order of faces."""
    near = trimesh.creation.box((0.5, 0.5, 0.02))
    near.apply_translation([0, 0, 1])
    far = trimesh.creation.box((2, 2, 0.02))
    far.apply_transform(trimesh.transformations.rotation_matrix(0.6, [1, 0, 0]))
    camera = fit_camera(trimesh.util.concatenate([near, far]), azimuth=0, elevation=0)
    one = render_mesh(trimesh.util.concatenate([near, far]), 160, camera=camera)
    other = render_mesh(trimesh.util.concatenate([far, near]), 160, camera=camera)
    assert np.array_equal(one, other)
    plate = drawn(render_mesh(near, 160, camera=camera))
    shrunk = plate & np.roll(plate, 2, 0) & np.roll(plate, -2, 0) & np.roll(plate, 2, 1) & np.roll(plate, -2, 1)
    assert shrunk.sum() > 300
    assert np.ptp(one[shrunk].astype(int), axis=0).max() < 25


def test_up_is_y_and_azimuth_turns_towards_x() -> None:
    marks = {"x": ball((3, 0, 0), 0.4), "y": ball((0, 3, 0), 0.4), "z": ball((0, 0, 3), 0.4)}
    camera = fit_camera(ball(radius=4.0), azimuth=30, elevation=20)
    place = {}
    for name, mesh in marks.items():
        rows, columns = np.nonzero(drawn(render_mesh(mesh, 160, camera=camera)))
        place[name] = rows.mean(), columns.mean()
    origin = np.array([80, 80])
    assert place["y"][0] < origin[0] - 20
    assert abs(place["y"][1] - origin[1]) < 4
    assert place["x"][1] > origin[1] + 20
    assert place["z"][1] < origin[1] - 10
    assert place["z"][0] > origin[0]


def test_both_sides_of_a_surface_are_lit_alike() -> None:
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    flipped = trimesh.Trimesh(sheet.vertices, sheet.faces[:, ::-1], process=False)
    assert np.array_equal(render_mesh(sheet, 64), render_mesh(flipped, 64))


def test_no_pixel_inside_is_left_open_whatever_the_size_of_triangles() -> None:
    """One square as 2, 200 and 80,000 triangles gives one picture."""
    pictures = []
    for side in (1, 10, 200):
        x, y = np.meshgrid(np.linspace(0, 1, side + 1), np.linspace(0, 1, side + 1), indexing="ij")
        vertices = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3)
        corner = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).ravel()
        faces = np.concatenate(
            [
                np.stack([corner, corner + side + 1, corner + side + 2], axis=1),
                np.stack([corner, corner + side + 2, corner + 1], axis=1),
            ]
        )
        pictures.append(render_mesh(trimesh.Trimesh(vertices, faces, process=False), 160).astype(int))
    assert drawn(pictures[0]).sum() > 5000
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() <= 2


def test_smooth_shading_joins_split_vertices_and_keeps_sharp_edges() -> None:
    smooth = ball()
    split = smooth.copy()
    split.unmerge_vertices()
    assert np.abs(render_mesh(smooth, 100).astype(int) - render_mesh(split, 100).astype(int)).max() <= 1
    box = render_mesh(trimesh.creation.box(), 200)
    shades = np.unique(box[drawn(box)][:, 0] // 8, return_counts=True)[1]
    assert (shades > 1500).sum() >= 2


def test_edges_are_smoothed() -> None:
    picture = render_mesh(ball(), size=200, color=(0.0, 0.0, 0.0))[..., 0]
    assert ((picture > 60) & (picture < 240)).sum() > 100


def test_empty_meshes_are_white_under_a_given_camera_and_refused_without() -> None:
    camera = fit_camera(ball())
    assert (render_mesh(trimesh.Trimesh(), 32, camera=camera) == 255).all()
    with pytest.raises(ValueError, match="no faces"):
        render_mesh(trimesh.Trimesh(), 32)


def test_triangles_behind_the_camera_are_left_out() -> None:
    camera = fit_camera(ball(), azimuth=0, elevation=0)
    assert (render_mesh(ball((0, 0, 50)), 32, camera=camera) == 255).all()


def test_a_comparison_shows_every_panel_in_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "pair.png"
    save_comparison(path, [("input", ball()), ("rebuilt", ball(radius=0.5))], caption="a ball " * 40, size=160)
    image = np.asarray(Image.open(path))
    assert image.shape[1] == 320
    middle = image[image.shape[0] // 4 : 150]
    areas = [drawn(middle[:, :155]).sum(), drawn(middle[:, 165:]).sum()]
    assert areas[0] > 2.5 * areas[1] > 0
    assert [file.name for file in path.parent.iterdir()] == ["pair.png"]
    save_comparison(path, [("input", ball()), ("failed", trimesh.Trimesh())], size=160)
    assert np.asarray(Image.open(path)).shape[0] < image.shape[0]


def test_a_comparison_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "pair.png"
    save_comparison(path, [("one", ball())], size=64)
    before = path.read_bytes()
    broken = ball()
    broken.vertices[3] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        save_comparison(path, [("one", ball()), ("two", broken)], size=64)
    with pytest.raises(ValueError, match="at least one"):
        save_comparison(path, [])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_captions_wrap_within_the_width_and_lose_nothing() -> None:
    class Monospace:
        def getlength(self, text: str) -> float:
            return float(len(text))

    text = "a short line\nand incomprehensibilities that are far too wide"
    lines = _wrap(text, Monospace(), 10)
    assert all(len(line) <= 10 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    assert lines[:3] == ["a short", "line", "and"]


def test_the_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel; got 0"):
        render_mesh(ball(), size=0)
