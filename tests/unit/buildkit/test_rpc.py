"""gRPC over byte streams: against grpcio as an independent peer in both roles, and against peers that break the rules."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.buildkit.proto import control_pb2, filesync_pb2
from crossdock.buildkit.rpc import frames as h2frames
from crossdock.buildkit.rpc import http2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.rpc.hpack import Decoder, HeaderError, encode
from crossdock.buildkit.rpc.http2 import Connection
from crossdock.buildkit.rpc.messages import MAX_MESSAGE, prefixed, split
from crossdock.buildkit.rpc.serve import Server, ServerCall
from crossdock.buildkit.rpc.status import RpcError, decode_binary, encode_binary, status_trailers
from crossdock.buildkit.rpc.streams import ConnectionLost
from crossdock.buildkit.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from crossdock.buildkit.rpc.serve import Handler
    from crossdock.buildkit.transport import ByteStream

    Serve: TypeAlias = Callable[[Mapping[str, Handler]], Any]

Bytes = filesync_pb2.BytesMessage
BIG = 10_000_000
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.default_authority", "localhost"),
]

# we call, grpcio serves


class Peer(grpc.GenericRpcHandler):
    """Serves a handful of methods of service ``t.T``."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.metadata: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        self.metadata = dict(details.invocation_metadata)
        name = details.method.rpartition("/")[2]
        method = getattr(self, f"_{name}", None)
        if method is None:
            return None
        make = (
            grpc.unary_unary_rpc_method_handler
            if name in ("echo", "fail", "sleep")
            else grpc.stream_stream_rpc_method_handler
        )
        return make(method)

    def _echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("x-after", "1"),))
        return request

    def _fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\0details\xff"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "schlecht: ünï\n%")

    def _sleep(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(20)
        return b""

    def _each(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield request
            yield request

    def _refuse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield next(requests)
        context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there")

    def _forever(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.cancelled.set)
        while not self.cancelled.is_set():
            yield b"x" * 10_000


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    found = Peer()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=OPTIONS)
        server.add_generic_rpc_handlers((found,))
        server.add_insecure_port(f"unix:{tmp_path}/peer")
        server.start()
        yield found
        found.cancelled.set()
        server.stop(0).wait()


@pytest.fixture
def channel(peer: Peer, tmp_path: Path) -> Iterator[Channel]:
    def dial() -> ByteStream:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{tmp_path}/peer")
        return SocketStream(sock)

    made = Channel(dial)
    yield made
    made.close()


def test_a_call_and_its_metadata(peer: Peer, channel: Channel) -> None:
    got = channel.unary(
        "/t.T/echo",
        Bytes(data=b"hello"),
        Bytes,
        metadata=[("x-name", "value"), ("x-b-bin", encode_binary(b"\xff"))],
    )
    assert got.data == b"hello"
    assert peer.metadata["x-name"] == "value"
    assert peer.metadata["x-b-bin"] == b"\xff"


def test_large_messages_pass_flow_control(channel: Channel) -> None:
    message = Bytes(data=b"x" * BIG)
    assert channel.unary("/t.T/echo", message, Bytes) == message


def test_both_directions_at_once(channel: Channel) -> None:
    call = channel.start("/t.T/each")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(call.messages()))
    reader.start()
    sent = [bytes([n % 256]) * (n * 97 % 60_000) for n in range(300)]
    for message in sent:
        call.send(message)
    call.end()
    reader.join(20)
    assert got == [m for message in sent for m in (message, message)]


def test_a_peer_that_has_its_answer_before_all_is_sent_is_heard(channel: Channel) -> None:
    """It opens no window for the rest."""
    call = channel.start("/t.T/refuse")
    with contextlib.suppress(RpcError):
        for _ in range(100):
            call.send(b"x" * (1 << 20))
        call.end()
    with pytest.raises(RpcError) as caught:
        list(call.messages())
    assert (caught.value.code, caught.value.message) == ("ALREADY_EXISTS", "it is there")
    assert channel.unary("/t.T/echo", Bytes(data=b"again"), Bytes).data == b"again"


