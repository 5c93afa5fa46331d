"""Peers that mean harm: frames that break the rules, floods, bombs; every one ends in an error and a bounded memory."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.buildkit.rpc import http2
from crossdock.buildkit.rpc.hpack import Decoder, HeaderError, _remembered, encode
from crossdock.buildkit.rpc.messages import Budget, prefixed, split
from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.buildkit.rpc.serve import ServerCall

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
CALM = 11


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 0xFF, kind, flags, number) + payload


HELLO = PREFACE + frame(SETTINGS, 0, 0)
CALL = encode([(":path", "/echo")])


class Attacked:
    """A server on one end of a socket pair; :meth:`say` is what the peer sends."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.started = 0
        self.gate = threading.Event()
        self._lock = threading.Lock()
        handlers = {"/echo": self._echo, "/wait": self._wait}
        self.calls = Budget(64)
        self.server = Server(
            SocketStream(self.near), handlers, max_headers=64 << 10, budget=Budget(4 << 20), calls=self.calls
        )
        self.said = bytearray()
        self.over = threading.Event()
        self.server.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _echo(self, call: ServerCall) -> None:
        for message in call.messages():
            call.send(message)

    def _wait(self, _call: ServerCall) -> None:
        with self._lock:
            self.started += 1
        self.gate.wait(20)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.far.recv(1 << 16):
                self.said += data
        self.over.set()

    def say(self, data: bytes) -> bool:
        """Send; False when the server has hung up."""
        try:
            self.far.sendall(data)
        except OSError:
            return False
        return True

    def goaway(self) -> int:
        """Wait for the server to hang up; returns the code it gave."""
        assert self.over.wait(20), "the connection is still open"
        at = bytes(self.said).rfind(struct.pack(">HBB", 0, 8, GOAWAY))
        return int.from_bytes(self.said[at + 13 : at + 17], "big") if at >= 0 else -1

    def close(self) -> None:
        self.gate.set()
        self.far.close()
        self.server.close()


@pytest.fixture
def attacked() -> Iterator[Attacked]:
    made = Attacked()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        pytest.param(frame(DATA, 0, 0, b"x"), 1, id="data without a stream"),
        pytest.param(frame(HEADERS, 4, 0, CALL), 1, id="headers without a stream"),
        pytest.param(frame(HEADERS, 4, 2, CALL), 1, id="an even stream"),
        pytest.param(frame(RST, 0, 0, b"\0\0\0\0"), 1, id="a reset without a stream"),
        pytest.param(frame(RST, 0, 1, b"\0"), 6, id="a short reset"),
        pytest.param(frame(WINDOW, 0, 0, b"\0\0\0\0"), 1, id="a window opened by nothing"),
        pytest.param(frame(WINDOW, 0, 0, b"\0\0"), 6, id="a short window"),
        pytest.param(frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), 3, id="a window too large"),
        pytest.param(
            frame(HEADERS, 4, 1, CALL) + frame(WINDOW, 0, 1, b"\x7f\xff\xff\xff"), 3, id="a stream's window too large"
        ),
        pytest.param(frame(PING, 0, 0, b"x"), 6, id="a short ping"),
        pytest.param(frame(SETTINGS, 0, 0, b"12345"), 1, id="torn settings"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), 3, id="a setting too large"),
        pytest.param(frame(GOAWAY, 0, 0, b"1"), 6, id="a short goodbye"),
        pytest.param(frame(CONTINUATION, 4, 1, CALL), 1, id="continuation of nothing"),
        pytest.param(frame(HEADERS, 0, 1, CALL) + frame(PING, 0, 0, b"12345678"), 1, id="torn headers"),
        pytest.param(frame(HEADERS, 12, 1, b"\xff" + CALL), 1, id="padding longer than its frame"),
        pytest.param(frame(HEADERS, 4, 1, b"\xbe"), 9, id="an entry that is not there"),
        pytest.param(frame(HEADERS, 4, 1, b"\x3f\xe1\xff\x7f"), 9, id="a table too large"),
        pytest.param(struct.pack(">HBBBI", 0xFFFF, 0xFF, DATA, 0, 1), 1, id="a frame too large"),
        pytest.param(
            frame(HEADERS, 5, 1, CALL) + frame(DATA, 0, 1, b"x"), None, id="data after the end"
        ),
        pytest.param(
            frame(HEADERS, 4, 1, encode([(":path", "/wait")])) + frame(HEADERS, 4, 1, CALL), 1, id="headers twice"
        ),
    ],
)  # fmt: skip
def test_a_broken_rule_ends_the_connection_with_its_code(
    attacked: Attacked, said: bytes, code: int | None
) -> None:
    attacked.say(HELLO + said)
    if code is None:
        # The call may have been answered by then; if not, the connection ends.
        attacked.far.shutdown(socket.SHUT_WR)
        attacked.goaway()
        return
    assert attacked.goaway() == code


def test_a_header_list_has_a_size(attacked: Attacked) -> None:
    attacked.say(HELLO + frame(HEADERS, 4, 1, encode([("x", "y" * (70 << 10))])))
    assert attacked.goaway() == 9


def test_a_bomb_of_indexes_is_counted_by_entries(attacked: Attacked) -> None:
    # One byte each: entry 2 of the static table, and an entry without name and value.
    empty = b"\x40\0\0"
    attacked.say(HELLO + frame(HEADERS, 4, 1, empty + b"\xbe" * 60_000))
    assert attacked.goaway() == 9


