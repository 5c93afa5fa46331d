"""A socket for a step that leads to the ssh agent outside, with the owner and mode the step asked for."""

from __future__ import annotations

import os
import select
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
        relay.stop_listening()
        thread.join()
        relay.cut()


class _Relay:
    """The listener and its open connections."""

    def __init__(self, path: Path, agent: str) -> None:
        self._agent = agent
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bind(path)
        self._listener.listen(16)
        # Guards _open only; held for set operations, never over I/O.
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        # Touched by the accepting thread, and by close() after that one has ended.
        self._threads: list[threading.Thread] = []

    def _bind(self, path: Path) -> None:
        """Bind through the directory's descriptor: a socket address holds 107 bytes, a path may be longer."""
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)

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
            thread = threading.Thread(
                target=self._serve, args=(client, server), name="ssh-agent", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Copy both ways until one side closes; an agent's protocol has no half-closed connections."""
        poll = select.poll()
        peers = {client.fileno(): (client, server), server.fileno(): (server, client)}
        for fd in peers:
            poll.register(fd, select.POLLIN)
        with suppress(OSError):
            while True:
                for fd, _ in poll.poll():
                    source, sink = peers[fd]
                    data = source.recv(_CHUNK)
                    if not data:
                        raise ConnectionResetError
                    sink.sendall(data)
        self._forget(client, server)

    def _forget(self, *connections: socket.socket) -> None:
        with self._lock:
            self._open.difference_update(connections)
        for connection in connections:
            connection.close()

    def stop_listening(self) -> None:
        """Make :meth:`accept_loop` return."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self) -> None:
        """Cut every connection and wait for their threads, which close them."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
