"""Blob uploads: what is asked, what is sent, and what happens when it breaks."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING, BinaryIO

import pytest

from crossdock.errors import AuthError, DigestMismatch, InternalError, RegistryError
from crossdock.image import Descriptor, Reference, parse_reference, sha256_digest
from crossdock.registry import HostConfig
from crossdock.registry.upload import PushOutcome
from support.scripted import Got, Reply, ScriptedServer, error_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

DATA = os.urandom(3_000_000)
BLOB = Descriptor("application/octet-stream", sha256_digest(DATA), len(DATA))
HEAD = f"/v2/app/blobs/{BLOB.digest}"
START = "/v2/app/blobs/uploads/"
SESSION = "/v2/app/blobs/uploads/session"
BEGUN = Reply(202, headers={"location": f"{SESSION}?state=1"})


def ref(server: ScriptedServer) -> Reference:
    return parse_reference(f"{server.host}/app:1")


def content(offset: int) -> BinaryIO:
    return io.BytesIO(DATA[offset:])


def push(client: RegistryClient, server: ScriptedServer, **kwargs: object) -> PushOutcome:
    return client.push_blob(ref(server), BLOB, content, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def client(server: ScriptedServer, make_client: Make) -> RegistryClient:
    return make_client(hosts={server.host: HostConfig(http=True)})


def test_a_blob_that_is_there_costs_one_request(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("HEAD", HEAD, Reply(200))
    assert push(client, server) is PushOutcome.EXISTS
    assert server.lines() == [f"HEAD {HEAD}"]


def test_a_blob_is_sent_in_one_put(server: ScriptedServer, client: RegistryClient) -> None:
    seen: list[int] = []
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    assert push(client, server, progress=seen.append) is PushOutcome.UPLOADED
    assert server.lines()[1:] == [f"POST {START}", f"PUT {SESSION}?state=1&digest={BLOB.digest}"]
    assert server.got[-1].body == DATA
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


def test_what_is_new_is_sent_without_asking(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    assert push(client, server, ask=False) is PushOutcome.UPLOADED
    assert server.lines() == [f"POST {START}", f"PUT {SESSION}?state=1&digest={BLOB.digest}"]


def test_an_empty_blob_is_sent(server: ScriptedServer, client: RegistryClient) -> None:
    empty = Descriptor("x", sha256_digest(b""), 0)
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    assert client.push_blob(ref(server), empty, content) is PushOutcome.UPLOADED
    assert server.got[-1].headers["content-length"] == "0"


def test_a_location_elsewhere_gets_no_login(
    server: ScriptedServer, other: ScriptedServer, client: RegistryClient
) -> None:
    server.on("POST", START, Reply(202, headers={"location": f"http://{other.host}/upload"}))
    other.on("PUT", "/upload", Reply(201))
    push(client, server)
    assert other.got[0].target == f"/upload?digest={BLOB.digest}"
    assert "authorization" not in other.got[0].headers


def test_an_upload_without_a_location_is_an_error(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, Reply(202))
    with pytest.raises(RegistryError, match="without saying where"):
        push(client, server)


@pytest.mark.parametrize("location", ["http://[::1/x", "ftp://x/", "http://h:99999/"])
def test_a_location_that_is_no_address_is_an_error(
    server: ScriptedServer, client: RegistryClient, location: str
) -> None:
    server.on("POST", START, Reply(202, headers={"location": location}))
    with pytest.raises(RegistryError, match="began an upload nowhere"):
        push(client, server)


def mount(result: Callable[[Got], Reply]) -> Callable[[Got], Reply]:
    return lambda got: result(got) if "mount=" in got.target else BEGUN


def test_a_blob_is_mounted_from_another_repository(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, mount(lambda _: Reply(201)))
    sources = [f"{server.host}/base/os", "elsewhere.io/x", f"{server.host}/app"]
    assert push(client, server, mount_from=sources) is PushOutcome.MOUNTED
    assert server.lines()[1:] == [f"POST {START}?mount={BLOB.digest}&from=base/os"]


def test_a_mount_that_is_not_done_becomes_the_upload(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    assert push(client, server, mount_from=["base/os"]) is PushOutcome.UPLOADED
    assert [line.split(" ")[0] for line in server.lines()] == ["HEAD", "POST", "PUT"]


def test_every_source_is_tried_and_sessions_not_used_are_given_up(
    server: ScriptedServer, client: RegistryClient
) -> None:
    server.on("POST", START, lambda got: Reply(201) if "from=b/b" in got.target else BEGUN)
    server.on("DELETE", SESSION, Reply(204))
    assert push(client, server, mount_from=["a/a", "b/b", "c/c"]) is PushOutcome.MOUNTED
    assert [line.split(" ")[0] for line in server.lines()] == ["HEAD", "POST", "DELETE", "POST"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_refused_mount_does_not_fail_the_push(
    server: ScriptedServer, client: RegistryClient, status: int
) -> None:
    server.on("POST", START, mount(lambda _: Reply(status))).on("PUT", SESSION, Reply(201))
    assert push(client, server, mount_from=["private/x"]) is PushOutcome.UPLOADED


def test_a_mount_asks_for_a_token_that_reads_the_source(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    from urllib.parse import parse_qs

    challenge = {"www-authenticate": f'Bearer realm="http://{other.host}/token"'}
    server.on("HEAD", HEAD, Reply(401, headers=challenge), Reply(404))
    server.on("POST", START, mount(lambda _: Reply(201)))
    other.on("GET", "/token", Reply(200, b'{"token": "t"}'))
    push(make_client(), server, mount_from=["base/os"])
    scopes = [parse_qs(got.target.partition("?")[2])["scope"] for got in other.got]
    assert scopes == [["repository:app:pull,push"], ["repository:app:pull,push", "repository:base/os:pull"]]


BREAKS = [
    Reply(reset=True, read_only=1_000_000),
    Reply(503, read_only=500_000),
    Reply(500),
    Reply(504),
]


@pytest.mark.parametrize("broken", BREAKS, ids=["reset", "503 midway", "500 at the end", "504"])
def test_a_broken_upload_goes_on_where_it_stopped(
    server: ScriptedServer, client: RegistryClient, broken: Reply
) -> None:
    server.on("POST", START, BEGUN)
    server.on("PUT", SESSION, broken, Reply(201))
    arrived = {"range": "0-999999", "location": f"{SESSION}?state=2"}
    server.on("GET", SESSION, Reply(204, headers=arrived))
    server.on("PATCH", SESSION, Reply(202, headers={"location": f"{SESSION}?state=3"}))
    assert push(client, server) is PushOutcome.UPLOADED
    get, patch, put = server.got[-3:]
    assert (get.method, get.target) == ("GET", f"{SESSION}?state=1")
    assert (patch.method, patch.target) == ("PATCH", f"{SESSION}?state=2")
    assert patch.headers["content-range"] == f"1000000-{len(DATA) - 1}"
    assert patch.body == DATA[1_000_000:]
    assert (put.method, put.target) == ("PUT", f"{SESSION}?state=3&digest={BLOB.digest}")
    assert put.body == b""


def test_an_upload_that_arrived_whole_is_only_closed(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(500), Reply(201))
    arrived = {"range": f"0-{len(DATA) - 1}", "location": f"{SESSION}?state=2"}
    server.on("GET", SESSION, Reply(204, headers=arrived))
    push(client, server)
    assert server.got[-1].body == b""


@pytest.mark.parametrize(
    "status",
    [Reply(404), Reply(416), Reply(204, headers={"range": "0-0", "location": SESSION}), Reply(204)],
    ids=["gone", "wrong offset", "nothing arrived", "tells nothing"],
)
def test_an_upload_that_cannot_go_on_begins_anew(
    server: ScriptedServer, client: RegistryClient, status: Reply
) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(reset=True, read_only=100_000), Reply(201))
    server.on("GET", SESSION, status)
    assert push(client, server) is PushOutcome.UPLOADED
    assert sum(got.method == "POST" for got in server.got) == 2
    assert server.got[-1].body == DATA


def test_an_upload_that_never_succeeds_is_given_up(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(503))
    with pytest.raises(RegistryError, match="503") as caught:
        push(client, server)
    assert caught.value.retryable
    assert sum(got.method == "PUT" for got in server.got) == 5


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (error_reply(403, "DENIED"), AuthError),
        (Reply(401), AuthError),
        (Reply(413), RegistryError),
        (error_reply(400, "DIGEST_INVALID"), DigestMismatch),
        (Reply(201, headers={"docker-content-digest": sha256_digest(b"x")}), DigestMismatch),
        (error_reply(400, "SIZE_INVALID"), RegistryError),
    ],
)
def test_a_refused_upload_is_not_tried_again(
    server: ScriptedServer, client: RegistryClient, reply: Reply, error: type[Exception]
) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, reply)
    with pytest.raises(error):
        push(client, server)
    assert sum(got.method == "PUT" for got in server.got) == 1


def test_a_refusal_before_the_body_was_read_is_understood(
    server: ScriptedServer, client: RegistryClient
) -> None:
    early = Reply(413, b'{"errors":[{"code":"SIZE_INVALID","message":"too big"}]}', read_only=0)
    server.on("POST", START, BEGUN).on("PUT", SESSION, early)
    with pytest.raises(RegistryError, match="too large"):
        push(client, server)


def test_content_shorter_than_announced_is_our_defect(server: ScriptedServer, client: RegistryClient) -> None:
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    with pytest.raises(InternalError, match="ends at 5 of 3000000 bytes"):
        client.push_blob(ref(server), BLOB, lambda offset: io.BytesIO(b"short"[offset:]))


def test_what_is_opened_is_closed(server: ScriptedServer, client: RegistryClient) -> None:
    opened: list[io.BytesIO] = []

    def open_at(offset: int) -> BinaryIO:
        opened.append(io.BytesIO(DATA[offset:]))
        return opened[-1]

    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(reset=True, read_only=100), Reply(201))
    client.push_blob(ref(server), BLOB, open_at)
    assert len(opened) == 2
    assert all(stream.closed for stream in opened)


def test_pushes_that_fetch_what_they_send_do_not_wait_for_each_other(
    server: ScriptedServer, client: RegistryClient
) -> None:
    """Four uploads hold every slot of a registry, and each reads its content from that registry."""
    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    server.on("GET", f"/v2/base/blobs/{BLOB.digest}", Reply(200, DATA))
    base = parse_reference(f"{server.host}/base")
    together = threading.Barrier(4, timeout=10)
    outcomes: list[PushOutcome] = []

    def open_at(offset: int) -> BinaryIO:
        together.wait()
        return io.BytesIO(client.fetch_blob(base, BLOB)[offset:])

    def work() -> None:
        outcomes.append(client.push_blob(ref(server), BLOB, open_at))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes == [PushOutcome.UPLOADED] * 4


def test_a_stream_without_readinto_is_enough(server: ScriptedServer, client: RegistryClient) -> None:
    class Plain:
        def __init__(self) -> None:
            self._inner = io.BytesIO(DATA)

        def read(self, size: int) -> bytes:
            return self._inner.read(size)

        def __enter__(self) -> Plain:
            return self

        def __exit__(self, *_: object) -> None:
            self._inner.close()

    server.on("POST", START, BEGUN).on("PUT", SESSION, Reply(201))
    client.push_blob(ref(server), BLOB, lambda _: Plain())  # type: ignore[arg-type, return-value]
    assert server.got[-1].body == DATA
