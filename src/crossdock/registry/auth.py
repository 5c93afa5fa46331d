"""Authorisation: challenges, basic logins, bearer tokens and their cache.

A registry is first asked without a login; what it answers is remembered, so that later requests carry the right
header at once. A token serves every request whose scopes it covers.

Spec: distribution ``docs/spec/auth/{token,oauth,scope}.md``; RFC 9110 section 11.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from crossdock.errors import AuthError, RegistryError
from crossdock.record import NamedTuple
from crossdock.registry.config import Endpoint, is_loopback
from crossdock.registry.exchange import Outgoing, RedirectRefused, redact
from crossdock.registry.transport import TransportFailure
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.registry.challenge import Challenge
    from crossdock.registry.credentials import Credential, Credentials
    from crossdock.registry.exchange import Exchange

__all__ = ["Authenticator", "fetch_token"]

_CLIENT_ID = "crossdock"
_DEFAULT_LIFE_S = 60.0
_MAX_ANSWER = 1024 * 1024
_POLL_S = 0.2


class _Token(NamedTuple):
    header: Secret
    #: ``time.monotonic()``; ``inf`` for what does not expire
    expires: float


class _Host:
    """What is known of one endpoint's authorisation."""

    __slots__ = ("basic", "bearer", "pending", "tokens")

    def __init__(self) -> None:
        self.basic: Secret | None = None
        self.bearer: Challenge | None = None
        self.tokens: dict[frozenset[str], _Token] = {}
        #: scopes being fetched -> set when that is over
        self.pending: dict[frozenset[str], threading.Event] = {}


class Authenticator:
    """Finds the ``Authorization`` header for requests. Safe from any thread."""

    def __init__(self, exchange: Exchange, credentials: Credentials) -> None:
        self._exchange = exchange
        self.credentials = credentials
        # Guards _hosts and everything in it; never held over I/O.
        self._lock = threading.Lock()
        self._hosts: dict[tuple[str, str, int | None], _Host] = {}

    def header(
        self, endpoint: Endpoint, scopes: Sequence[str], *, insecure: bool, cancel: CancelToken
    ) -> Secret | None:
        """Return the header to send with a first try; ``None`` when the registry has not asked for one yet.

        Raises: AuthError, RegistryError from a token server; the token's cause.
        """
        host = self._host(endpoint)
        with self._lock:
            basic, bearer = host.basic, host.bearer
        if basic is not None:
            return basic
        if bearer is None:
            return None
        return self._bearer(endpoint, host, bearer, frozenset(scopes), insecure=insecure, cancel=cancel)

    def answer(
        self,
        endpoint: Endpoint,
        challenges: Sequence[Challenge],
        scopes: Sequence[str],
        *,
        refused: Secret | None,
        insecure: bool,
        cancel: CancelToken,
    ) -> Secret | None:
        """Return the header that answers a 401; ``refused`` was sent and not accepted.

        ``None`` when there is nothing (else) to offer.
        Raises: AuthError, RegistryError from a token server; the token's cause.
        """
        host = self._host(endpoint)
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        bearer = by_scheme.get("bearer")
        if bearer is not None and bearer.parameters.get("realm"):
            asked = frozenset(_split_scopes(bearer.parameters.get("scope", "")))
            wanted = frozenset(scopes) | asked
            with self._lock:
                host.bearer = bearer
                if refused is not None:
                    for key in [k for k, token in host.tokens.items() if token.header is refused]:
                        del host.tokens[key]
            return self._bearer(endpoint, host, bearer, wanted, insecure=insecure, cancel=cancel)
        if "basic" in by_scheme and refused is None:
            login = self._login(endpoint, scopes, cancel)
            if login is not None and login.password is not None:
                basic = _basic_header(login)
                with self._lock:
                    host.basic = basic
                return basic
        if refused is not None:
            with self._lock:
                host.basic = None
        return None

    def login_origin(self, endpoint: Endpoint, scopes: Sequence[str], cancel: CancelToken) -> str:
        """Return where the endpoint's login comes from, ``""`` when there is none."""
        login = self._login(endpoint, scopes, cancel)
        return login.origin if login is not None else ""

    def _host(self, endpoint: Endpoint) -> _Host:
        with self._lock:
            return self._hosts.setdefault((endpoint.domain, endpoint.host, endpoint.port), _Host())

    def _login(self, endpoint: Endpoint, scopes: Iterable[str], cancel: CancelToken) -> Credential | None:
        repository = next((s.split(":")[1] for s in scopes if s.startswith("repository:")), "")
        return self.credentials.lookup(endpoint.domain, repository, cancel=cancel)

    def _bearer(
        self,
        endpoint: Endpoint,
        host: _Host,
        challenge: Challenge,
        scopes: frozenset[str],
        *,
        insecure: bool,
        cancel: CancelToken,
    ) -> Secret:
        mine = threading.Event()
        while True:
            with self._lock:
                token = _covering(host.tokens, scopes)
                if token is not None:
                    return token.header
                waiting = host.pending.get(scopes)
                if waiting is None:
                    host.pending[scopes] = mine
            if waiting is None:
                break
            while not waiting.wait(_POLL_S):  # another thread is fetching this very token
                cancel.check()
        try:
            token = self._fetch(endpoint, challenge, scopes, insecure=insecure, cancel=cancel)
            with self._lock:
                host.tokens[scopes] = token
            return token.header
        finally:
            with self._lock:
                del host.pending[scopes]
            mine.set()

    def _fetch(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        scopes: frozenset[str],
        *,
        insecure: bool,
        cancel: CancelToken,
    ) -> _Token:
        realm, service = challenge.parameters["realm"], challenge.parameters.get("service", "")
        given = self.credentials.bearer_token(
            endpoint.domain, realm=realm, service=service, scopes=sorted(scopes), cancel=cancel
        )
        if given is not None:
            return _Token(_bearer_header(given[0].reveal_str()), time.monotonic() + given[1] * 0.9)
        login = self._login(endpoint, sorted(scopes), cancel)
        if login is not None and login.registry_token is not None:
            return _Token(_bearer_header(login.registry_token.reveal_str()), float("inf"))
        _check_address(endpoint, realm)
        if login is not None:
            _check_realm(endpoint, realm, self._exchange.origin_url(endpoint), insecure=insecure)
        ask = _TokenRequest(self._exchange, endpoint, realm, service, sorted(scopes), insecure, cancel)
        if login is not None and login.identity_token is not None:
            return ask.with_refresh_token(login.identity_token)
        return ask.with_login(login)


