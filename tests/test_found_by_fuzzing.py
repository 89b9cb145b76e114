"""Inputs that once broke a reader, found by `benchmarks/quality/fuzz.py`: each is refused in one line."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.state_dict import read_state_dict
from vae_qwen3vl.projector_file import load_projector


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',\n", "is not an array"),  # tokenize.TokenError
        (b"\x93NUMPY\x01\x00\x08\x00'''abcd\n", "is not an array"),
        (b"not an array at all", "is not an array"),  # NumPy gives the bytes back, and they have no shape
        (npy_header((True, 1), "<f4") + bytes(4), "shape"),  # TypeError
        (npy_header((-2, -3), "<f4") + bytes(24), "shape"),
        (npy_header((1, 1), "|V0"), "plain numbers"),
        (npy_header((1, 1), "<f4")[:-20], "is not an array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100, "4,294,967,295"),
        (b"\x93NUMPY\x03\x00\x04\x00\x00\x00    ", "is not an array"),
        (b"", "is not an array"),
    ],
    ids=range(10),
)
def test_a_header_that_numpy_stumbles_over_is_refused(tmp_path: Path, member: bytes, says: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("sparse_sdf.npy", member)
    with pytest.raises(ValueError, match=says) as error:
        SparseSDF.load(tmp_path / "a.npz")
    assert "a.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_an_old_checkpoint_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "old.pt").write_bytes(whole[: int(len(whole) * part)])  # struct.error in PyTorch
    with pytest.raises(ValueError, match=r"old\.pt"):
        read_state_dict(tmp_path / "old.pt")


def test_an_old_checkpoint_whose_storages_have_other_names_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    key = re.findall(rb"X.\0\0\0(\d{8,})", whole)[-1]  # in the list at the end
    place = whole.rindex(key)
    (tmp_path / "old.pt").write_bytes(whole[:place] + b"x" + whole[place + 1 :])  # AssertionError in PyTorch
    with pytest.raises(ValueError, match=r"old\.pt"):
        read_state_dict(tmp_path / "old.pt")


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "pickled",
    [
        b".",  # nothing on the stack
        b"\x80\x02h\x07.",  # a memo that was never written
        b"\x80\x02K\x01Q.",  # a storage that is a number
        b"\x80\x02(X\x03\x00\x00\x00abctQ.",  # a storage of one word
        b"\x80\x02(X\x07\x00\x00\x00storageX\x01\x00\x00\x00aX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
        b"\x80\x02}}K\x01s.",  # a mapping as a key
        b"\x80\x02" + REBUILD + b")R.",  # a tensor made of nothing
        b"\x80\x02" + REBUILD + b"(NK\x00K\x01\x85K\x01\x85\x89NtR.",  # a tensor of no storage
        b"\x80\x02}X\x01\x00\x00\x00aX\xff",  # cut short
        b"\x80\x02]K\x01K\x01s.",  # an item set in a list
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata]sb.",  # metadata of another kind
    ],
    ids=range(11),
)
def test_a_pickle_that_pytorch_stumbles_over_is_refused(tmp_path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    for read in (load_projector, read_state_dict):
        with pytest.raises(ValueError, match=r"a\.pt") as error:
            read(tmp_path / "a.pt")
        assert "\n" not in str(error.value)