def test_nothing_that_needs_new_settings_comes_before_they_are_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then a peer may go by the old ones: grpc's C core ends the connection."""
    near, far = socket.socketpair()
    real = h2frames.frame

    def slow(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        if kind == 4 and flags:
            time.sleep(0.1)  # whoever waits for a larger window has all the time to come before
        return real(kind, flags, stream, payload)

    monkeypatch.setattr(http2, "frame", slow)
    channel = Channel(lambda: SocketStream(near))
    with far:
        far.settimeout(10)
        call = channel.start("/t.T/each")
        sender = threading.Thread(target=lambda: call.send(bytes(1 << 20)), daemon=True)
        sender.start()
        received = bytearray()
        while len(received) < 65_535:  # the default window is used up
            received += far.recv(1 << 16)
        grown = struct.pack(">HIHI", 4, 1 << 22, 5, 1 << 20)
        far.sendall(SETTINGS + frame(8, 0, 0, struct.pack(">I", 1 << 22)) + frame(4, 0, 0, grown))
        while len(received) < 1 << 20:
            data = far.recv(1 << 16)
            assert data
            received += data
        sender.join(10)
        channel.close()
    at, frames = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), []
    while at + 9 <= len(received):
        size = int.from_bytes(received[at : at + 3], "big")
        frames.append((received[at + 3], received[at + 4], size))
        at += 9 + size
    told = frames.index((4, 1, 0), frames.index((4, 1, 0)) + 1)
    assert max(size for kind, _, size in frames[:told] if kind == 0) <= 16_384
    assert max(size for kind, _, size in frames[told:] if kind == 0) > 16_384


def test_a_message_that_is_too_large_for_us_is_refused_while_it_is_sent() -> None:
    def echo(call: ServerCall) -> None:
        for message in call.messages():
            call.send(message)

    near, far = socket.socketpair()
    server = Server(SocketStream(far), {"/t.T/Echo": echo})
    server.start()
    channel = Channel(lambda: SocketStream(near))
    try:
        for _ in range(2):
            with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
                channel.unary("/t.T/Echo", Bytes(data=bytes(MAX_MESSAGE * 3)), Bytes)
        assert channel.unary("/t.T/Echo", Bytes(data=b"again"), Bytes).data == b"again"
    finally:
        channel.close()
        server.close()


def test_errors_carry_code_message_and_details(channel: Channel) -> None:
    with pytest.raises(RpcError) as caught:
        channel.unary("/t.T/fail", Bytes(), Bytes)
    assert caught.value.code == "FAILED_PRECONDITION"
    assert caught.value.message == "schlecht: ünï\n%"
    assert caught.value.details == b"\0details\xff"


def test_an_unknown_method(channel: Channel) -> None:
    with pytest.raises(RpcError) as caught:
        channel.unary("/t.T/nothing", Bytes(), Bytes)
    assert caught.value.code == "UNIMPLEMENTED"


def test_a_deadline_ends_the_call_here_and_there(peer: Peer, channel: Channel) -> None:
    began = time.monotonic()
    with pytest.raises(RpcError) as caught:
        channel.unary("/t.T/sleep", Bytes(), Bytes, timeout_s=0.3)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 5
    assert peer.cancelled.wait(5)


def test_cancelling_ends_the_call_here_and_there(peer: Peer, channel: Channel) -> None:
    call = channel.unary_call("/t.T/sleep", Bytes())
    timer = threading.Timer(0.2, call.cancel)
    timer.start()
    with pytest.raises(RpcError) as caught:
        call.result()
    assert caught.value.code == "CANCELLED"
    assert peer.cancelled.wait(5)
    timer.join()


