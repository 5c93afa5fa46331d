"""One logical request: scheme choice, redirects, retries with back-off.

Knows nothing of tokens or of the distribution API: an ``Authorization`` header is passed in and dropped when a
redirect leads elsewhere. Whatever status comes in the end is an answer, not an error.

Spec: RFC 9110 sections 9.2.2, 10.2.3, 15.4.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from crossdock.errors import InternalError
from crossdock.record import NamedTuple
from crossdock.registry.config import is_loopback, split_host
from crossdock.registry.http1 import NotHttp
from crossdock.registry.transport import Origin, TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from urllib.parse import SplitResult

    from crossdock.cancel import CancelToken
    from crossdock.registry.config import Endpoint, RegistryConfig
    from crossdock.registry.http1 import Response, StreamBody
    from crossdock.registry.transport import Transport

__all__ = ["Exchange", "Outgoing", "RedirectRefused", "RetryPolicy", "redact"]

_REDIRECTS = 10
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
#: a registry asking for a longer pause is not waited for
_LONGEST_PAUSE_S = 30.0
_LONGEST_BACKOFF_S = 8.0
_SAFE = "/:?#[]@!$&'()*+,;=%~-._"
#: how servers say that they were spoken to without TLS
_WANTS_TLS = (b"HTTP request to an HTTPS server", b"sent to HTTPS port", b"to an SSL-enabled server port")


class RetryPolicy(NamedTuple):
    """How often a request is sent, and the first pause in seconds; pauses double."""

    attempts: int = 5
    pause_s: float = 0.25

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures; the clock's low digits spread clients."""
        doubled = min(self.pause_s * (1 << failures >> 1), _LONGEST_BACKOFF_S)
        return doubled * (1 + time.monotonic_ns() % 1000 / 4000)


class RedirectRefused(Exception):
    """An address given by a server that is not followed; the text says why."""


class Outgoing(NamedTuple):
    """What to send. ``target`` is a path with query below the endpoint, or an absolute URL."""

    method: str
    endpoint: Endpoint
    target: str
    headers: Mapping[str, str]
    #: made anew for every sending
    body: bytes | Callable[[], StreamBody] | None = None
    authorization: str | None = None
    #: whether a broken connection or a 5xx is answered by sending again
    repeatable: bool = True
    insecure: bool = False
    idle_s: float | None = None


