"""The forwarded ssh agent socket."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.agent import forwarded_agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """An agent that answers each message with the message in capitals."""
    path = tmp_path / "agent"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def serve(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(1000):
                peer.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(peer,)))
            threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def ask(path: Path, *messages: bytes) -> list[bytes]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(path))
        answers = []
        for message in messages:
            peer.sendall(message)
            answers.append(peer.recv(1000))
        return answers


def test_messages_pass_both_ways_on_many_connections(tmp_path: Path, agent: Path) -> None:
    path = tmp_path / "forwarded"
    with forwarded_agent(path, agent, uid=os.getuid(), gid=os.getgid(), mode=0o600):
        assert path.stat().st_mode & 0o777 == 0o600
        assert [ask(path, b"a", b"b"), ask(path, b"c")] == [[b"A", b"B"], [b"C"]]


def test_an_open_connection_is_cut_at_the_end(tmp_path: Path, agent: Path) -> None:
    path = tmp_path / "forwarded"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        with forwarded_agent(path, agent, uid=os.getuid(), gid=os.getgid(), mode=0o600):
            peer.connect(str(path))
            peer.sendall(b"x")
            assert peer.recv(10) == b"X"
        assert peer.recv(10) == b""


def test_without_an_agent_a_connection_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "forwarded"
    with (
        forwarded_agent(path, tmp_path / "none", uid=os.getuid(), gid=os.getgid(), mode=0o600),
        socket.socket(socket.AF_UNIX) as peer,
    ):
        peer.settimeout(5)
        peer.connect(str(path))
        assert peer.recv(10) == b""


def test_a_long_path_is_no_obstacle(tmp_path: Path, agent: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with forwarded_agent(folder / "s", agent, uid=os.getuid(), gid=os.getgid(), mode=0o600):
        assert (folder / "s").is_socket()
