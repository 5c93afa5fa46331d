"""Requests to a registry's API: authorised, and with failures turned into our errors.

The layer between the API calls (``client``, ``upload``, ``download``) and the wire.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.record import NamedTuple
from crossdock.registry.auth import Authenticator
from crossdock.registry.exchange import Exchange, Outgoing, RedirectRefused
from crossdock.registry.transport import TransportFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from crossdock.cancel import CancelToken
    from crossdock.errors import RegistryError
    from crossdock.registry.config import Endpoint
    from crossdock.registry.credentials import Credentials
    from crossdock.registry.failures import Asked
    from crossdock.registry.http1 import Response, StreamBody
    from crossdock.secret import Secret

__all__ = ["Request", "Session"]

#: each way: a push may have to fetch what it sends, and must not wait for itself
_TRANSFERS_PER_REGISTRY = 4
_POLL_S = 0.1


class Request(NamedTuple):
    """One API request. ``target`` is below the endpoint, or absolute (an upload's location)."""

    method: str
    endpoint: Endpoint
    target: str
    #: what it is about, for messages
    subject: str
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = {}
    body: bytes | Callable[[], StreamBody] | None = None
    #: ``pull``, ``push`` or ``delete``, for messages
    action: str = "pull"
    #: whether it may be sent again when its fate is unknown
    repeatable: bool = True
    idle_s: float | None = None


class Session:
    """Sends API requests. Safe from any thread; shared by every client of a process."""

    def __init__(self, exchange: Exchange, credentials: Credentials) -> None:
        self.exchange = exchange
        self.auth = Authenticator(exchange, credentials)
        # Guards _slots.
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, str, int | None], threading.Semaphore] = {}

    def send(
        self, request: Request, wanted: Collection[int], *, insecure: bool, cancel: CancelToken
    ) -> Response:
        """Return the answer if its status is among ``wanted``.

        Raises: AuthError, NotFoundError, RegistryError; the token's cause when cancelled.
        """
        response, login = self._authorised(request, insecure=insecure, cancel=cancel)
        if response.status in wanted:
            return response
        from crossdock.registry.failures import from_response  # cold path

        if login is not None and not self._own_url(request):
            login = None
        origin = ""
        if login is not None and response.status in (401, 403, 429):
            origin = self.auth.login_origin(request.endpoint, request.scopes, cancel)
        error = from_response(response, self.asked(request)._replace(login=origin))
        response.close()
        raise error

    @contextmanager
    def transfer_slot(self, endpoint: Endpoint, way: str, cancel: CancelToken) -> Iterator[None]:
        """Hold one of the registry's four slots for ``pull`` or ``push``; manifests do not need one."""
        with self._lock:
            slots = self._slots.setdefault(
                (way, endpoint.host, endpoint.port), threading.Semaphore(_TRANSFERS_PER_REGISTRY)
            )
        while not slots.acquire(timeout=_POLL_S):
            cancel.check()
        try:
            yield
        finally:
            slots.release()

    def asked(self, request: Request) -> Asked:
        """Return what messages say of a request."""
        from crossdock.registry.failures import Asked  # cold path

        url = self.exchange.absolute(request.endpoint, request.target)
        return Asked(
            request.endpoint, request.method, url, request.subject, self.exchange.config, request.action
        )

    def _authorised(
        self, request: Request, *, insecure: bool, cancel: CancelToken
    ) -> tuple[Response, Secret | None]:
        """Send, answering a 401 with a login once more than a header that was already known."""
        endpoint = request.endpoint
        own = self._own_url(request)
        header: Secret | None = None
        if own:
            header = self.auth.header(endpoint, request.scopes, insecure=insecure, cancel=cancel)
        fresh = False
        while True:
            response = self._exchange(request, header, insecure=insecure, cancel=cancel)
            if response.status != 401 or fresh or not own:
                return response, header
            from crossdock.registry.challenge import parse_challenges  # only where logins are asked for

            challenges = parse_challenges(response.headers.get("www-authenticate", ()))
            try:
                answer = self.auth.answer(
                    endpoint, challenges, request.scopes, refused=header, insecure=insecure, cancel=cancel
                )
            except BaseException:
                response.discard()
                raise
            if answer is None:
                return response, header
            response.discard()
            header, fresh = answer, True

    def _exchange(
        self, request: Request, header: Secret | None, *, insecure: bool, cancel: CancelToken
    ) -> Response:
        out = Outgoing(
            request.method,
            request.endpoint,
            request.target,
            request.headers,
            request.body,
            header.reveal_str() if header is not None else None,
            request.repeatable,
            insecure,
            request.idle_s,
        )
        try:
            return self.exchange.send(out, cancel=cancel)
        except TransportFailure as failure:
            raise self._transport_error(request, failure) from failure
        except RedirectRefused as exc:
            from crossdock.registry.failures import protocol_error  # cold path

            raise protocol_error(self.asked(request), f"redirects where nobody can follow: {exc}") from exc

    def _transport_error(self, request: Request, failure: TransportFailure) -> RegistryError:
        from crossdock.registry.failures import from_transport  # cold path

        return from_transport(failure, self.asked(request))

    @staticmethod
    def _own_url(request: Request) -> bool:
        """Whether the request goes to the registry itself: only it may see the login."""
        return "://" not in request.target
