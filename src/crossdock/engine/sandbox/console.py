"""The terminal that a runtime makes inside a container, handed out through a socket.

Spec: OCI runtime-spec ``process.terminal``; crun(1) ``--console-socket``: one message with the terminal's master.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

__all__ = ["ConsoleSocket"]


class ConsoleSocket:
    """Waits for a terminal and gives it to ``take``, which then owns the descriptor; for the length of a block."""

    def __init__(self, path: Path, take: Callable[[int], object]) -> None:
        """Listen. Raises: OSError."""
        self.path = path
        self._take = take
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(os.fspath(path))
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._wait, name="console", daemon=True)
        self._thread.start()

    def __enter__(self) -> ConsoleSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close() if not self._thread.is_alive() else self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _wait(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the program ended before it had a terminal
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            self._take(descriptor)