def fetch_token(
    exchange: Exchange,
    endpoint: Endpoint,
    *,
    realm: str,
    service: str,
    scopes: Sequence[str],
    login: Credential | None,
    cancel: CancelToken,
) -> tuple[Secret, int]:
    """Ask a token server in somebody else's place (a BuildKit daemon); returns the bearer token and its life in seconds.

    Raises: AuthError, RegistryError; the token's cause.
    """
    if login is not None and login.registry_token is not None:
        return login.registry_token, int(_DEFAULT_LIFE_S)
    _check_address(endpoint, realm)
    if login is not None:
        _check_realm(endpoint, realm, exchange.origin_url(endpoint), insecure=False)
    ask = _TokenRequest(exchange, endpoint, realm, service, sorted(scopes), insecure=False, cancel=cancel)
    refresh = login.identity_token if login is not None else None
    token = ask.with_refresh_token(refresh) if refresh is not None else ask.with_login(login)
    life = max(1, round((token.expires - time.monotonic()) / 0.9))
    return Secret(token.header.reveal_str().removeprefix("Bearer ")), life


class _TokenRequest(NamedTuple):
    """One question to a token server."""

    exchange: Exchange
    endpoint: Endpoint
    realm: str
    service: str
    scopes: list[str]
    insecure: bool
    cancel: CancelToken

    def with_login(self, login: Credential | None) -> _Token:
        """Ask with ``GET`` and a basic login, or anonymously."""
        query = [("service", self.service)] if self.service else []
        query += [("scope", scope) for scope in self.scopes]
        if login is not None and login.username:
            query.append(("account", login.username))
        joint = "&" if urlsplit(self.realm).query else "?"
        url = self.realm + (joint + urlencode(query) if query else "")
        header = _basic_header(login) if login is not None and login.password is not None else None
        return self._token("GET", url, None, header, login.origin if login is not None else "")

    def with_refresh_token(self, refresh: Secret) -> _Token:
        """Ask with ``POST`` and an OAuth2 refresh token."""
        form = {
            "grant_type": "refresh_token",
            "service": self.service,
            "client_id": _CLIENT_ID,
            "scope": " ".join(self.scopes),
            "refresh_token": refresh.reveal_str(),
        }
        return self._token("POST", self.realm, urlencode(form).encode(), None, "the identity token")

    def _token(self, method: str, url: str, body: bytes | None, header: Secret | None, origin: str) -> _Token:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        authorization = header.reveal_str() if header is not None else None
        # Token servers keep no state: their POST may be repeated.
        out = Outgoing(method, self.endpoint, url, headers, body, authorization, insecure=self.insecure)
        started = time.monotonic()
        try:
            response = self.exchange.send(out, cancel=self.cancel)
            raw = response.read_all(_MAX_ANSWER)
        except TransportFailure as failure:
            raise self._unreachable(method, url, failure) from failure
        except (OSError, RedirectRefused) as exc:
            raise self._broken(method, url, None, str(exc)) from exc
        if response.status in (400, 401, 403):
            raise self._refused(method, url, response.status, origin)
        if response.status != 200:
            raise self._broken(
                method, url, response.status, f"it answered {response.status} {response.reason}"
            )
        return self._parse(method, url, raw, started)

    def _parse(self, method: str, url: str, raw: bytes, started: float) -> _Token:
        try:
            data = json.loads(raw)
        except ValueError:
            data = None
        token = (data.get("token") or data.get("access_token")) if isinstance(data, dict) else None
        if not isinstance(token, str) or not token.isprintable():
            raise self._broken(method, url, 200, "its answer holds no token")
        life = data.get("expires_in")
        seconds = float(life) if isinstance(life, int | float) and life > 0 else _DEFAULT_LIFE_S
        return _Token(_bearer_header(token), started + max(seconds * 0.9, 5.0))

    def _refused(self, method: str, url: str, status: int, origin: str) -> AuthError:
        domain = self.endpoint.domain
        if origin:
            summary = f"{domain}: the token server does not accept the login from {origin}"
            hint = f"log in again: `docker login {domain}`"
        else:
            summary = f"{domain}: the token server refuses access without a login"
            hint = f"log in: `docker login {domain}`"
        return AuthError(
            summary,
            host=domain,
            method=method,
            url=redact(url),
            status=status,
            detail=f"asked for: {', '.join(self.scopes) or 'access'}",
            hint=hint,
        )

    def _unreachable(self, method: str, url: str, failure: TransportFailure) -> RegistryError:
        from crossdock.registry.failures import Asked, from_transport  # cold path

        subject = f"the token server of {self.endpoint.domain}"
        asked = Asked(self.endpoint, method, url, subject, self.exchange.config)
        return from_transport(failure, asked)

    def _broken(self, method: str, url: str, status: int | None, why: str) -> RegistryError:
        return RegistryError(
            f"{self.endpoint.domain}: its token server {urlsplit(url).netloc} failed: {why}",
            host=self.endpoint.domain,
            method=method,
            url=redact(url),
            status=status,
            hint="try again later, or ask whoever runs the registry",
            retryable=True,
        )


