"""Streams of an HTTP/2 connection as their users see them, and how they end.

Spec: RFC 9113 section 5.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.frames import CANCEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crossdock.buildkit.rpc.http2 import Connection

__all__ = ["STREAM_WINDOW", "ConnectionLost", "Headers", "Stream", "StreamReset"]

Headers = list[tuple[str, str]]

#: bytes a peer may have under way to us on one stream
STREAM_WINDOW = 8 << 20


class ConnectionLost(Exception):
    """The connection is gone; the text says why, as far as it is known."""


class StreamReset(Exception):
    """The peer ended one stream abruptly."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream reset with code {code}")
        self.code = code


class Stream:
    """One request and its response; made by :class:`Connection`."""

    def __init__(self, connection: Connection, number: int, send_window: int) -> None:
        self._connection = connection
        self.number = number
        #: guarded by the connection's lock, as everything below
        self.send_window = send_window
        self.readable = threading.Condition(connection.lock)
        #: header lists received and not yet taken: headers, then trailers
        self.blocks: deque[Headers] = deque()
        self.chunks: deque[bytes] = deque()
        #: bytes read and not yet given back to the peer's window, and what is left of that window
        self.owed = 0
        self.receive_window = STREAM_WINDOW
        self.remote_ended = False
        self.local_ended = False
        #: the peer has answered, and wants no more of what is sent
        self.unwanted = False
        self._error: Exception | None = None
        self._watcher: Callable[[], object] | None = None

    @property
    def error(self) -> Exception | None:
        """Why the stream ended before its time."""
        return self._error

    @error.setter
    def error(self, error: Exception | None) -> None:
        self._error = error
        watcher, self._watcher = self._watcher, None
        if error is not None and watcher is not None:
            # The lock is held here, and what a watcher does is not known.
            threading.Thread(target=watcher, daemon=True, name="rpc-gone").start()

    def watch(self, watcher: Callable[[], object] | None) -> None:
        """Have a function called, in a thread of its own, should the stream end before its time; ``None`` takes it back."""
        with self._connection.lock:
            self._watcher = watcher
            if self._error is not None:
                self.error = self._error

    def take_headers(self, timeout_s: float | None = None) -> Headers | None:
        """Return the next header list: headers first, trailers after the data; ``None`` when none will come.

        Raises: TimeoutError; StreamReset; ConnectionLost.
        """
        with self._connection.lock:
            if not self.readable.wait_for(
                lambda: self.blocks or self.remote_ended or self.error is not None, timeout_s
            ):
                raise TimeoutError
            if self.blocks:
                return self.blocks.popleft()
            if self.error is not None and not self.remote_ended:
                raise self.error
            return None

    def read(self, timeout_s: float | None = None) -> bytes:
        """Return all data that has come, waiting for some; empty at the end (or when trailers come).

        Raises: TimeoutError; StreamReset; ConnectionLost.
        """
        with self._connection.lock:
            if not self.readable.wait_for(
                lambda: self.chunks or self.remote_ended or self.error is not None, timeout_s
            ):
                raise TimeoutError
            if not self.chunks:
                if self.error is not None and not self.remote_ended:
                    raise self.error
                return b""
            data = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
            self.chunks.clear()
        self._connection.consumed(self, len(data))
        return data

    def send_headers(self, headers: Iterable[tuple[str, str]], *, end: bool = False) -> None:
        """Send a header list; with ``end`` nothing follows. Raises: StreamReset; ConnectionLost."""
        self._connection.send_headers(self, headers, end=end)

    def send(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> None:
        """Send data, waiting while the peer's window is full. Raises: StreamReset; ConnectionLost."""
        self._connection.send_data(self, data, end=end)

    def reset(self, code: int = CANCEL) -> None:
        """End the stream abruptly, waking whoever waits on it; idempotent, also after the end."""
        self._connection.reset(self, code)
