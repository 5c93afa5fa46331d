"""Proxies named by the environment."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.errors import ConfigError
from crossdock.registry.config import TlsConfig
from crossdock.registry.proxy import Proxy, find_proxy
from crossdock.registry.transport import Origin
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV = {"HTTPS_PROXY": "http://proxy:3128", "http_proxy": "plain:8080"}
ORIGIN = Origin("https", "reg.example.com", 443, TlsConfig())


@pytest.mark.parametrize(
    ("scheme", "host", "no_proxy", "expected"),
    [
        ("https", "a.io", "", ("proxy", 3128)),
        ("http", "a.io", "", ("plain", 8080)),
        ("https", "localhost", "", None),
        ("https", "127.0.0.1", "", None),
        ("https", "::1", "", None),
        ("https", "a.io", "*", None),
        ("https", "a.io", "b.io, a.io", None),
        ("https", "x.a.io", "a.io", None),
        ("https", "x.a.io", ".a.io", None),
        ("https", "xa.io", "a.io", ("proxy", 3128)),
        ("https", "a.io", ".a.io", ("proxy", 3128)),
        ("https", "a.io", "a.io:443", None),
        ("https", "a.io", "a.io:5000", ("proxy", 3128)),
        ("https", "10.1.2.3", "10.0.0.0/8", None),
        ("https", "11.1.2.3", "10.0.0.0/8", ("proxy", 3128)),
        ("https", "10.1.2.3", "10.1.2.3", None),
        ("https", "fd00::1", "fd00::/8", None),
        ("https", "a.io", "10.0.0.0/8,nonsense/", ("proxy", 3128)),
    ],
)
def test_which_proxy(scheme: str, host: str, no_proxy: str, expected: tuple[str, int] | None) -> None:
    found = find_proxy(scheme, host, 443, {**ENV, "no_proxy": no_proxy})
    assert (found and (found.host, found.port)) == expected


def test_lower_case_wins() -> None:
    env = {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:2"}
    found = find_proxy("https", "a.io", 443, env)
    assert found is not None
    assert found.host == "lower"


def test_no_variable_is_no_proxy() -> None:
    assert find_proxy("https", "a.io", 443, {}) is None


@pytest.mark.parametrize("value", ["socks5://h:1", "https://h:1", "http://", "http://h:port"])
def test_a_proxy_that_cannot_be_used_is_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        find_proxy("https", "a.io", 443, {"https_proxy": value})


def tunnel(answer: bytes, login: Secret | None = None) -> tuple[bytes, bytes]:
    """Open a tunnel through a scripted proxy; returns what it was asked and what follows its answer."""
    ours, peer = socket.socketpair()
    asked: list[bytes] = []

    def serve() -> None:
        asked.append(peer.recv(65536))
        peer.sendall(answer)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        Proxy("proxy", 3128, login).tunnel(ours, ORIGIN, 5.0)
        return asked[0], ours.recv(100)
    finally:
        thread.join()
        ours.close()


def test_a_tunnel_leaves_the_peer_s_bytes_alone() -> None:
    asked, rest = tunnel(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nTLS")
    assert asked == b"CONNECT reg.example.com:443 HTTP/1.1\r\nHost: reg.example.com:443\r\n\r\n"
    assert rest == b"TLS"


def test_a_proxy_gets_its_login() -> None:
    asked, _ = tunnel(b"HTTP/1.0 200 OK\r\n\r\n", Secret("u:p"))
    assert b"Proxy-Authorization: Basic dTpw\r\n" in asked


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy Authentication Required"),
        (b"HTTP/1.1 200 OK\r\nX", "closed the connection"),
        (b"", "closed the connection"),
        (b"nonsense\r\n\r\n", "no HTTP answer"),
        (b"x" * 20_000, "closed the connection"),
    ],
)
def test_a_tunnel_that_is_refused(answer: bytes, why: str) -> None:
    with pytest.raises(ConnectionError, match=why):
        tunnel(answer)


@pytest.mark.parametrize(
    ("env", "expected"),
    [({"https_proxy": "http://user%40x:p%3Aw@proxy:1"}, b"user@x:p:w")],
)
def test_a_login_in_the_url_is_decoded_and_hidden(env: Mapping[str, str], expected: bytes) -> None:
    found = find_proxy("https", "a.io", 443, env)
    assert found is not None
    assert found.login is not None
    assert found.login.reveal() == expected
    assert "p:w" not in repr(found)
