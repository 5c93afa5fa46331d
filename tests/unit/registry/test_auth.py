"""Logins and tokens, against a registry and a token server that do as they are told."""

from __future__ import annotations

import base64
import threading
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest

from crossdock.errors import AuthError, RegistryError
from crossdock.image import Descriptor, parse_reference, sha256_digest
from crossdock.image.mediatypes import OCI_INDEX, OCI_MANIFEST
from crossdock.registry import Credential, Credentials
from crossdock.secret import Secret
from support.scripted import Got, Reply, ScriptedServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

RAW = b"{}"
DIGEST = sha256_digest(RAW)
GOOD = Reply(200, RAW, {"content-type": OCI_MANIFEST, "docker-content-digest": DIGEST})
PATH = "/v2/app/manifests/1"
PASSWORD = "hunter2 très secret"
LOGIN = Credential("me", Secret(PASSWORD), origin="the test")
BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


def bearer(tokens: ScriptedServer, scope: str = "") -> Reply:
    extra = f',scope="{scope}"' if scope else ""
    challenge = f'Bearer realm="http://{tokens.host}/token",service="the registry"{extra}'
    return Reply(401, headers={"www-authenticate": challenge})


def guard(tokens: ScriptedServer, accepted: Sequence[str], good: Reply = GOOD) -> Callable[[Got], Reply]:
    """Accept these tokens, challenge for everything else."""

    def reply(got: Got) -> Reply:
        token = got.headers.get("authorization", "").removeprefix("Bearer ")
        return good if token in accepted else bearer(tokens)

    return reply


def token_queries(tokens: ScriptedServer) -> list[dict[str, list[str]]]:
    return [parse_qs(got.target.partition("?")[2]) for got in tokens.got]


def resolve(client: RegistryClient, server: ScriptedServer) -> str:
    return client.resolve(parse_reference(f"{server.host}/app:1")).digest


def push(client: RegistryClient, server: ScriptedServer, name: str = "app:1") -> None:
    ref = parse_reference(f"{server.host}/{name}")
    client.push_manifest(ref, Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW)


