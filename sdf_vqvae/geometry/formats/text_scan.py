"""Numbers and words of text files, read from their bytes by loops that Numba compiles.

What OBJ, OFF and the ASCII kinds of PLY and STL share: white space, line ends (LF, CR LF, lone CR), decimal numbers
and whole numbers. Knows no format. A loop rarely meets a number that it can't round rightly, or that is none; it
leaves a NaN whose payload says where its text begins, and `settle` reads it.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

import numpy as np
from numba import njit

COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""How the loops of the readers are compiled."""

_BOMS = ((codecs.BOM_UTF8, None), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_WORD = re.compile(rb"[^\s\\]+")
_NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)
_POWERS = 10.0 ** np.arange(23)  # the ones that are whole in float64
_DIGITS = 18  # of decimal digits, what fits an int64
_NAN = 0x7FF8 << 48
_PLACE = (1 << 48) - 1


def decoded(data: bytes) -> bytes:
    """Return a file in an encoding that has ASCII in it, without a byte order mark.

    Raises:
        ValueError: it begins with the mark of UTF-16 or UTF-32, and is none.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data[len(mark) :] if encoding is None else data.decode(encoding).encode()
            except UnicodeDecodeError as error:
                raise ValueError(f"it begins as {encoding} text and goes on as none: {error.reason}") from error
    return data


def as_text(data: bytes) -> bytes:
    """Return the text of a file, see `decoded`.

    Raises:
        ValueError: it holds bytes that no text has.
    """
    data = decoded(data)
    if data.endswith(b"\0"):  # what some programs fill up a block with
        data = data.rstrip(b"\0")
    place = data.find(b"\0")
    if place >= 0:
        raise ValueError(f"{line_of(data, place)}: a zero byte, which no text has (UTF-16 needs its byte order mark)")
    return data


def line_of(data: bytes, place: int) -> str:
    """Return `line N`, as an editor counts them."""
    ends = data.count(b"\n", 0, place) + data.count(b"\r", 0, place) - data.count(b"\r\n", 0, place)
    return f"line {ends + 1}"


def word_at(data: bytes, place: int) -> str:
    """Return the word that begins at a place, in quotes, for messages."""
    word = _WORD.match(data, place)
    return repr(word[0][:40].decode("utf-8", "replace")) if word else "the end of the line"


def settle(values: np.ndarray, data: bytes) -> np.ndarray:
    """Read the numbers that a loop left to be read, in place. float64

    Raises:
        ValueError: what stands there is no number.
    """
    flat = values.reshape(-1)
    bits = flat.view(np.int64)
    for index in np.flatnonzero(np.isnan(flat)).tolist():
        place = int(bits[index]) & _PLACE
        word = _WORD.match(data, place)
        if word is None or _NUMBER.fullmatch(word[0]) is None:
            raise ValueError(f"{line_of(data, place)}: {word_at(data, place)} is not a number")
        flat[index] = float(word[0])
    return values


def code_of(word: str) -> int:
    """Return the first seven letters of a word as a number, as `word_code` does."""
    code = 0
    for letter in word.encode()[:7]:
        code = code << 8 | letter | 32
    return code


@njit(**COMPILED)
def word_code(data: Any, start: int, end: int) -> int:
    """Return the first seven letters of a word as a number, capital ones as small ones."""
    code = np.int64(0)
    for i in range(start, min(end, start + 7)):
        code = code << 8 | np.int64(data[i] | 32)
    return code


@njit(**COMPILED)
def larger(old: Any) -> Any:
    """Return an array of twice the length that begins as the given one."""
    new = np.empty(2 * len(old), old.dtype)
    for i in range(len(old)):  # a slice takes Numba seconds to compile
        new[i] = old[i]
    return new


@njit(**COMPILED)
def is_end(byte: int) -> bool:
    """Return whether a byte ends a line."""
    return byte == 10 or byte == 13


@njit(**COMPILED)
def is_blank(byte: int) -> bool:
    """Return whether a byte is white space within a line."""
    return byte == 32 or byte == 9 or byte == 11 or byte == 12


@njit(**COMPILED)
def ends_word(byte: int) -> bool:
    """Return whether a byte can't be in a word: white space, or the backslash of a continued line."""
    return (byte <= 32 and (is_blank(byte) or is_end(byte))) or byte == 92


