"""HTTP/1.1 framing, as the wire has it."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import InternalError
from crossdock.registry.http1 import BodyCut, BodyTooLarge, Connection, NotHttp, ProtocolError, StreamBody

if TYPE_CHECKING:
    from crossdock.registry.http1 import Response


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire:
    """A connection whose peer has said all it will say."""

    def __init__(self, said: bytes) -> None:
        ours, self.peer = socket.socketpair()
        ours.settimeout(5)
        self.peer.sendall(said)
        self.peer.shutdown(socket.SHUT_WR)
        self.connection = Connection(ours)
        self.released: list[bool] = []

    def receive(self, method: str = "GET") -> Response:
        return self.connection.receive(method, lambda _connection, reusable: self.released.append(reusable))

    def close(self) -> None:
        self.peer.close()
        self.connection.close()


def read(said: bytes, method: str = "GET") -> tuple[int, bytes, list[bool]]:
    wire = Wire(said)
    try:
        response = wire.receive(method)
        return response.status, response.read_all(1 << 20), wire.released
    finally:
        wire.close()


@pytest.mark.parametrize(
    ("said", "method", "body", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET", b"hello", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", "GET", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "GET", b"hello", False),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
            "GET",
            b"hello",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "GET", b"until the end", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "HEAD", b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "PUT", b"", True),
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n", "GET", b"abcde", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", "PUT", b"", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "GET", b"ok", True),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", "GET", b"ok", True),
    ],
    ids=[
        "a body of announced length",
        "a peer that closes",
        "HTTP/1.0 closes",
        "HTTP/1.0 that keeps alive",
        "a body that ends with the connection",
        "a HEAD has no body whatever it announces",
        "a status without body",
        "chunks with extension and trailer",
        "an interim answer is skipped",
        "bare line feeds",
        "no reason",
    ],
)
def test_a_body_is_read_to_its_end(said: bytes, method: str, body: bytes, reusable: bool) -> None:
    assert read(said, method)[1:] == (body, [reusable])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", BodyCut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", BodyCut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello", BodyCut),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Le", BodyCut),
        (b"", BodyCut),
        (b"\x15\x03\x01\x00\x02\x02\x16", NotHttp),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotHttp),
        (b"HTTP/2 200\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 200_000, ProtocolError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value[:40]),
)
def test_a_broken_answer_is_an_error(said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(said)


def test_the_first_bytes_of_a_tls_peer_are_kept() -> None:
    with pytest.raises(NotHttp) as caught:
        read(b"\x15\x03\x01\x00\x02\x02\x16")
    assert caught.value.received.startswith(b"\x15\x03")


def test_a_body_above_the_limit_is_refused() -> None:
    wire = Wire(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ntoo large")
    with pytest.raises(BodyTooLarge):
        wire.receive().read_all(5)
    assert wire.released == [False]
    wire.close()


def test_peeking_consumes_nothing() -> None:
    wire = Wire(b"HTTP/1.1 400 Bad\r\nContent-Length: 6\r\n\r\nabcdef")
    response = wire.receive()
    assert response.peek(100) == b"abcdef"
    assert response.read_all(100) == b"abcdef"
    wire.close()


@given(st.binary(max_size=300), st.booleans())
def test_no_answer_raises_anything_but_connection_errors(noise: bytes, head: bool) -> None:
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + noise if head else noise
    with contextlib.suppress(ConnectionError):
        read(said)


def sent(**kwargs: object) -> bytes:
    ours, peer = socket.socketpair()
    with ours, peer:
        arguments = {"method": "PUT", "target": "/x", "headers": {}, "body": None, **kwargs}
        Connection(ours).send(**arguments, check=lambda: None)  # type: ignore[arg-type]
        ours.shutdown(socket.SHUT_WR)
        data = b""
        while more := peer.recv(65536):
            data += more
        return data


def test_a_request_with_a_body_is_one_piece() -> None:
    expected = b"PUT /x HTTP/1.1\r\nA: b\r\nContent-Length: 3\r\n\r\nabc"
    assert sent(headers={"A": "b"}, body=b"abc") == expected


def test_a_streamed_body_follows_its_head() -> None:
    blocks: list[bytes | memoryview] = [b"ab", memoryview(b"cde")]
    body = StreamBody(5, blocks)
    assert sent(body=body).endswith(b"Content-Length: 5\r\n\r\nabcde")


@pytest.mark.parametrize("blocks", [[b"abc"], [b"abcd", b"efg"]], ids=["too short", "too long"])
def test_a_streamed_body_of_another_size_is_our_defect(blocks: list[bytes]) -> None:
    with pytest.raises(InternalError):
        sent(body=StreamBody(5, iter(blocks)))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"headers": {"Authorization": "Bearer a\r\nX: y"}},
        {"headers": {"X": "é"}},
        {"target": "/a b"},
        {"target": "/a\r\nHost: evil"},
    ],
    ids=["line break in a header", "not ASCII", "blank in the target", "line break in the target"],
)
def test_what_could_split_a_request_is_never_sent(kwargs: dict[str, object]) -> None:
    with pytest.raises(InternalError):
        sent(**kwargs)
