"""A general deterministic tar stream, for archives made of blobs and bytes.

Not for: layers (``crossdock.layers.walk``), which come from a directory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import LayerError
from crossdock.layers.header import END, encode_header, padding

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["Sink", "TarWriter"]

_CHUNK = 1 << 20


class Sink(Protocol):
    """Where the archive goes: a file, a socket's file, a :class:`~crossdock.layers.LayerSink`."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""
        ...


class TarWriter:
    """Writes entries in the order they are added; no owner, times as given (default 1970).

    Every byte is decided by the arguments. :meth:`close` writes the end mark and leaves ``out`` open.
    """

    def __init__(self, out: Sink) -> None:
        self._out = out

    def add_directory(self, name: str, *, mode: int = 0o755, mtime: int = 0) -> None:
        """Add a directory; ``mtime`` in seconds."""
        path = os.fsencode(name.rstrip("/") + "/")
        self._out.write(encode_header(path, kind=b"5", mode=mode, mtime=mtime))

    def add_bytes(self, name: str, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
        """Add a file with ``data``."""
        header = encode_header(os.fsencode(name), kind=b"0", mode=mode, size=len(data), mtime=mtime)
        self._out.write(header + data + bytes(padding(len(data))))

    def add_stream(
        self, name: str, stream: BinaryIO, size: int, *, mode: int = 0o644, mtime: int = 0
    ) -> None:
        """Add a file of exactly ``size`` bytes read from ``stream``.

        The stream's end is read too: a reader that verifies what it gives does so there.
        Raises: LayerError when the stream is shorter or longer.
        """
        self._out.write(encode_header(os.fsencode(name), kind=b"0", mode=mode, size=size, mtime=mtime))
        left = size
        while left:
            data = stream.read(min(left, _CHUNK))
            if not data:
                summary = f"{name}: {left} of {size} bytes are missing"
                raise LayerError(summary)
            self._out.write(data)
            left -= len(data)
        if stream.read(1):
            summary = f"{name}: there are more than {size} bytes"
            raise LayerError(summary)
        self._out.write(bytes(padding(size)))

    def close(self) -> None:
        """Write the end mark."""
        self._out.write(END)
