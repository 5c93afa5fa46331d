"""Blob downloads that are cut, lied about and redirected."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, DigestMismatch, NotFoundError, RegistryError
from crossdock.image import Descriptor, Reference, parse_reference, sha256_digest
from crossdock.registry import HostConfig
from support.scripted import Got, Reply, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

DATA = os.urandom(300_000)
BLOB = Descriptor("application/octet-stream", sha256_digest(DATA), len(DATA))
PATH = f"/v2/app/blobs/{BLOB.digest}"


def ref(server: ScriptedServer) -> Reference:
    return parse_reference(f"{server.host}/app")


def fetch(client: RegistryClient, server: ScriptedServer, blob: Descriptor = BLOB) -> bytes:
    with client.open_blob(ref(server), blob) as reader:
        return b"".join(iter(lambda: reader.read(7000), b""))


def ranged(*cuts: int | None, honour: bool = True) -> list[Callable[[Got], Reply]]:
    """Answer range requests; each answer is cut after so many bytes."""

    def make(cut: int | None) -> Callable[[Got], Reply]:
        def reply(got: Got) -> Reply:
            start = int(got.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            if not start or not honour:
                return Reply(200, DATA, cut_after=cut)
            headers = {"content-range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
            return Reply(206, DATA[start:], headers, cut_after=cut)

        return reply

    return [make(cut) for cut in cuts]


def test_a_blob_comes_whole(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, DATA))
    assert fetch(make_client(), server) == DATA


def test_a_chunked_blob_comes_whole(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, DATA, chunk=10_000))
    assert fetch(make_client(), server) == DATA


def test_an_empty_blob(server: ScriptedServer, make_client: Make) -> None:
    empty = Descriptor("x", sha256_digest(b""), 0)
    server.on("GET", f"/v2/app/blobs/{empty.digest}", Reply(200))
    client = make_client()
    assert fetch(client, server, empty) == b""
    assert client.fetch_blob(ref(server), empty) == b""


def test_a_read_is_as_long_as_asked(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, DATA, chunk=999))
    with make_client().open_blob(ref(server), BLOB) as reader:
        assert [len(reader.read(n)) for n in (1, 200_000, 0)] == [1, 200_000, 0]
        assert reader.tell() == 200_001
        assert len(reader.read()) == len(DATA) - 200_001
        assert reader.read(1) == b""


@pytest.mark.parametrize("honour", [True, False], ids=["with ranges", "without"])
def test_a_cut_body_is_gone_on_with(server: ScriptedServer, make_client: Make, honour: bool) -> None:
    server.on("GET", PATH, *ranged(50_000, 60_000, None, honour=honour))
    assert fetch(make_client(), server) == DATA
    assert server.got[1].headers["range"] == "bytes=50000-"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 60_000), max_size=4), honour=st.booleans())
def test_any_cuts_give_the_same_bytes(make_client: Make, cuts: list[int], honour: bool) -> None:
    with ScriptedServer() as server:
        server.on("GET", PATH, *ranged(*cuts, None, honour=honour))
        client = make_client(hosts={server.host: HostConfig(http=True)})
        try:
            assert fetch(client, server) == DATA
        finally:
            client.close()


def test_a_download_that_makes_no_progress_is_given_up(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, *ranged(1000, 0))
    with pytest.raises(RegistryError, match="broke at 1000 of 300000 bytes") as caught:
        fetch(make_client(), server)
    assert caught.value.retryable
    assert len(server.got) == 5


def test_a_download_that_always_gets_on_is_not_given_up(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, *ranged(*[20_000] * 14, None))
    assert fetch(make_client(), server) == DATA


FLIPPED = bytes([DATA[0] ^ 1]) + DATA[1:]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, FLIPPED),
        Reply(200, DATA + b"more"),
        Reply(200, DATA[:-1]),
        Reply(200, DATA + b"more", chunk=100_000),
        Reply(200, DATA[:-1], chunk=100_000, close=True),
        Reply(200, b"<html>it works</html>"),
    ],
    ids=["other bytes", "too long", "too short", "too long in chunks", "too short in chunks", "a page"],
)
def test_what_is_not_the_blob_is_refused(server: ScriptedServer, make_client: Make, reply: Reply) -> None:
    server.on("GET", PATH, reply)
    with pytest.raises((DigestMismatch, RegistryError)) as caught:
        fetch(make_client(), server)
    if reply.chunk and len(reply.body) < len(DATA):
        assert "ended too early" in str(caught.value)
    else:
        assert isinstance(caught.value, DigestMismatch)
        assert "expected" in (caught.value.detail or "")


def test_the_last_bytes_of_a_wrong_blob_are_never_given_out(
    server: ScriptedServer, make_client: Make
) -> None:
    server.on("GET", PATH, Reply(200, FLIPPED))
    with make_client().open_blob(ref(server), BLOB) as reader:
        assert len(reader.read(len(DATA) - 1)) == len(DATA) - 1
        for _ in range(2):
            with pytest.raises(DigestMismatch):
                reader.read(1)


def test_a_wrong_part_is_refused(server: ScriptedServer, make_client: Make) -> None:
    other_part = Reply(206, DATA[5:], {"content-range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"})
    server.on("GET", PATH, Reply(200, DATA, cut_after=1000), other_part)
    with pytest.raises(RegistryError, match="another part"):
        fetch(make_client(), server)


def test_a_blob_that_shrank_is_refused(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, DATA, cut_after=1000), Reply(416))
    with pytest.raises(DigestMismatch):
        fetch(make_client(), server)


def test_a_redirect_to_storage_is_followed_again_after_a_cut(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("GET", PATH, Reply(307, headers={"location": f"http://{other.host}/s3?sig=1"}))
    other.on("GET", "/s3", *ranged(1000, None))
    assert fetch(make_client(), server) == DATA
    assert len(server.got) == 2


def test_a_missing_blob(server: ScriptedServer, make_client: Make) -> None:
    with pytest.raises(NotFoundError, match=f"blob {BLOB.digest} of {server.host}/app: not found"):
        fetch(make_client(), server)


def test_a_blob_of_unexpected_size_is_not_read_into_memory(server: ScriptedServer, make_client: Make) -> None:
    with pytest.raises(RegistryError, match="more than the 4194304 allowed"):
        make_client().fetch_blob(ref(server), Descriptor("x", BLOB.digest, 1 << 40))
    assert server.got == []


def test_four_downloads_at_a_time(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, DATA))
    client = make_client()
    readers = [client.open_blob(ref(server), BLOB) for _ in range(4)]
    token = CancelToken()
    timer = threading.Timer(0.3, token.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        client.scoped(cancel=token).open_blob(ref(server), BLOB)
    timer.join()
    assert client.blob_exists(ref(server), BLOB.digest) is False  # needs no slot
    readers.pop().close()
    assert fetch(client, server) == DATA
    for reader in readers:
        reader.close()


def test_a_failed_download_frees_its_slot(server: ScriptedServer, make_client: Make) -> None:
    client = make_client()
    for _ in range(6):
        with pytest.raises(NotFoundError):
            client.open_blob(ref(server), BLOB)


def test_cancelling_ends_a_stalled_download_at_once(server: ScriptedServer, make_client: Make) -> None:
    stalled = Reply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\nabc")

    def slow(got: Got) -> Reply:
        return Reply(delay_s=10) if "range" in got.headers else stalled

    server.on("GET", PATH, slow)
    token = CancelToken()
    timer = threading.Timer(0.3, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(make_client(cancel=token, idle_s=30), server)
    timer.join()
    assert time.monotonic() - started < 3
