"""A real server under raw attack: it goes on serving others, and its memory stays within bounds."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit.rpc.hpack import encode
from integration.server.plain import Client, definition, made_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.server.conftest import Server

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
#: bytes that attacks may add to the server's memory
ROOM = 150 << 20


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 0xFF, kind, flags, number) + payload


def headers(path: str, number: int) -> bytes:
    return frame(1, 4, number, encode([(":method", "POST"), (":path", path), ("te", "trailers")]))


def resets(_rng: random.Random) -> bytes:
    reset = struct.pack(">I", 8)
    return b"".join(
        headers("/moby.buildkit.v1.Control/Status", n) + frame(3, 0, n, reset) for n in range(1, 6001, 2)
    )


def continuations(_rng: random.Random) -> bytes:
    return frame(1, 0, 1, b"") + frame(9, 0, 1, b"\0" * 16_000) * 2000


def bomb(_rng: random.Random) -> bytes:
    return frame(1, 4, 1, b"\x40\x01a\x7f\xa1\x1f" + b"v" * 4000 + b"\xbe" * 100_000)


def half_messages(_rng: random.Random) -> bytes:
    said = b""
    for number in range(1, 201, 2):
        begun = b"\0" + (15 << 20).to_bytes(4, "big") + b"x" * 65_000
        said += headers("/moby.buildkit.v1.Control/Solve", number) + frame(0, 0, number, begun)
    return said


def everything(_rng: random.Random) -> bytes:
    said = b""
    for number in range(1, 401, 2):
        said += headers("/moby.buildkit.v1.Control/Solve", number)
    return said + frame(0, 0, 1, b"\0" * (256 << 10)) * 200


def noise(rng: random.Random) -> bytes:
    return b"".join(
        frame(rng.randrange(12), rng.randrange(256), rng.randrange(9), rng.randbytes(rng.randrange(60)))
        for _ in range(500)
    )


def attack(path: Path, make: Callable[[random.Random], bytes], seed: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(20)
        sock.connect(str(path))
        reader = threading.Thread(target=_read, args=(sock,), daemon=True)
        reader.start()
        sock.sendall(HELLO + make(random.Random(seed)))
        sock.shutdown(socket.SHUT_WR)
        reader.join(20)


def _read(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass


def memory(server: Server) -> int:
    """Most bytes that a process of the server ever had in memory."""
    group = server.process.pid
    most = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if int((status.parent / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
                most = max(most, int(line.split()[1]) << 10)
    return most


@pytest.mark.parametrize("make", [resets, continuations, bomb, half_messages, everything, noise])
def test_others_are_served_meanwhile(
    shared: Server, client: Client, make: Callable[[random.Random], bytes]
) -> None:
    client.solve(Definition=definition(made_file(b"before")))
    before = memory(shared)
    threads = [threading.Thread(target=attack, args=(shared.socket, make, n)) for n in range(8)]
    for thread in threads:
        thread.start()
    client.solve(Definition=definition(made_file(make.__name__.encode())))
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    client.solve(Definition=definition(made_file(b"after")))
    assert memory(shared) - before < ROOM
