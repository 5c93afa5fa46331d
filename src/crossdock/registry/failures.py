"""What went wrong with a registry, in words: every refusal and failure with what to do about it.

Imported when something failed. Texts hold no header, no query value and no login.

Spec: distribution-spec 1.1 "Error Codes".
"""

from __future__ import annotations

import errno
import json
import re
from typing import TYPE_CHECKING

from crossdock.errors import AuthError, DigestMismatch, NotFoundError, RegistryError
from crossdock.record import NamedTuple
from crossdock.registry.exchange import redact, retry_after
from crossdock.registry.http1 import NotHttp

if TYPE_CHECKING:
    from crossdock.registry.config import Endpoint, RegistryConfig
    from crossdock.registry.http1 import Response
    from crossdock.registry.transport import TransportFailure

__all__ = ["Asked", "digest_mismatch", "from_response", "from_transport", "protocol_error"]

_MAX_BODY = 64 * 1024
_HUB = "docker.io"
_INSECURE_HINT = "allow it with registry.insecure=true"


class Asked(NamedTuple):
    """What was asked of whom, for messages."""

    endpoint: Endpoint
    method: str
    url: str
    #: e.g. ``docker.io/library/alpine:3.20`` or ``blob sha256:... of localhost:5000/app``
    subject: str
    config: RegistryConfig
    #: ``pull``, ``push`` or ``delete``
    action: str = "pull"
    #: file or helper whose login was sent
    login: str = ""

    @property
    def host(self) -> str:
        """The registry as users name it."""
        return self.endpoint.domain


class _Words(NamedTuple):
    kind: type[RegistryError]
    summary: str
    hint: str
    retryable: bool = False


def from_response(response: Response, asked: Asked) -> RegistryError:
    """Make the error for an answer that is none of those wanted; reads and ends the answer."""
    codes, messages = _spec_errors(response)
    words = _words(response, asked, codes)
    line = f"{asked.method} {redact(response.url or asked.url)}: {response.status} {response.reason}".rstrip()
    if response.attempts > 1:
        line += f" (asked {response.attempts} times)"
    return words.kind(
        words.summary,
        host=asked.host,
        method=asked.method,
        url=redact(response.url or asked.url),
        status=response.status,
        codes=codes,
        detail="\n".join([line, *messages]),
        hint=words.hint,
        retryable=words.retryable,
    )


def from_transport(failure: TransportFailure, asked: Asked) -> RegistryError:
    """Make the error for a request that got no answer."""
    words = _transport_words(failure, asked)
    url = redact(failure.url or asked.url)
    line = f"{asked.method} {url}: {_plain(failure.cause)}"
    if failure.attempts > 1:
        line += f" (asked {failure.attempts} times)"
    details = [f"while asking for {asked.subject}", line]
    if failure.phase == "tls":
        details.append(_trust_line(failure))
    return words.kind(
        words.summary,
        host=asked.host,
        method=asked.method,
        url=url,
        detail="\n".join(details),
        hint=words.hint,
        retryable=words.retryable,
    )


def protocol_error(asked: Asked, why: str, *, status: int | None = None) -> RegistryError:
    """Make the error for an answer that breaks the protocol; ``why`` completes "the registry ..."."""
    return RegistryError(
        f"{asked.host}: {asked.subject}: the registry {why}",
        host=asked.host,
        method=asked.method,
        url=redact(asked.url),
        status=status,
        hint=f"check that {asked.endpoint.address} is a container registry",
    )


def digest_mismatch(subject: str, host: str, *, expected: str, actual: str) -> DigestMismatch:
    """Make the error for content that is not what it should be."""
    return DigestMismatch(
        f"{subject}: {host} sent content that does not match its digest",
        detail=f"expected: {expected}\nreceived: {actual}",
        hint="the registry, a mirror or a proxy on the way has damaged the content; "
        "nothing was stored: try again, or push the image anew",
    )


def _spec_errors(response: Response) -> tuple[tuple[str, ...], list[str]]:
    """Return error codes and readable lines of the body, as far as it has them."""
    try:
        raw = response.read_all(_MAX_BODY)
        data = json.loads(raw)
    except (OSError, ValueError):
        return (), []
    items = data.get("errors") if isinstance(data, dict) else None
    if not isinstance(items, list):
        return (), []
    items = [item for item in items[:5] if isinstance(item, dict)]
    codes = tuple(code for item in items if (code := _clean(item.get("code"))))
    lines = [
        ": ".join(filter(None, (_clean(item.get("code")), _clean(item.get("message"))))) for item in items
    ]
    return codes, [line for line in lines if line]


