"""Addresses and what dialling them meets."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit.dial import dialer
from crossdock.buildkit.transport import Address, ProcessStream, command_for
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:///run/a%20b.sock", "/run/a b.sock"),
        ("unix://run/b.sock", "run/b.sock"),
        ("tcp://host:5", "host:5"),
        ("tcp://host", "host:1234"),
        ("tcp://[::1]:5", "[::1]:5"),
        ("ssh://me@host:22/run/x", "host:22"),
        ("docker-container://a", "a"),
        ("kube-pod://p?namespace=n", "p"),
    ],
)
def test_addresses(text: str, target: str) -> None:
    assert Address.parse(text).target == target


@pytest.mark.parametrize("text", ["npipe:////./pipe/x", "x://y", "unix://", "nothing", ""])
def test_addresses_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        Address.parse(text)


def test_options_of_ssh_cannot_be_smuggled_in() -> None:
    command = command_for(Address.parse("ssh://-oProxyCommand=x"))
    assert command is not None
    assert command.index("--") < command.index("-oproxycommand=x")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="no such file") as caught:
        dialer(f"unix://{tmp_path}/none")()
    assert caught.value.retryable
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BuilderError, match="refused") as caught:
        dialer(f"tcp://127.0.0.1:{port}")()
    assert caught.value.retryable


@pytest.mark.needs("user")
def test_a_socket_that_the_user_may_not_use(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
        sock.listen()
        os.chmod(f"{tmp_path}/s", 0)
        with pytest.raises(BuilderError, match="permission denied") as caught:
            dialer(f"unix://{tmp_path}/s")()
    assert "group" in str(caught.value.hint)
    assert not caught.value.retryable


def test_a_command_is_a_stream_of_two_directions() -> None:
    stream = ProcessStream([sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read().upper())"])
    stream.sendall(b"hello")
    stream.shutdown_write()
    data = b""
    while block := stream.recv(100):
        data += block
    stream.close()
    stream.close()
    assert data == b"HELLO"


def test_what_a_command_says_when_it_fails() -> None:
    stream = ProcessStream([sys.executable, "-c", "import sys; sys.exit('no such container')"])
    assert stream.recv(1) == b""
    assert stream.failure == "no such container"
    stream.close()
