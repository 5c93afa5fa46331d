"""TLS and plain HTTP at the socket: who is trusted, what is tried, what is told. Needs openssl for certificates."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from certificates import CertificateAuthority
from crossdock.errors import ConfigError, RegistryError
from crossdock.image import parse_reference, sha256_digest
from crossdock.image.mediatypes import OCI_MANIFEST
from crossdock.registry import HostConfig
from support.scripted import Reply, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

pytestmark = pytest.mark.needs("openssl")

RAW = b"{}"
DIGEST = sha256_digest(RAW)
GOOD = Reply(200, RAW, {"content-type": OCI_MANIFEST, "docker-content-digest": DIGEST})
PATH = "/v2/app/manifests/1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: CertificateAuthority) -> tuple[Path, Path]:
    return authority.issue("server", ["DNS:localhost", "IP:127.0.0.1"])


def context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*pair)
    return made


@pytest.fixture
def secure(pair: tuple[Path, Path]) -> Iterator[ScriptedServer]:
    with ScriptedServer(tls=context(pair)) as scripted:
        yield scripted.on("HEAD", PATH, GOOD)


def resolve(client: RegistryClient, server: ScriptedServer) -> str:
    return client.resolve(parse_reference(f"{server.host}/app:1")).digest


def certs_d(tmp_path: Path, server: ScriptedServer, **files: Path) -> None:
    folder = tmp_path / "certs.d" / server.host
    folder.mkdir(parents=True)
    for name, source in files.items():
        (folder / name.replace("_", ".")).symlink_to(source)


def test_certs_d_is_trusted(
    secure: ScriptedServer, make_client: Make, authority: CertificateAuthority, tmp_path: Path
) -> None:
    certs_d(tmp_path, secure, ca_crt=authority.certificate)
    assert resolve(make_client(), secure) == DIGEST
    assert secure.connections == 1


def test_a_server_certificate_alone_is_trusted_too(
    secure: ScriptedServer, make_client: Make, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    certs_d(tmp_path, secure, ca_crt=pair[0])
    assert resolve(make_client(), secure) == DIGEST


def test_an_unknown_authority_is_refused(secure: ScriptedServer, make_client: Make, tmp_path: Path) -> None:
    for client in (make_client(), make_client(hosts={secure.host: HostConfig(http=False)})):
        with pytest.raises(RegistryError, match="its TLS certificate is not trusted") as caught:
            resolve(client, secure)
        assert f"{tmp_path}/certs.d/{secure.host}/ca.crt" in (caught.value.hint or "")
    assert secure.got == []


def test_insecure_accepts_any_certificate(secure: ScriptedServer, make_client: Make) -> None:
    assert resolve(make_client(insecure=True), secure) == DIGEST
    strict = make_client()
    assert resolve(strict.scoped(insecure=True), secure) == DIGEST
    with pytest.raises(RegistryError, match="not trusted"):
        resolve(strict, secure)


def test_insecure_accepts_plain_http(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, GOOD)
    hosts = {server.host: HostConfig(insecure=True)}
    assert resolve(make_client(hosts=hosts), server) == DIGEST


def test_plain_http_where_certificates_were_given(
    server: ScriptedServer, make_client: Make, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Loopback: TLS is tried first because there is a certificate, plain HTTP second."""
    server.on("HEAD", PATH, GOOD)
    certs_d(tmp_path, server, ca_crt=authority.certificate)
    assert resolve(make_client(), server) == DIGEST
    assert server.got[0].method == "HEAD"


def test_the_scheme_is_found_out_once(
    secure: ScriptedServer, make_client: Make, authority: CertificateAuthority
) -> None:
    """Loopback without certs.d: plain HTTP first, which a TLS server does not answer in."""
    hosts = {secure.host: HostConfig(ca_files=(str(authority.certificate),))}
    client = make_client(hosts=hosts)
    for _ in range(3):
        assert resolve(client, secure) == DIGEST
    assert secure.connections == 1


