"""Sessions, the daemon's side: gRPC calls into a client over the byte stream that the client opened.

grpcio dials sockets only, so each session has a private unix socket: our channel connects to it, and what passes there
is copied to and from the stream.

Spec: moby/buildkit ``session/manager.go``, ``session/grpc.go`` (health), headers ``x-docker-expose-session-*``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from crossdock.errors import Cancelled, ContextError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crossdock.cancel import CancelToken

__all__ = ["ClientSession", "SessionLost", "SessionManager"]

_log = logging.getLogger("crossdock.server.sessions")

#: seconds that a build waits for the session it names
_ARRIVAL_S = 5.0
_BLOCK = 256 * 1024
#: seconds between health probes, and for an answer
_PROBE_EVERY_S = 5.0
_PROBE_TIMEOUT_S = 15.0
_PROBE_FAILURES = 2
_MIB = 1 << 20
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", 16 * _MIB),
    ("grpc.max_receive_message_length", 16 * _MIB),
    ("grpc.max_metadata_size", 4 * _MIB),
    ("grpc.absolute_max_metadata_size", 8 * _MIB),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # Over a unix socket the authority would be the socket's path, which Go's HTTP/2 server refuses.
    ("grpc.default_authority", "localhost"),
    # Every session has a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.write_buffer_size", 1 * _MIB),
)


class SessionLost(ContextError):
    """The client's session ended while something of it was needed."""

    code = "session-lost"

    def __init__(self, session_id: str, what: str) -> None:
        super().__init__(f"no active session for {session_id}: {what}", retryable=True)
        self.session_id = session_id


class ClientSession:
    """One client's session. Safe from any thread."""

    def __init__(self, session_id: str, *, shared_key: str, name: str, methods: Iterable[str]) -> None:
        self.id = session_id
        self.shared_key = shared_key
        self.name = name
        self._methods = frozenset(m.lower() for m in methods)
        self.closed = threading.Event()
        self._socket, near = _listen()
        self._listener = near
        self.channel = grpc.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
        self._peer: socket.socket | None = None

    def supports(self, method: str) -> bool:
        """Whether the client offers ``/package.Service/Method``."""
        return method.lower() in self._methods

    def lost(self, what: str) -> SessionLost:
        """Return the error for a call that could not be made."""
        return SessionLost(self.id, what)

    def connect(self) -> socket.socket:
        """Have the channel dial, and return the other end. Raises: OSError when closed meanwhile."""
        # Channels are lazy: the first call makes this one dial. Whether the client answers is the prober's matter.
        _ask_health(self)
        peer, _ = self._listener.accept()
        self._peer = peer
        self._forget_listener()
        return peer

    def close(self) -> None:
        """End every call and the connection; idempotent."""
        if self.closed.is_set():
            return
        self.closed.set()
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)
        self.channel.close()
        self._forget_listener()

    def _forget_listener(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket)
            os.rmdir(os.path.dirname(self._socket))


def _listen() -> tuple[str, socket.socket]:
    directory = tempfile.mkdtemp(prefix="crossdock-session-")
    path = f"{directory}/s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    return path, listener


class SessionManager:
    """The sessions of all clients."""

    def __init__(self) -> None:
        # Guards _sessions; notified when one arrives or goes.
        self._changed = threading.Condition()
        self._sessions: dict[str, ClientSession] = {}
        self._closing = threading.Event()
        self._prober: threading.Thread | None = None

    def serve(self, session: ClientSession, incoming: Iterator[bytes]) -> Iterator[bytes]:
        """Register a session and join it to a stream, until either ends; yields what goes to the client.

        Raises: UsageError when there is one of that name.
        """
        self._add(session)
        try:
            peer = session.connect()
            pump = threading.Thread(target=_copy_in, args=(incoming, peer), name="session-in", daemon=True)
            pump.start()
            with peer:
                while data := _receive(peer):
                    yield data
        except OSError as exc:
            _log.debug("session %s: %s", session.id, exc)
        finally:
            self._remove(session)
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
                if found is not None and not found.closed.is_set():
                    return found
                left = deadline - time.monotonic()
                if left <= 0 or not wanted or self._closing.is_set():
                    raise SessionLost(wanted, "it did not arrive, or has ended")
                self._changed.wait(left)

    def close(self) -> None:
        """End every session."""
        self._closing.set()
        with self._changed:
            sessions = list(self._sessions.values())
            self._changed.notify_all()
        for session in sessions:
            session.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _add(self, session: ClientSession) -> None:
        with self._changed:
            if not session.id or session.id in self._sessions or self._closing.is_set():
                session.close()
                summary = f"session {session.id} already exists" if session.id else "the session has no id"
                raise UsageError(summary)
            self._sessions[session.id] = session
            if self._prober is None:
                self._prober = threading.Thread(target=self._probe, name="session-health", daemon=True)
                self._prober.start()
            self._changed.notify_all()

    def _remove(self, session: ClientSession) -> None:
        with self._changed:
            if self._sessions.get(session.id) is session:
                del self._sessions[session.id]
            self._changed.notify_all()

    def _probe(self) -> None:
        """Ask every session for a sign of life; one that fails twice in a row is closed."""
        failures: dict[str, int] = {}
        while not self._closing.wait(_PROBE_EVERY_S):
            with self._changed:
                sessions = [s for s in self._sessions.values() if s.supports("/grpc.health.v1.Health/Check")]
            asked = [(s, f) for s in sessions if (f := _ask_health(s)) is not None]
            for session, future in asked:
                try:
                    future.result()
                    failures.pop(session.id, None)
                except (grpc.RpcError, grpc.FutureCancelledError) as exc:
                    failures[session.id] = failures.get(session.id, 0) + 1
                    _log.debug("session %s: health: %s", session.id, exc)
                    if failures[session.id] >= _PROBE_FAILURES:
                        _log.info("session %s does not answer: closed", session.id)
                        session.close()
            failures = {k: v for k, v in failures.items() if any(s.id == k for s in sessions)}


def _ask_health(session: ClientSession) -> Any:
    try:
        channel: Any = session.channel
        return channel.unary_unary("/grpc.health.v1.Health/Check").future(b"", timeout=_PROBE_TIMEOUT_S)
    except ValueError:  # the channel was closed meanwhile
        return None


def _receive(peer: socket.socket) -> bytes:
    try:
        return peer.recv(_BLOCK)
    except OSError:
        return b""


def _copy_in(incoming: Iterator[bytes], peer: socket.socket) -> None:
    try:
        for data in incoming:
            peer.sendall(data)
    except (OSError, grpc.RpcError, Cancelled) as exc:
        _log.debug("session stream: %s", exc)
    except Exception as exc:  # noqa: BLE001 - grpcio raises a plain Exception when the client vanishes
        _log.debug("session stream: %s", exc)
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