def test_a_stream_that_is_not_read_does_not_fill_the_memory(peer: Peer, channel: Channel) -> None:
    call = channel.start("/t.T/forever")
    call.end()
    next(call.messages())
    time.sleep(0.5)
    held = sum(map(len, call._stream.chunks))
    assert held <= 9 << 20
    call.cancel()
    assert peer.cancelled.wait(5)
    assert channel.unary("/t.T/echo", Bytes(data=b"on"), Bytes).data == b"on"


def test_a_lost_connection_is_dialled_again(channel: Channel) -> None:
    channel.unary("/t.T/echo", Bytes(), Bytes)
    assert channel._connection is not None
    channel._connection.close("lost")
    assert channel.unary("/t.T/echo", Bytes(data=b"again"), Bytes).data == b"again"


# grpcio calls, we serve


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    closing: list[Callable[[], object]] = []

    def start(handlers: Mapping[str, Handler]) -> Any:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{tmp_path}/own")
        listener.listen()

        def accept() -> None:
            with listener:
                sock, _ = listener.accept()
            server = Server(SocketStream(sock), handlers)
            server.start()
            closing.append(server.close)

        thread = threading.Thread(target=accept)
        thread.start()
        made = grpc.insecure_channel(f"unix:{tmp_path}/own", options=OPTIONS)
        closing.extend([made.close, thread.join])
        return made

    yield start
    for close in reversed(closing):
        close()


def test_we_answer_calls(serve: Serve) -> None:
    seen: list[tuple[str, ...]] = []

    def echo(call: ServerCall) -> None:
        seen.append(call.metadata("x-many"))
        for message in call.messages():
            call.send(message)

    found = serve({"/t.T/Echo": echo})
    big = b"x" * BIG
    assert found.unary_unary("/t.T/Echo")(big, metadata=[("x-many", "a"), ("x-many", "b")]) == big
    assert list(found.stream_stream("/t.T/Echo")(iter([b"1", b"", b"3"]))) == [b"1", b"", b"3"]
    assert seen[0] == ("a", "b")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RpcError("NOT_FOUND", "nicht da: ü%"), grpc.StatusCode.NOT_FOUND, "nicht da: ü%"),
        (ValueError("secret detail"), grpc.StatusCode.INTERNAL, "/t.T/Fail failed on the client"),
    ],
)
def test_our_failures_are_statuses(serve: Serve, error: Exception, code: Any, text: str) -> None:
    def fail(call: ServerCall) -> None:
        raise error

    with pytest.raises(grpc.RpcError) as caught:
        serve({"/t.T/Fail": fail}).unary_unary("/t.T/Fail")(b"")
    assert caught.value.code() == code
    assert caught.value.details() == text


def test_an_unknown_method_of_ours(serve: Serve) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        serve({}).unary_unary("/t.T/None")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_peer_that_gives_up_wakes_the_handler(serve: Serve) -> None:
    ended: queue.Queue[str] = queue.Queue()

    def wait(call: ServerCall) -> None:
        call.send(b"here")
        try:
            list(call.messages())
        except RpcError as exc:
            ended.put(exc.code)

    requests: queue.Queue[bytes] = queue.Queue()
    call = serve({"/t.T/Wait": wait}).stream_stream("/t.T/Wait")(iter(requests.get, b"end"))
    next(call)
    call.cancel()
    assert ended.get(timeout=5) == "CANCELLED"
    requests.put(b"end")


# peers that break the rules


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


SETTINGS = frame(4, 0, 0)


