"""The protobuf wire format, as far as LLB needs it: varints and length-delimited fields.

Written by hand so that vertex digests cost no protobuf import. Fields are emitted in number order and defaults
are left out, which is what Go's deterministic marshalling gives.

Spec: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import SolveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "as_bytes",
    "as_int",
    "as_str",
    "boolean",
    "fields",
    "integer",
    "message",
    "packed",
    "packed_ints",
    "raw",
    "string_map",
    "text",
    "texts",
    "varint",
]

_MASK = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Encode an integer; negative ones as 64-bit two's complement."""
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= _MASK
    out = bytearray()
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(number: int, value: int) -> bytes:
    """An integer, enum or bool field; nothing when zero."""
    return varint(number << 3) + varint(value) if value else b""


def boolean(number: int, value: bool) -> bytes:
    """A bool field; nothing when false."""
    return integer(number, int(value))


def raw(number: int, value: bytes) -> bytes:
    """A bytes field; nothing when empty."""
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


def message(number: int, value: bytes) -> bytes:
    """An embedded message or repeated bytes element; present even when empty."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def text(number: int, value: str) -> bytes:
    """A string field; nothing when empty."""
    return raw(number, value.encode("utf-8", "surrogateescape")) if value else b""


def texts(number: int, values: Iterable[str]) -> bytes:
    """A repeated string field; empty elements are kept."""
    return b"".join(message(number, v.encode("utf-8", "surrogateescape")) for v in values)


def packed(number: int, values: Iterable[int]) -> bytes:
    """A packed repeated integer field."""
    return raw(number, b"".join(map(varint, values)))


def string_map(number: int, values: Mapping[str, str]) -> bytes:
    """A ``map<string, string>`` field, sorted by key."""
    return b"".join(
        message(number, message(1, k.encode()) + message(2, v.encode("utf-8", "surrogateescape")))
        for k, v in sorted(values.items())
    )


def _read_varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    shift = value = 0
    while True:
        if at >= len(data) or shift > 63:
            summary = f"malformed definition: truncated or overlong integer in {where}"
            raise SolveError(summary)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7


def fields(data: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """Yield ``(field number, value)``; ``where`` names the message in errors.

    Raises: SolveError when the bytes are malformed.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at, where)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            summary = f"malformed definition: field number 0 in {where}"
            raise SolveError(summary)
        if wire_type == 0:
            value, at = _read_varint(data, at, where)
            yield number, value
            continue
        if wire_type == 2:
            length, at = _read_varint(data, at, where)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            summary = f"malformed definition: wire type {wire_type} in {where}"
            raise SolveError(summary)
        if length > end - at:
            summary = f"malformed definition: field {number} of {where} is truncated"
            raise SolveError(summary)
        yield number, data[at : at + length]
        at += length


def as_int(value: int | bytes, where: str) -> int:
    """Read a signed integer.

    Raises: SolveError when the field has another wire type.
    """
    if not isinstance(value, int):
        summary = f"malformed definition: {where} is not an integer"
        raise SolveError(summary)
    return value - (1 << 64) if value >= 1 << 63 else value


def as_bytes(value: int | bytes, where: str) -> bytes:
    """Read bytes or an embedded message.

    Raises: SolveError when the field has another wire type.
    """
    if not isinstance(value, bytes):
        summary = f"malformed definition: {where} is not length-delimited"
        raise SolveError(summary)
    return value


def as_str(value: int | bytes, where: str) -> str:
    """Read a string.

    Raises: SolveError when the field is not UTF-8, has a NUL, which no path, argument or variable can, or another wire type.
    """
    raw = as_bytes(value, where)
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        summary = f"malformed definition: {where} is not UTF-8"
        raise SolveError(summary) from exc
    if b"\0" in raw:
        summary = f"malformed definition: {where} contains a NUL"
        raise SolveError(summary)
    return text


def packed_ints(value: int | bytes, where: str) -> Iterator[int]:
    """Read one occurrence of a repeated integer field, packed or not."""
    if isinstance(value, int):
        yield as_int(value, where)
        return
    at = 0
    while at < len(value):
        item, at = _read_varint(value, at, where)
        yield as_int(item, where)
