"""Scans of strangers are read in processes of their own, within limits; what is refused is said."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdf_vqvae.geometry.up import UP_IN_SCANS
from sdf_vqvae.shapes import encode_field, field_for
from vae_qwen3vl.serving.scans import surface_of_organ
from vae_qwen3vl.serving.shapes import ShapeReader, ShapeTooLargeError

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def reader(live) -> ShapeReader:
    return live.service.reader


@pytest.fixture
def limited(reader):
    """Set limits of scans for the rest of a test."""
    before = reader.scan_limits

    def set_limits(**limits) -> None:
        reader.scan_limits = replace(before, **limits)

    yield set_limits
    reader.scan_limits = before


@pytest.fixture
def scan(tmp_path) -> tuple[Path, Path]:
    """A volume of labels, and their names."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[3:12, 3:12, 3:13] = 1
    labels[13:15, 13:15, 13:15] = 5
    saved(labels, tmp_path / "my scan (1).nii.gz", np.diag([2.0, 2.0, 3.0, 1.0]))
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "5": "gallbladder"}))
    return tmp_path / "my scan (1).nii.gz", tmp_path / "labels.json"


def saved(voxels: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    path.write_bytes(gzip.compress(image.to_bytes(), 1))
    return path


def test_an_organ_is_the_one_of_the_library(reader, scan, tmp_path):
    assert reader.organs(*scan) == {"liver": 810, "gallbladder": 8}
    assert reader.organs(scan[0]) == {"label 1": 810, "label 5": 8}
    mesh, codes = reader.organ(*scan, "liver")
    plain = Path(scan[0].rename(tmp_path / "scan.nii.gz"))
    expected = surface_of_organ(plain, scan[1], "liver")
    assert np.array_equal(mesh.vertices, expected.vertices) and np.array_equal(mesh.faces, expected.faces)
    assert np.ptp(mesh.vertices, axis=0) == pytest.approx([18, 18, 30], abs=2)
    of_library = encode_field(reader.vae, field_for(reader.vae, expected, up=UP_IN_SCANS))
    assert torch.equal(codes.codes, of_library.codes) and codes.up == "z"
    with pytest.raises(ValueError, match="the scan has no 'spleen'"):
        reader.organ(plain, scan[1], "spleen")


def test_what_passes_a_limit_is_refused_with_the_remedy(reader, limited, scan, tmp_path):
    limited(max_scan_voxels=4000)
    with pytest.raises(ShapeTooLargeError, match=r"the scan has 4,096 voxels, more than the 4,000 .* crop it"):
        reader.organs(*scan)
    limited(scan_seconds=0.01)
    with pytest.raises(ShapeTooLargeError, match=r"reading the scan takes more than 0\.01 s: crop it"):
        reader.organs(*scan)
    limited(scan_memory=256)
    bomb = saved(np.zeros((400, 400, 400), np.float64), tmp_path / "bomb.nii.gz")
    assert bomb.stat().st_size < 4 * 2**20, "half a GiB when it is unpacked"
    with pytest.raises(ShapeTooLargeError, match="reading the scan takes more than 256 MiB: crop it"):
        reader.organs(bomb)
    limited()
    assert reader.organs(*scan)


def test_bombs_and_other_files_are_refused_before_they_take_anything(reader, scan, tmp_path):
    whole = gzip.decompress(scan[0].read_bytes())
    claims = bytearray(whole)
    claims[42:48] = np.array([600, 600, 600], "<i2").tobytes()
    for name, content, said in (
        ("claims.nii.gz", gzip.compress(bytes(claims)), "its header claims 216,000,000 bytes"),
        ("claims.nii", bytes(claims), "its header claims 216,000,000 bytes"),
        ("goes on.nii.gz", gzip.compress(whole + bytes(2**26), 1), "it goes on long after its voxels"),
        ("cut.nii.gz", gzip.compress(whole)[:-20], "is not a readable NIfTI file"),
        ("text.nii.gz", b"no scan", "is not a readable NIfTI file"),
        ("empty.nii", b"", "is not a readable NIfTI file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said) as told:
            reader.organs(tmp_path / name)
        assert "/" not in str(told.value)
    (tmp_path / "labels.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"names\.json"):
        reader.organs(*scan)
    with pytest.raises(ValueError, match="no voxel with a label"):
        reader.organs(saved(np.zeros((4, 4, 4), np.uint8), tmp_path / "nothing.nii.gz"))
