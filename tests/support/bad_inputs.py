"""Bad inputs by name: what is written into a folder, the command that reads it, and words of the line it must print.

`test_bad_input.py` holds each to one line and exit code 2, and to its row in `docs/bad-input.md`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from safetensors.torch import save_file

import bad_meshes
from sdf_vqvae.codes.pipeline import encode_field, voxelize_for
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from tiny_tokenizer import SMALL_ARGS

VAE = ("--vae_ckpt", "vae/model.safetensors")


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """One bad input."""

    name: str
    """What is wrong with it."""
    command: tuple[str, ...]
    """Arguments of `vae-qwen3vl`, run in the folder."""
    file: str
    """Its name."""
    write: Callable[[Path], object]
    """Writes it, given its path, into a folder that holds what `write_good` wrote."""
    says: str
    """Part of the line."""


def write_good(folder: Path) -> None:
    """Write a small tokenizer (`vae/`), `box.ply`, and its field `box.npz` and codes `box.safetensors`."""
    torch.manual_seed(0)
    vae = SparseSDFVQVAE(VAEConfig.from_args(SMALL_ARGS)).eval()
    save_vae(vae, folder / "vae")
    trimesh.creation.box((2.0, 1.0, 1.0)).export(folder / "box.ply")
    field = voxelize_for(vae, folder / "box.ply")
    field.save(folder / "box.npz")
    encode_field(vae, field).save(folder / "box.safetensors")


Write = Callable[[Path], object]
"""Writes the bad file, given its path, into a folder that holds what `write_good` wrote."""


def data(content: bytes) -> Write:
    """Return what writes these bytes."""
    return lambda path: path.write_bytes(content)


def nothing(path: Path) -> None:
    """Write nothing."""


def _truncated(source: str, part: float = 0.6) -> Write:
    def write(path: Path) -> None:
        content = (path.parent / source).read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return write


_ENCODE = ("-o", "out.safetensors", *VAE)


def _encode(name: str, file: str, write: Write, says: str) -> BadInput:
    return BadInput(name=name, command=("encode", file, *_ENCODE), file=file, write=write, says=says)


def meshes() -> list[BadInput]:
    """Return bad mesh files."""
    return [_encode(*row) for row in bad_meshes.bad_meshes()]


# -- what is no regular file ---------------------------------------------------------------------------------------


def _loop(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def places() -> list[BadInput]:
    """Return paths that are no files, and outputs that can't be written."""
    to_pipe = ("decode", "pipe.safetensors", "-o", "out.glb", *VAE)

    def output(name: str, file: str, write: Write, says: str) -> BadInput:
        return BadInput(name=name, command=("encode", "box.ply", "-o", file, *VAE), file=file, write=write, says=says)

    return [
        _encode("no such file", "nowhere.glb", nothing, "does not exist"),
        _encode("a folder without a mesh", "folder.glb", Path.mkdir, "holds no mesh file"),
        _encode("a pipe", "pipe.glb", os.mkfifo, "pipe or a device"),
        _encode("a pipe", "pipe.npz", os.mkfifo, "pipe or a device"),
        BadInput(name="a pipe", command=to_pipe, file=to_pipe[1], write=os.mkfifo, says="pipe or a device"),
        _encode("a link to a device", "zero.obj", lambda p: p.symlink_to("/dev/zero"), "pipe or a device"),
        _encode("a link to nothing", "dangling.glb", lambda p: p.symlink_to("gone.glb"), "a link to gone.glb"),
        _encode("links in a circle", "loop.glb", _loop, "symbolic links"),
        output("the output is a folder", "dir.safetensors", Path.mkdir, "is a folder"),
        output("the output lies in a file", "box.ply/out.safetensors", nothing, "box.ply"),
        output("the output's folder can't be made", "/proc/no/out.safetensors", nothing, "/proc/no"),
    ]


# -- fields ------------------------------------------------------------------------------------------------------


