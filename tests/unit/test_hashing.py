"""Hashes of either implementation, and when which is taken."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from crossdock import hashing
from crossdock.hashing import new, sha256, sha256_stream

SIZES = (0, 1, 1000, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 3 << 20)


@pytest.fixture(params=["fresh", "much was hashed", "no implementation of Python's own"])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_left", -1 if request.param == "much was hashed" else 1 << 20)
    if request.param.startswith("no "):
        monkeypatch.setattr(hashing, "_own", None)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("size", SIZES)
def test_all_ways_give_the_same(size: int) -> None:
    data = os.urandom(size)
    wanted = hashlib.sha256(data)
    assert sha256(data).hexdigest() == wanted.hexdigest()
    for begin in (sha256_stream, lambda: new("sha256")):
        for step in (1 << 20, 70_001, 4096):
            stream = begin()
            for at in range(0, size, step):
                stream.update(data[at : at + step])
            assert stream.digest() == wanted.digest()
            stream.update(b"more")
            assert stream.hexdigest() == hashlib.sha256(data + b"more").hexdigest(), "one may go on"


@pytest.mark.usefixtures("process")
def test_a_buffer_may_be_used_again() -> None:
    buffer, stream, wanted = bytearray(1000), sha256_stream(), hashlib.sha256()
    for number in range(500):
        buffer[:] = bytes([number % 256]) * 1000
        stream.update(memoryview(buffer)[: number + 1])
        wanted.update(buffer[: number + 1])
    assert stream.hexdigest() == wanted.hexdigest()


def test_other_algorithms() -> None:
    hasher = new("sha512")
    hasher.update(b"x")
    assert hasher.hexdigest() == hashlib.sha512(b"x").hexdigest()
    with pytest.raises(ValueError, match="nothing"):
        new("nothing")


HOW_MUCH = """
import sys
from crossdock.hashing import sha256, sha256_stream
count, size = map(int, sys.argv[1:])
for number in range(count):
    sha256(b"key of %d" % number).digest()
    stream = sha256_stream()
    stream.update(bytes(size))
    stream.digest()
print("_hashlib" in sys.modules)
"""


@pytest.mark.parametrize(
    ("count", "size", "loaded"), [(200, 1000, False), (1, 129 << 10, True), (20, 64 << 10, True)]
)
def test_openssl_is_loaded_when_there_is_something_to_hash(count: int, size: int, *, loaded: bool) -> None:
    argv = [sys.executable, "-c", HOW_MUCH, str(count), str(size)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)
