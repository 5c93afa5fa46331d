"""The worker process: enter the namespace, run one operation, send what happens."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from crossdock.builders.embedded.wire import Channel, pack_error
from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, CrossdockError, InternalError

if TYPE_CHECKING:
    from crossdock.progress.events import Event

__all__ = ["serve"]


def serve(fd: int) -> int:
    """Serve one operation on an inherited socket; returns the exit code."""
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive()
    if message is None:
        return 1
    _, operation, root, payload = message
    try:
        from crossdock.engine.sandbox.worker import become_worker

        become_worker()
    except CrossdockError as exc:
        channel.send("error", pack_error(exc))
        return exc.exit_code
    return _run(channel, operation, root, payload)


def _run(channel: Channel, operation: str, root: str, payload: object) -> int:
    from crossdock.builders.embedded.operations import run

    cancel = CancelToken()
    threading.Thread(target=_watch, args=(channel, cancel), name="caller", daemon=True).start()
    try:
        result = run(operation, root, payload, _ChannelSink(channel), cancel)
        channel.send("result", result)
    except CrossdockError as exc:
        return _send_error(channel, exc)
    except OSError as exc:
        return _send_error(channel, InternalError(f"unexpected {type(exc).__name__}: {exc}"), exc)
    except Exception as exc:  # noqa: BLE001 - the top of the process: the caller must learn of every end
        return _send_error(channel, InternalError(f"unexpected {type(exc).__name__}: {exc}"), exc)
    return 0


def _send_error(channel: Channel, error: CrossdockError, cause: BaseException | None = None) -> int:
    if cause is not None:
        error.__cause__ = cause
    try:
        channel.send("error", pack_error(error))
    except OSError:
        return error.exit_code  # nobody listens any more
    return error.exit_code


def _watch(channel: Channel, cancel: CancelToken) -> None:
    """Cancel on request, and when the caller is gone."""
    channel.receive()
    cancel.cancel(Cancelled())


class _ChannelSink:
    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def emit(self, event: Event) -> None:
        try:
            self._channel.send("event", event)
        except OSError:
            return  # the caller is gone; the watcher cancels the build
