"""The bitstreams of EXT_meshopt_compression and KHR_meshopt_compression, as the extensions specify them.

Every read is checked against the end of the stream, since streams come from files of strangers; what a stream claims
to unpack to is checked by the caller. Compiled by Numba, because each byte depends on the ones before it. Knows
nothing of glTF beyond the names of modes and filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

RATIO = 1024
"""Most bytes that a byte of a stream stands for: 256 rows without differences, a byte for each four columns."""
_ATTRIBUTE_HEADERS = (0xA0, 0xA1)
_TRIANGLE_HEADER = 0xE1
_INDEX_HEADER = 0xD1
_DAMAGED = "the stream is damaged"


def decode(data: np.ndarray, mode: str, count: int, stride: int, filter_name: str = "NONE") -> np.ndarray:
    """Unpack a view. uint8 `[count * stride]`

    Args:
        data: the stream, uint8 `[n]`.
        mode: ATTRIBUTES, TRIANGLES or INDICES.
        count: rows that it holds.
        stride: bytes a row.
        filter_name: NONE, EXPONENTIAL or QUATERNION; the others are for normals and colors, which nobody asks for.

    Raises:
        ValueError: the stream is damaged, or mode, stride or filter are not what the extension allows.
    """
    data = np.array(data, np.uint8)  # one type for all, also where the bytes may not be written
    if mode == "ATTRIBUTES":
        if stride % 4 or not 4 <= stride <= 256:
            raise ValueError(f"meshopt packs rows of 4 to 256 bytes in fours, not of {stride}")
        return _filtered(_attributes(data, count, stride), filter_name).reshape(-1).view(np.uint8)
    if mode not in ("TRIANGLES", "INDICES"):
        raise ValueError(f"meshopt has no mode {mode[:80]!r}")
    if stride not in (2, 4) or filter_name != "NONE" or (mode == "TRIANGLES" and count % 3):
        raise ValueError(f"meshopt packs indices of 2 or 4 bytes without a filter, not {count} of {stride}")
    indices = np.zeros(count, np.int64)
    if mode == "TRIANGLES":
        rings = np.zeros(32, np.int64), np.zeros(16, np.int64)
        good = _begins(data, _TRIANGLE_HEADER, count // 3 + 16) and _unpack_triangles(data, *rings, indices)
    else:
        good = _begins(data, _INDEX_HEADER, count + 4) and _unpack_indices(data, indices)
    if not good:
        raise ValueError(_DAMAGED)
    return indices.astype("<u2" if stride == 2 else "<u4").view(np.uint8)


def _begins(data: np.ndarray, header: int, least: int) -> bool:
    return len(data) > least and int(data[0]) == header


def _attributes(data: np.ndarray, count: int, stride: int) -> np.ndarray:
    """Return uint8 `[count, stride]`."""
    if len(data) == 0 or data[0] not in _ATTRIBUTE_HEADERS:
        raise ValueError(_DAMAGED)
    version = np.int64(data[0]) & 0x0F
    tail = stride if version == 0 else stride + stride // 4
    end = len(data) - max(tail, 32 if version == 0 else 24)
    if end < 1:
        raise ValueError(_DAMAGED)
    before = data[len(data) - tail :][:stride].astype(np.int64)
    channels = data[len(data) - tail + stride :].astype(np.int64) if version else np.zeros(stride // 4, np.int64)
    if ((channels & 15 > 2) | (channels & 15 < 2) & (channels > 1)).any():
        raise ValueError(_DAMAGED)
    rows, packed = np.zeros((count, stride), np.uint8), np.zeros((stride, 256), np.int64)
    if not _unpack_attributes(data[:end], channels, version, before, packed, rows):
        raise ValueError(_DAMAGED)
    return rows


def _filtered(rows: np.ndarray, filter_name: str) -> np.ndarray:
    """Undo a filter on uint8 `[count, stride]`."""
    if filter_name == "NONE":
        return rows
    if filter_name == "EXPONENTIAL":
        packed = rows.view("<i4")
        return np.ldexp((packed << 8 >> 8).astype(np.float64), packed >> 24).astype("<f4")
    if filter_name == "QUATERNION" and rows.shape[1] == 8:
        return _quaternions(rows.view("<i2"))
    raise ValueError(f"the filter {filter_name[:80]!r} of meshopt is not read for rows of {rows.shape[1]} bytes")


def _quaternions(packed: np.ndarray) -> np.ndarray:
    """Return int16 `[n, 4]` from three components and, in the fourth, their scale and which one is left out."""
    one = (packed[:, 3] | 3).astype(np.float64)
    if not (one > 0).all():
        raise ValueError(_DAMAGED)
    three = packed[:, :3] / one[:, None] / np.sqrt(2)
    largest = np.sqrt(np.maximum(0, 1 - (three**2).sum(axis=1)))
    places = ((packed[:, 3] & 3)[:, None] + np.array([1, 2, 3, 0])) % 4
    values = np.empty((len(packed), 4))
    np.put_along_axis(values, places, np.column_stack([three, largest]), axis=1)
    return np.clip(np.round(values * 32767), -32767, 32767).astype("<i2")


# The loops below use scalars alone: Numba compiles those in a fraction of the time that slices take.


@njit(cache=True, nogil=True)
def _unpack_attributes(data: Any, channels: Any, version: int, before: Any, packed: Any, rows: Any) -> bool:
    """Fill `rows`; return whether the stream was whole.

    Args:
        data: up to where the blocks end, uint8.
        channels: kind of the differences of each four columns, int64 `[stride / 4]`.
        version: of the stream, 0 or 1.
        before: the row before the first, int64 `[stride]`; overwritten.
        packed: room for the columns of a block, int64 `[stride, 256]`.
        rows: uint8 `[count, stride]`.
    """
    count, stride = rows.shape
    block = min((8192 // stride) & ~15, 256)
    place, end, done = 1, len(data), 0
    while done < count:
        size = min(block, count - done)
        control = place
        if version == 1:
            place += stride // 4
            if place > end:
                return False
        for k in range(stride):
            kind = np.int64(data[control + k // 4] >> (2 * (k % 4))) & 3 if version == 1 else -1
            place = _unpack_column(data, place, end, kind, size, packed, k)
            if place < 0:
                return False
        for channel in range(stride // 4):
            _undo_differences(packed, before, 4 * channel, channels[channel], rows, done, size)
        done += size
    return place == end


@njit(cache=True, nogil=True)
def _unpack_column(data: Any, place: int, end: int, kind: int, size: int, packed: Any, k: int) -> int:
    """Unpack one byte of each row of a block; return the place after it, or -1.

    They lie in groups of 16, and before the groups stand their widths in bits.
    """
    if kind == 2:
        for i in range(size):
            packed[k, i] = 0
        return place
    if kind == 3:
        if place + size > end:
            return -1
        for i in range(size):
            packed[k, i] = data[place + i]
        return place + size
    groups = (size + 15) // 16
    head = place
    place += (groups + 3) // 4
    if place > end:
        return -1
    for group in range(groups):
        choice = np.int64(data[head + group // 4] >> (2 * (group % 4))) & 3
        if kind == 1:  # 1, 2, 4 or 8 bits
            bits = 1 << choice
        elif choice == 0:
            bits = 0
        else:  # 1, 2 or 4; in version 0: 2, 4 or 8
            bits = 1 << (choice - 1 if kind == 0 else choice)
        if place + 2 * bits > end:
            return -1
        extra = place + 2 * bits
        largest = (1 << bits) - 1
        for i in range(16):
            value = 0
            if bits:
                at = i * bits
                shift = at % 8 if bits == 1 else 8 - bits - at % 8
                value = (np.int64(data[place + at // 8]) >> shift) & largest
            if 0 < bits < 8 and value == largest:
                if extra >= end:
                    return -1
                value = np.int64(data[extra])
                extra += 1
            packed[k, 16 * group + i] = value
        place = extra
    return place


@njit(cache=True, nogil=True)
def _undo_differences(packed: Any, before: Any, k: int, channel: int, rows: Any, done: int, size: int) -> None:
    """Write four columns of a block: each row is the one before it, and a difference of 8, 16 or 32 bits."""
    kind, turn = channel & 15, channel >> 4
    for i in range(size):
        if kind == 0:
            for j in range(k, k + 4):
                value = packed[j, i]
                before[j] = (before[j] + ((value >> 1) ^ -(value & 1))) & 255
        elif kind == 1:
            for j in range(k, k + 4, 2):
                value = packed[j, i] | packed[j + 1, i] << 8
                total = (before[j] | before[j + 1] << 8) + ((value >> 1) ^ -(value & 1))
                before[j] = total & 255
                before[j + 1] = (total >> 8) & 255
        else:
            value = packed[k, i] | packed[k + 1, i] << 8 | packed[k + 2, i] << 16 | packed[k + 3, i] << 24
            value = ((value >> turn) | (value << (32 - turn))) & 0xFFFFFFFF  # packed, it was turned to the left
            for j in range(4):
                before[k + j] ^= (value >> (8 * j)) & 255
        for j in range(k, k + 4):
            rows[done + i, j] = before[j]


@njit(cache=True, nogil=True)
def _number(data: Any, place: int, end: int) -> tuple[int, int]:
    """Return a number of up to five bytes, seven bits each, and the place after it, or -1."""
    value = 0
    for i in range(5):
        if place >= end:
            return 0, -1
        byte = np.int64(data[place])
        place += 1
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value & 0xFFFFFFFF, place
    return 0, -1


@njit(cache=True, nogil=True)
def _unpack_indices(data: Any, indices: Any) -> bool:
    """Fill `indices`, int64; return whether the stream was whole."""
    place, end = 1, len(data) - 4
    even, odd = 0, 0
    for i in range(len(indices)):
        value, place = _number(data, place, end)
        if place < 0:
            return False
        step = (value >> 2) ^ -((value >> 1) & 1)
        if value & 1:
            odd = (odd + step) & 0xFFFFFFFF
            indices[i] = odd
        else:
            even = (even + step) & 0xFFFFFFFF
            indices[i] = even
    return place == end


@njit(cache=True, nogil=True)
def _unpack_triangles(data: Any, edges: Any, vertices: Any, indices: Any) -> bool:
    """Fill `indices`; return whether the stream was whole.

    The sixteen edges and sixteen vertices that came last lie in rings: number x of the newest at (seen - 1 - x) & 15.

    Args:
        data: the stream, uint8.
        edges: room for the edges, int64 `[32]`.
        vertices: room for the vertices, int64 `[16]`.
        indices: int64 `[n]`.
    """
    triangles = len(indices) // 3
    place, end = 1 + triangles, len(data) - 16
    edges_seen, vertices_seen, coming, last = 0, 0, 0, 0
    for triangle in range(triangles):
        code = np.int64(data[1 + triangle])
        first, low = code >> 4, code & 15
        at = 3 * triangle
        # Where each corner comes from: 0 the next vertex, 1 to 14 one seen before, 15 a number that follows.
        pair = 0
        if first < 15:  # an edge that was seen, and one corner
            if first >= edges_seen:
                return False
            edge = 2 * ((edges_seen - 1 - first) & 15)
            indices[at], indices[at + 1] = edges[edge], edges[edge + 1]
            begin = 2
        else:
            begin = 0
            if low < 14:
                pair = np.int64(data[end + low])
                if pair >> 4 == 15 or pair & 15 == 15:
                    return False
            else:
                if place >= end:
                    return False
                pair = np.int64(data[place])
                place += 1
                if pair == 0:
                    coming = 0
        seen = vertices_seen
        for corner in range(begin, 3):
            if begin == 2:
                source = low + 1 if 0 < low < 13 else (0 if low == 0 else 15)
            elif corner == 0:
                source = 15 if low == 15 else 0
            else:
                source = pair >> 4 if corner == 1 else pair & 15
            if source == 0:
                vertex = coming
                coming = (coming + 1) & 0xFFFFFFFF
            elif source < 15:
                if source > seen:
                    return False
                vertex = vertices[(seen - source) & 15]
            else:
                value = 1 if low == 13 else 2  # one down or up, zigzag
                if begin == 0 or low == 15:
                    value, place = _number(data, place, end)
                    if place < 0:
                        return False
                last = (last + ((value >> 1) ^ -(value & 1))) & 0xFFFFFFFF
                vertex = last
            indices[at + corner] = vertex
        for corner in range(begin, 3):  # put into the ring when all were taken from it
            fresh = True
            if begin == 2:
                fresh = not 0 < low < 13
            elif corner == 1:
                fresh = pair >> 4 == 0 or pair >> 4 == 15
            elif corner == 2:
                fresh = pair & 15 == 0 or pair & 15 == 15
            if fresh:
                vertices[vertices_seen & 15] = indices[at + corner]
                vertices_seen += 1
        for side in range(1 if begin == 2 else 0, 3):  # (b, a), (c, b), (a, c)
            ring = 2 * (edges_seen & 15)
            edges[ring] = indices[at + (side + 1) % 3]
            edges[ring + 1] = indices[at + side]
            edges_seen += 1
    return place == end