class Exchange:
    """Sends requests; remembers which scheme each endpoint speaks. Safe from any thread."""

    def __init__(
        self, transport: Transport, config: RegistryConfig, *, retry: RetryPolicy | None = None
    ) -> None:
        self.transport = transport
        self.config = config
        self.retry = retry or RetryPolicy()
        # endpoint -> scheme; single dict operations only, equal values: no lock needed.
        self._schemes: dict[Endpoint, str] = {}

    def send(self, out: Outgoing, *, cancel: CancelToken) -> Response:
        """Return the final answer.

        Raises: TransportFailure when none came; RedirectRefused; the token's cause when cancelled.
        """
        attempt = 0
        while True:
            cancel.check()
            attempt += 1
            last = attempt >= self.retry.attempts or not out.repeatable
            try:
                response = self._send_once(out, cancel)
            except TransportFailure as failure:
                failure.attempts = attempt
                if not out.repeatable or not _worth_repeating(failure, last=last, attempt=attempt):
                    raise
                _debug("%s %s: %s; trying again", out.method, redact(failure.url), failure)
                wait = 0.0 if failure.reused else self.retry.pause(attempt)
            else:
                response.attempts = attempt
                if response.status not in _RETRY_STATUSES or last:
                    return response
                asked = retry_after(response)
                if asked is not None and asked > _LONGEST_PAUSE_S:
                    return response
                _debug("%s %s: %d; trying again", out.method, redact(response.url), response.status)
                response.discard()
                wait = self.retry.pause(attempt) if asked is None else asked
            cancel.sleep(wait)

    def origin_url(self, endpoint: Endpoint) -> str:
        """Return ``scheme://host[:port]`` of an endpoint, with the scheme it is known or assumed to speak."""
        return _base_url(self._origin(endpoint, self._schemes.get(endpoint, endpoint.schemes[0])))

    def absolute(self, endpoint: Endpoint, target: str) -> str:
        """Return ``target`` as an absolute URL."""
        return target if "://" in target else self.origin_url(endpoint) + target

    def relative(self, endpoint: Endpoint, location: str, base: str) -> str:
        """Resolve a ``Location`` against the URL ``base`` that gave it; relative when it is the endpoint's own.

        A registry behind a TLS proxy may call itself ``http://``: its own host keeps the endpoint's scheme.
        Raises: RedirectRefused when it is no address.
        """
        url = _parsed(_joined(base, location))
        target = url.path + (f"?{url.query}" if url.query else "")
        own = urlsplit(self.origin_url(endpoint))
        same_host = url.hostname == own.hostname
        if same_host and (url.netloc == own.netloc or (own.scheme == "https" and url.port in (None, 80))):
            return target
        return f"{url.scheme}://{url.netloc}{target}"

    def _send_once(self, out: Outgoing, cancel: CancelToken) -> Response:
        if "://" in out.target:
            return self._send_url(out, out.target, out.headers, out.method, cancel)
        response = self._choose_scheme(out, cancel)
        headers = out.headers
        method, previous = out.method, response.url
        for _ in range(_REDIRECTS):
            if response.status not in (301, 302, 303, 307, 308) or not response.header("location"):
                return response
            if response.status == 303 and method != "HEAD":
                method = "GET"
            if method not in ("GET", "HEAD") and response.status not in (307, 308):
                return response
            response.discard()
            target = _joined(previous, response.header("location"))
            same = _origin_part(target) == _origin_part(previous)
            out = out if same else out._replace(authorization=None)
            response = self._send_url(out, target, headers, method, cancel, came_from=previous)
            previous = response.url
        response.discard()
        msg = f"more than {_REDIRECTS} redirects"
        raise RedirectRefused(msg)

    def _send_url(
        self,
        out: Outgoing,
        url: str,
        headers: Mapping[str, str],
        method: str,
        cancel: CancelToken,
        *,
        came_from: str = "",
    ) -> Response:
        parts = _parsed(url)
        downgrade = parts.scheme == "http" and came_from.startswith("https://")
        if downgrade and not out.insecure and not is_loopback(parts.hostname or ""):
            msg = f"it leads from TLS to plain HTTP at {parts.netloc.rpartition('@')[2]}"
            raise RedirectRefused(msg)
        host, port = split_host(parts.netloc.rpartition("@")[2])
        tls = self.config.tls_for(parts.netloc.rpartition("@")[2], insecure=out.insecure)
        origin = Origin(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), tls)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return self._exchange(origin, out, method, target, headers, cancel)

    def _choose_scheme(self, out: Outgoing, cancel: CancelToken) -> Response:
        known = self._schemes.get(out.endpoint)
        schemes = (known,) if known else out.endpoint.schemes
        first: TransportFailure | None = None
        doubtful: Response | None = None
        for number, scheme in enumerate(schemes, 1):
            origin = self._origin(out.endpoint, scheme)
            try:
                response = self._exchange(origin, out, out.method, out.target, out.headers, cancel)
            except TransportFailure as failure:
                if number < len(schemes) and _speaks_other(failure, scheme, out.endpoint):
                    first = failure
                    continue
                if failure.phase in ("connect", "tls") and not _is_distrust(failure):
                    if doubtful is not None:
                        return doubtful  # the scheme stays unknown
                    if first is not None:
                        raise first from failure
                raise
            if number < len(schemes) and scheme == "http" and _may_want_tls(response, out.method):
                doubtful = response
                response.discard()
                continue
            break
        else:
            summary = f"the registry {out.endpoint.address} has no scheme"
            raise InternalError(summary)
        self._schemes[out.endpoint] = scheme
        return response

    def _exchange(
        self,
        origin: Origin,
        out: Outgoing,
        method: str,
        target: str,
        headers: Mapping[str, str],
        cancel: CancelToken,
    ) -> Response:
        url = _base_url(origin) + target
        sent = {"Host": origin.authority, "User-Agent": "crossdock", "Accept-Encoding": "identity", **headers}
        if out.authorization is not None:
            sent["Authorization"] = out.authorization
        body = out.body() if callable(out.body) else out.body
        if method in ("GET", "HEAD"):
            body = None
        elif body is None and method in ("POST", "PUT", "PATCH"):
            body = b""
        _debug("%s %s", method, redact(url))
        try:
            response = self.transport.request(
                origin, method, target, sent, body, cancel=cancel, idle_s=out.idle_s
            )
        except TransportFailure as failure:
            failure.url = url
            raise
        response.url = url
        _debug("%s %s: %d", method, redact(url), response.status)
        return response

    @staticmethod
    def _origin(endpoint: Endpoint, scheme: str) -> Origin:
        port = endpoint.port or (443 if scheme == "https" else 80)
        return Origin(scheme, endpoint.host, port, endpoint.tls)


