"""Maps of GNU sparse files: which parts of a file the archive holds.

Spec: GNU tar manual, "Storing Sparse Files" (old GNU format, PAX 0.0, 0.1 and 1.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SparseMap", "old_gnu_map", "pax_0_map", "pax_1_map"]

#: ``(offset, length)`` of each part with data, and the size of the whole file
SparseMap = tuple[list[tuple[int, int]], int]

_BLOCK = 512
_MAX_PARTS = 1 << 20


def old_gnu_map(header: bytes, read: Callable[[int], bytes]) -> SparseMap:
    """Read the map in a type ``S`` header and the blocks that continue it.

    Raises: LayerError.
    """
    size = _octal(header[483:495])
    numbers = _old_parts(header[386:482], 4)
    more = header[482]
    while more:
        block = read(_BLOCK)
        numbers += _old_parts(block, 21)
        more = block[504]
        if len(numbers) > 2 * _MAX_PARTS:
            _fail()
    return _checked(numbers, size)


def pax_0_map(records: Mapping[str, bytes]) -> SparseMap:
    """Read a map of format 0.0 or 0.1 from PAX records.

    Raises: LayerError.
    """
    size = _decimal(records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size") or b"")
    text = records.get("GNU.sparse.map", b"")
    return _checked([_decimal(part) for part in text.split(b",")] if text else [], size)


def pax_1_map(records: Mapping[str, bytes], read: Callable[[int], bytes]) -> SparseMap:
    """Read a map of format 1.0 from the start of the entry's data.

    Raises: LayerError.
    """
    size = _decimal(records.get("GNU.sparse.realsize") or b"")
    data = b""
    while b"\n" not in data:
        data += _more(data, read)
    count = _decimal(data.partition(b"\n")[0])
    if count > _MAX_PARTS:
        _fail()
    while data.count(b"\n") < 2 * count + 1:
        data += _more(data, read)
    return _checked([_decimal(part) for part in data.split(b"\n")[1 : 2 * count + 1]], size)


def _more(data: bytes, read: Callable[[int], bytes]) -> bytes:
    if len(data) > 64 * _MAX_PARTS:
        _fail()
    return read(_BLOCK)


def _old_parts(data: bytes, count: int) -> list[int]:
    numbers: list[int] = []
    for at in range(0, 24 * count, 24):
        if not data[at]:
            break
        numbers += (_octal(data[at : at + 12]), _octal(data[at + 12 : at + 24]))
    return numbers


def _octal(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \x00")
    if text.strip(b"01234567"):
        _fail()
    return int(text, 8) if text else 0


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        _fail()
    return int(text)


def _checked(numbers: list[int], size: int) -> SparseMap:
    if len(numbers) % 2:
        _fail()
    parts = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in parts:
        if offset < end or offset + length > size:
            _fail()
        end = offset + length
    return [part for part in parts if part[1]], size


def _fail() -> None:
    summary = "invalid tar archive: malformed map of a sparse file"
    raise LayerError(summary)
