"""What users read when a registry fails: every text, whole."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.errors import AuthError, DigestMismatch, NotFoundError, RegistryError
from crossdock.registry import RegistryConfig
from crossdock.registry.config import Endpoint, TlsConfig
from crossdock.registry.failures import Asked, digest_mismatch, from_response, from_transport
from crossdock.registry.http1 import BodyCut, Connection, NotHttp
from crossdock.registry.transport import Origin, TransportFailure
from support.scripted import Reply, ScriptedServer, error_reply

if TYPE_CHECKING:
    from crossdock.errors import CrossdockError
    from crossdock.registry.http1 import Response

CONFIG = RegistryConfig(cert_dirs=[Path("/etc/docker/certs.d")])
IMAGE = "reg.example.com/team/app:1"


def endpoint(domain: str = "reg.example.com") -> Endpoint:
    return Endpoint(domain, domain.partition(":")[0], None, ("https",), TlsConfig())


def asked(**changes: object) -> Asked:
    url = "https://reg.example.com/v2/team/app/manifests/1?token=secret"
    return Asked(endpoint(), "GET", url, IMAGE, CONFIG)._replace(**changes)  # type: ignore[arg-type]


def answered(reply: Reply) -> Response:
    """Turn a scripted reply into a response, through a real socket."""
    ours, peer = socket.socketpair()
    peer.sendall(reply.encoded("GET"))
    peer.close()
    response = Connection(ours).receive("GET", lambda connection, _: connection.close())
    response.url = "https://reg.example.com/v2/team/app/manifests/1?token=secret"
    return response


def rendered(error: CrossdockError) -> list[str]:
    return [error.summary, *(error.detail or "").splitlines(), f"-> {error.hint}"]


GET = "GET https://reg.example.com/v2/team/app/manifests/1?token=***"

ANSWERS: dict[str, tuple[Reply, dict[str, object], type[RegistryError], list[str]]] = {
    "401 without a login": (
        error_reply(401, "UNAUTHORIZED", "authentication required"),
        {},
        AuthError,
        [
            "reg.example.com wants a login to pull reg.example.com/team/app:1",
            f"{GET}: 401 Reason",
            "UNAUTHORIZED: authentication required",
            "-> log in: `docker login reg.example.com`",
        ],
    ),
    "401 with a login": (
        Reply(401),
        {"login": "/root/.docker/config.json"},
        AuthError,
        [
            "reg.example.com does not accept the login from /root/.docker/config.json",
            f"{GET}: 401 Reason",
            "-> log in again: `docker login reg.example.com`",
        ],
    ),
    "403": (
        error_reply(403, "DENIED", "requested access to the resource is denied"),
        {"action": "push", "login": "docker-credential-pass"},
        AuthError,
        [
            "reg.example.com does not allow to push reg.example.com/team/app:1 "
            "with the login from docker-credential-pass",
            f"{GET}: 403 Reason",
            "DENIED: requested access to the resource is denied",
            "-> log in with an account that may: `docker login reg.example.com`",
        ],
    ),
    "403 for a push to Docker Hub's own names": (
        Reply(403),
        {"endpoint": endpoint("docker.io"), "action": "push", "subject": "docker.io/library/app:1"},
        AuthError,
        [
            "docker.io does not allow to push docker.io/library/app:1",
            f"{GET}: 403 Reason",
            "-> Docker Hub names are USER/NAME: tag the image with your user name before it",
        ],
    ),
    "404 for a tag": (
        error_reply(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        {},
        NotFoundError,
        [
            "reg.example.com/team/app:1: not found",
            f"{GET}: 404 Reason",
            "MANIFEST_UNKNOWN: manifest unknown",
            "-> check the name and the tag; a private image needs `docker login reg.example.com`",
        ],
    ),
    "404 for a repository": (
        error_reply(404, "NAME_UNKNOWN", "repository name not known"),
        {},
        NotFoundError,
        [
            "reg.example.com/team/app:1: there is no such repository",
            f"{GET}: 404 Reason",
            "NAME_UNKNOWN: repository name not known",
            "-> check the name and the tag; a private image needs `docker login reg.example.com`",
        ],
    ),
    "404 for a blob": (
        Reply(404),
        {"subject": "blob sha256:12 of reg.example.com/team/app"},
        NotFoundError,
        [
            "blob sha256:12 of reg.example.com/team/app: not found",
            f"{GET}: 404 Reason",
            "-> the registry has the image's manifest but not this part of it: push the image anew",
        ],
    ),
    "404 for a push": (
        Reply(404),
        {"action": "push"},
        NotFoundError,
        [
            "reg.example.com/team/app:1: reg.example.com has no such repository, or has lost the upload",
            f"{GET}: 404 Reason",
            "-> some registries want a repository to be created before the first push",
        ],
    ),
    "413": (
        Reply(413),
        {"subject": "blob sha256:12 to reg.example.com/team/app", "action": "push"},
        RegistryError,
        [
            "blob sha256:12 to reg.example.com/team/app: reg.example.com refuses it as too large",
            f"{GET}: 413 Reason",
            "-> raise the body size limit of the registry or of the proxy before it",
        ],
    ),
    "429": (
        error_reply(429, "TOOMANYREQUESTS", "You have reached your pull rate limit", **{"retry-after": "60"}),
        {},
        RegistryError,
        [
            "reg.example.com limits requests: reg.example.com/team/app:1 was refused",
            f"{GET}: 429 Reason",
            "TOOMANYREQUESTS: You have reached your pull rate limit",
            "-> try again in 60 s; logged-in users have higher limits: `docker login reg.example.com`",
        ],
    ),
    "500 with a page": (
        Reply(502, b"<html>\x1b[2J nginx"),
        {},
        RegistryError,
        [
            "reg.example.com failed to pull reg.example.com/team/app:1: 502 Reason",
            f"{GET}: 502 Reason",
            "-> the fault is on the registry's side: try again later, or look into its log",
        ],
    ),
    "400 for a name": (
        error_reply(400, "NAME_INVALID", "bad\x1b[31m name\nsecond line"),
        {"action": "push"},
        RegistryError,
        [
            "reg.example.com refused to push reg.example.com/team/app:1: 400 Reason",
            f"{GET}: 400 Reason",
            "NAME_INVALID: bad [31m name second line",
            "-> the registry does not allow this repository name",
        ],
    ),
    "405": (
        error_reply(405, "UNSUPPORTED", "read-only"),
        {"action": "delete"},
        RegistryError,
        [
            "reg.example.com refused to delete reg.example.com/team/app:1: 405 Reason",
            f"{GET}: 405 Reason",
            "UNSUPPORTED: read-only",
            "-> the registry does not offer this operation, or is read-only",
        ],
    ),
    "a status that makes no sense": (
        Reply(299),
        {},
        RegistryError,
        [
            "reg.example.com refused to pull reg.example.com/team/app:1: 299 Reason",
            f"{GET}: 299 Reason",
            "-> check that reg.example.com is a container registry",
        ],
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(case: str) -> None:
    reply, changes, kind, lines = ANSWERS[case]
    error = from_response(answered(reply), asked(**changes))
    assert type(error) is kind
    assert rendered(error) == lines
    assert error.status == reply.status
    assert error.retryable is (reply.status in (429, 502))


def verify_error(message: str, code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {message} (_ssl.c:992)")
    error.verify_message, error.verify_code = message, code
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    return error


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:992)")
    error.reason = reason
    return error


TRUSTED = "trusted: the system's store"

FAILURES: dict[str, tuple[str, OSError, str, str]] = {
    "no such host": (
        "resolve",
        socket.gaierror(-2, "Name or service not known"),
        "cannot find the host reg.example.com: Name or service not known",
        "check the name, and this machine's DNS",
    ),
    "refused": (
        "connect",
        ConnectionRefusedError(111, "Connection refused"),
        "cannot connect to reg.example.com:443: connection refused",
        "is the registry running there? check host and port",
    ),
    "no answer": (
        "connect",
        TimeoutError("the connection was not answered"),
        "cannot connect to reg.example.com:443: no answer",
        "check host and port, and whether a firewall or proxy lies between",
    ),
    "no route": (
        "connect",
        OSError(101, "Network is unreachable"),
        "cannot connect to reg.example.com:443: Network is unreachable",
        "check this machine's network",
    ),
    "proxy": (
        "proxy",
        ConnectionError("proxy p:3128 refused the tunnel: 407 Proxy Authentication Required"),
        "cannot reach reg.example.com:443: proxy p:3128 refused the tunnel: 407 Proxy Authentication Required",
        "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
    ),
    "unknown authority": (
        "tls",
        verify_error("unable to get local issuer certificate", 20),
        "reg.example.com:443: its TLS certificate is not trusted: unable to get local issuer certificate",
        "put its CA certificate in /etc/docker/certs.d/reg.example.com/ca.crt, "
        "or allow it with registry.insecure=true",
    ),
    "other name": (
        "tls",
        verify_error("Hostname mismatch, certificate is not valid for 'reg.example.com'.", 62),
        "reg.example.com:443: its TLS certificate is not trusted: "
        "Hostname mismatch, certificate is not valid for 'reg.example.com'.",
        "use a name that the certificate is for, or allow it with registry.insecure=true",
    ),
    "expired": (
        "tls",
        verify_error("certificate has expired", 10),
        "reg.example.com:443: its TLS certificate is not trusted: certificate has expired",
        "check this machine's clock and renew the certificate, or allow it with registry.insecure=true",
    ),
    "plain HTTP where TLS is expected": (
        "tls",
        ssl_error("WRONG_VERSION_NUMBER"),
        "reg.example.com:443 does not speak TLS",
        "if the registry speaks plain HTTP, allow that with registry.insecure=true",
    ),
    "client certificate, told in the handshake": (
        "tls",
        ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        "reg.example.com:443 wants a client certificate",
        "put client.cert and client.key in /etc/docker/certs.d/reg.example.com",
    ),
    "client certificate, told after it": (
        "receive",
        ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        "reg.example.com:443 wants a client certificate",
        "put client.cert and client.key in /etc/docker/certs.d/reg.example.com",
    ),
    "no agreement": (
        "tls",
        ssl_error("UNSUPPORTED_PROTOCOL"),
        "cannot agree on TLS with reg.example.com:443: unsupported protocol",
        "check that host and port are the registry's",
    ),
    "TLS where plain HTTP is expected": (
        "receive",
        NotHttp(b"\x15\x03\x01\x00\x02"),
        "reg.example.com:443 speaks TLS but was asked in plain HTTP",
        "remove the registry's `http = true` setting",
    ),
    "something else altogether": (
        "receive",
        NotHttp(b"SSH-2.0-OpenSSH"),
        "reg.example.com:443 does not speak HTTP",
        "check that host and port are the registry's",
    ),
    "silence": (
        "receive",
        TimeoutError("timed out"),
        "reg.example.com:443 stopped answering",
        "try again; is the registry overloaded?",
    ),
    "reset": (
        "send",
        ConnectionResetError(104, "Connection reset by peer"),
        "the connection to reg.example.com:443 broke: Connection reset by peer",
        "try again; look into the registry's log if it persists",
    ),
    "closed": (
        "receive",
        BodyCut("the connection ended inside the head of an answer"),
        "the connection to reg.example.com:443 broke: the connection ended inside the head of an answer",
        "try again; look into the registry's log if it persists",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(case: str) -> None:
    phase, cause, summary, hint = FAILURES[case]
    origin = Origin("https", "reg.example.com", 443, TlsConfig())
    failure = TransportFailure(phase, cause, origin=origin)
    failure.attempts = 3
    error = from_transport(failure, asked())
    assert (error.summary, error.hint) == (summary, hint)
    lines = (error.detail or "").splitlines()
    assert lines[0] == f"while asking for {IMAGE}"
    assert lines[1].startswith(f"{GET}: ")
    assert lines[1].endswith("(asked 3 times)")
    assert lines[2:] == ([TRUSTED] if phase == "tls" else [])
    assert (error.host, error.status) == ("reg.example.com", None)


def test_the_trust_used_is_told() -> None:
    tls = TlsConfig(True, ("/c/ca.crt",), (), ("/c",))
    failure = TransportFailure(
        "tls", verify_error("bad", 20), origin=Origin("https", "reg.example.com", 443, tls)
    )
    assert "trusted: the system's store, /c" in (from_transport(failure, asked()).detail or "")


def test_another_host_s_certificate_belongs_in_its_own_directory() -> None:
    """A redirect target or token server is not the registry."""
    origin = Origin("https", "cdn.example.net", 8443, TlsConfig())
    failure = TransportFailure("tls", verify_error("bad", 20), origin=origin)
    hint = from_transport(failure, asked()).hint or ""
    assert "/etc/docker/certs.d/cdn.example.net:8443/ca.crt" in hint


def test_a_mismatch() -> None:
    error = digest_mismatch("blob sha256:1 of a.io/x", "a.io", expected="sha256:1", actual="sha256:2")
    assert type(error) is DigestMismatch
    assert rendered(error) == [
        "blob sha256:1 of a.io/x: a.io sent content that does not match its digest",
        "expected: sha256:1",
        "received: sha256:2",
        "-> the registry, a mirror or a proxy on the way has damaged the content; "
        "nothing was stored: try again, or push the image anew",
    ]


def test_a_very_long_answer_does_not_fill_the_screen(server: ScriptedServer) -> None:
    errors = b'{"errors":[' + b",".join([b'{"code":"X","message":"' + b"y" * 1000 + b'"}'] * 50) + b"]}"
    error = from_response(answered(Reply(400, errors[:60_000])), asked())
    assert len(error.detail or "") < 2000