def retry_after(response: Response) -> float | None:
    """Return the pause in seconds that a server asks for, if it does."""
    text = response.header("retry-after").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    from datetime import UTC, datetime  # rare form
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def redact(url: str) -> str:
    """Return a URL without user information and with the values of its query hidden."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable address"
    names = [item.partition("=")[0] for item in parts.query.split("&") if item]
    query = "?" + "&".join(f"{name}=***" for name in names) if names else ""
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    return f"{scheme}{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _joined(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as exc:
        msg = f"its location {location[:200]!r} is no address"
        raise RedirectRefused(msg) from exc


def _parsed(url: str) -> SplitResult:
    """Split a URL that somebody else gave, with everything percent-encoded that needs it.

    Raises: RedirectRefused when it is not an HTTP address.
    """
    try:
        parts = urlsplit(quote(url, safe=_SAFE))
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError as exc:
        msg = f"{redact(url)!r} is not an HTTP address"
        raise RedirectRefused(msg) from exc
    msg = f"{redact(url)!r} is not an HTTP address"
    raise RedirectRefused(msg)


def _base_url(origin: Origin) -> str:
    return f"{origin.scheme}://{origin.authority}"


def _origin_part(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _worth_repeating(failure: TransportFailure, *, last: bool, attempt: int) -> bool:
    if failure.reused and attempt == 1:
        return True  # the peer closed an idle connection: whatever was sent was not looked at
    if last or isinstance(failure.cause, NotHttp):
        return False
    if failure.phase == "resolve":
        return failure.cause.errno == -3  # EAI_AGAIN
    if isinstance(failure.cause, TimeoutError) and (failure.phase == "connect" or attempt > 1):
        return False  # a second long wait is enough
    return failure.phase in ("send", "receive") or isinstance(failure.cause, ConnectionResetError)


def _is_distrust(failure: TransportFailure) -> bool:
    """Whether TLS was spoken and the certificate refused."""
    return getattr(failure.cause, "verify_code", None) is not None


def _speaks_other(failure: TransportFailure, scheme: str, endpoint: Endpoint) -> bool:
    """Whether a failure suggests that the peer speaks the other scheme."""
    cause = failure.cause
    if failure.phase == "connect" and isinstance(cause, ConnectionRefusedError):
        return endpoint.port is None  # the other scheme has another port
    if scheme == "http":
        return isinstance(cause, NotHttp) or (
            failure.phase == "receive" and isinstance(cause, ConnectionError)
        )
    reason = getattr(cause, "reason", "") or ""
    return failure.phase == "tls" and reason in _NOT_TLS


#: OpenSSL's reasons, by version, when the peer's first bytes are not TLS
_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)


def _may_want_tls(response: Response, method: str) -> bool:
    """Whether an answer may be a TLS server's to a plain request; a HEAD's has no body that says so."""
    if response.status != 400 or method == "HEAD":
        return response.status == 400
    try:
        start = response.peek(2048)
    except OSError:
        return False
    return any(phrase in start for phrase in _WANTS_TLS)


def _debug(message: str, *args: object) -> None:
    """Log, if anybody can be listening: importing ``logging`` costs more than a request."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger("crossdock.registry").debug(message, *args)