def _changed_field(**changes: Any) -> Write:
    def write(path: Path) -> None:
        with np.load(path.with_name("box.npz")) as archive:
            arrays: dict[str, Any] = {key: archive[key] for key in archive.files}
        for key, change in changes.items():
            arrays[key] = change(arrays[key]) if callable(change) else change
        np.savez(path, **arrays)

    return write


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    """Return the header of an `.npy` of that shape."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(**members: bytes) -> Write:
    """Return what writes an `.npz` of raw members, compressed."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for key, content in members.items():
                file.writestr(f"{key}.npy", content)

    return write


def _bomb(path: Path) -> None:
    """Write a gigabyte of zeros in one megabyte: rows of voxels."""
    rows = 2**30 // 12
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("sparse_index.npy", "w", force_zip64=True) as member:
            member.write(npy_header((rows, 3), "<i4"))
            for _ in range(2**10):
                member.write(bytes(rows * 12 // 2**10))
            member.write(bytes(rows * 12 - rows * 12 // 2**10 * 2**10))
        file.writestr("sparse_sdf.npy", npy_header((rows, 1), "<f4"))


def _first_row_twice(index: np.ndarray) -> np.ndarray:
    return np.concatenate([index[:1], index[:-1]])


def _plus(amount: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values + np.asarray(amount, values.dtype)


def _nan_first(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[0] = np.nan
    return values


class Payload:
    """Unpickled, it makes the file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def _npz_of_objects(path: Path) -> None:
    np.savez(path, sparse_sdf=np.array([Payload()], dtype=object), sparse_index=np.zeros((1, 3), int))


def _bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def fields() -> list[BadInput]:
    """Return bad field files."""
    huge = {"sparse_sdf": npy_header((10**12, 1), "<f4"), "sparse_index": npy_header((10**12, 3), "<i4")}
    some = {
        "sparse_sdf": npy_header((10**6, 1), "<f4") + bytes(40),
        "sparse_index": npy_header((10, 3), "<i4") + bytes(120),
    }
    text = {**some, "sparse_sdf": npy_header((10, 1), "<f4") + bytes(40), "resolution": npy_header((), "|S999999999")}
    return [
        _encode("text named .npz", "text.npz", data(b"hello\n"), "not a zip file"),
        _encode("cut in half", "cut.npz", _truncated("box.npz"), "cut.npz"),
        _encode(
            "a key is missing", "keys.npz", archive(sparse_sdf=npy_header((1, 1), "<f4") + bytes(4)), "lacks the key"
        ),
        _encode("10^12 entries claimed", "claim.npz", archive(**huge), "1,000,000,000,000 rows"),
        _encode("more entries claimed than there are", "more.npz", archive(**some), "claims 4,000,000 bytes"),
        _encode("4 GB of text claimed", "long.npz", archive(**text), "claims"),
        _encode("1 GB of zeros in 1 MB", "bomb.npz", _bomb, "more than the 67,108,864"),
        _encode(
            "coordinates outside the grid", "out.npz", _changed_field(sparse_index=_plus(30)), "must lie in 0..31"
        ),
        _encode("negative coordinates", "minus.npz", _changed_field(sparse_index=_plus(-30)), "must lie in 0..31"),
        _encode("a voxel twice", "twice.npz", _changed_field(sparse_index=_first_row_twice), "more than once"),
        _encode("NaN among the distances", "nan.npz", _changed_field(sparse_sdf=_nan_first), "not finite"),
        _encode("a negative scale", "scale.npz", _changed_field(scale=np.float64(-1)), "scale"),
        _encode("pickled objects", "objects.npz", _npz_of_objects, "never loaded"),
        _encode("a pickle", "pickle.npz", _bare_pickle, "not a zip file"),
        _encode("of another grid", "other.npz", _changed_field(resolution=np.int64(128)), "but the VAE reads"),
    ]


# -- checkpoints and configs -------------------------------------------------------------------------------------


def _vae_command(checkpoint: str, config: str = "vae/config.json") -> tuple[str, ...]:
    return ("encode", "box.ply", "-o", "out.safetensors", "--vae_ckpt", checkpoint, "--vae_config", config)


def _other_architecture(path: Path) -> None:
    torch.manual_seed(0)
    save_vae(SparseSDFVQVAE(VAEConfig.from_args({**SMALL_ARGS, "num_blocks": 2, "latent_channels": 8})), path.parent)


def _safetensors(header_length: int, rest: bytes = b"{}") -> Write:
    return data(struct.pack("<Q", header_length) + rest)


def _config(**changes: Any) -> Write:
    document = {"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": {**SMALL_ARGS, **changes}}}}
    return data(json.dumps(document).encode())


def _pickle_of(item: object) -> Write:
    return lambda path: torch.save({"weight": item}, path)


def _nan_weights(path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(path.with_name("vae") / "model.safetensors")
    state["vq.embeddings.weight"] = state["vq.embeddings.weight"] * float("nan")
    save_file(state, path)


def models() -> list[BadInput]:
    """Return bad checkpoints and configs."""

    def checkpoint(name: str, file: str, write: Write, says: str) -> BadInput:
        return BadInput(name=name, command=_vae_command(file), file=file, write=write, says=says)

    def config(name: str, file: str, write: Write, says: str) -> BadInput:
        return BadInput(
            name=name, command=_vae_command("vae/model.safetensors", file), file=file, write=write, says=says
        )

    return [
        checkpoint(
            "weights of another architecture",
            "other/model.safetensors",
            _other_architecture,
            "does not fit the architecture",
        ),
        checkpoint("text named .safetensors", "text.safetensors", data(b"hello, this is text"), "text.safetensors"),
        checkpoint("a header of 2^63 bytes", "header.safetensors", _safetensors(2**63), "header.safetensors"),
        checkpoint("weights cut in half", "cut.safetensors", _truncated("vae/model.safetensors"), "cut.safetensors"),
        checkpoint("weights that are not numbers", "nan.safetensors", _nan_weights, "not finite"),
        checkpoint("a pickle that runs a command", "evil.pt", _pickle_of(Payload()), "evil.pt"),
        checkpoint("no checkpoint at all", "gone.pt", nothing, "gone.pt"),
        config("an unknown key", "key.json", _config(model_chanels=3), "did you mean 'model_channels'"),
        config("a value of another type", "type.json", _config(model_channels="many"), "must be an integer"),
        config("not JSON", "text.json", data(b"models: 3\n"), "not JSON"),
        config("NaN", "nan.json", _config(mlp_ratio=float("nan")), "mlp_ratio"),
        config("JSON 100,000 deep", "deep.json", data(b"[" * 100_000), "deep.json"),
        config("not UTF-8", "latin.json", data('{"é": 1}'.encode("latin-1")), "latin.json"),
        config("empty", "empty.json", data(b""), "not JSON"),
        config("a folder", "vae", nothing, "vae"),
    ]


# -- codes -------------------------------------------------------------------------------------------------------


def changed_codes(about: dict[str, Any] | None = None, **tensors: Any) -> Write:
    """Return what writes `box.safetensors` under another name, with some of it changed and nothing checked."""

    def write(path: Path) -> None:
        good = ShapeCodes.load(path.with_name("box.safetensors"))
        found = {"codes": good.codes.clone(), "coords": good.coords.to(torch.int16)}
        for key, change in tensors.items():
            found[key] = change(found[key]).contiguous()
        text = {f.name: getattr(good, f.name) for f in dataclasses.fields(good) if f.name not in found}
        text = {"format": "sdf-vqvae-codes/1", **text, **(about or {})}
        save_file(found, path, metadata={"shape_codes": json.dumps(text)})

    return write


def codes() -> list[BadInput]:
    """Return bad codes files."""

    def bad(name: str, file: str, write: Write, says: str) -> BadInput:
        return BadInput(name=name, command=("decode", file, "-o", "out.glb", *VAE), file=file, write=write, says=says)

    return [
        bad("codes outside the codebook", "beyond.safetensors", changed_codes(codes=lambda c: c + 32), "0..31"),
        bad("negative codes", "minus.safetensors", changed_codes(codes=lambda c: -1 - c), "numbers from 0"),
        bad(
            "codes that are no integers",
            "real.safetensors",
            changed_codes(codes=lambda c: c.float()),
            "must be integers",
        ),
        bad(
            "a cell twice",
            "twice.safetensors",
            changed_codes(coords=lambda c: torch.cat([c[:1], c[:-1]])),
            "more than once",
        ),
        bad(
            "cells outside the grid",
            "out.safetensors",
            changed_codes(coords=lambda c: c + 7),
            "leave the latent grid",
        ),
        bad("a scale of NaN", "nan.safetensors", changed_codes({"scale": float("nan")}), "scale must be"),
        bad("a negative scale", "scale.safetensors", changed_codes({"scale": -1.0}), "scale must be"),
        bad("a center of text", "text.safetensors", changed_codes({"center": "abc"}), "text.safetensors"),
        bad(
            "codes of another tokenizer",
            "stale.safetensors",
            changed_codes({"vae_hash": "0" * 64}),
            "made by the VAE",
        ),
        bad("a header of 2^63 bytes", "header.safetensors", _safetensors(2**63), "header.safetensors"),
        bad("another kind of safetensors", "vae/model.safetensors", nothing, "not a codes file"),
        bad("cut in half", "cut.safetensors", _truncated("box.safetensors"), "cut.safetensors"),
    ]


def commands() -> list[BadInput]:
    """Return some of the same for the other commands."""

    def of(command: str, name: str, file: str, write: Write, says: str, *more: str) -> BadInput:
        return BadInput(name=name, command=(command, file, *more), file=file, write=write, says=says)

    text = data(b"hello, world, this is text\n")
    other = ("--vae_config", "vae/config.json", "-o", "out")
    return [
        of("convert", "cut in half", "cut.npz", _truncated("box.npz"), "cut.npz", "-o", "out.npz"),
        of("convert", "a voxel twice", "twice.npz", _changed_field(sparse_index=_first_row_twice), "more than once",
           "-o", "out.npz"),
        of("convert", "a folder without fields", "folder", Path.mkdir, "holds no field file", "-o", "out"),
        of("checkpoint", "a pickle that runs a command", "evil.pt", _pickle_of(Payload()), "evil.pt", *other),
        of("checkpoint", "text named .pt", "text.pt", text, "text.pt", *other),
        of("describe", "text named .safetensors", "text.safetensors", text, "not a codes file", *VAE),
        of("describe", "text named .glb", "text.glb", text, "begins with b'hell'", *VAE),
        of("demo", "text named .glb", "text.glb", text, "begins with b'hell'", "-o", "out", *VAE),
    ]  # fmt: skip


def tables() -> list[BadInput]:
    """Return tables beside a mesh of which nothing can be used."""

    def of(name: str, content: str | bytes, says: str) -> BadInput:
        def write(folder: Path) -> None:
            folder.mkdir()
            shutil.copy(folder.parent / "box.ply", folder / "box.ply")
            (folder / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode())

        return BadInput(name=name, command=("encode", "data", "-o", "out", *VAE), file="data", write=write, says=says)

    return [
        of("a table about other files", "uid,caption\nabc123,a box\n", "none of its 1 rows is about a file"),
        of("a table that says of no file", "filenam,captoin\nbox.ply,a box\n", "did you mean"),
        of("a caption with a comma", "file,caption\nbox.ply,a red, small box\n", "3 cells for 2 columns"),
        of("a table in Windows-1252", "file,caption\nbox.ply,une boîte\n".encode("cp1252"), "not UTF-8"),
        of("two separators", "file,text;file\nbox.ply,a box;box.ply\n", "separate the cells by commas alone"),
        of("an empty table", "", "is empty"),
    ]


def bad_inputs() -> list[BadInput]:
    """Return all of them."""
    return [*meshes(), *places(), *fields(), *models(), *codes(), *commands(), *tables()]
