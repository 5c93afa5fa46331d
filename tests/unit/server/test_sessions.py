"""Sessions, the daemon's side: waited for, probed, lost."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.transport import SocketStream
from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, UsageError
from crossdock.server import sessions
from crossdock.server.health import handlers
from crossdock.server.sessions import ClientSession, SessionLost, SessionManager
from crossdock.server.tracing import TraceRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stream(SocketStream):
    """A session's stream: it knows when it is over."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ended = threading.Event()

    def close(self) -> None:
        self.ended.set()
        super().close()


class Peer:
    """A client with a session; ``answers`` is whether it answers probes."""

    def __init__(self, name: str, *, answers: bool = True) -> None:
        near, far = socket.socketpair()
        self.session = ClientSession(name, cast("Any", Stream(near)))
        self._far = far
        self._server = Server(SocketStream(far), handlers(TraceRecorder())) if answers else None
        if self._server is not None:
            self._server.start()

    def close(self) -> None:
        self.session.close()
        if self._server is not None:
            self._server.close()
        self._far.close()


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.close()


@pytest.fixture
def manager() -> Iterator[SessionManager]:
    made = SessionManager()
    yield made
    made.close()


def serving(manager: SessionManager, peer: Peer, after_s: float = 0.0) -> threading.Thread:
    def serve() -> None:
        time.sleep(after_s)
        manager.serve(peer.session)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_session_that_is_about_to_arrive_is_waited_for(manager: SessionManager, peers: list[Peer]) -> None:
    peers.append(Peer("late"))
    thread = serving(manager, peers[0], after_s=0.3)
    assert manager.get("late", CancelToken()) is peers[0].session
    assert manager.get("prefix:late", CancelToken()) is peers[0].session
    peers[0].session.close()
    thread.join(10)


def test_one_that_does_not_arrive_is_lost(manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_ARRIVAL_S", 0.1)
    with pytest.raises(SessionLost, match="no active session for nobody"):
        manager.get("nobody", CancelToken())


def test_waiting_ends_with_the_build(manager: SessionManager) -> None:
    cancel = CancelToken()
    threading.Timer(0.2, lambda: cancel.cancel(Cancelled("over"))).start()
    with pytest.raises(Cancelled):
        manager.get("nobody", cancel)


def test_a_name_is_taken_once(manager: SessionManager, peers: list[Peer]) -> None:
    peers += [Peer("same"), Peer("same")]
    thread = serving(manager, peers[0])
    manager.get("same", CancelToken())
    with pytest.raises(UsageError, match="already exists"):
        manager.serve(peers[1].session)
    peers[0].session.close()
    thread.join(10)


def test_a_client_that_does_not_answer_is_given_up_and_others_stay(
    manager: SessionManager, peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(sessions, "_PROBE_TIMEOUT_S", 0.2)
    peers += [Peer("dead", answers=False), Peer("alive")]
    threads = [serving(manager, peer) for peer in peers]
    manager.get("alive", CancelToken())
    threads[0].join(20)
    assert not threads[0].is_alive()
    assert peers[0].session.closed
    assert manager.get("alive", CancelToken()) is peers[1].session
    assert not peers[1].session.closed
    peers[1].session.close()
    threads[1].join(10)


def test_at_the_end_every_session_is(manager: SessionManager, peers: list[Peer]) -> None:
    peers.append(Peer("one"))
    thread = serving(manager, peers[0])
    manager.get("one", CancelToken())
    manager.close()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(SessionLost):
        manager.get("one", CancelToken())
