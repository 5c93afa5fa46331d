"""The remote driver over every transport, to real BuildKit daemons."""

from __future__ import annotations

import os
import ssl
import threading
from typing import TYPE_CHECKING

import pytest

import certificates
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, UsageError
from integration.buildkit.conftest import Events, remote
from support.relays import FakeProgram, Relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    Start: TypeAlias = Callable[..., Relay]

pytestmark = [pytest.mark.needs("root", "docker26"), pytest.mark.slow]


def build(address: str, context: Path, out: Path, options: dict[str, str] | None = None) -> None:
    """Send a context and get it back."""
    request = BuildRequest(context=str(context), outputs=(OutputSpec(type="local", dest=str(out)),))
    remote(address, options).build(request, Events(), CancelToken())
    assert (out / "a").read_text() == "hello"
    assert (out / "sub/x").read_bytes() == (context / "sub/x").read_bytes()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_sockets(relay: Start, context: Path, tmp_path: Path, tcp: bool) -> None:
    build(relay(tcp=tcp).address, context, tmp_path / "out")


@pytest.mark.parametrize(
    ("program", "address", "wanted"),
    [
        (
            "ssh",
            "ssh://me@far.example:2222",
            "-o ConnectTimeout=30 -T -p 2222 -l me -- far.example buildctl dial-stdio",
        ),
        (
            "ssh",
            "ssh://far.example/run/bk.sock",
            "-o ConnectTimeout=30 -T -- far.example buildctl --addr unix:///run/bk.sock dial-stdio",
        ),
        ("docker", "docker-container://bk", "exec -i bk buildctl dial-stdio"),
        ("docker", "docker-container://bk?context=far", "--context far exec -i bk buildctl dial-stdio"),
        ("podman", "podman-container://bk", "exec -i bk buildctl dial-stdio"),
        ("nerdctl", "nerdctl-container://bk", "exec -i bk buildctl dial-stdio"),
        (
            "kubectl",
            "kube-pod://bk-0?context=c&namespace=n&container=d",
            "--context=c --namespace=n --container=d exec -i bk-0 -- buildctl dial-stdio",
        ),
    ],
)
def test_programs_whose_streams_are_the_connection(
    relay: Start,
    context: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    address: str,
    wanted: str,
) -> None:
    fake = FakeProgram(tmp_path / "bin", program, relay().path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    build(address, context, tmp_path / "out")
    assert {" ".join(call) for call in fake.calls} == {wanted}


def test_a_program_that_fails_is_quoted(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeProgram(tmp_path / "bin", "ssh", "", failure="ssh: Could not resolve hostname far.example")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(BuilderError, match="Could not resolve hostname"):
        remote("ssh://far.example").build(BuildRequest(context=str(context)), Events(), CancelToken())


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuilderError, match="cannot run podman"):
        remote("podman-container://x").bootstrap(Events(), CancelToken())


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("npipe:////./pipe/buildkitd", "Windows"),
        ("gopher://x", "invalid BuildKit address"),
        ("unix://", "nothing after"),
    ],
)
def test_addresses_that_cannot_be(address: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        remote(address).bootstrap(Events(), CancelToken())


# TLS


class Pki:
    """A CA, a daemon with a certificate for ``bk.example`` and 127.0.0.1 that wants clients' certificates, and a client."""

    def __init__(self, folder: Path) -> None:
        self.authority = certificates.CertificateAuthority(folder / "ca")
        cert, key = self.authority.issue("bk.example", ["DNS:bk.example", "IP:127.0.0.1"])
        self.server = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority.certificate)
        )
        self.server.load_cert_chain(cert, key)
        self.server.verify_mode = ssl.CERT_REQUIRED
        self.server.set_alpn_protocols(["h2"])
        self.client = self.authority.issue("client", client=True)

    @property
    def options(self) -> dict[str, str]:
        cert, key = self.client
        return {"cacert": str(self.authority.certificate), "cert": str(cert), "key": str(key)}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


needs_openssl = pytest.mark.needs("openssl")


@needs_openssl
def test_tls_with_client_certificates(relay: Start, context: Path, tmp_path: Path, pki: Pki) -> None:
    build(relay(tls=pki.server).address, context, tmp_path / "out", pki.options)


@needs_openssl
def test_servername_is_what_is_verified(relay: Start, context: Path, tmp_path: Path, pki: Pki) -> None:
    started = relay(tls=pki.server)
    build(started.address, context, tmp_path / "out", {**pki.options, "servername": "bk.example"})
    with pytest.raises(BuilderError, match=r"TLS with BuildKit .* failed: .*other"):
        build(started.address, context, tmp_path / "out", {**pki.options, "servername": "other.example"})


@needs_openssl
def test_another_ca_is_not_trusted(relay: Start, context: Path, tmp_path: Path, pki: Pki) -> None:
    other = Pki(tmp_path / "other")
    options = {**pki.options, "cacert": other.options["cacert"]}
    with pytest.raises(BuilderError, match=r"TLS with BuildKit .* failed: .*certificate") as caught:
        build(relay(tls=pki.server).address, context, tmp_path / "out", options)
    assert "cacert" in str(caught.value.hint)


@needs_openssl
def test_a_missing_client_certificate_is_said_by_the_daemon(
    relay: Start, context: Path, tmp_path: Path, pki: Pki
) -> None:
    options = {"cacert": pki.options["cacert"]}
    with pytest.raises(BuilderError, match="certificate required"):
        build(relay(tls=pki.server).address, context, tmp_path / "out", options)


@needs_openssl
def test_tls_and_no_tls_do_not_meet(relay: Start, context: Path, tmp_path: Path, pki: Pki) -> None:
    with pytest.raises(BuilderError, match="TLS"):
        build(relay(tcp=True).address, context, tmp_path / "out", pki.options)
    with pytest.raises(BuilderError, match=r"does not speak gRPC|peer closed"):
        build(relay(tls=pki.server).address, context, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cacert": "relative.pem"}, "must be absolute"),
        ({"servername": "x"}, "cacert is needed"),
        ({"cacert": "/ca.pem", "cert": "/c.pem"}, "together"),
        ({"nonsense": "1"}, "unknown driver option 'nonsense'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        remote("tcp://127.0.0.1:1", options)


@pytest.mark.parametrize(
    ("content", "text"), [(None, "cannot read TLS file"), ("nonsense", "cannot use TLS file")]
)
def test_tls_files_that_cannot_be(tmp_path: Path, content: str | None, text: str) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    with pytest.raises(BuilderError, match=text):
        remote("tcp://127.0.0.1:1", {"cacert": str(ca)}).build(
            BuildRequest(context=""), Events(), CancelToken()
        )


# life


def test_bootstrap_waits_for_the_daemon(relay: Start, tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    started = relay()
    timer = threading.Timer(0.7, lambda: os.symlink(started.path, path))
    timer.start()
    remote(f"unix://{path}").bootstrap(Events(), CancelToken())
    timer.join()


def test_info_tells_what_inspect_shows(relay: Start) -> None:
    info = remote(relay().address).info(CancelToken())
    assert info.status == "running"
    assert "linux/amd64" in map(str, info.platforms)
    assert info.labels
    assert info.features["Multi-platform build"]
