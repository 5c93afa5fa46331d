"""Readers that undo compression, chosen by the first bytes: gzip, zstd, bzip2, xz, or none.

Memory is bounded whatever the archive claims: output comes in pieces of at most a mebibyte (zstd: 128
at worst). A stream that ends early or goes on with garbage is an error, not a short read.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

__all__ = ["ByteSource", "decompressor", "open_decompressed", "sniff"]

_CHUNK = 256 << 10
_OUTPUT = 1 << 20
# A zstd block of four bytes can stand for 128 KiB: small pieces of input bound the output.
_ZSTD_PIECE = 4096
_XZ_MEMORY = 256 << 20

_MAGIC = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))
_SNIFF = 6


class ByteSource(Protocol):
    """Where compressed bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _ZstdDecoder:
    """Gives zstandard's object the interface that bz2 and lzma have."""

    def __init__(self) -> None:
        import zstandard

        self._engine = zstandard.ZstdDecompressor().decompressobj()
        self._pending = memoryview(b"")
        self._tail = b""
        self.eof = False

    @property
    def needs_input(self) -> bool:
        return not self._pending and not self.eof

    @property
    def unused_data(self) -> bytes:
        return self._tail

    def decompress(self, data: bytes, max_length: int = _OUTPUT) -> bytes:
        if data:
            self._pending = memoryview(data)
        parts: list[bytes] = []
        size = 0
        while self._pending and size < max_length:
            piece, self._pending = self._pending[:_ZSTD_PIECE], self._pending[_ZSTD_PIECE:]
            part = self._engine.decompress(piece)
            parts.append(part)
            size += len(part)
            if self._engine.eof:
                self.eof = True
                self._tail = self._engine.unused_data + bytes(self._pending)
                self._pending = memoryview(b"")
        return b"".join(parts)


class _Reader(io.RawIOBase):
    """Reads the members of a compressed stream one after another; closes nothing."""

    def __init__(self, source: ByteSource, head: bytes, name: str, make: Callable[[], _Decoder]) -> None:
        self._source = source
        self._name = name
        self._make = make
        self._decoder: _Decoder | None = make()
        self._input = head
        self._output = memoryview(b"")
        self._errors = _errors(name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes (all of them for -1); empty at the end.

        Raises: LayerError when the stream is corrupt, cut short, or followed by garbage.
        """
        if size < 0:
            parts = []
            while part := self.read(_OUTPUT):
                parts.append(part)
            return b"".join(parts)
        if not self._output:
            more = self._more()
            if size >= len(more):
                return more
            self._output = memoryview(more)
        data, self._output = self._output[:size], self._output[size:]
        return bytes(data)

    def _more(self) -> bytes:
        while True:
            decoder = self._decoder
            if decoder is None:
                return b""
            if decoder.eof:
                self._next_member(decoder.unused_data)
                continue
            data = self._input
            self._input = b""
            if not data and decoder.needs_input:
                data = self._source.read(_CHUNK)
                if not data:
                    summary = f"{self._name} data ends early"
                    raise LayerError(summary, hint="the archive is cut short: fetch or make it again")
            try:
                out = decoder.decompress(data, _OUTPUT)
            except self._errors as exc:
                summary = f"{self._name} data is corrupt: {exc}"
                raise LayerError(summary) from exc
            if out:
                return out

    def _next_member(self, rest: bytes) -> None:
        rest = rest.lstrip(b"\x00")  # padding after the last member, as tape archives have
        while not rest or (len(rest) < _SNIFF and rest):
            more = self._source.read(_CHUNK)
            if not more:
                break
            rest = (rest + more).lstrip(b"\x00")
        if not rest:
            self._decoder = None
        elif sniff(rest) == self._name:
            self._decoder, self._input = self._make(), rest
        else:
            summary = f"garbage after the {self._name} data"
            raise LayerError(summary)


class _Plain(io.RawIOBase):
    """Gives back the sniffed head, then the stream."""

    def __init__(self, source: ByteSource, head: bytes) -> None:
        self._source = source
        self._head = head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            parts = []
            while part := self.read(_OUTPUT):
                parts.append(part)
            return b"".join(parts)
        if self._head:
            part, self._head = self._head[:size], self._head[size:]
            return part
        return self._source.read(size)


def sniff(head: bytes) -> str:
    """Name the compression of a stream that starts with ``head``; ``uncompressed`` when none is known."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(_ZSTD_SKIPPABLE):
        return "zstd"
    return "uncompressed"


def _errors(name: str) -> tuple[type[Exception], ...]:
    """Return what the decoder raises on corrupt data."""
    if name == "gzip":
        from isal import igzip_lib

        return (igzip_lib.IsalError,)  # type: ignore[return-value]  # its stub names an instance
    if name == "zstd":
        import zstandard

        return (zstandard.ZstdError,)
    if name == "bzip2":
        return (OSError, ValueError)
    import lzma

    return (lzma.LZMAError,)


def _make_decoder(name: str) -> Callable[[], _Decoder]:
    if name == "gzip":
        from isal import igzip_lib

        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if name == "zstd":
        return _ZstdDecoder
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor
    import lzma

    return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def open_decompressed(stream: ByteSource) -> tuple[str, io.RawIOBase]:
    """Return the compression's name and a reader of the plain bytes. ``stream`` stays the caller's."""
    head = b""
    while len(head) < _SNIFF and (more := stream.read(_CHUNK)):
        head += more
    name = sniff(head)
    if name == "uncompressed":
        return name, _Plain(stream, head)
    return name, _Reader(stream, head, name, _make_decoder(name))


def decompressor(stream: BinaryIO) -> io.RawIOBase:
    """Return a reader of the plain bytes of ``stream``, sniffing gzip, zstd, bzip2, xz or none.

    Reads raise LayerError when the stream is corrupt, cut short or followed by garbage.
    """
    return open_decompressed(stream)[1]