@njit(**COMPILED)
def skip_blanks(data: Any, place: int) -> int:
    """Return the next place on a line that isn't white space."""
    while place < len(data) and is_blank(data[place]):
        place += 1
    return place


@njit(**COMPILED)
def skip_white(data: Any, place: int) -> int:
    """Return the next place that is neither white space nor a line end."""
    while place < len(data) and (is_blank(data[place]) or is_end(data[place])):
        place += 1
    return place


@njit(**COMPILED)
def skip_word(data: Any, place: int) -> int:
    """Return the place behind a word."""
    while place < len(data) and not ends_word(data[place]):
        place += 1
    return place


@njit(**COMPILED)
def skip_line(data: Any, place: int) -> int:
    """Return the place of a line's end."""
    while place < len(data) and not is_end(data[place]):
        place += 1
    return place


@njit(**COMPILED)
def whole(data: Any, place: int) -> tuple[int, int]:
    """Return a whole number and the place behind it; the place as it was if none stands there."""
    start = place
    negative = False
    if place < len(data) and (data[place] == 45 or data[place] == 43):
        negative = data[place] == 45
        place += 1
    first = place
    value = np.int64(0)
    while place < len(data) and 48 <= data[place] <= 57:
        value = value * 10 + np.int64(data[place] - 48)
        place += 1
    if place == first or place - first > _DIGITS:
        return np.int64(0), start
    return (-value if negative else value), place


@njit(**COMPILED)
def number(data: Any, place: int) -> tuple[float, int]:
    """Return a decimal number, rightly rounded, and the place behind its word; else a NaN (see `settle`)."""
    start = place
    unread = np.int64(_NAN | start).view(np.float64)
    end = len(data)
    negative = False
    if place < end and (data[place] == 45 or data[place] == 43):
        negative = data[place] == 45
        place += 1
    digits = 0  # seen
    counted = 0  # from the first that isn't 0
    power = 0
    value = np.int64(0)
    point = False
    while place < end:
        byte = data[place]
        if 48 <= byte <= 57:
            digits += 1
            if value > 0 and counted == _DIGITS:
                return unread, skip_word(data, place)
            value = value * 10 + np.int64(byte - 48)
            if value > 0:
                counted += 1
            if point:
                power -= 1
        elif byte == 46 and not point:
            point = True
        else:
            break
        place += 1
    if digits == 0:
        return unread, skip_word(data, place)
    if place < end and (data[place] == 101 or data[place] == 69):
        exponent, behind = whole(data, place + 1)
        if behind == place + 1 or abs(exponent) > 9999:
            return unread, skip_word(data, place)
        power += exponent
        place = behind
    if place < end and not ends_word(data[place]):
        return unread, skip_word(data, place)
    if value == 0:
        return (-0.0 if negative else 0.0), place
    if power < -22 or power > 22:
        return unread, place
    result, exact = _scaled(value, power)
    if not exact:
        return unread, place
    return (-result if negative else result), place


@njit(**COMPILED)
def _scaled(value: int, power: int) -> tuple[float, bool]:
    """Return value · 10^power rightly rounded, and whether that is certain. |power| up to 22, value up to 10^18

    Below 2^53 both factors are exact, and so is IEEE's rounding of one operation. Above, the value is the sum of two
    floats and the result another: high + low, rounded rightly unless low, known to 2^-40 of itself, lies at a tie.
    """
    factor = _POWERS[abs(power)]
    high = float(value)
    if value < (1 << 53):
        return (high * factor if power >= 0 else high / factor), True
    low = float(value - np.int64(high))
    if power >= 0:
        result = high * factor
        rest, more = _error_of_product(high, factor, result), low * factor
    else:
        result = high / factor
        product = result * factor
        rest, more = ((high - product) - _error_of_product(result, factor, product)) / factor, low / factor
    correction = rest + more
    doubt = (abs(rest) + abs(more)) * 2.0**-40
    return result + correction, result + (correction - doubt) == result + (correction + doubt)


@njit(**COMPILED)
def _error_of_product(a: float, b: float, product: float) -> float:
    """Return a · b - product, exactly (Dekker)."""
    split = 134217729.0  # 2^27 + 1
    a_high = a * split - (a * split - a)
    b_high = b * split - (b * split - b)
    a_low, b_low = a - a_high, b - b_high
    return a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