def test_a_flood_of_continuations_ends(attacked: Attacked) -> None:
    assert attacked.say(HELLO + frame(HEADERS, 0, 1, b""))
    for _ in range(10_000):
        if not attacked.say(frame(CONTINUATION, 0, 1, b"\0" * 16_000)):
            break
    else:
        pytest.fail("ten thousand continuations were taken")
    assert attacked.goaway() == 1


def test_rapid_resets_end_the_connection_and_start_few_handlers(attacked: Attacked) -> None:
    attacked.say(HELLO)
    block, reset = encode([(":path", "/wait")]), struct.pack(">I", 8)
    for number in range(1, 60_001, 2):
        if not attacked.say(frame(HEADERS, 4, number, block) + frame(RST, 0, number, reset)):
            break
    assert attacked.goaway() == CALM
    assert attacked.started <= 64


def test_calls_beyond_the_limit_are_refused_and_others_go_on(attacked: Attacked) -> None:
    attacked.say(HELLO)
    block = encode([(":path", "/wait")])
    for number in range(1, 201, 2):
        attacked.say(frame(HEADERS, 4, number, block))
    refused = frame(RST, 0, 199, struct.pack(">I", 7))
    wait_for(lambda: refused in attacked.said)
    assert attacked.started <= 64
    attacked.gate.set()
    wait_for(lambda: attacked.calls.take(64))
    attacked.calls.give(64)
    attacked.say(frame(HEADERS, 4, 201, CALL) + frame(DATA, 1, 201, prefixed(b"still here")))
    wait_for(lambda: b"still here" in attacked.said)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_all_streams_together_may_not_send_more_than_the_connections_window(attacked: Attacked) -> None:
    block = encode([(":path", "/wait")])
    attacked.say(HELLO)
    data = b"x" * (256 << 10)
    sent = 0
    for number in range(1, 64, 2):
        if not attacked.say(frame(HEADERS, 4, number, block)):
            break
        for _ in range(30):
            if not attacked.say(frame(DATA, 0, number, data)):
                break
            sent += len(data)
    assert attacked.goaway() == 3
    assert sent <= 34 << 20


def test_small_pieces_of_data_cost_no_more_than_large_ones() -> None:
    server = Attacked()
    try:
        server.say(HELLO + frame(HEADERS, 4, 1, encode([(":path", "/wait")])))
        wait_for(lambda: server.started)
        one = frame(DATA, 0, 1, b"x") * 1000
        tracemalloc.start()
        for _ in range(200):
            assert server.say(one)
        server.say(frame(PING, 0, 0, b"everyone"))
        wait_for(lambda: b"everyone" in server.said)
        current, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert current < 4 << 20
    finally:
        server.close()


def test_large_messages_at_once_are_refused_and_memory_stays(attacked: Attacked) -> None:
    attacked.say(HELLO)
    for number in range(1, 9, 2):
        begun = b"\0" + (3 << 20).to_bytes(4, "big")
        attacked.say(frame(HEADERS, 4, number, CALL) + frame(DATA, 0, number, begun + b"x"))
    wait_for(lambda: attacked.said.count(b"too many large messages") >= 3)


def test_settings_and_pings_without_end_are_answered_one_by_one(attacked: Attacked) -> None:
    attacked.say(HELLO + frame(HEADERS, 4, 1, CALL))
    many = b"".join(struct.pack(">HI", 4, 65_535 + n % 7) for n in range(5000))
    for _ in range(20):
        assert attacked.say(frame(SETTINGS, 0, 0, many) + frame(PING, 0, 0, b"12345678") * 100)
    attacked.say(frame(DATA, 1, 1, prefixed(b"answer me")))
    wait_for(lambda: b"answer me" in attacked.said)


def test_what_huffman_texts_say_is_not_kept_for_ever() -> None:
    rng = random.Random(7)
    decoder = Decoder()
    for _ in range(5000):
        with contextlib.suppress(HeaderError):
            decoder.decode(b"\0\x01a" + bytes([0x80 | 8]) + rng.randbytes(8))
    assert _remembered.cache_info().currsize <= 2048


def test_a_message_that_stops_gives_its_part_of_the_budget_back() -> None:
    budget = Budget(4 << 20)
    parts = iter([b"\0" + (3 << 20).to_bytes(4, "big"), b"x", b""])
    with pytest.raises(RpcError, match="cut off"):
        list(split(lambda: next(parts), budget))
    assert budget.take(4 << 20)


FRAMES = st.builds(
    frame,
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 9),
    st.one_of(st.binary(max_size=40), st.just(CALL), st.just(prefixed(b"hello"))),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAMES, max_size=12), st.binary(max_size=20))
def test_any_frames_end_in_answers_or_an_end(frames: list[bytes], rest: bytes) -> None:
    server = Attacked()
    try:
        server.say(HELLO + b"".join(frames) + rest)
        with contextlib.suppress(OSError):
            server.far.shutdown(socket.SHUT_WR)
        assert server.over.wait(20)
    finally:
        server.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_end(data: bytes) -> None:
    server = Attacked()
    try:
        server.say(data)
        with contextlib.suppress(OSError):
            server.far.shutdown(socket.SHUT_WR)
        assert server.over.wait(20)
    finally:
        server.close()


def test_the_limits_leave_room_for_a_hundred_targets() -> None:
    # Each has three long calls on one connection: solve, status, session.
    assert http2.MAX_STREAMS >= 1000
