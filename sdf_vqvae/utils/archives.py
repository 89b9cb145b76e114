"""Opening what others wrote: plain files only, and never more memory than the file itself accounts for.

Every reader here compares what a header claims with what the file holds before anything is allocated, unpickles no
objects, and raises a ValueError of one line that names the file. Knows containers; what the arrays in them mean is
their readers' business.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import atomic_path, regular_file

SMALL_ARRAY_BYTES = 4096
"""Most bytes of an array of an `.npz` that is no column of voxels: numbers, names, three coordinates."""
NPY_HEADER_BYTES = 10_000
"""Longest text of an `.npy` header, as in NumPy."""
PICKLE_BYTES = 64 * 2**20
"""Longest pickle in a PyTorch file: names and shapes, about 200 bytes a tensor. The numbers lie beside it."""

# What files of plain tensors name, as `module name`. PyTorch's own list of what is safe is longer: it keeps code from
# running, but with torch.Tensor or bytearray a file of a hundred bytes may ask for a terabyte.
_STORAGE = re.compile(r"torch \w+Storage|torch\.storage (Typed|Untyped)Storage")
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|(builtins|__builtin__) (set|complex)|torch (Size|device|[a-z0-9_]+)|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)|torch\.nn\.parameter Parameter"
)
_ARCHIVE_START = b"PK\x03\x04"
_OLD_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of a number
_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")
_MEMO_READS = ("GET", "BINGET", "LONG_BINGET")
# Opcodes that files of tensors never contain: other ways to make objects, and to move what is on the stack.
_FOREIGN = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER",
            "POP", "POP_MARK", "DUP", "MEMOIZE")  # fmt: skip
_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError,
               ValueError, LookupError, MemoryError, UnicodeError)  # fmt: skip
_HEADER_DAMAGE = (ValueError, TypeError, SyntaxError, LookupError, AttributeError, RecursionError, MemoryError,
                  tokenize.TokenError)  # fmt: skip
_TORCH_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError,
                 AttributeError, MemoryError, ArithmeticError, AssertionError, struct.error)  # fmt: skip


# -- npz ---------------------------------------------------------------------------------------------------------


def npz_shapes(path: str | os.PathLike[str], names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an `.npz` that are among `names`, reading headers alone.

    Raises:
        ValueError: see `read_npz`.
    """
    with _Npz(path, names) as archive:
        return {name: archive.shape(name) for name in archive.members}


