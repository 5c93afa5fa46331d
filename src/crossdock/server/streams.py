"""Streams of calls into a session: what is sent, and what a failed call means."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from crossdock.buildkit.details import rpc_code
from crossdock.errors import ContextError, CrossdockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from crossdock.server.sessions import ClientSession

__all__ = ["Outgoing", "session_failure"]

_T = TypeVar("_T")
_POLL_S = 0.5


class Outgoing(Generic[_T]):
    """The request side of a streaming call: put from one thread, sent by gRPC's; bounded when ``limit`` says so."""

    def __init__(self, limit: int = 0) -> None:
        self._queue: queue.Queue[_T | None] = queue.Queue(limit)
        self._closed = threading.Event()

    def put(self, item: _T) -> None:
        """Send an item; waits while ``limit`` items are under way. Raises: BrokenPipeError once closed."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return
        raise BrokenPipeError

    def finish(self) -> None:
        """Say that nothing more comes."""
        self.put(None)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the stream after what was put; idempotent."""
        self._closed.set()
        # A full queue wakes the reader as well.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def __iter__(self) -> Iterator[_T]:
        while True:
            if self._closed.is_set() and self._queue.empty():
                return
            item = self._queue.get()
            if item is None:
                return
            yield item


def session_failure(session: ClientSession, exc: grpc.RpcError, what: str) -> CrossdockError:
    """Return the error of a failed call into a session."""
    code = rpc_code(exc)
    if session.closed.is_set() or code in ("UNAVAILABLE", "CANCELLED"):
        return session.lost(what)
    # What a channel raises is both an RpcError and a Call; the stubs cannot say so.
    details = cast("grpc.Call", exc).details() if hasattr(exc, "details") else str(exc)
    return ContextError(f"{what}: {details}")