def _clean(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text)[:300].strip()


def _words(response: Response, asked: Asked, codes: tuple[str, ...]) -> _Words:
    status = response.status
    if status == 401:
        return _unauthorized(asked)
    if status == 403:
        return _forbidden(asked)
    if status == 404:
        return _not_found(asked, codes)
    if status == 429:
        return _rate_limited(response, asked)
    if status == 413:
        return _Words(
            RegistryError,
            f"{asked.subject}: {asked.host} refuses it as too large",
            "raise the body size limit of the registry or of the proxy before it",
        )
    if status >= 500:
        return _Words(
            RegistryError,
            f"{asked.host} failed to {asked.action} {asked.subject}: {status} {response.reason}".rstrip(),
            "the fault is on the registry's side: try again later, or look into its log",
            retryable=True,
        )
    return _other(response, asked, codes)


def _other(response: Response, asked: Asked, codes: tuple[str, ...]) -> _Words:
    summary = f"{asked.host} refused to {asked.action} {asked.subject}: {response.status} {response.reason}"
    hint = f"check that {asked.endpoint.address} is a container registry"
    if "DIGEST_INVALID" in codes or "SIZE_INVALID" in codes:
        hint = "the content was damaged on its way: try again"
    elif "MANIFEST_BLOB_UNKNOWN" in codes or "BLOB_UNKNOWN" in codes:
        hint = "the registry lost a blob that it had: push again"
    elif "NAME_INVALID" in codes:
        hint = "the registry does not allow this repository name"
    elif "UNSUPPORTED" in codes or response.status == 405:
        hint = "the registry does not offer this operation, or is read-only"
    return _Words(RegistryError, summary.rstrip(), hint)


def _unauthorized(asked: Asked) -> _Words:
    login = f"`docker login {asked.host}`"
    if asked.login:
        summary = f"{asked.host} does not accept the login from {asked.login}"
        return _Words(AuthError, summary, f"log in again: {login}")
    summary = f"{asked.host} wants a login to {asked.action} {asked.subject}"
    return _Words(AuthError, summary, f"log in: {login}")


def _forbidden(asked: Asked) -> _Words:
    summary = f"{asked.host} does not allow to {asked.action} {asked.subject}"
    if asked.login:
        summary += f" with the login from {asked.login}"
    hint = f"log in with an account that may: `docker login {asked.host}`"
    if asked.action == "push" and asked.host == _HUB and "/library/" in asked.subject:
        hint = "Docker Hub names are USER/NAME: tag the image with your user name before it"
    return _Words(AuthError, summary, hint)


def _not_found(asked: Asked, codes: tuple[str, ...]) -> _Words:
    if asked.action == "push":
        summary = f"{asked.subject}: {asked.host} has no such repository, or has lost the upload"
        hint = "some registries want a repository to be created before the first push"
        return _Words(NotFoundError, summary, hint)
    if asked.subject.startswith("blob "):
        return _Words(
            NotFoundError,
            f"{asked.subject}: not found",
            "the registry has the image's manifest but not this part of it: push the image anew",
        )
    what = "there is no such repository" if "NAME_UNKNOWN" in codes else "not found"
    hint = f"check the name and the tag; a private image needs `docker login {asked.host}`"
    return _Words(NotFoundError, f"{asked.subject}: {what}", hint)


def _rate_limited(response: Response, asked: Asked) -> _Words:
    pause = retry_after(response)
    when = "later" if pause is None else f"in {pause:.0f} s"
    hint = f"try again {when}"
    if not asked.login:
        hint += f"; logged-in users have higher limits: `docker login {asked.host}`"
    return _Words(
        RegistryError, f"{asked.host} limits requests: {asked.subject} was refused", hint, retryable=True
    )


def _transport_words(failure: TransportFailure, asked: Asked) -> _Words:
    cause, origin = failure.cause, failure.origin
    address = f"{origin.host}:{origin.port}"
    match failure.phase:
        case "resolve":
            summary = f"cannot find the host {origin.host}: {_plain(cause)}"
            return _Words(RegistryError, summary, "check the name, and this machine's DNS", retryable=True)
        case "proxy":
            hint = "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
            return _Words(RegistryError, f"cannot reach {address}: {_plain(cause)}", hint, retryable=True)
        case "connect":
            return _connect_words(cause, address)
        case "tls":
            return _tls_words(failure, asked, address)
        case _:
            return _talk_words(cause, address, asked)


