"""Meshes from codes: which true shape belongs to which object."""

from __future__ import annotations

import hashlib

import pytest

from sdf_vqvae.evaluation.objects import list_shapes
from vae_qwen3vl.evaluation.reconstruction import true_shapes


def test_true_shapes_are_found_by_id_contents_or_file_and_never_by_a_name_alone(tmp_path, caplog, shape) -> None:
    for name in ("one.glb", "sub/two.glb", "three.glb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    shapes = list_shapes(tmp_path)
    digest = hashlib.sha256(b"one.glb").hexdigest()
    objects = [
        shape(digest, 5, 0, row={"file": "elsewhere/renamed.glb"}),
        shape("custom", 5, 1, row={"glb_file": "two.glb"}),
        shape("0" * 64, 5, 2, row={"file": "three.glb"}),
        shape("three.glb", 5, 3),
        shape("unknown", 5, 4),
    ]
    with caplog.at_level("INFO"):
        found = true_shapes(objects, shapes)
    assert {name: one.id for name, one in found.items()} == {
        digest: "one.glb",
        "custom": "sub/two.glb",
        "three.glb": "three.glb",
    }
    assert "3 of 5 objects have their true shape there (1 by id, 1 by contents, 1 by file name)" in caplog.text
    assert "1 more have a file of their name, with other contents" in caplog.text
    with pytest.raises(ValueError, match=r"--shapes: none of the 3 shapes is one of the 1 objects"):
        true_shapes(objects[-1:], shapes)
