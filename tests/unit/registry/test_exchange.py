"""Retries, redirects and the choice of scheme."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, RegistryError
from crossdock.image import Descriptor, parse_reference, sha256_digest
from crossdock.image.mediatypes import OCI_INDEX, OCI_MANIFEST
from crossdock.registry import HostConfig
from crossdock.registry.exchange import redact
from support.scripted import Got, Reply, ScriptedServer, error_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

RAW = b'{"schemaVersion":2}'
DIGEST = sha256_digest(RAW)
GOOD = Reply(200, RAW, {"content-type": OCI_MANIFEST, "docker-content-digest": DIGEST})
PATH = "/v2/app/manifests/1"


def resolve(client: RegistryClient, server: ScriptedServer) -> str:
    return client.resolve(parse_reference(f"{server.host}/app:1")).digest


@pytest.mark.parametrize(
    "bad",
    [
        Reply(500),
        Reply(502),
        Reply(503, headers={"retry-after": "0"}),
        Reply(503, headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Reply(429, headers={"retry-after": "0"}),
        Reply(429),
        Reply(408),
        Reply(reset=True),
        Reply(raw=b""),
        Reply(raw=b"HTTP/1.1 20"),
    ],
    ids=[
        "500",
        "502",
        "503 and seconds",
        "503 and date",
        "429 and seconds",
        "429",
        "408",
        "reset",
        "closed without answer",
        "cut inside the head",
    ],
)
def test_what_may_pass_is_tried_again(server: ScriptedServer, make_client: Make, bad: Reply) -> None:
    # a plain-HTTP-only host: otherwise a reset also makes the client try TLS
    server.on("HEAD", PATH, bad, bad, GOOD)
    assert resolve(make_client(hosts={server.host: HostConfig(http=True)}), server) == DIGEST
    assert len(server.got) == 3


def test_attempts_are_limited_and_counted(server: ScriptedServer, make_client: Make) -> None:
    server.on("PUT", PATH, Reply(503))
    with pytest.raises(RegistryError) as caught:
        make_client().push_manifest(
            parse_reference(f"{server.host}/app:1"), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW
        )
    assert len(server.got) == 4
    assert "asked 4 times" in (caught.value.detail or "")
    assert caught.value.retryable


def test_a_long_pause_is_not_waited_for(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(429, headers={"retry-after": "3600"}))
    started = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        resolve(make_client(), server)
    assert time.monotonic() - started < 5
    assert len(server.got) == 1
    assert "3600 s" in (caught.value.hint or "")


def test_what_is_refused_is_not_tried_again(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(403))
    with pytest.raises(RegistryError):
        resolve(make_client(), server)
    assert len(server.got) == 1


def test_an_idle_connection_closed_by_the_peer_is_replaced(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, GOOD, Reply(reset=True), GOOD)
    client = make_client()
    assert [resolve(client, server) for _ in range(2)] == [DIGEST] * 2
    assert server.connections == 2


def test_connections_are_reused(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, GOOD)
    client = make_client()
    for _ in range(5):
        resolve(client, server)
    assert server.connections == 1


def test_redirects_are_followed_without_the_login(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    from crossdock.registry import Credential
    from crossdock.secret import Secret

    def guarded(got: Got) -> Reply:
        if "authorization" not in got.headers:
            return Reply(401, headers={"www-authenticate": 'Basic realm="x"'})
        return Reply(307, headers={"location": f"http://{other.host}/elsewhere?signature=abc"})

    server.on("HEAD", PATH, guarded)
    other.on("HEAD", "/elsewhere", GOOD)
    logins = {server.host: Credential("me", Secret("hunter2"))}
    assert resolve(make_client(logins=logins), server) == DIGEST
    assert "authorization" in server.got[-1].headers
    assert "authorization" not in other.got[0].headers
    assert other.got[0].target == "/elsewhere?signature=abc"


def test_redirects_within_the_registry_keep_the_login(server: ScriptedServer, make_client: Make) -> None:
    from crossdock.registry import Credential
    from crossdock.secret import Secret

    def guarded(got: Got) -> Reply:
        if "authorization" not in got.headers:
            return Reply(401, headers={"www-authenticate": 'Basic realm="x"'})
        return Reply(302, headers={"location": "/moved"})

    server.on("HEAD", PATH, guarded).on("HEAD", "/moved", GOOD)
    logins = {server.host: Credential("me", Secret("hunter2"))}
    assert resolve(make_client(logins=logins), server) == DIGEST
    assert "authorization" in server.got[-1].headers


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (PATH, "more than 10 redirects"),
        ("ftp://files/x", "not an HTTP address"),
        ("http://[::1/x", "is no address"),
        ("http://host:99999/x", "not an HTTP address"),
        ("http://host:0/x", "not an HTTP address"),
    ],
)
def test_redirects_that_lead_nowhere_are_errors(
    server: ScriptedServer, make_client: Make, location: str, why: str
) -> None:
    server.on("HEAD", PATH, Reply(302, headers={"location": location}))
    with pytest.raises(RegistryError, match=why):
        resolve(make_client(), server)


def test_a_body_follows_a_redirect(server: ScriptedServer, other: ScriptedServer, make_client: Make) -> None:
    server.on("PUT", PATH, Reply(307, headers={"location": f"http://{other.host}/there"}))
    other.on("PUT", "/there", Reply(201))
    make_client().push_manifest(
        parse_reference(f"{server.host}/app:1"), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW
    )
    assert other.got[0].body == RAW


def test_a_peer_that_stops_answering_is_given_up(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(delay_s=10))
    started = time.monotonic()
    with pytest.raises(RegistryError, match="stopped answering"):
        resolve(make_client(idle_s=0.2, hosts={server.host: HostConfig(http=True)}), server)
    assert time.monotonic() - started < 5


def test_cancelling_ends_a_wait_for_an_answer_at_once(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(delay_s=10))
    token = CancelToken()
    client = make_client(cancel=token, idle_s=30)
    timer = threading.Timer(0.2, token.cancel, [Cancelled("enough")])
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled, match="enough"):
        resolve(client, server)
    timer.join()
    assert time.monotonic() - started < 2


def test_cancelling_ends_a_pause_between_attempts(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(503, headers={"retry-after": "25"}))
    token = CancelToken()
    timer = threading.Timer(0.2, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        resolve(make_client(cancel=token), server)
    timer.join()
    assert time.monotonic() - started < 2


def test_a_cancelled_view_leaves_the_client_usable(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, GOOD)
    token = CancelToken()
    client = make_client()
    view = client.scoped(cancel=token)
    assert resolve(view, server) == DIGEST
    token.cancel()
    with pytest.raises(Cancelled):
        resolve(view, server)
    assert resolve(client, server) == DIGEST


def test_connection_refused(make_client: Make) -> None:
    with pytest.raises(RegistryError, match="connection refused"):
        make_client().resolve(parse_reference("127.0.0.1:1/app:1"))


def test_errors_show_no_query(server: ScriptedServer, other: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(302, headers={"location": f"http://u:p@{other.host}/x?sig=abc&b"}))
    other.on("HEAD", "/x", error_reply(403, "DENIED"))
    with pytest.raises(RegistryError) as caught:
        resolve(make_client(), server)
    assert caught.value.url == f"http://{other.host}/x?sig=***&b=***"
    assert "abc" not in str(caught.value.detail)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p", "https://h/p"),
        ("https://user:pass@h:5/p?a=1&b=2", "https://h:5/p?a=***&b=***"),
        ("/p?digest=x", "/p?digest=***"),
    ],
)
def test_redacting(url: str, shown: str) -> None:
    assert redact(url) == shown