def _connect_words(cause: OSError, address: str) -> _Words:
    if isinstance(cause, ConnectionRefusedError):
        summary = f"cannot connect to {address}: connection refused"
        return _Words(
            RegistryError, summary, "is the registry running there? check host and port", retryable=True
        )
    if isinstance(cause, TimeoutError) or cause.errno == errno.ETIMEDOUT:
        summary = f"cannot connect to {address}: no answer"
        hint = "check host and port, and whether a firewall or proxy lies between"
        return _Words(RegistryError, summary, hint, retryable=True)
    hint = "check this machine's network"
    return _Words(RegistryError, f"cannot connect to {address}: {_plain(cause)}", hint, retryable=True)


def _tls_words(failure: TransportFailure, asked: Asked, address: str) -> _Words:
    cause = failure.cause
    own = failure.origin.host == asked.endpoint.host
    name = asked.host if own else failure.origin.authority
    import ssl  # loaded already when TLS failed

    if isinstance(cause, ssl.SSLCertVerificationError):
        why = cause.verify_message or "verification failed"
        summary = f"{address}: its TLS certificate is not trusted: {why}"
        if cause.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return _Words(
                RegistryError, summary, f"use a name that the certificate is for, or {_INSECURE_HINT}"
            )
        if cause.verify_code in (9, 10):  # not yet valid, expired
            hint = f"check this machine's clock and renew the certificate, or {_INSECURE_HINT}"
            return _Words(RegistryError, summary, hint)
        hint = f"put its CA certificate in {asked.config.certs_path(name)}, or {_INSECURE_HINT}"
        return _Words(RegistryError, summary, hint)
    if _ssl_reason(cause) in (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
    ):
        hint = "if the registry speaks plain HTTP, allow that with registry.insecure=true"
        return _Words(RegistryError, f"{address} does not speak TLS", hint)
    if "CERTIFICATE_REQUIRED" in _ssl_reason(cause):
        directory = asked.config.certs_path(name).removesuffix("/ca.crt")
        hint = f"put client.cert and client.key in {directory}"
        return _Words(RegistryError, f"{address} wants a client certificate", hint)
    summary = f"cannot agree on TLS with {address}: {_plain(cause)}"
    return _Words(RegistryError, summary, "check that host and port are the registry's", retryable=True)


def _talk_words(cause: OSError, address: str, asked: Asked) -> _Words:
    if isinstance(cause, NotHttp):
        if cause.received[:2] in (b"\x15\x03", b"\x16\x03"):
            summary = f"{address} speaks TLS but was asked in plain HTTP"
            return _Words(RegistryError, summary, "remove the registry's `http = true` setting")
        hint = "check that host and port are the registry's"
        return _Words(RegistryError, f"{address} does not speak HTTP", hint)
    if "CERTIFICATE_REQUIRED" in _ssl_reason(cause):
        directory = asked.config.certs_path(asked.host).removesuffix("/ca.crt")
        return _Words(
            RegistryError,
            f"{address} wants a client certificate",
            f"put client.cert and client.key in {directory}",
        )
    if isinstance(cause, TimeoutError):
        summary = f"{address} stopped answering"
        return _Words(RegistryError, summary, "try again; is the registry overloaded?", retryable=True)
    summary = f"the connection to {address} broke: {_plain(cause)}"
    return _Words(
        RegistryError, summary, "try again; look into the registry's log if it persists", retryable=True
    )


def _trust_line(failure: TransportFailure) -> str:
    tls = failure.origin.tls
    if not tls.verify:
        return "certificates are not verified (insecure)"
    return "trusted: " + ", ".join(["the system's store", *tls.places])


def _plain(exc: OSError) -> str:
    """Return an error's text without Python's decoration."""
    if reason := _ssl_reason(exc):
        return reason.replace("_", " ").lower()
    return exc.strerror or str(exc) or type(exc).__name__


def _ssl_reason(exc: OSError) -> str:
    """Return OpenSSL's reason of an ``ssl.SSLError``, without importing ``ssl``."""
    return str(getattr(exc, "reason", None) or "")
