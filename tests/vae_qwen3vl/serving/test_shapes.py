"""Files of strangers are read in processes that die alone."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from damages import damages
from live_server import until
from sdf_vqvae.shapes import encode_field, field_for, load_shape, up_for
from vae_qwen3vl.serving.settings import ShapeLimits
from vae_qwen3vl.serving.shapes import ShapeReader, ShapeTooLargeError
from valid_files import targets


@pytest.fixture(scope="module")
def reader(live) -> ShapeReader:
    return live.service.reader


@pytest.fixture
def limited(reader):
    """Set limits for the rest of a test."""
    before = reader.limits

    def set_limits(**limits) -> None:
        reader.limits = replace(before, **limits)

    yield set_limits
    reader.limits = before


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A mesh whose reading takes time and memory: 600,000 triangles that share no corner, binary STL."""
    count = 600_000
    rows = np.zeros(count, dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    rows["corners"] = np.random.default_rng(0).random((count, 3, 3))
    return bytes(80) + np.uint32(count).tobytes() + rows.tobytes()


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_codes_are_those_of_the_library(reader, repository):
    path = repository / "examples" / "lamp.glb"
    shape = load_shape(path)
    expected = encode_field(reader.vae, field_for(reader.vae, shape, up=up_for(path, shape)))
    codes = reader.read(path.read_bytes(), ".glb")
    assert torch.equal(codes.codes, expected.codes)
    assert torch.equal(codes.coords, expected.coords)
    assert vars(codes) | {"codes": 0, "coords": 0} == vars(expected) | {"codes": 0, "coords": 0}


def test_a_codes_file_gives_its_codes_and_those_of_another_tokenizer_are_refused(reader, mug, tmp_path):
    codes = reader.read(mug, ".glb", "z")
    assert codes.up == "z"
    codes.save(tmp_path / "mug.safetensors")
    again = reader.read((tmp_path / "mug.safetensors").read_bytes(), ".safetensors")
    assert torch.equal(again.codes, codes.codes)
    assert again.scale == codes.scale
    replace(codes, vae_hash="0" * 64).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="made by the VAE 000000000000"):
        reader.read((tmp_path / "other.safetensors").read_bytes(), ".safetensors")
    replace(codes, codes=codes.codes + 10_000).save(tmp_path / "wild.safetensors")
    with pytest.raises(ValueError, match=r"must lie in 0\.\.31"):
        reader.read((tmp_path / "wild.safetensors").read_bytes(), ".safetensors")


def test_a_file_that_comes_again_is_not_read_again(reader, mug):
    assert reader.read(mug, ".glb") is reader.read(bytes(bytearray(mug)), ".glb")
    assert reader.read(mug, ".glb") is not reader.read(mug, ".glb", "z")


@pytest.mark.parametrize(
    ("limit", "said"),
    [("max_faces", "triangles, more than the 10"), ("max_voxels", "voxels"), ("max_codes", "codes")],
)
def test_limits_are_named_with_the_remedy(reader, limited, chair, limit, said):
    limited(**{limit: 10})
    with pytest.raises(ShapeTooLargeError, match=said) as refused:
        reader.read(chair, ".glb", "-x")  # as no other test reads it, for what is known isn't read again
    assert "send" in str(refused.value)


def test_a_mesh_that_takes_too_long_is_stopped_and_the_next_one_is_read(reader, limited, heavy, mug):
    limited(mesh_seconds=0.05)
    lost = reader.lost
    with pytest.raises(ShapeTooLargeError, match=r"more than 0\.05 s"):
        reader.read(heavy, ".stl")
    assert reader.lost == lost + 1
    limited()
    assert len(reader.read(mug, ".glb", "-y").codes)


def test_a_mesh_that_takes_too_much_memory_is_refused(reader, limited, heavy):
    limited(mesh_memory=256)
    with pytest.raises(ValueError, match=r"memory|MiB"):
        reader.read(heavy, ".stl")


def test_a_process_that_is_killed_fails_its_file_alone(reader, heavy, mug):
    (worker,) = reader._workers
    refused: list[BaseException] = []

    def read() -> None:
        try:
            reader.read(heavy, ".stl")
        except ValueError as error:
            refused.append(error)

    for whom in ("the file's", "its parent"):
        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: children(worker._process.pid))
        os.kill(children(worker._process.pid)[0] if whom == "the file's" else worker._process.pid, signal.SIGKILL)
        thread.join(60)
        assert "ends the process that reads it" in str(refused.pop())
    assert len(reader.read(mug, ".glb", "-z").codes)


@pytest.mark.parametrize(
    "uri", ["../../etc/passwd", "/etc/passwd", "mesh.bin", "http://127.0.0.1/x", "file:///etc/passwd"]
)
def test_no_other_file_is_opened_for_an_upload(reader, uri):
    document = f'{{"asset":{{"version":"2.0"}},"buffers":[{{"byteLength":36,"uri":"{uri}"}}],' + (
        '"bufferViews":[{"buffer":0,"byteLength":36}],"accessors":[{"bufferView":0,"componentType":5126,"count":3,'
        '"type":"VEC3"}],"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],"nodes":[{"mesh":0}]}'
    )
    with pytest.raises(ValueError, match="the file is not a readable GLTF file") as refused:
        reader.read(document.encode(), ".gltf")
    assert "/tmp" not in str(refused.value)


@pytest.mark.parametrize(
    "document",
    [
        '{"asset":{"version":"2.0"},"scene":0,"scenes":[{"nodes":[0]}],"nodes":[{"children":[1]},{"children":[0]}]}',
        '{"asset":' * 50_000,
        '{"asset":{"version":"2.0"},"accessors":[{"componentType":5126,"count":999999999,"type":"VEC3"}],'
        '"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],"nodes":[{"mesh":0}]}',
    ],
    ids=["circle", "deep", "claims"],
)
def test_a_bomb_is_refused(reader, document):
    with pytest.raises(ValueError, match=r"the file is not|the file holds"):
        reader.read(document.encode(), ".gltf")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["glb", "gltf", "obj", "ply_binary", "stl_binary", "codes"])
def test_a_damaged_file_is_read_or_refused_and_no_process_is_lost(reader, limited, name):
    suffix, seeds, _ = targets()[name]
    limited(mesh_seconds=600.0)  # how long it takes is another test's
    lost = reader.lost

    @settings(
        max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=damages(seeds, suffix))
    def check(data: bytes) -> None:
        try:
            reader.read(data, suffix)
        except ValueError as error:
            assert "\n" not in str(error)
            assert "/tmp" not in str(error)

    check()
    assert reader.lost == lost


def test_kinds_that_are_not_read_are_refused_before_a_process_sees_them(reader):
    with pytest.raises(ValueError, match=r"\.exe is not read: send one of \.glb"):
        reader.read(b"MZ", ".exe")


def test_limits_are_checked():
    with pytest.raises(ValueError, match="--mesh_memory must be an integer of at least 256"):
        ShapeLimits(mesh_memory=1)