def talk(said: bytes, *, close: bool = True) -> str:
    """Connect to a peer that says ``said``; returns why the connection was lost."""
    near, far = socket.socketpair()
    far.sendall(said)
    if close:
        far.shutdown(socket.SHUT_WR)
    connection = Connection(SocketStream(near), server=False)
    connection.start()
    try:
        stream = connection.open([(":method", "POST")])
        with pytest.raises(ConnectionLost) as caught:
            stream.take_headers(5)
    except ConnectionLost as exc:
        return str(exc)
    finally:
        connection.close()
        far.close()
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak gRPC"),
        (b"\x15\x03\x03\x00\x02\x02\x28 alert", "does not speak gRPC"),
        (b"", "closed"),
        (SETTINGS + frame(9, 4, 1, b"x"), "continuation of no header block"),
        (SETTINGS + frame(1, 0, 1, b"\x88") + frame(0, 0, 1, b"x"), "interrupted"),
        (SETTINGS + frame(1, 4, 1, b"\xff\xff\xff\xff\xff\x7f"), "too large|out of range"),
        (SETTINGS + struct.pack(">HBBBI", 0xFFFF, 0xFF, 0, 0, 1), "larger than allowed"),
        (SETTINGS + frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF)), "window too large"),
        (SETTINGS + frame(4, 0, 0, b"123"), "malformed settings"),
        (SETTINGS + frame(8, 0, 0, b"1"), "a frame of kind 8 with 1 bytes"),
        (SETTINGS + frame(0, 8, 1, b"\x05abc"), "padding"),
    ],
)
def test_a_broken_connection_is_one_error(said: bytes, text: str) -> None:
    import re

    assert re.search(text, talk(said))


def test_more_data_than_the_window_allows() -> None:
    block = frame(0, 0, 1, b"x" * 16_384)
    said = SETTINGS + frame(1, 4, 1, b"\x88") + block * 600
    near, far = socket.socketpair()
    writer = threading.Thread(target=lambda: _send(far, said))
    connection = Connection(SocketStream(near), server=False)
    connection.start()
    stream = connection.open([(":method", "POST")])
    writer.start()
    deadline = time.monotonic() + 10
    while stream.error is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "more data than the window allows" in str(stream.error)
    connection.close()
    far.close()
    writer.join()


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return


def test_a_server_refuses_more_streams_than_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossdock.buildkit.rpc.http2.MAX_STREAMS", 16)
    near, far = socket.socketpair()
    gate = threading.Event()

    def wait(_call: ServerCall) -> None:
        gate.wait(10)

    server = Server(SocketStream(near), {"/t": wait})
    server.start()
    far.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
    block = encode([(":path", "/t")])
    for number in range(20):
        far.sendall(frame(1, 4, 2 * number + 1, block))
    data, deadline = b"", time.monotonic() + 10
    refused = struct.pack(">I", 7)
    while data.count(refused) < 4 and time.monotonic() < deadline:
        data += far.recv(65_536)
    gate.set()
    far.close()
    server.close()
    assert data.count(refused) >= 4


def test_padding_priorities_and_continuations_are_read() -> None:
    near, far = socket.socketpair()
    block = encode([(":status", "200"), ("x", "y" * 300)])
    first = b"\x02" + b"\0\0\0\0\x10" + block[:20] + b"\0\0"
    said = (
        SETTINGS
        + frame(1, 0x8 | 0x20, 1, first)
        + frame(9, 0, 1, block[20:200])
        + frame(9, 4, 1, block[200:])
    )
    said += frame(0, 0x8, 1, b"\x03data\0\0\0") + frame(0xEE, 0, 1, b"unknown kinds are ignored")
    said += frame(1, 0x5, 1, encode([("grpc-status", "0")]))
    connection = Connection(SocketStream(near), server=False)
    connection.start()
    stream = connection.open([(":method", "POST")], end=True)
    far.sendall(said)
    assert stream.take_headers(5) == [(":status", "200"), ("x", "y" * 300)]
    assert stream.read(5) == b"data"
    assert stream.read(5) == b""
    assert stream.take_headers(5) == [("grpc-status", "0")]
    connection.close()
    far.close()