def _check_address(endpoint: Endpoint, realm: str) -> None:
    try:
        usable = urlsplit(realm).scheme in ("http", "https")
    except ValueError:
        usable = False
    if not usable:
        summary = f"{endpoint.domain}: the token server it names is not an HTTP address"
        raise RegistryError(
            summary, host=endpoint.domain, hint=f"check that {endpoint.address} is a container registry"
        )


def _check_realm(endpoint: Endpoint, realm: str, origin: str, *, insecure: bool) -> None:
    """Refuse to send a login in the clear because a registry spoken to by TLS says so."""
    url = urlsplit(realm)
    if (
        url.scheme == "http"
        and origin.startswith("https:")
        and not insecure
        and not is_loopback(url.hostname or "")
    ):
        summary = (
            f"{endpoint.domain}: its token server {url.netloc} speaks plain HTTP; the login was not sent"
        )
        raise AuthError(
            summary,
            host=endpoint.domain,
            url=redact(realm),
            hint="have the registry's realm use https, or set registry.insecure=true",
        )


def _covering(tokens: dict[frozenset[str], _Token], scopes: frozenset[str]) -> _Token | None:
    now = time.monotonic()
    for have in [key for key, token in tokens.items() if token.expires <= now]:
        del tokens[have]
    found = tokens.get(scopes)
    if found is not None:
        return found
    wanted = {_grant(scope) for scope in scopes}
    return next((token for have, token in tokens.items() if _covers(have, wanted)), None)


def _covers(have: frozenset[str], wanted: set[tuple[str, frozenset[str]]]) -> bool:
    granted: dict[str, frozenset[str]] = {}
    for scope in have:
        resource, actions = _grant(scope)
        granted[resource] = granted.get(resource, frozenset()) | actions
    return all(actions <= granted.get(resource, frozenset()) for resource, actions in wanted)


def _grant(scope: str) -> tuple[str, frozenset[str]]:
    resource, _, actions = scope.rpartition(":")
    return resource, frozenset(actions.split(","))


def _split_scopes(text: str) -> list[str]:
    return [scope for scope in text.split(" ") if scope]


def _basic_header(login: Credential) -> Secret:
    import binascii  # only with a login

    password = login.password.reveal() if login.password is not None else b""
    pair = login.username.encode() + b":" + password
    return Secret(b"Basic " + binascii.b2a_base64(pair, newline=False))


def _bearer_header(token: str) -> Secret:
    return Secret(f"Bearer {token}")
