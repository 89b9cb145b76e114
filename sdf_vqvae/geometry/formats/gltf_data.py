"""The container and the numbers of a glTF: JSON, buffers, views and accessors -> NumPy arrays.

Bytes are read from the disk where an accessor needs them, so what a reader never asks for (textures, normals,
animations) costs nothing. Every length is compared with what is there before anything is allocated. Knows nothing of
meshes and nodes.
"""

from __future__ import annotations

import base64
import struct
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdf_vqvae.geometry.formats import meshopt
from sdf_vqvae.geometry.formats.mesh_file import MAX_FILE_BYTES, OwnFolder, as_utf8, short
from sdf_vqvae.utils.strict_files import parse_json

OVERLAP = 16
"""How many bytes the accessors that are read may claim for each byte of the file; interleaved ones overlap."""
MAX_CHUNKS = 1024
"""Most chunks of a GLB that are looked through for its binary one."""
MESHOPT = ("KHR_meshopt_compression", "EXT_meshopt_compression")
_ROWS = 2**18  # of interleaved data, read at a time
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GLB_START = b"glTF"
_GLB_HEADER = 12
_CHUNK_HEADER = 8
_JSON_CHUNK = 0x4E4F534A
_BINARY_CHUNK = 0x004E4942
_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5124: "<i4", 5125: "<u4", 5126: "<f4", 5130: "<f8",
           5131: "<f2"}  # fmt: skip
_FRACTIONS = (5120, 5121, 5122, 5123)  # may be normalized
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class _InMemory:
    """Bytes that are held."""

    def __init__(self, data: bytes | np.ndarray) -> None:
        self.data = np.frombuffer(data, np.uint8)
        self.size = len(self.data)

    def read(self, start: int, length: int) -> np.ndarray:
        """Return uint8 `[length]`."""
        return self.data[start : start + length]


class _InFile:
    """A range of a file on the disk."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def read(self, start: int, length: int) -> np.ndarray:
        """Return uint8 `[length]`. Raises a ValueError if the file has become shorter."""
        data = np.fromfile(self.path, np.uint8, count=length, offset=self.start + start)
        if len(data) != length:
            raise ValueError(f"{short(self.path.name)} ended while it was read")
        return data


@dataclass(frozen=True, kw_only=True)
class Accessor:
    """How an array lies in the buffers."""

    count: int
    width: int
    """Numbers a row."""
    dtype: np.dtype
    normalized: bool
    """Integers stand for fractions of their largest value."""
    view: int | None
    offset: int
    sparse: dict[str, Any] | None

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self.width * self.dtype.itemsize


def whole(value: Any, what: str, least: int = 0) -> int:
    """Return a number of things or a place in a list. Raises a ValueError for anything else."""
    fits = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not fits or value < least:
        raise ValueError(f"{what} in its JSON is {short(str(value))}, not a whole number from {least}")
    return int(value)


def numbers(values: Any, count: int, what: str) -> np.ndarray:
    """Return float64 `[count]` from a list of JSON. Raises a ValueError unless it holds so many finite numbers."""
    fits = isinstance(values, list) and len(values) == count
    if not fits or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"{what} in its JSON is {short(str(values))}, not {count} numbers")
    array = np.array([float(v) for v in values])
    if not np.isfinite(array).all():
        raise ValueError(f"{what} in its JSON is {short(str(values))}, not {count} finite numbers")
    return array


def mapping(item: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of JSON; an empty one if there is none."""
    value = item.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} in its JSON is {short(str(value))}, not an object")
    return value


def listing(item: dict[str, Any], key: str) -> list[Any]:
    """Return a list of JSON; an empty one if there is none."""
    value = item.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key} in its JSON is {short(str(value))}, not a list")
    return value


