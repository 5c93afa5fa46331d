"""Registry tokens that clients fetch: a real session on a socket pair, a registry on loopback that wants them."""

from __future__ import annotations

import base64
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

import pytest

from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.session.auth import Auth
from crossdock.buildkit.transport import SocketStream
from crossdock.cancel import CancelToken
from crossdock.errors import AuthError, CrossdockError
from crossdock.image.reference import parse_reference
from crossdock.registry import Credentials, RegistryClient, RegistryConfig
from crossdock.registry.credentials import Credential
from crossdock.secret import Secret
from crossdock.server.clientcalls import ClientCredentials
from crossdock.server.sessions import ClientSession
from crossdock.server.tokens import TokenPool, TokenQuestion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LOGIN = Credential("robot", Secret("s3cr3t"))
MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
).encode()


class Registry(ThreadingHTTPServer):
    """Wants a token for everything; its token server gives one for the right login, and says which were asked for."""

    def __init__(self) -> None:
        #: logins that asked for a token
        self.askers: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        given = request.headers.get("Authorization", "")
        if request.path.startswith("/token"):
            login = base64.b64decode(given.removeprefix("Basic ")).decode()
            self.askers.append(login)
            ok = login == "robot:s3cr3t"
            self.send(request, 200 if ok else 401, json.dumps({"token": "t0ken", "expires_in": 300}).encode())
        elif given == "Bearer t0ken":
            self.send(request, 200, MANIFEST)
        else:
            realm = f'Bearer realm="http://{self.host}/token",service="test"'
            self.send(request, 401, b"{}", {"WWW-Authenticate": realm})

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        request.send_response(status)
        media_type = "application/vnd.oci.image.manifest.v1+json"
        for key, value in {
            "Content-Type": media_type,
            "Content-Length": len(body),
            **(headers or {}),
        }.items():
            request.send_header(key, str(value))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Stream(SocketStream):
    """A session's stream: it knows when it is over."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ended = threading.Event()


class Client:
    """One client: its logins, its session, and what the server does with them."""

    def __init__(self, folder: Path | None, login: Credential | None, host: str, pool: TokenPool) -> None:
        near, far = socket.socketpair()
        logins = {host: login} if login is not None else {}
        auth = Auth(
            lambda: Credentials(env={}, logins=logins),
            cancel=CancelToken(),
            seed_dir=str(folder) if folder is not None else None,
        )
        #: methods that were called, in order
        self.called: list[str] = []
        self._server = Server(SocketStream(far), {k: self._noted(k, v) for k, v in auth.handlers.items()})
        self._server.start()
        self.session = ClientSession("s", cast("Any", Stream(near)), methods=auth.handlers)
        self.registry = RegistryClient(
            config=RegistryConfig(),
            credentials=ClientCredentials(lambda _cancel: self.session, pool),
            cancel=CancelToken(),
        )

    def _noted(self, name: str, handler: Any) -> Any:
        def call(call: Any) -> None:
            self.called.append(name.rpartition("/")[2])
            handler(call)

        return call

    def pull(self, host: str) -> bytes:
        return self.registry.fetch_manifest(parse_reference(f"{host}/a/b:1"))[1]

    def close(self) -> None:
        self.registry.close()
        self.session.channel.close()
        self._server.close()


@contextmanager
def client(
    folder: Path | None, host: str, pool: TokenPool, login: Credential | None = LOGIN
) -> Iterator[Client]:
    made = Client(folder, login, host, pool)
    try:
        yield made
    finally:
        made.close()


def test_the_client_fetches_the_token_and_its_password_stays_there(
    registry: Registry, tmp_path: Path
) -> None:
    with client(tmp_path, registry.host, TokenPool()) as one:
        assert one.pull(registry.host) == MANIFEST
        assert one.called == ["GetTokenAuthority", "FetchToken"]
    assert registry.askers == ["robot:s3cr3t"]


def test_sessions_of_one_login_share_a_token_after_proving_it(registry: Registry, tmp_path: Path) -> None:
    pool = TokenPool()
    with client(tmp_path, registry.host, pool) as one:
        one.pull(registry.host)
    with client(tmp_path, registry.host, pool) as two:
        assert two.pull(registry.host) == MANIFEST
        assert two.called == ["GetTokenAuthority", "VerifyTokenAuthority"]
    assert len(registry.askers) == 1


def test_another_login_does_not_get_the_token(registry: Registry, tmp_path: Path) -> None:
    pool = TokenPool()
    with client(tmp_path / "a", registry.host, pool) as one:
        one.pull(registry.host)
    wrong = Credential("thief", Secret("guess"))
    with client(tmp_path / "b", registry.host, pool, wrong) as two, pytest.raises(CrossdockError):
        two.pull(registry.host)
    assert registry.askers[1:] == ["thief:guess"]


def test_who_claims_the_key_of_another_must_sign_with_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossdock.buildkit.session.tokenkeys import AuthorityKey

    pool = TokenPool()
    with client(tmp_path / "a", registry.host, pool) as one:
        one.pull(registry.host)
    (claimed,) = {key for key, _ in pool._tokens}
    monkeypatch.setattr(AuthorityKey, "public", claimed)
    wrong = Credential("thief", Secret("guess"))
    with client(tmp_path / "b", registry.host, pool, wrong) as two:
        with pytest.raises(CrossdockError):
            two.pull(registry.host)
        assert "VerifyTokenAuthority" in two.called
    assert registry.askers[1:] == ["thief:guess"]


def test_a_client_without_token_methods_tells_its_login(registry: Registry) -> None:
    with client(None, registry.host, TokenPool()) as one:
        assert one.pull(registry.host) == MANIFEST
        assert one.called == ["Credentials"]


def test_a_client_without_a_login_is_anonymous(registry: Registry, tmp_path: Path) -> None:
    with (
        client(tmp_path, registry.host, TokenPool(), None) as one,
        pytest.raises((AuthError, CrossdockError)),
    ):
        one.pull(registry.host)
    assert registry.askers == [""]


def test_a_token_that_has_expired_is_not_given() -> None:
    pool = TokenPool()
    question = TokenQuestion("h", "r", "s", frozenset())
    pool.put(b"k", question, Secret("t"), -1.0)
    assert pool.get(b"k", question) is None
