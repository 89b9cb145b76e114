"""Turns have names that read back, and rotations that do what the names say."""

from __future__ import annotations

import numpy as np
import pytest

from sdf_vqvae.geometry.turns import ALL, UNTURNED, UPS, YAW, Turn, read_turns, split_id
from sdf_vqvae.geometry.up import UP_AXES


def test_the_grid_has_24_turns_and_none_is_there_twice() -> None:
    matrices = {turn.rotation().tobytes() for turn in (UNTURNED, *ALL)}
    assert len(matrices) == 24
    for turn in ALL:
        matrix = turn.rotation()
        assert np.array_equal(matrix, matrix.round())
        assert np.array_equal(matrix @ matrix.T, np.eye(3))
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_the_axis_of_the_name_comes_up_whatever_the_angle() -> None:
    for up in UP_AXES:
        axis = np.eye(3)["xyz".index(up[-1])] * (-1 if up[0] == "-" else 1)
        for degrees in (0, 90, 33.5):
            np.testing.assert_allclose(Turn(up=up, degrees=degrees).rotation() @ axis, (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(Turn(up="y", degrees=45).rotation() @ (0, 0, 1), (0.5**0.5, 0, 0.5**0.5))


def test_names_and_ids_read_back() -> None:
    for turn in (*ALL, Turn(up="-z", degrees=22.5)):
        assert Turn.named(turn.name) == turn
        assert split_id(turn.id_of("pack/a@home")) == ("pack/a@home", turn)
    for own in ("plain", "a@home", "@y90", "me@y360", "x@z"):
        assert split_id(own) == (own, UNTURNED)
    assert UNTURNED.id_of("plain") == "plain"


def test_an_option_names_sets_and_turns() -> None:
    assert read_turns("yaw") == YAW == read_turns(" y90,y180, y270,y0")
    assert set(read_turns("yaw,ups,y90")) == {*YAW, *UPS}
    assert len(read_turns("all")) == 23
    for text in ("", "yaws", "y-90", "w0", "y360", "y90,,x0"):
        with pytest.raises(ValueError, match="turn"):
            read_turns(text)
