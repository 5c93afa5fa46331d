"""Sessions, the daemon's side: calls into a client over the byte stream that the client opened.

Spec: moby/buildkit ``session/manager.go``, ``session/grpc.go`` (health), headers ``x-docker-expose-session-*``.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import control_pb2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import UNAVAILABLE, RpcError
from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import ContextError, UsageError
from crossdock.server.tokens import TokenPool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.buildkit.rpc.channel import Call
    from crossdock.buildkit.rpc.serve import ServerCall
    from crossdock.cancel import CancelToken

__all__ = ["ClientSession", "SessionLost", "SessionManager", "SessionStream"]

_log = logging.getLogger("crossdock.server.sessions")

#: seconds that a build waits for the session it names
_ARRIVAL_S = 5.0
#: seconds between health probes, and for an answer
_PROBE_EVERY_S = 5.0
_PROBE_TIMEOUT_S = 15.0
_PROBE_FAILURES = 2
_HEALTH = "/grpc.health.v1.Health/Check"
#: bytes of one BytesMessage at most
_MESSAGE = 1 << 20


class SessionLost(ContextError):
    """The client's session ended while something of it was needed."""

    code = "session-lost"

    def __init__(self, session_id: str, what: str) -> None:
        whose = session_id or "this build, which names none"
        super().__init__(f"no active session for {whose}: {what}", retryable=True)
        self.session_id = session_id


class SessionStream:
    """The messages of one ``Control.Session`` call as a byte stream."""

    def __init__(self, call: ServerCall) -> None:
        self._call = call
        self._batches = call.batches()
        self._rest = b""
        #: set when the stream is over, whoever ended it
        self.ended = threading.Event()

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""
        while not self._rest:
            parts: list[bytes] = []
            try:
                batch = next(self._batches, None)
                parts = [parsed(control_pb2.BytesMessage, message).data for message in batch or ()]
            except RpcError as exc:
                _log.debug("session stream: %s", exc)
                batch = None
            if batch is None or self.ended.is_set():
                self.ended.set()
                return b""
            self._rest = b"".join(parts)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send everything. Raises: BrokenPipeError."""
        view = memoryview(data)
        try:
            for at in range(0, len(view), _MESSAGE):
                message = control_pb2.BytesMessage(data=bytes(view[at : at + _MESSAGE]))
                self._call.send(message.SerializeToString())
        except RpcError as exc:
            raise BrokenPipeError(exc.message) from exc

    def shutdown_write(self) -> None:
        """Nothing to do: the call ends with its handler."""

    def close(self) -> None:
        """Have the handler end, and with it the call."""
        self.ended.set()


class ClientSession:
    """One client's session. Safe from any thread."""

    def __init__(
        self,
        session_id: str,
        stream: SessionStream,
        *,
        shared_key: str = "",
        name: str = "",
        methods: Iterable[str] = (),
    ) -> None:
        self.id = session_id
        self.shared_key = shared_key
        self.name = name
        self._methods = frozenset(m.lower() for m in methods)
        self.stream = stream
        self._dialled = False
        self.channel = Channel(self._dial)

    def supports(self, method: str) -> bool:
        """Whether the client offers ``/package.Service/Method``."""
        return method.lower() in self._methods

    def lost(self, what: str) -> SessionLost:
        """Return the error for a call that could not be made."""
        return SessionLost(self.id, what)

    def start(self, method: str, metadata: Iterable[tuple[str, str]] = ()) -> Call:
        """Begin a call. Raises: SessionLost."""
        try:
            return self.channel.start(method, metadata=metadata)
        except RpcError as exc:
            raise self.lost(exc.message) from exc

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self.stream.ended.is_set()

    def close(self) -> None:
        """End every call and the session; idempotent."""
        self.stream.close()
        self.channel.close()

    def watch(self) -> None:
        """Probe the client until the session is over; one that fails twice in a row is closed."""
        failures = 0
        while True:
            failures = 0 if self._is_healthy() else failures + 1
            if failures >= _PROBE_FAILURES:
                _log.info("session %s does not answer: closed", self.id)
                return
            if self.stream.ended.wait(_PROBE_EVERY_S):
                return

    def _is_healthy(self) -> bool:
        """Ask for a sign of life; the first time this also opens the connection."""
        try:
            call = self.channel.start(_HEALTH, timeout_s=_PROBE_TIMEOUT_S)
            call.send_raw(prefixed(b""), end=True)
            call.result()
        except RpcError as exc:
            _log.debug("session %s: health: %s", self.id, exc)
            # Clients that do not know the service answer all the same.
            return exc.code == "UNIMPLEMENTED"
        return True

    def _dial(self) -> SessionStream:
        if self._dialled:
            raise RpcError(UNAVAILABLE, "the session is over")
        self._dialled = True
        return self.stream


class SessionManager:
    """The sessions of all clients."""

    def __init__(self) -> None:
        #: tokens that sessions of the same logins share
        self.tokens = TokenPool()
        #: at directories of clients
        self.turns = OncePerKey()
        # Guards _sessions and _closing; notified when a session arrives or goes.
        self._changed = threading.Condition()
        self._sessions: dict[str, ClientSession] = {}
        self._closing = False

    def serve(self, session: ClientSession) -> None:
        """Have builds find a session, until it is over.

        Raises: UsageError when there is one of that name.
        """
        with self._changed:
            if not session.id or session.id in self._sessions or self._closing:
                summary = f"session {session.id} already exists" if session.id else "the session has no id"
                raise UsageError(summary)
            self._sessions[session.id] = session
            self._changed.notify_all()
        try:
            session.watch()
        finally:
            with self._changed:
                del self._sessions[session.id]
                self._changed.notify_all()
            session.close()

    def get(self, session_id: str, cancel: CancelToken) -> ClientSession:
        """Return a session, waiting a few seconds for one that is about to arrive.

        Raises: SessionLost; the token's cause.
        """
        # A prefix tells vertices of equal sessions apart; it is no part of the name.
        prefix, colon, rest = session_id.partition(":")
        wanted = rest if colon and rest else prefix
        deadline = time.monotonic() + _ARRIVAL_S
        with cancel.waking(self._wake), self._changed:
            while True:
                cancel.check()
                found = self._sessions.get(wanted)
                if found is not None and not found.closed:
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or not wanted or self._closing:
                    raise SessionLost(wanted, "it did not arrive, or has ended")
                self._changed.wait(left)

    def close(self) -> None:
        """End every session."""
        with self._changed:
            self._closing = True
            sessions = list(self._sessions.values())
            self._changed.notify_all()
        for session in sessions:
            session.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
