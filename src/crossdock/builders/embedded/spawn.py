"""Run an operation of the embedded engine in a worker process, from a program that has threads of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from crossdock.builders.embedded.wire import Channel, unpack_error
from crossdock.errors import InternalError, SandboxError, translate

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.progress.events import EventSink

__all__ = ["call_in_worker"]

_GRACE_S = 5.0


def call_in_worker(operation: str, root: str, payload: object, sink: EventSink, cancel: CancelToken) -> Any:
    """Run an operation in a new process and return what it returns; events go to ``sink`` in this thread.

    The worker ends with this call whatever happens, and with this process even if that is killed: it watches the
    socket.

    Raises: what the operation raises; InternalError when the worker dies without a word.
    """
    if not sys.executable:
        summary = "the embedded engine needs a Python interpreter to start its worker process, and sys.executable is empty"
        raise SandboxError(summary, missing="sys.executable")
    cancel.check()
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with ours:
        with theirs:
            process = _start(theirs)
        try:
            channel.send("run", operation, root, payload)
            with cancel.waking(lambda: _tell(channel)):
                return _pump(channel, process, sink, cancel)
        finally:
            channel.shutdown()
            _end(process)


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    # Where this package lies, so that the child finds the same one: src/crossdock/builders/embedded/spawn.py
    package = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))

    def refuse(exc: BaseException) -> SandboxError:
        return SandboxError(f"cannot start the worker process: {exc}")

    with translate({OSError: refuse}):
        # A session of its own: Ctrl-C belongs to the calling program, which cancels if it wants to.
        return subprocess.Popen(
            [sys.executable, "-m", "crossdock", "_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def _tell(channel: Channel) -> None:
    try:
        channel.send("cancel")
    except OSError:
        return  # it ended by itself meanwhile


def _pump(channel: Channel, process: subprocess.Popen[bytes], sink: EventSink, cancel: CancelToken) -> Any:
    while True:
        message = channel.receive()
        if message is None:
            cancel.check()
            status = process.wait()
            summary = f"the worker process ended unexpectedly with status {status}"
            raise InternalError(summary, hint="the machine may be short of memory: see `dmesg`")
        kind, *values = message
        if kind == "event":
            sink.emit(values[0])
        elif kind == "result":
            return values[0]
        else:
            raise unpack_error(values[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the worker; one that does not go is killed, which frees its mounts and steps."""
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