PIECES = st.lists(st.tuples(st.sampled_from((1, 3)), st.binary(max_size=9), st.booleans()), max_size=30)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.lists(st.integers(1, 60), max_size=20))
def test_data_survive_however_they_are_framed(pieces: list[tuple[int, bytes, bool]], cuts: list[int]) -> None:
    said = SETTINGS + b"".join(frame(1, 4, number, encode([(":status", "200")])) for number in (1, 3))
    for number, data, padded in pieces:
        said += frame(0, 0x8, number, b"\x02" + data + b"\0\0") if padded else frame(0, 0, number, data)
    said += frame(0, 1, 1, b"end") + frame(0, 1, 3)
    near, far = socket.socketpair()
    connection = Connection(SocketStream(near), server=False)
    connection.start()
    streams = {number: connection.open([(":method", "POST")], end=True) for number in (1, 3)}
    for size in cuts:
        far.sendall(said[:size])
        said = said[size:]
    far.sendall(said)
    for number, stream in streams.items():
        assert stream.take_headers(5) == [(":status", "200")]
        got = b"".join(iter(lambda stream=stream: stream.read(5), b""))  # type: ignore[misc]
        wanted = b"".join(data for of, data, _ in pieces if of == number)
        assert got == wanted + (b"end" if number == 1 else b"")
    connection.close()
    far.close()


# parts


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(1, 40), max_size=40))
def test_messages_survive_any_cuts(messages: list[bytes], sizes: list[int]) -> None:
    data = b"".join(map(prefixed, messages))
    parts: list[bytes] = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    parts = [p for p in [*parts, data] if p]
    assert list(split(lambda: parts.pop(0) if parts else b"")) == messages


@given(st.binary(max_size=60))
def test_hostile_message_streams_end_in_an_error_or_messages(data: bytes) -> None:
    parts = [data] if data else []
    with contextlib.suppress(RpcError):
        list(split(lambda: parts.pop(0) if parts else b""))


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=6))
def test_headers_survive(headers: list[tuple[str, str]]) -> None:
    assert Decoder().decode(encode(headers)) == headers


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_hostile_header_blocks_are_refused_or_read(blocks: list[bytes]) -> None:
    decoder = Decoder()
    for block in blocks:
        try:
            decoder.decode(block)
        except HeaderError:
            return


@pytest.mark.parametrize(
    ("block", "headers"),
    # RFC 7541, appendix C.4 and C.6: Huffman, and a table that is written and evicted
    [
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
        ),
        (
            "828684be5886a8eb10649cbf",
            [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "www.example.com"),
                ("cache-control", "no-cache"),
            ],
        ),
    ],
)
def test_the_examples_of_the_rfc(block: str, headers: list[tuple[str, str]]) -> None:
    decoder = Decoder()
    if "be" in block[6:8]:
        decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert decoder.decode(bytes.fromhex(block)) == headers


@given(st.binary(max_size=40))
def test_binary_headers_survive(value: bytes) -> None:
    assert decode_binary(encode_binary(value)) == value


@given(st.text(max_size=40), st.binary(max_size=20))
def test_statuses_survive(message: str, details: bytes) -> None:
    error = RpcError("ABORTED", message, details)
    got = RpcError.from_trailers(status_trailers(error))
    assert got is not None
    clean = message.encode(errors="replace").decode()
    assert (got.code, got.message, got.details) == ("ABORTED", clean, details)


@pytest.mark.parametrize(
    ("trailers", "code"),
    [
        ([(":status", "502")], "UNAVAILABLE"),
        ([(":status", "404")], "UNIMPLEMENTED"),
        ([(":status", "200")], "INTERNAL"),
        ([("grpc-status", "99")], "UNKNOWN"),
    ],
)
def test_answers_that_are_not_grpc(trailers: list[tuple[str, str]], code: str) -> None:
    error = RpcError.from_trailers(trailers)
    assert error is not None
    assert error.code == code


def test_control_messages_fit_the_generated_classes() -> None:
    """The session's own framing of BytesMessage is what protobuf writes."""
    from crossdock.buildkit.rpc.messages import varint
    from crossdock.buildkit.session.server import _payload

    for size in (0, 1, 127, 128, 300, 70_000):
        data = b"x" * size
        raw = control_pb2.BytesMessage(data=data).SerializeToString()
        assert raw == (b"\x0a" + varint(size) + data if size else b"")
        assert _payload(raw) == data
