"""Logins and tokens that a daemon asks of a session."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.drivers.plan import Logins
from crossdock.buildkit.proto import auth_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.session.auth import Auth
from crossdock.cancel import CancelToken
from crossdock.registry.credentials import Credential, Credentials
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from crossdock.errors import CrossdockError

SERVICE = "/moby.filesync.v1.Auth/"
LOGIN = Credential("ann", Secret("open sesame"), origin="the case")


def auth(
    logins: Mapping[str, Credential], seed_dir: Path | None = None, seen: list[CrossdockError] | None = None
) -> Auth:
    credentials = Credentials(env={}, logins=logins)
    on_error = None if seen is None else seen.append
    return Auth(
        lambda: credentials,
        cancel=CancelToken(),
        on_error=on_error,
        seed_dir=str(seed_dir) if seed_dir else None,
    )


def test_logins_by_host() -> None:
    found = auth({"r.example": LOGIN, "docker.io": Credential(identity_token=Secret("refresh"))})
    give = lambda host: found._give_login(auth_pb2.CredentialsRequest(Host=host), None)  # type: ignore[arg-type]  # noqa: E731
    assert (give("r.example").Username, give("r.example").Secret) == ("ann", "open sesame")
    assert (give("registry-1.docker.io").Username, give("registry-1.docker.io").Secret) == ("", "refresh")
    assert give("elsewhere.example").Secret == ""


def test_helpers_are_asked_again_while_a_build_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of cloud registries give passwords that expire; five minutes are what buildx trusts them for."""
    helper = tmp_path / "docker-credential-counting"
    helper.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/asked\n"
        f'echo "{{\\"Username\\":\\"ann\\",\\"Secret\\":\\"password $(wc -l < {tmp_path}/asked)\\"}}"\n'
    )
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credHelpers": {"r.example": "counting"}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    now = [1000.0]
    service = Auth(Logins(lambda: now[0]), cancel=CancelToken())

    def secret() -> str:
        request = auth_pb2.CredentialsRequest(Host="r.example")
        return service._give_login(request, None).Secret  # type: ignore[arg-type]  # the call is not looked at

    assert [secret(), secret()] == ["password 1", "password 1"]
    now[0] += 291
    assert secret() == "password 2"


def test_tokens_are_offered_only_where_keys_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    assert list(auth({}).handlers) == [f"{SERVICE}Credentials"]
    assert f"{SERVICE}FetchToken" in auth({}, tmp_path).handlers
    monkeypatch.setenv("BUILDKIT_NO_CLIENT_TOKEN", "1")
    assert list(auth({}, tmp_path).handlers) == [f"{SERVICE}Credentials"]


def test_a_session_proves_that_it_has_the_login(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    def public(found: Auth, salt: bytes) -> bytes:
        request = auth_pb2.GetTokenAuthorityRequest(Host="r.example", Salt=salt)
        return found._get_authority(request, None).PublicKey  # type: ignore[arg-type]

    first, second = auth({"r.example": LOGIN}, tmp_path), auth({"r.example": LOGIN}, tmp_path)
    key = public(first, b"salt")
    assert public(second, b"salt") == key
    assert public(first, b"other") != key
    assert public(auth({}, tmp_path), b"salt") != key
    assert public(auth({"r.example": LOGIN}, tmp_path / "another-client"), b"salt") != key
    request = auth_pb2.VerifyTokenAuthorityRequest(Host="r.example", Salt=b"salt", Payload=b"prove it")
    signed = second._verify_authority(request, None).Signed  # type: ignore[arg-type]
    Ed25519PublicKey.from_public_bytes(key).verify(signed[:64], signed[64:])
    assert signed[64:] == b"prove it"


def test_seeds_are_those_of_buildx(tmp_path: Path) -> None:
    from crossdock.buildkit.session.tokenkeys import TokenSeeds

    (tmp_path / ".token_seed").write_text(json.dumps({"r.example": {"Seed": "AAECAwQFBgcICQoLDA0ODw=="}}))
    assert TokenSeeds(str(tmp_path)).get("r.example") == bytes(range(16))
    made = TokenSeeds(str(tmp_path)).get("new.example")
    kept = json.loads((tmp_path / ".token_seed").read_text())
    assert set(kept) == {"r.example", "new.example"}
    assert TokenSeeds(str(tmp_path)).get("new.example") == made
    assert (tmp_path / ".token_seed").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", '{"r.example": {"Seed": "!"}}', '{"r.example": 7}'])
def test_a_damaged_file_of_seeds_is_made_anew(tmp_path: Path, content: str) -> None:
    from crossdock.buildkit.session.tokenkeys import TokenSeeds

    (tmp_path / ".token_seed").write_text(content)
    assert len(TokenSeeds(str(tmp_path)).get("r.example")) == 16


class TokenServer(ThreadingHTTPServer):
    """Gives a token to who sends the right login."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                server.asked.append(self.path)
                wrong = self.headers.get("Authorization") not in (None, "Basic YW5uOm9wZW4gc2VzYW1l")
                body = json.dumps({} if wrong else {"token": "t0ken", "expires_in": 300}).encode()
                self.send_response(401 if wrong else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def token_server() -> Iterator[TokenServer]:
    server = TokenServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(found: Auth, server: TokenServer) -> auth_pb2.FetchTokenResponse:
    request = auth_pb2.FetchTokenRequest(
        ClientID="buildkit",
        Host="127.0.0.1:5000",
        Realm=f"http://127.0.0.1:{server.server_port}/token",
        Service="registry",
        Scopes=["repository:a/b:pull,push"],
    )
    return found._fetch_token(request, None)  # type: ignore[arg-type]


def test_tokens_are_fetched_here(token_server: TokenServer, tmp_path: Path) -> None:
    got = ask(auth({"127.0.0.1:5000": LOGIN}, tmp_path), token_server)
    assert (got.Token, got.ExpiresIn) == ("t0ken", 300)
    assert "scope=repository%3Aa%2Fb%3Apull%2Cpush" in token_server.asked[0]
    assert "service=registry" in token_server.asked[0]


def test_a_login_that_is_not_accepted_is_said_by_name_and_not_shown(
    token_server: TokenServer, tmp_path: Path
) -> None:
    seen: list[CrossdockError] = []
    wrong = Credential("ann", Secret("hunter2"), origin="the case")
    with pytest.raises(RpcError, match="does not accept the login") as caught:
        ask(auth({"127.0.0.1:5000": wrong}, tmp_path, seen), token_server)
    assert "docker login" in str(seen[0].hint)
    assert "hunter2" not in f"{caught.value} {seen[0]} {seen[0].detail}"


def test_a_realm_that_is_no_address(tmp_path: Path) -> None:
    request = auth_pb2.FetchTokenRequest(Host="127.0.0.1:5000", Realm="file:///etc/passwd", Scopes=[])
    with pytest.raises(RpcError, match="not an HTTP address"):
        auth({}, tmp_path)._fetch_token(request, None)  # type: ignore[arg-type]
