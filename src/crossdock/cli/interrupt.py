"""Ctrl-C, SIGTERM and a docker CLI that goes away: one cancelled token; the third time the process ends at once.

Spec: docker/cli ``cli-plugins/socket``: without a terminal docker tells its plugin to stop by closing a socket.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["interruptible"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3
#: a signal to the process group arrives once from its sender and again from each process that passes it on
_SAME_S = 0.2
_SOCKET_VARIABLE = "DOCKER_CLI_PLUGIN_SOCKET"


@contextmanager
def interruptible(*, plugin: bool = False) -> Iterator[CancelToken]:
    """Give a token that is cancelled by signals; starts a thread under docker, so call it after ``become_worker``."""
    token = CancelToken()
    count, counted_s = 0, -_SAME_S

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal count, counted_s
        now_s = time.monotonic()
        if now_s - counted_s < _SAME_S:
            return
        count, counted_s = count + 1, now_s
        if count >= _PATIENCE:
            os._exit(128 + number)
        token.cancel(Cancelled())

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    if plugin and os.environ.get(_SOCKET_VARIABLE):
        _watch_docker(os.environ[_SOCKET_VARIABLE], token)
    try:
        yield token
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_docker(address: str, token: CancelToken) -> None:
    """Cancel when docker closes the socket it gave us."""
    import socket
    import threading

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        sock.close()  # an older docker: it kills the plugin instead
        return

    def watch() -> None:
        with sock:
            try:
                while sock.recv(64):
                    pass
            except OSError:
                pass  # a broken connection means the same as a closed one
        token.cancel(Cancelled())

    threading.Thread(target=watch, name="docker-watch", daemon=True).start()