def read_npz(
    path: str | os.PathLike[str], names: tuple[str, ...], most_bytes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` that are among `names`; others are not looked at.

    Args:
        path: the file.
        names: keys.
        most_bytes: bound by key; `SMALL_ARRAY_BYTES` where a key is not in it.

    Raises:
        ValueError: the file is no such archive or damaged; an array is larger than its bound, or than what the
            archive says it unpacks to; or it holds Python objects.
    """
    with _Npz(path, names) as archive:
        return {name: archive.array(name, most_bytes.get(name, SMALL_ARRAY_BYTES)) for name in archive.members}


def write_npz(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Write a compressed `.npz` as `np.savez_compressed` does, but at the quickest level.

    For voxels that takes a quarter of the time and a tenth more bytes.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(cast(BinaryIO, member), np.asanyarray(array), allow_pickle=False)


class _Npz:
    """An open `.npz`."""

    def __init__(self, path: str | os.PathLike[str], names: tuple[str, ...]) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_DAMAGE as error:
            raise self._unreadable(brief(error)) from error
        found = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}
        self.members = {name: found[name] for name in names if name in found}

    def __enter__(self) -> _Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a header gives."""
        with self._open(name) as (stream, _):
            return self._header(name, stream)[0]

    def array(self, name: str, most_bytes: int) -> np.ndarray:
        """Return an array of at most so many bytes."""
        with self._open(name) as (stream, size):
            shape, fortran, dtype, header = self._header(name, stream)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed + header != size:
                raise self._unreadable(
                    f"the header of {name} claims {claimed:,} bytes of data, but the archive holds {size - header:,}"
                )
            if claimed > most_bytes:
                raise self._unreadable(f"{name} has {claimed:,} bytes, more than the {most_bytes:,} it may have")
            try:
                data = stream.read(claimed + 1)
            except _ZIP_DAMAGE as error:
                raise self._unreadable(f"{name}: {brief(error)}") from error
        if len(data) != claimed:
            raise self._unreadable(f"{name} ends after {len(data):,} of {claimed:,} bytes")
        # bytearray: tensors made of it may be written to.
        return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")

    def _header(self, name: str, stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Return shape, order, type and length of the header of an array."""
        try:
            start = stream.read(npy.MAGIC_LEN)
            version = npy.read_magic(io.BytesIO(start))
            width, code, read = {
                (1, 0): (2, "<H", npy.read_array_header_1_0),
                (2, 0): (4, "<I", npy.read_array_header_2_0),
            }[version]
            prefix = stream.read(width)
            length = struct.unpack(code, prefix)[0]
            if length > NPY_HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes")
            shape, fortran, dtype = read(io.BytesIO(prefix + stream.read(length)))
        except (*_HEADER_DAMAGE, *_ZIP_DAMAGE) as error:
            raise self._unreadable(f"{name} is not an array: {brief(error)}") from error
        if dtype.hasobject:
            raise self._unreadable(f"{name} holds pickled Python objects, which are never loaded")
        if dtype.names is not None or dtype.subdtype is not None or (dtype.itemsize == 0 and dtype.kind not in "US"):
            raise self._unreadable(f"{name} is no array of plain numbers or text but of {dtype}")
        if any(isinstance(n, bool) or n < 0 for n in shape):
            raise self._unreadable(f"{name} has the shape {shape}")
        return shape, fortran, dtype, len(start) + width + length

    def _open(self, name: str) -> Any:
        return _Member(self, name)

    def _unreadable(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is not a readable field file (.npz): {reason}")


class _Member:
    """Opens one member of an archive: the stream, and the number of bytes that it unpacks to."""

    def __init__(self, archive: _Npz, name: str) -> None:
        self.archive, self.name = archive, name

    def __enter__(self) -> tuple[BinaryIO, int]:
        info = self.archive.members[self.name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise self.archive._unreadable(f"{self.name} is encrypted, or packed in another way than NumPy does")
        try:
            self.stream = self.archive._zip.open(info)
        except _ZIP_DAMAGE as error:
            raise self.archive._unreadable(f"{self.name}: {brief(error)}") from error
        return self.stream, info.file_size  # type: ignore[return-value]

    def __exit__(self, *_: object) -> None:
        self.stream.close()


# -- safetensors -------------------------------------------------------------------------------------------------


def read_safetensors(
    path: str | os.PathLike[str], what: str, names: tuple[str, ...] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file. The library checks all lengths against the file's.

    Args:
        path: the file.
        what: "codes file" and so on, for the message.
        names: the tensors wanted; by default all.

    Raises:
        ValueError: no such file, damaged, or a tensor is missing.
    """
    from safetensors import SafetensorError, safe_open

    file = regular_file(path, what)
    try:
        with safe_open(file, framework="pt") as content:
            metadata: dict[str, str] = content.metadata() or {}
            wanted = content.keys() if names is None else names
            return {name: content.get_tensor(name) for name in wanted}, metadata
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is not a {what} (.safetensors): {brief(error)}") from error


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # which is no OSError, not even where the disk is full
            raise OSError(brief(error)) from error


# -- PyTorch's files ---------------------------------------------------------------------------------------------


def read_torch_file(path: str | os.PathLike[str], what: str) -> Any:
    """Return the content of a PyTorch file that holds mappings, plain tensors, numbers and text, and nothing else.

    `weights_only=True` alone keeps code from running, but lets a file of a hundred bytes allocate a terabyte; so the
    pickle is looked through first, and an archive may not be compressed (PyTorch's own never are).

    Raises:
        ValueError: no such file, damaged, or it holds other things.
    """
    file = regular_file(path, what)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            is_archive = stream.read(len(_ARCHIVE_START)) == _ARCHIVE_START  # as PyTorch decides
            stream.seek(0)
            for text in [_pickle_of(stream)] if is_archive else _old_pickles(stream):
                _check_pickle(text, size)
        content = torch.load(file, map_location="cpu", weights_only=True)
        _check_extents(content, size)
        return content
    except _TORCH_DAMAGE as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a {what} that can be read safely: {reason}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{path} is not a {what} that can be read safely: {brief(error)}") from error


def _pickle_of(stream: BinaryIO) -> bytes:
    with zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
        packed = [i.filename for i in infos if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"its member {packed[0]!r} is compressed, which PyTorch never does")
        found = [i for i in infos if i.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(found) != 1:
            raise ValueError("it holds no data.pkl, or several")
        if found[0].file_size > PICKLE_BYTES:
            raise ValueError(f"its data.pkl has {found[0].file_size:,} bytes, more than {PICKLE_BYTES:,}")
        return archive.read(found[0])


def _old_pickles(stream: BinaryIO) -> list[bytes]:
    """Return the pickles that follow the magic number in a file of PyTorch before 1.6."""
    pickles = []
    if stream.read(len(_OLD_START)) != _OLD_START:
        raise ValueError("it is neither a zip archive nor a pickle of PyTorch")
    for _ in range(4):  # protocol, system, content, keys of storages
        start = stream.tell()
        for opcode, _argument, _place in pickletools.genops(stream):
            if stream.tell() - start > PICKLE_BYTES:
                raise ValueError(f"a pickle of more than {PICKLE_BYTES:,} bytes")
            if opcode.name == "STOP":
                break
        end = stream.tell()
        stream.seek(start)
        pickles.append(stream.read(end - start))
    return pickles


def _check_extents(content: Any, file_size: int) -> None:
    """Raise a ValueError if a tensor (one number, repeated by a stride of 0) is larger than the file."""
    values = content.values() if isinstance(content, Mapping) else content
    for value in values if isinstance(values, Collection) and not isinstance(values, str | bytes | Tensor) else ():
        _check_extents(value, file_size)
        if isinstance(value, Tensor) and value.numel() * value.element_size() > file_size:
            raise ValueError(f"a tensor {list(value.shape)} is in a file of {file_size:,} bytes")


def _check_pickle(text: bytes, file_size: int) -> None:
    """Raise a ValueError if a pickle names anything but what plain tensors are made of, or storages too large."""
    kinds: dict[int, str] = {}  # what the memo holds: "storage", "text" or nothing of interest
    top, number = "", 0
    for opcode, given, _ in pickletools.genops(text):
        argument: Any = given
        name = opcode.name
        if name in _FOREIGN:
            raise ValueError(f"it makes objects ({name}), and plain tensors need none")
        if name in _MEMO_WRITES:
            kinds[int(argument)] = top
            continue
        before, top = top, ""
        if name == "GLOBAL":
            top = "storage" if _STORAGE.fullmatch(argument) else ""
            if not top and not _PLAIN.fullmatch(argument):
                raise ValueError(f"it names {argument.replace(' ', '.')!r}, which is no part of plain tensors")
        elif name in _MEMO_READS:
            top = kinds.get(int(argument), "")
        elif isinstance(argument, str):
            top = "text"
        elif isinstance(argument, int):
            number = argument
        elif name == "BINPERSID" and number > file_size:
            raise ValueError(f"a storage of {number:,} values is in a file of {file_size:,} bytes")
        # A storage stands before its key, a text; called with a number it would allocate that many values.
        if before == "storage" and top != "text":
            raise ValueError("it calls a storage, which files of tensors never do")