@pytest.mark.parametrize(
    "complaint",
    [
        Reply(raw=b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"),
        Reply(raw=b"\x15\x03\x01\x00\x02\x02\x46"),
        Reply(reset=True),
        Reply(raw=b""),
    ],
    ids=["Go", "a TLS alert", "a reset", "nothing"],
)
def test_a_peer_that_wants_tls_is_asked_again_in_tls(
    server: ScriptedServer, make_client: Make, complaint: Reply
) -> None:
    """The scripted peer never gets as far as TLS, so the first failure is the one told."""
    server.on("HEAD", PATH, complaint).on("GET", PATH, complaint)
    with pytest.raises(RegistryError):
        resolve(make_client(), server)
    assert server.connections >= 2


def test_tls_alone_does_not_fall_back(server: ScriptedServer, make_client: Make) -> None:
    client = make_client(hosts={server.host: HostConfig(http=False)})
    with pytest.raises(RegistryError, match="does not speak TLS") as caught:
        resolve(client, server)
    assert "registry.insecure=true" in (caught.value.hint or "")
    assert server.got == []


def test_plain_http_alone_does_not_try_tls(secure: ScriptedServer, make_client: Make) -> None:
    client = make_client(hosts={secure.host: HostConfig(http=True)})
    with pytest.raises(RegistryError):
        resolve(client, secure)


def test_client_certificates(
    make_client: Make, authority: CertificateAuthority, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    picky = context(pair)
    picky.verify_mode = ssl.CERT_REQUIRED
    picky.load_verify_locations(authority.certificate)
    certificate, key = authority.issue("me", ["DNS:me"], client=True)
    with ScriptedServer(tls=picky) as server:
        server.on("HEAD", PATH, GOOD)
        hosts = {server.host: HostConfig(ca_files=(str(authority.certificate),), http=False)}
        with pytest.raises(RegistryError, match=r"client certificate|broke|TLS"):
            resolve(make_client(hosts=hosts), server)
        certs_d(
            tmp_path,
            server,
            ca_crt=authority.certificate,
            client_cert=certificate,
            client_key=key,
        )
        assert resolve(make_client(), server) == DIGEST


@pytest.mark.parametrize("kind", ["ca", "client"])
def test_files_that_are_no_certificates_are_named(
    secure: ScriptedServer, make_client: Make, tmp_path: Path, kind: str
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    if kind == "ca":
        certs_d(tmp_path, secure, ca_crt=wrong)
    else:
        certs_d(tmp_path, secure, client_cert=wrong, client_key=wrong)
    with pytest.raises(ConfigError, match=r"certs\.d"):
        resolve(make_client(), secure)


def test_a_redirect_from_tls_to_plain_http_is_refused(
    secure: ScriptedServer, make_client: Make, authority: CertificateAuthority
) -> None:
    secure.on("HEAD", PATH, Reply(307, headers={"location": "http://cdn.invalid/x"}))
    hosts = {secure.host: HostConfig(ca_files=(str(authority.certificate),))}
    with pytest.raises(RegistryError, match="from TLS to plain HTTP"):
        resolve(make_client(hosts=hosts), secure)


def test_a_login_is_not_sent_to_a_token_server_without_tls(
    secure: ScriptedServer, make_client: Make, authority: CertificateAuthority
) -> None:
    from crossdock.errors import AuthError
    from crossdock.registry import Credential
    from crossdock.secret import Secret

    challenge = {"www-authenticate": 'Bearer realm="http://tokens.invalid/token"'}
    secure.on("HEAD", PATH, Reply(401, headers=challenge))
    hosts = {secure.host: HostConfig(ca_files=(str(authority.certificate),))}
    logins = {secure.host: Credential("me", Secret("pw"))}
    with pytest.raises(AuthError, match="the login was not sent"):
        resolve(make_client(hosts=hosts, logins=logins), secure)


def test_uploads_keep_to_tls_when_the_registry_calls_itself_http(
    secure: ScriptedServer, make_client: Make, authority: CertificateAuthority
) -> None:
    """A registry behind a TLS proxy gives ``http://`` locations."""
    import io

    from crossdock.image import Descriptor
    from crossdock.registry.upload import PushOutcome

    blob = Descriptor("x", sha256_digest(b"data"), 4)
    location = f"http://{secure.host}/upload"
    secure.on("POST", "/v2/app/blobs/uploads/", Reply(202, headers={"location": location}))
    secure.on("PUT", "/upload", Reply(201))
    hosts = {secure.host: HostConfig(ca_files=(str(authority.certificate),))}
    ref = parse_reference(f"{secure.host}/app")
    outcome = make_client(hosts=hosts).push_blob(ref, blob, lambda _: io.BytesIO(b"data"))
    assert outcome is PushOutcome.UPLOADED