class GltfData:
    """A glTF or GLB file: its document, and its accessors as arrays.

    Args:
        file: the file; which of the two it is, its first bytes say.
        resolver: opens the files that it names.

    Raises:
        ValueError: it is neither, claims more than it holds, or names files elsewhere.
    """

    def __init__(self, file: Path, resolver: OwnFolder) -> None:
        self.resolver = resolver
        self.size = file.stat().st_size
        text, self._binary = _opened(file, self.size)
        document = parse_json(text)
        if not isinstance(document, dict):
            raise ValueError("its JSON is not an object")
        self.document: dict[str, Any] = document
        self._lists: dict[str, list[dict[str, Any]]] = {}
        self._check_names()
        # Views that are compressed hold more than the file; how much more is bounded.
        unpacked = sum(whole(v.get("byteLength"), "byteLength") for v in self.items("bufferViews") if _meshopt_of(v))
        self._unpacked_size = min(unpacked, meshopt.RATIO * self.size)
        self._buffers: dict[int, _InMemory | _InFile] = {}
        self._unpacked: dict[int, _InMemory] = {}
        self._accessors: dict[int, Accessor] = {}

    # -- the document ----------------------------------------------------------------------------------------------

    def items(self, key: str) -> list[dict[str, Any]]:
        """Return a list of objects at the top of the document, such as its nodes."""
        if key not in self._lists:
            items = listing(self.document, key)
            if not all(isinstance(item, dict) for item in items):
                raise ValueError(f"{key} in its JSON is not a list of objects")
            self._lists[key] = items
        return self._lists[key]

    def item(self, key: str, number: Any, user: str) -> dict[str, Any]:
        """Return one of them. Raises a ValueError that names its user if it does not exist."""
        items = self.items(key)
        place = whole(number, f"a place in {key}")
        if place >= len(items):
            raise ValueError(f"{user} names number {place:,} of its {key}, but there are {len(items):,}")
        return items[place]

    def extension_names(self, key: str) -> list[str]:
        """Return the names under `extensionsUsed` or `extensionsRequired`."""
        names = listing(self.document, key)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} in its JSON is not a list of names")
        return names

    def _check_names(self) -> None:
        for item in (*self.items("buffers"), *self.items("images")):
            uri = item.get("uri")
            if isinstance(uri, str) and not uri.startswith("data:"):
                target = self.resolver.path(uri)
                self.size += target.stat().st_size if target.is_file() else 0

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _buffer(self, number: int) -> _InMemory | _InFile:
        if number not in self._buffers:
            self._buffers[number] = self._open_buffer(number)
        return self._buffers[number]

    def _open_buffer(self, number: int) -> _InMemory | _InFile:
        uri = self.item("buffers", number, "a view").get("uri")
        if uri is None:
            if number != 0 or self._binary is None:
                raise ValueError(f"its buffer {number} has no data")
            return self._binary
        if not isinstance(uri, str):
            raise ValueError(f"the address of its buffer {number} is {short(str(uri))}, not text")
        if uri.startswith("data:"):
            return _InMemory(_data_of(uri))
        path = self.resolver.file(uri)
        return _InFile(path, 0, path.stat().st_size)

    def view(self, number: Any) -> tuple[_InMemory | _InFile, int, int, int]:
        """Return the bytes of a view: where they are held, their start there, their length, and the stride or 0."""
        view = self.item("bufferViews", number, "an accessor")
        stride = whole(view.get("byteStride", 0), "byteStride")
        buffer = whole(view.get("buffer"), "the buffer of a view")
        if _meshopt_of(view) and not self._has_data(buffer):
            source = self._unpack(number, view)
            return source, 0, source.size, stride
        return *self._range(view, f"its view {number}"), stride

    def _range(self, view: dict[str, Any], what: str) -> tuple[_InMemory | _InFile, int, int]:
        """Return where bytes are held that an object names by buffer, byteOffset and byteLength."""
        buffer = whole(view.get("buffer"), f"the buffer of {what}")
        start = whole(view.get("byteOffset", 0), "byteOffset")
        length = whole(view.get("byteLength"), "byteLength")
        source = self._buffer(buffer)
        held = min(whole(self.items("buffers")[buffer].get("byteLength", source.size), "byteLength"), source.size)
        if start + length > held:
            raise ValueError(f"{what} claims bytes {start:,} to {start + length:,}, but buffer {buffer} has {held:,}")
        return source, start, length

    def _has_data(self, buffer: int) -> bool:
        """Return whether the bytes of a buffer are there; views that are compressed may name one that has none."""
        uri = self.item("buffers", buffer, "a view").get("uri")
        if uri is None:
            return buffer == 0 and self._binary is not None
        return isinstance(uri, str) and (uri.startswith("data:") or self.resolver.path(uri).is_file())

    def _unpack(self, number: Any, view: dict[str, Any]) -> _InMemory:
        """Return the bytes of a view that is compressed with meshopt."""
        if number not in self._unpacked:
            name = _meshopt_of(view)
            packed = mapping(mapping(view, "extensions"), name)
            what = f"its view {number}, compressed with {name},"
            count, stride = whole(packed.get("count"), "count"), whole(packed.get("byteStride"), "byteStride", 1)
            source, start, length = self._range(packed, what)
            if (
                count * stride != whole(view.get("byteLength"), "byteLength")
                or count * stride > meshopt.RATIO * length
            ):
                raise ValueError(
                    f"{what} claims {count:,} rows of {stride} bytes, which does not fit its {length:,} bytes"
                )
            mode, filter_name = str(packed.get("mode")), str(packed.get("filter", "NONE"))
            try:
                rows = meshopt.decode(source.read(start, length), mode, count, stride, filter_name)
            except ValueError as error:
                raise ValueError(f"{what} cannot be read: {error}") from error
            self._unpacked[number] = _InMemory(rows)
        return self._unpacked[number]

    # -- arrays ----------------------------------------------------------------------------------------------------

    def accessor(self, number: Any) -> Accessor:
        """Return how an array lies in the buffers, without looking at its numbers."""
        item = self.item("accessors", number, "its geometry")
        if number not in self._accessors:
            kind, component = str(item.get("type")), whole(item.get("componentType"), "componentType")
            if kind not in _WIDTHS or component not in _DTYPES:
                raise ValueError(f"its accessor {number} holds {short(kind)} of type {component}, which is not read")
            self._accessors[number] = Accessor(
                count=whole(item.get("count"), "count"),
                width=_WIDTHS[kind],
                dtype=np.dtype(_DTYPES[component]),
                normalized=item.get("normalized", False) is True and component in _FRACTIONS,
                view=None if "bufferView" not in item else whole(item["bufferView"], "bufferView"),
                offset=whole(item.get("byteOffset", 0), "byteOffset"),
                sparse=mapping(item, "sparse") or None,
            )
        return self._accessors[number]

    def expect(self, number: Any, width: int, what: str) -> Accessor:
        """Return an accessor whose rows must have `width` numbers. Raises a ValueError that says what it is for."""
        accessor = self.accessor(number)
        if accessor.width != width:
            raise ValueError(f"{what} (its accessor {number}) has {accessor.width} numbers a row, not {width}")
        return accessor

    def check_claims(self, claimed: int, ratio: int = OVERLAP) -> None:
        """Raise a ValueError if arrays claim more than `ratio` bytes for each byte of the file."""
        bound = min(ratio * self.size + self._unpacked_size, MAX_FILE_BYTES)
        if claimed > bound:
            raise ValueError(
                f"its accessors claim {claimed:,} bytes, more than the {bound:,} that such a file can hold"
            )

    def array(self, number: Any) -> np.ndarray:
        """Return the numbers of an accessor as they are stored, sparse ones in their places. `[count, width]`"""
        accessor = self.accessor(number)
        if accessor.view is None:
            self.check_claims(accessor.count * accessor.row)
            rows = np.zeros((accessor.count, accessor.width), accessor.dtype)
        else:
            rows = self._rows(accessor.view, accessor.offset, accessor.count, accessor.width, accessor.dtype)
        if accessor.sparse is not None:
            places, values = self.sparse(number)
            if not rows.flags.writeable:
                rows = rows.copy()
            rows[places] = values
        return rows

    def sparse(self, number: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that a sparse accessor replaces, int64 `[n]`, and their numbers. `[n, width]`"""
        accessor = self.accessor(number)
        sparse = accessor.sparse or {}
        indices, values = mapping(sparse, "indices"), mapping(sparse, "values")
        count, component = (whole(o.get(k), k) for o, k in ((sparse, "count"), (indices, "componentType")))
        if component not in (5121, 5123, 5125) or count > accessor.count:
            raise ValueError(f"the sparse part of its accessor {number} has {count:,} indices of type {component}")
        start = whole(indices.get("byteOffset", 0), "byteOffset")
        dtype = np.dtype(_DTYPES[component])
        places = self._rows(indices.get("bufferView"), start, count, 1, dtype)[:, 0].astype(np.int64)
        if count and places.max() >= accessor.count:
            raise ValueError(
                f"the sparse part of its accessor {number} names row {places.max():,} of {accessor.count:,}"
            )
        start = whole(values.get("byteOffset", 0), "byteOffset")
        return places, self._rows(values.get("bufferView"), start, count, accessor.width, accessor.dtype)

    def _rows(self, view: Any, offset: int, count: int, width: int, dtype: np.dtype) -> np.ndarray:
        source, start, length, stride = self.view(view)
        row = width * dtype.itemsize
        stride = stride or row
        if stride < row:
            raise ValueError(f"its view {view} has a stride of {stride} bytes for rows of {row}")
        needed = offset + (stride * (count - 1) + row if count else 0)
        if needed > length:
            raise ValueError(f"an accessor needs {needed:,} bytes of its view {view}, which has {length:,}")
        start += offset
        if stride == row or count < 2:
            return source.read(start, row * count).view(dtype).reshape(count, width)
        rows = np.empty((count, width), dtype)
        for first in range(0, count, _ROWS):
            part = rows[first : first + _ROWS]
            raw = source.read(start + stride * first, stride * (len(part) - 1) + row)
            part[:] = np.ndarray(part.shape, dtype, raw, strides=(stride, dtype.itemsize))
        return rows


def fractions(rows: np.ndarray, normalized: bool) -> np.ndarray:
    """Return float64 numbers; normalized integers as the fractions that they stand for."""
    if not normalized:
        return rows.astype(np.float64)
    largest = np.iinfo(rows.dtype).max
    values = rows / np.float64(largest)
    return np.maximum(values, -1.0, out=values) if rows.dtype.kind == "i" else values


def _meshopt_of(view: dict[str, Any]) -> str:
    """Return the name of the extension that a view is compressed with, or nothing."""
    extensions = mapping(view, "extensions")
    return next((name for name in MESHOPT if name in extensions), "")


def _opened(file: Path, size: int) -> tuple[bytes, _InFile | None]:
    """Return the JSON text of a glTF or GLB, and where the binary chunk of a GLB lies."""
    with file.open("rb") as stream:
        head = stream.read(_GLB_HEADER + _CHUNK_HEADER)
        if head[:4] != _GLB_START:
            if file.suffix.lower() == ".glb" and head.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] not in (b"{", b"["):
                raise ValueError(f"it begins with {head[:4]!r}, not with {_GLB_START!r}")
            return _text_of(head + stream.read()), None
        if len(head) < _GLB_HEADER + _CHUNK_HEADER:
            raise ValueError(f"it ends after {len(head)} bytes")
        version, length, text_length, kind = struct.unpack_from("<IIII", head, 4)
        if version != 2:
            raise ValueError(f"only version 2 of glTF is read, not {version}")
        if length > size:
            raise ValueError(f"its header claims {length:,} bytes, but the file has {size:,}")
        if kind != _JSON_CHUNK or len(head) + text_length > size:
            raise ValueError(f"its first chunk claims {text_length:,} bytes of JSON, but the file has {size:,}")
        text = stream.read(text_length)
        place = len(head) + text_length
        for _ in range(MAX_CHUNKS):
            stream.seek(place)
            head = stream.read(_CHUNK_HEADER)
            if place + _CHUNK_HEADER > length or len(head) < _CHUNK_HEADER:
                break
            chunk_length, kind = struct.unpack("<II", head)
            place += _CHUNK_HEADER
            if kind == _BINARY_CHUNK:
                if place + chunk_length > size:
                    raise ValueError(f"its binary chunk claims {chunk_length:,} bytes, but {size - place:,} follow")
                return _text_of(text), _InFile(file, place, chunk_length)
            place += chunk_length
    return _text_of(text), None


def _text_of(data: bytes) -> bytes:
    return as_utf8(data.removeprefix(_BYTE_ORDER_MARK))


def _data_of(uri: str) -> bytes:
    """Return the bytes that stand in an address that begins with `data:`."""
    kind, comma, text = uri.partition(",")
    if not comma:
        raise ValueError(f"its buffer at {short(uri)} holds no data")
    if not kind.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(text)
    encoded = urllib.parse.unquote_to_bytes(text) if "%" in text else text.encode("ascii", "replace")
    encoded = encoded.translate(None, b" \t\r\n").rstrip(b"=")
    return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
