"""Header compression: everything is decoded; what we send is plain literals.

Sent header lists are short and rare next to the data, so encoding without a table costs nothing that can be measured
and needs no state shared with the peer.

Spec: RFC 7541.
"""

from __future__ import annotations

from collections import deque
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Decoder", "HeaderError", "encode"]

#: appendix A, entries 1 to 61
_STATIC: tuple[tuple[str, str], ...] = (
    (":authority", ""),
    *((":method", m) for m in ("GET", "POST")),
    *((":path", p) for p in ("/", "/index.html")),
    *((":scheme", s) for s in ("http", "https")),
    *((":status", s) for s in ("200", "204", "206", "304", "400", "404", "500")),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    *(
        (name, "")
        for name in (
            "accept-language",
            "accept-ranges",
            "accept",
            "access-control-allow-origin",
            "age",
            "allow",
            "authorization",
            "cache-control",
            "content-disposition",
            "content-encoding",
            "content-language",
            "content-length",
            "content-location",
            "content-range",
            "content-type",
            "cookie",
            "date",
            "etag",
            "expect",
            "expires",
            "from",
            "host",
            "if-match",
            "if-modified-since",
            "if-none-match",
            "if-range",
            "if-unmodified-since",
            "last-modified",
            "link",
            "location",
            "max-forwards",
            "proxy-authenticate",
            "proxy-authorization",
            "range",
            "referer",
            "refresh",
            "retry-after",
            "server",
            "set-cookie",
            "strict-transport-security",
            "transfer-encoding",
            "user-agent",
            "vary",
            "via",
            "www-authenticate",
        )
    ),
)

#: appendix B: bits per symbol 0 to 255; the code is canonical, so lengths give the codes. EOS (30 ones) is never sent.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606"
    "060505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d"
    "0e060f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717"
    "1718171818161718171717171516171617171816151416161717151716161815161717151516151716171714161616"
    "171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b1418141516151517161619"
    "1918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
)

#: bytes of decoded headers in one block; far above what gRPC peers send
_MAX_LIST = 16 << 20
#: what an entry costs besides its bytes
_ENTRY = 32
#: bytes of encoded texts that are remembered
_SHORT = 128


class HeaderError(ValueError):
    """A header block that breaks the rules: the connection cannot go on."""


def _integer(value: int, bits: int, first: int) -> bytes:
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """Encode a header list as literals that no table remembers."""
    out = bytearray()
    for name, value in headers:
        out += b"\0"
        for text in (name.encode(), value.encode()):
            out += _integer(len(text), 7, 0)
            out += text
    return bytes(out)


@cache
def _codes() -> dict[tuple[int, int], int]:
    """(length, code) -> symbol."""
    out: dict[tuple[int, int], int] = {}
    code = before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - before
        out[length, code] = symbol
        code, before = code + 1, length
    return out


def _huffman(data: bytes) -> bytes:
    """Decode; what is short is remembered, since peers send the same few names and values all the time."""
    return _remembered(data) if len(data) <= _SHORT else _decoded(data)


@lru_cache(maxsize=2048)
def _remembered(data: bytes) -> bytes:
    return _decoded(data)


def _decoded(data: bytes) -> bytes:
    codes = _codes()
    out = bytearray()
    length = code = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = codes.get((length, code))
            if symbol is not None:
                out.append(symbol)
                length = code = 0
            elif length >= 30:
                msg = "invalid Huffman code"
                raise HeaderError(msg)
    if length > 7 or code != (1 << length) - 1:
        msg = "invalid Huffman padding"
        raise HeaderError(msg)
    return bytes(out)


class Decoder:
    """Decodes one peer's header blocks, in order; the dynamic table is that of the connection."""

    def __init__(self, max_table: int = 4096, *, max_list: int = _MAX_LIST) -> None:
        """``max_list``: bytes that a decoded list may have, 32 more for each entry counted in."""
        self._max_list = max_list
        self._limit = self._max_table = max_table
        self._table: deque[tuple[str, str]] = deque()
        self._size = 0

    def decode(self, block: bytes) -> list[tuple[str, str]]:
        """Decode a complete block; values that are not UTF-8 keep their bytes as surrogates.

        Raises: HeaderError.
        """
        try:
            return self._decode(block)
        except IndexError as exc:
            msg = "truncated header block"
            raise HeaderError(msg) from exc

    def _decode(self, block: bytes) -> list[tuple[str, str]]:
        out: list[tuple[str, str]] = []
        at, total = 0, 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _read_integer(block, at, 7)
                name, value = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, at = _read_integer(block, at, 5)
                self._resize(size)
                continue
            else:
                remember = first & 0x40
                index, at = _read_integer(block, at, 6 if remember else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _read_text(block, at)
                value, at = _read_text(block, at)
                if remember:
                    self._add(name, value)
            total += len(name) + len(value) + _ENTRY
            if total > self._max_list:
                msg = "header list too large"
                raise HeaderError(msg)
            out.append((name, value))
        return out

    def _entry(self, index: int) -> tuple[str, str]:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if not 0 <= index < len(self._table):
            msg = "header index out of range"
            raise HeaderError(msg)
        return self._table[index]

    def _add(self, name: str, value: str) -> None:
        self._table.appendleft((name, value))
        self._size += _cost(name, value)
        self._shrink()

    def _resize(self, size: int) -> None:
        if size > self._limit:
            msg = "header table larger than allowed"
            raise HeaderError(msg)
        self._max_table = size
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._max_table:
            self._size -= _cost(*self._table.pop())


def _cost(name: str, value: str) -> int:
    return len(name.encode(errors="surrogateescape")) + len(value.encode(errors="surrogateescape")) + _ENTRY


def _read_integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
        if shift > 28:
            msg = "header integer too large"
            raise HeaderError(msg)


def _read_text(block: bytes, at: int) -> tuple[str, int]:
    huffman = block[at] & 0x80
    length, at = _read_integer(block, at, 7)
    data = block[at : at + length]
    if len(data) != length:
        raise IndexError
    if huffman:
        data = _huffman(data)
    return data.decode(errors="surrogateescape"), at + length
