"""Streams that the library of meshopt wrote are unpacked to what went in, and damaged ones are refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from gltf_files import Gltf
from sdf_vqvae.geometry.formats.meshopt import _filtered, decode
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh

# A ball of 42 vertices and 80 triangles as meshoptimizer 0.30 packs it (positions in 16 bits, as exponents of 15 bits
# and as floats with differences of 32 bits; triangles; indices one by one), and words with differences of 16 bits.
STREAMS = {
    "quantized, version 0": (
        "oB0/wMzP09TTlT18PeQ4Nzjk5Dg3OOTlAOYA5QDmAHMzIADo5eblHT/AzM/x8vGF2E7aT56dnk1Pnp2eTc4ATQBOAE0A8zMwAH4y"
        "UE9QfxUM/8B8fNPT1NOVBOTPMw/PNObmNObkOOTkOMPz8ADk5Djk5DjkHQz/wOxOUvHy8YX+MGEAzc8AYQDNgP8wnjL/MJ7///AA"
        "TYD/MJ4y/zCeTRUAzP/APXzT09TTlQYCyMTiNvIxMADm5DbmFQDM/8zYTlLx8vGFgA8DzMx+gn+wf+GA8zMwAM1Pf+GAzQAAAAAA"
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAtbzhbAAAAAA="
    ),
    "quantized, version 1": (
        "oVWlAB7V09TTlT18PeQ4/1U3OOTkODc45OXm5earAgHo5eblAgAe1fHy8YXYTtpPnv9VnZ5NT56dnk3OTU5NqwJ+MlBPUH8A9HF8"
        "09PU05UBBOSt3DTm5jTm5Djk5Di5A+TkOOTkOOQA9HFOUvHy8YX+AjCt/2HNz2HNgP8wnjL/MJ7/A02A/zCeMv8wnk0UUB89fNPT"
        "1NOVBgLIxOI28jEwAObkNuYAUF/YTlLx8vGFgIxVfoJ/sH/hgKsCzU9/4YDNAAAAAAAAAAAAAAAAAAC1vOFsAAAAAAAA"
    ),
    "exponents, version 0": (
        "oB0/wMzPs7SzWnLjcjpzdHM6OnN0czo5ADoAOQA6ADMzAAA6OTo5HT/AzM9CQUIfNm04EyYlJhETJiUmETIAEQASABEA8zMwACBz"
        "FBMUHxUmAASGYZgAABAAAAAAFQz/wAzjzLO0s1o6zzMPz3M6OnM6OnM6OnPD8/AAOjpzOjpzOh0M/8D8bRZCQUIfQH8MZgAxMwBm"
        "ADEgPwwmDj8MJv//8AARID8MJg4/DCYRFQQmABCBIBISBISAAAAVAMz/wHLjzLO0s1oAAMDAOnPwMDAAOjpzOhUAzP/MNm0WQkFC"
        "HyAPA8zMIF8fLB9GIPMzMAAxEx9GIDEVAAQmAAEAAIAQIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAALe//8zkbAPMAAADz"
    ),
    "exponents, version 1": (
        "oZWVlQAe1bO0s1py43I6c/9VdHM6OnN0czo5Ojk6qgA6OTo5AB7VQkFCHzZtOBMm/1UlJhETJiUmETIREhGrAiBzFBMUHwUmAASG"
        "YZgAAAIAAQD0QePMs7SzWjqt3HM6OnM6OnM6OnO5Azo6czo6czoA9HFtFkJBQh9Afwyt/2YxM2YxID8MJg4/DCb/AxEgPwwmDj8M"
        "JhEVBCYAEIEgEhIEhIAAAFAfcuPMs7SzWgAROnMjAjo6czoAUF82bRZCQUIfIIxVIF8fLB9GIKsCMRMfRiAxFQAEJgABAACAECAA"
        "AAAAAAAAAAAAAC3v//M5GwDzAAAA8wAAAA=="
    ),
    "floats, version 1": (
        "oVVVVQUVwMTNoICB9V9XzMz09fR6enp6qgB7enp6ABBRLIiIboxVbm5uNzc3N6oANzc3NwAQUQ2zszyMVTw8PJ6enp6qAJ6enp4Q"
        "EFF+fn59jAF9fX1+UAAQAAAQQSCfhYxUhoWG9PP0qQLz9PP08wAQQVvUNoxUNTY1bm1uqQJtbm1ubQAQUaUL/2GMVJ2encPEw6kC"
        "xMPEw8QU5DH/////fX7/zzP3t/99gf99fv/////97fAAe37/////ewEAxNXAgCCgCFUB9I6PjqsCevWOj456ABARiKQsAFVuWVlZ"
        "qwI3bllZWTcAEBGzvg0AVTyioqKrAp48oqKingQQUH5+fgUBjMwDAwOrAn59AwMDfgAAAAAAAAAAAFCWBr9AxFk/AAAAABIAEg=="
    ),
    "words, version 1": (
        "of+vAMJGNbHSViWh4mYVkfJ2BYH9hgoAAAIEBgYICgwMDhASFBQWGBgaHABZ8j511iKRugatnhXJgjHlZk3+AAMFCw8VGR0jJysx"
        "NTk/Q0dNUVcAh2inSMco5wj4F9g3uFeYd3iXWAAEEBwmMjxGVFxocn6KkqCqtL7MAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    ),
    "triangles": (
        "4f7//ySPT/4Uf27/Jn9P/yV/T/8l////JP///yP///4T////JP///yT+//4Tj27/KH9N/yV/Tv8lf0//Jf///hL///8j/v//I///"
        "/hL//v8l/0op/yozOh8vFQ4KIQgfARs0Bh8FLTYIHwcz7xM2/xUXNB8FJf8HRiu/LAEfKRv/DjwF/wY9MEH/LzQB/wI5IB8YOf8C"
        "Hgr/CSkuHwYl/yob/xwnKkEhHwEVJB8CGyYfASEqBh8FJ/8JNBdPGAIx/zkYMJ8vMh8BNf8QIK8fHh8CMf8DJAKvAQUx/xsuB/IH"
        "Hwg1AHaHVmd4qYZliWiYAWkAAA=="
    ),
    "indices": (
        "0QCVAVNVZ3VfYRQLDV8/QQ8RKzETFT89BRMvMSUjK1UDBTsVKQNTVTEvN3ULDWctPQsSAREPW6QBDhAFWSEPngFALCouaAoMViA4"
        "CloNV1lzcVNVAgUDUxuUAQoMA2ERD5oBHRsRb2kDBXNBMS9DiAEyMG48FBJSXAwKPjgIDF5oNjhOVDo8ZmQEOi4wBggqKAIELjQC"
        "AiYoHBoqRAQCMhwYBEJEFBI2UAIERjAYAlZYEA5CYAoMWkAcCmJoLjBSWDI0ZmQEMj4wYF4mhQEDBW8NZQMINEA+Qg8FA18lPQVr"
        "SQUDT0URDz9NCxFHXQ8RX0ERD1t4HhAAAAAA"
    ),
}


BALL = trimesh.creation.icosphere(subdivisions=1)
POSITIONS = np.pad(np.round(BALL.vertices * 32767), ((0, 0), (0, 1))).astype("<i2")


def stream(name: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(STREAMS[name]), np.uint8)


@pytest.mark.parametrize("version", [0, 1])
def test_integers_come_back_exactly(version: int) -> None:
    data = decode(stream(f"quantized, version {version}"), "ATTRIBUTES", 42, 8)
    np.testing.assert_array_equal(data.view("<i2").reshape(42, 4), POSITIONS)


def test_floats_and_words_come_back_exactly_from_differences_of_32_and_16_bits() -> None:
    data = decode(stream("floats, version 1"), "ATTRIBUTES", 42, 12)
    np.testing.assert_array_equal(data.view("<f4").reshape(42, 3), BALL.vertices.astype("<f4"))
    words = (np.arange(20)[:, None] ** 2 * [97, -301, 700, 0]).astype("<i2")
    np.testing.assert_array_equal(
        decode(stream("words, version 1"), "ATTRIBUTES", 20, 8).view("<i2"), words.reshape(-1)
    )


@pytest.mark.parametrize("version", [0, 1])
def test_exponents_give_floats_as_near_as_their_bits(version: int) -> None:
    data = decode(stream(f"exponents, version {version}"), "ATTRIBUTES", 42, 12, "EXPONENTIAL")
    np.testing.assert_allclose(data.view("<f4").reshape(42, 3), BALL.vertices, atol=2**-14)


def test_quaternions_are_put_together_from_three_components() -> None:
    # Worked out by hand: 45 degrees about x in 16 bits, its largest component (w, place 3) left out.
    packed = np.array([[0, 0, 0, 32767], [round(np.sin(np.pi / 8) * 2**0.5 * 32767), 0, 0, 32767]], "<i2")
    found = _filtered(packed.view(np.uint8).reshape(2, 8), "QUATERNION")
    expected = np.array([[0, 0, 0, 1], [np.sin(np.pi / 8), 0, 0, np.cos(np.pi / 8)]]) * 32767
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(("name", "mode"), [("triangles", "TRIANGLES"), ("indices", "INDICES")])
def test_triangles_come_back(name: str, mode: str, stride: int) -> None:
    found = decode(stream(name), mode, 240, stride).view(f"<u{stride}").reshape(-1, 3).astype(int)
    if mode == "INDICES":
        np.testing.assert_array_equal(found, BALL.faces)
    else:  # each may begin at another of its corners
        starts = [[np.roll(face, -int(np.argmin(face))).tolist() for face in faces] for faces in (found, BALL.faces)]
        assert starts[0] == starts[1]


def test_a_group_with_long_differences_is_the_example_of_the_specification() -> None:
    group = bytes([0x17, 0x5F, 0xF0, 0xBC, 0x77, 0xA9, 0x21, 0x00, 0x34, 0xB5])
    zeros = b"\0"  # the other three bytes of a row: no differences
    data = bytes([0xA0, 0b10]) + group + zeros * 3 + bytes(28) + bytes([100, 1, 2, 3])
    rows = decode(np.frombuffer(data, np.uint8), "ATTRIBUTES", 16, 4).reshape(16, 4)
    differences = np.array([-1, -4, -3, 26, -91, 0, -6, 6, -4, -4, 5, -5, 1, -1, 0, 0])
    np.testing.assert_array_equal(rows[:, 0], (100 + np.cumsum(differences)) % 256)
    np.testing.assert_array_equal(rows[:, 1:], [[1, 2, 3]] * 16)


@pytest.mark.parametrize("name", STREAMS)
def test_a_damaged_stream_is_refused_or_unpacked_but_never_read_beyond(name: str) -> None:
    mode = {"triangles": "TRIANGLES", "indices": "INDICES"}.get(name, "ATTRIBUTES")
    count = 240 if mode != "ATTRIBUTES" else 20 if "words" in name else 42
    stride = 4 if mode != "ATTRIBUTES" else 8 if name[0] in "qw" else 12
    whole, chance = stream(name), np.random.default_rng(0)
    decode(whole, mode, count, stride)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="damaged"):
            decode(whole[:length], mode, count, stride)
    for _ in range(300):
        data = whole.copy()
        data[chance.integers(0, len(data), 3)] = chance.integers(0, 256, 3)
        try:
            assert len(decode(data, mode, count, stride)) == count * stride
        except ValueError as error:
            assert "damaged" in str(error)


# -- in a glTF -----------------------------------------------------------------------------------------------------


def packed(
    extension: str = "EXT_meshopt_compression", version: int = 0, fallback: bool = False, **change: Any
) -> Any:
    """A ball whose views are compressed; the buffer that they would have unpacked is empty, or there."""
    model = Gltf()
    model.document["buffers"].append({"byteLength": 42 * 8 + 480})
    views = [
        (stream(f"quantized, version {version}"), "ATTRIBUTES", 42, 8, POSITIONS),
        (stream("triangles"), "TRIANGLES", 240, 2, BALL.faces.astype("<u2")),
    ]
    place = 0
    for data, mode, count, stride, plain in views:
        view = model.document["bufferViews"][model.view(plain.tobytes() if fallback else data.tobytes())]
        own = {"buffer": 0, "byteOffset": view["byteOffset"], "byteLength": len(data), "byteStride": stride}
        view["extensions"] = {extension: {**own, "count": count, "mode": mode, **change.get(mode, {})}}
        if fallback:  # what stands where the stream would is no stream
            view["extensions"][extension]["byteLength"] = 40
        else:
            view |= {"buffer": 1, "byteOffset": place, "byteLength": count * stride}
        if mode == "ATTRIBUTES":
            view["byteStride"] = stride
        place += count * stride
    model.document["accessors"] = [
        {"bufferView": 0, "componentType": 5122, "normalized": True, "count": 42, "type": "VEC3"},
        {"bufferView": 1, "componentType": 5123, "count": 240, "type": "SCALAR"},
    ]
    model.node(mesh=model.mesh({"attributes": {"POSITION": 0}, "indices": 1}))
    return model.use(extension, "KHR_mesh_quantization", required=not fallback)


@pytest.mark.parametrize(("extension", "version"), [("EXT_meshopt_compression", 0), ("KHR_meshopt_compression", 1)])
def test_a_compressed_gltf_is_the_object(tmp_path: Path, extension: str, version: int) -> None:
    mesh = load_mesh(packed(extension, version).save(tmp_path / "ball.glb"))
    assert normalize_mesh(mesh).watertight and mesh.volume == pytest.approx(BALL.volume, rel=1e-3)


def test_the_plain_data_beside_compressed_data_is_read_where_it_is_there(tmp_path: Path) -> None:
    mesh = load_mesh(packed(fallback=True).save(tmp_path / "ball.glb"))
    assert mesh.volume == pytest.approx(BALL.volume, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 10**9}, "claims 1,000,000,000 rows of 8 bytes"),
        ({"count": 41}, "claims 41 rows"),
        ({"byteLength": 10**9}, "claims bytes"),
        ({"byteLength": 100}, "the stream is damaged"),
        ({"mode": "TRIANGLES"}, "indices of 2 or 4 bytes"),
        ({"mode": "OTHER"}, "no mode 'OTHER'"),
        ({"filter": "OCTAHEDRAL"}, "the filter 'OCTAHEDRAL'"),
        ({"buffer": 1}, "has no data"),
    ],
    ids=range(8),
)
def test_a_view_that_is_not_what_it_claims_is_refused_with_the_extension(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = packed(ATTRIBUTES=change).save(tmp_path / "ball.glb")
    with pytest.raises(ValueError, match=says):
        load_mesh(path)
