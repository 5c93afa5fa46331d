"""GET for build sources: redirects, another try after what may pass, an end when the build is cancelled.

Spec: RFC 9110 section 15.4. Environment variables name proxies, as for registries.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from crossdock.registry.config import Endpoint, RegistryConfig
from crossdock.registry.exchange import Exchange, Outgoing, RedirectRefused, RetryPolicy
from crossdock.registry.transport import Timeouts, Transport, TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crossdock.cancel import CancelToken
    from crossdock.registry.http1 import Response

__all__ = ["FetchFailed", "Web", "blocks"]

_REDIRECTS = 10
_BLOCK = 1 << 20
_STATUSES = (301, 302, 303, 307, 308)


class FetchFailed(Exception):
    """No answer came; the text says why, without credentials."""

    def __init__(self, reason: str, phase: str) -> None:
        super().__init__(f"failed to load: {phase}: {reason}")


class Web:
    """Fetches files for one source. For one thread; close it."""

    def __init__(self, cancel: CancelToken, *, pause_s: float, attempts: int = 4) -> None:
        self._cancel = cancel
        self._transport = Transport(timeouts=Timeouts())
        self._config = RegistryConfig(cert_dirs=())
        self._retry = RetryPolicy(attempts=attempts, pause_s=pause_s)
        self._exchange = Exchange(self._transport, self._config, retry=self._retry)

    def close(self) -> None:
        """Close connections."""
        self._transport.close()

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        take: Callable[[Response], None],
    ) -> None:
        """Ask for a file and give the final answer to ``take``, again from the start when the body is cut.

        ``authorization`` goes to the URL's own host only.
        Raises: FetchFailed; what ``take`` raises; the token's cause.
        """
        url, login = _without_login(url)
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._follow(url, headers, authorization or login)
                try:
                    take(response)
                finally:
                    response.close()
            except TransportFailure as failure:
                raise FetchFailed(_words(failure.cause), failure.phase) from failure
            except RedirectRefused as refused:
                raise FetchFailed(str(refused), "redirect refused") from refused
            except OSError as exc:
                self._cancel.check()
                if attempt == self._retry.attempts:
                    raise FetchFailed(_words(exc), "receive") from exc
                self._cancel.sleep(self._retry.pause(attempt))
            else:
                return

    def _follow(self, url: str, headers: Mapping[str, str], authorization: str | None) -> Response:
        first = _origin(url)
        for _ in range(_REDIRECTS):
            parts = urlsplit(url)
            # Absolute targets are asked where they lead; the endpoint is a form to fill in.
            endpoint = Endpoint(
                parts.netloc, parts.hostname or "", None, (parts.scheme,), self._config.tls_for(parts.netloc)
            )
            out = Outgoing("GET", endpoint, url, headers, authorization=authorization)
            response = self._exchange.send(out, cancel=self._cancel)
            location = response.header("location")
            if response.status not in _STATUSES or not location:
                return response
            response.discard()
            url = _joined(url, location)
            if _origin(url) != first:
                authorization = None
        msg = f"more than {_REDIRECTS} redirects"
        raise RedirectRefused(msg)


def blocks(response: Response) -> Iterator[memoryview]:
    """Read an answer's body in large pieces; each is valid until the next. Raises: OSError."""
    buffer = memoryview(bytearray(_BLOCK))
    while n := response.readinto(buffer):
        yield buffer[:n]


def _words(exc: OSError) -> str:
    return exc.strerror or str(exc) or type(exc).__name__


def _without_login(url: str) -> tuple[str, str | None]:
    """Split ``user:password@`` off a URL; the second is the header it means."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(bare), "Basic " + base64.b64encode(pair.encode()).decode()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _joined(base: str, location: str) -> str:
    try:
        url = urljoin(base, location)
        if urlsplit(url).scheme in ("http", "https"):
            return url
    except ValueError as exc:
        msg = "its location is no address"
        raise RedirectRefused(msg) from exc
    msg = f"it leads to a {urlsplit(url).scheme} address"
    raise RedirectRefused(msg)