def test_an_anonymous_token_is_fetched_without_a_login(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t1"]))
    other.on("GET", "/token", json_reply({"token": "t1"}))
    assert resolve(make_client(), server) == DIGEST
    assert token_queries(other) == [{"service": ["the registry"], "scope": ["repository:app:pull"]}]
    assert "authorization" not in other.got[0].headers


def test_a_token_is_fetched_with_the_login(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t1"]))
    other.on("GET", "/token", json_reply({"access_token": "t1"}))
    assert resolve(make_client(logins={server.host: LOGIN}), server) == DIGEST
    assert other.got[0].headers["authorization"] == BASIC
    assert token_queries(other)[0]["account"] == ["me"]
    assert all(PASSWORD not in got.headers.get("authorization", "") for got in server.got)


def test_a_token_serves_later_requests_without_another_challenge(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t1"]))
    other.on("GET", "/token", json_reply({"token": "t1", "expires_in": 300}))
    client = make_client()
    for _ in range(3):
        resolve(client, server)
    assert len(server.got) == 4
    assert len(other.got) == 1


def test_a_token_for_more_serves_less(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("PUT", PATH, guard(other, ["rw"], Reply(201))).on("HEAD", PATH, guard(other, ["rw"]))
    other.on("GET", "/token", json_reply({"token": "rw"}))
    client = make_client()
    push(client, server)
    resolve(client, server)
    assert len(other.got) == 1


def test_a_token_for_less_does_not_serve_more(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["r", "rw"])).on("PUT", PATH, guard(other, ["rw"], Reply(201)))
    other.on("GET", "/token", json_reply({"token": "r"}), json_reply({"token": "rw"}))
    client = make_client()
    resolve(client, server)
    push(client, server)
    assert [q["scope"] for q in token_queries(other)] == [
        ["repository:app:pull"],
        ["repository:app:pull,push"],
    ]
    # the realm was known: no second challenge
    assert server.lines() == [f"HEAD {PATH}", f"HEAD {PATH}", f"PUT {PATH}"]


def test_tokens_are_kept_apart_by_repository(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("PUT", PATH, guard(other, ["a"], Reply(201)))
    server.on("PUT", "/v2/b/manifests/1", guard(other, ["b"], Reply(201)))
    other.on("GET", "/token", json_reply({"token": "a"}), json_reply({"token": "b"}))
    client = make_client()
    push(client, server)
    push(client, server, "b:1")
    push(client, server)
    assert len(other.got) == 2


def test_an_expired_token_is_replaced(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    accepted = ["t1"]
    server.on("HEAD", PATH, guard(other, accepted))
    other.on("GET", "/token", json_reply({"token": "t1"}), json_reply({"token": "t2"}))
    client = make_client()
    resolve(client, server)
    accepted[:] = ["t2"]  # the registry forgets t1 before its time
    resolve(client, server)
    assert len(other.got) == 2


def test_the_scope_a_registry_asks_for_is_added(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, bearer(other, "registry:catalog:*"), GOOD)
    other.on("GET", "/token", json_reply({"token": "t"}))
    resolve(make_client(), server)
    assert token_queries(other)[0]["scope"] == ["registry:catalog:*", "repository:app:pull"]


def test_an_identity_token_is_exchanged_by_post(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t1"]))
    other.on("POST", "/token", json_reply({"access_token": "t1"}))
    login = Credential(identity_token=Secret("refresh me"))
    assert resolve(make_client(logins={server.host: login}), server) == DIGEST
    form = parse_qs(other.got[0].body.decode())
    assert form == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh me"],
        "service": ["the registry"],
        "scope": ["repository:app:pull"],
        "client_id": ["crossdock"],
    }


def test_a_registry_token_is_used_as_it_is(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["ready"]))
    login = Credential(registry_token=Secret("ready"))
    assert resolve(make_client(logins={server.host: login}), server) == DIGEST
    assert other.got == []


def test_basic_logins_are_sent_at_once_when_known_to_be_wanted(
    server: ScriptedServer, make_client: Make
) -> None:
    def reply(got: Got) -> Reply:
        if got.headers.get("authorization") == BASIC:
            return GOOD
        return Reply(401, headers={"www-authenticate": 'Basic realm="x"'})

    server.on("HEAD", PATH, reply)
    client = make_client(logins={server.host: LOGIN})
    resolve(client, server)
    resolve(client, server)
    assert len(server.got) == 3


def test_bearer_is_preferred_to_basic(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    both = Reply(
        401, headers={"www-authenticate": f'Basic realm="x", Bearer realm="http://{other.host}/token"'}
    )
    server.on("HEAD", PATH, both, GOOD)
    other.on("GET", "/token", json_reply({"token": "t"}))
    resolve(make_client(logins={server.host: LOGIN}), server)
    assert server.got[-1].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("login", [None, LOGIN], ids=["without a login", "with one"])
@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_a_registry_that_stays_closed_is_asked_twice_and_not_more(
    server: ScriptedServer,
    other: ScriptedServer,
    make_client: Make,
    login: Credential | None,
    scheme: str,
) -> None:
    closed = (
        bearer(other) if scheme == "bearer" else Reply(401, headers={"www-authenticate": "Basic realm=x"})
    )
    server.on("HEAD", PATH, closed)
    other.on("GET", "/token", json_reply({"token": "useless"}))
    with pytest.raises(AuthError) as caught:
        resolve(make_client(logins={server.host: login} if login else None), server)
    assert len(server.got) == (1 if scheme == "basic" and login is None else 2)
    assert f"docker login {server.host}" in (caught.value.hint or "")
    expected = "does not accept the login from the test" if login else "wants a login to pull"
    assert expected in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_server_that_refuses(
    server: ScriptedServer, other: ScriptedServer, make_client: Make, status: int
) -> None:
    server.on("HEAD", PATH, bearer(other))
    other.on("GET", "/token", Reply(status, PASSWORD.encode()))
    with pytest.raises(AuthError, match="does not accept the login from the test") as caught:
        resolve(make_client(logins={server.host: LOGIN}), server)
    assert caught.value.url == f"http://{other.host}/token?service=***&scope=***&account=***"
    with pytest.raises(AuthError, match="refuses access without a login"):
        resolve(make_client(), server)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(500), "it answered 500"),
        (Reply(404), "it answered 404"),
        (Reply(200, b"<html>"), "no token"),
        (json_reply({}), "no token"),
        (json_reply([]), "no token"),
        (json_reply({"token": "a\r\nX-Evil: 1"}), "no token"),
        (Reply(200, b"x" * 50, cut_after=10), "ended before"),
    ],
)
def test_a_token_server_that_fails(
    server: ScriptedServer, other: ScriptedServer, make_client: Make, reply: Reply, why: str
) -> None:
    server.on("HEAD", PATH, bearer(other))
    other.on("GET", "/token", reply)
    with pytest.raises(RegistryError, match=why) as caught:
        resolve(make_client(), server)
    assert "token server" in str(caught.value)


@pytest.mark.parametrize("realm", ["http://[::1/t", "ftp://x/", "token", "file:///etc/passwd"])
def test_a_token_server_without_an_address(server: ScriptedServer, make_client: Make, realm: str) -> None:
    server.on("HEAD", PATH, Reply(401, headers={"www-authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(RegistryError, match="is not an HTTP address"):
        resolve(make_client(logins={server.host: LOGIN}), server)


@pytest.mark.parametrize("realm", ["http://:80/t", "http://h:99999/t", "http://"])
def test_a_token_server_with_half_an_address(server: ScriptedServer, make_client: Make, realm: str) -> None:
    server.on("HEAD", PATH, Reply(401, headers={"www-authenticate": f'Bearer realm="{realm}"'}))
    with pytest.raises(RegistryError, match=r"token server .*is not an HTTP address"):
        resolve(make_client(), server)


def test_a_token_server_that_cannot_be_reached(server: ScriptedServer, make_client: Make) -> None:
    challenge = {"www-authenticate": 'Bearer realm="http://127.0.0.1:1/token"'}
    server.on("HEAD", PATH, Reply(401, headers=challenge))
    with pytest.raises(RegistryError, match=r"cannot connect to 127\.0\.0\.1:1") as caught:
        resolve(make_client(), server)
    assert "token server" in (caught.value.detail or "")


def test_a_token_server_that_is_slow_once_is_asked_again(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t"]))
    other.on("GET", "/token", Reply(503), Reply(reset=True), json_reply({"token": "t"}))
    assert resolve(make_client(), server) == DIGEST


def test_many_threads_fetch_one_token(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, guard(other, ["t"]))
    other.on("GET", "/token", Reply(200, b'{"token": "t"}', delay_s=0.2))
    client = make_client()
    threads = [threading.Thread(target=resolve, args=(client, server)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(other.got) == 1
    assert 7 <= len(server.got) <= 12


def test_no_secret_reaches_an_error(server: ScriptedServer, other: ScriptedServer, make_client: Make) -> None:
    import traceback

    server.on("HEAD", PATH, guard(other, []))
    other.on("GET", "/token", json_reply({"token": "bearer-secret"}))
    with pytest.raises(AuthError) as caught:
        resolve(make_client(logins={server.host: LOGIN}), server)
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    for secret in (PASSWORD, "bearer-secret", BASIC.removeprefix("Basic ")):
        assert secret not in shown


def test_a_missing_helper_is_named_only_when_a_login_is_wanted(
    server: ScriptedServer, make_client: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("docker")
    (folder / "config.json").write_text('{"credsStore": "absent"}')
    credentials = Credentials(env={"DOCKER_CONFIG": str(folder), "PATH": str(folder)})
    server.on("HEAD", PATH, GOOD, Reply(401, headers={"www-authenticate": "Basic realm=x"}))
    client = make_client(credentials=credentials)
    assert resolve(client, server) == DIGEST
    from crossdock.errors import ConfigError

    with pytest.raises(ConfigError, match="docker-credential-absent"):
        resolve(client, server)
