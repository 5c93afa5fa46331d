"""A socket for a step that leads to the ssh agent outside, with the owner and mode the step asked for."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["forwarded_agent"]

_CHUNK = 1 << 16


@contextmanager
def forwarded_agent(path: Path, agent: Path, *, uid: int, gid: int, mode: int) -> Iterator[None]:
    """Listen at ``path`` and pass every connection on to ``agent``; ends with all its connections."""
    relay = _Relay(path, str(agent))
    os.chown(path, uid, gid)
    path.chmod(mode)
    thread = threading.Thread(target=relay.accept_loop, name="ssh-agent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        relay.close()
        thread.join()


class _Relay:
    """The listener and its open connections."""

    def __init__(self, path: Path, agent: str) -> None:
        self._agent = agent
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        # Guards _open only; held for set operations, never over I/O.
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def accept_loop(self) -> None:
        """Serve until the listener is shut down."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(self._agent)
            except OSError:
                client.close()
                server.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
