"""Session service ``Auth``: registry logins, asked for by the daemon when it pulls or pushes.

``Credentials`` hands the daemon a login. With the package ``cryptography``, tokens are fetched here instead, so that no
password leaves this machine; the daemon may then give a token to other sessions that prove, by a key derived from a seed of
this client's, that they have the same login.

Spec: moby/buildkit ``session/auth/auth.proto``, ``session/auth/authprovider``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import auth_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import FAILED_PRECONDITION, RpcError
from crossdock.errors import CrossdockError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.buildkit.session.tokenkeys import AuthorityKey
    from crossdock.cancel import CancelToken
    from crossdock.registry.credentials import Credential, Credentials

__all__ = ["Auth"]

#: the name under which BuildKit asks for Docker Hub, and its docker.io form
_HUB = {"registry-1.docker.io": "docker.io", "index.docker.io": "docker.io"}


class Auth:
    """Answers with the logins of docker's and podman's configuration, looked up when asked."""

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        *,
        cancel: CancelToken,
        on_error: Callable[[CrossdockError], None] | None = None,
        seed_dir: str | None = None,
    ) -> None:
        """``seed_dir`` is docker's configuration directory, whose token seeds buildx shares; without it, no tokens."""
        self._seed_dir = seed_dir
        # Made when first asked: most builds need no login, and reading configurations has its price.
        self._credentials = credentials
        self._cancel = cancel
        self._on_error = on_error

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's methods; those of tokens only where keys can be made."""
        service = "/moby.filesync.v1.Auth/"
        handlers = {f"{service}Credentials": unary(auth_pb2.CredentialsRequest, self._give_login)}
        if self._seed_dir is not None and _can_make_keys():
            handlers |= {
                f"{service}FetchToken": unary(auth_pb2.FetchTokenRequest, self._fetch_token),
                f"{service}GetTokenAuthority": unary(auth_pb2.GetTokenAuthorityRequest, self._get_authority),
                f"{service}VerifyTokenAuthority": unary(
                    auth_pb2.VerifyTokenAuthorityRequest, self._verify_authority
                ),
            }
        return handlers

    def _login(self, host: str, scopes: Sequence[str] = ()) -> Credential | None:
        repository = next((s.split(":")[1] for s in scopes if s.startswith("repository:")), "")
        try:
            return self._credentials().lookup(_HUB.get(host, host), repository, cancel=self._cancel)
        except CrossdockError as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: CrossdockError) -> RpcError:
        if self._on_error is not None:
            self._on_error(exc)
        return RpcError(FAILED_PRECONDITION, exc.summary)

    def _give_login(
        self, request: auth_pb2.CredentialsRequest, call: ServerCall
    ) -> auth_pb2.CredentialsResponse:
        """Return the login for a host; empty when there is none, which means anonymous."""
        del call
        login = self._login(request.Host)
        if login is None:
            return auth_pb2.CredentialsResponse()
        if login.identity_token is not None:
            return auth_pb2.CredentialsResponse(Secret=login.identity_token.reveal_str())
        secret = login.password.reveal_str() if login.password is not None else ""
        return auth_pb2.CredentialsResponse(Username=login.username, Secret=secret)

    def _fetch_token(
        self, request: auth_pb2.FetchTokenRequest, call: ServerCall
    ) -> auth_pb2.FetchTokenResponse:
        """Ask the registry's token server in the daemon's place."""
        del call
        from crossdock.registry.auth import fetch_token
        from crossdock.registry.config import RegistryConfig
        from crossdock.registry.exchange import Exchange
        from crossdock.registry.transport import Transport

        login = self._login(request.Host, request.Scopes)
        config, transport = RegistryConfig(), Transport()
        endpoint = config.endpoints(_HUB.get(request.Host, request.Host), pull=False)[-1]
        try:
            token, life_s = fetch_token(
                Exchange(transport, config),
                endpoint,
                realm=request.Realm,
                service=request.Service,
                scopes=request.Scopes,
                login=login,
                cancel=self._cancel,
            )
        except CrossdockError as exc:
            raise self._failed(exc) from exc
        finally:
            transport.close()
        return auth_pb2.FetchTokenResponse(Token=token.reveal_str(), ExpiresIn=life_s)

    def _get_authority(
        self, request: auth_pb2.GetTokenAuthorityRequest, call: ServerCall
    ) -> auth_pb2.GetTokenAuthorityResponse:
        del call
        return auth_pb2.GetTokenAuthorityResponse(PublicKey=self._key(request.Host, request.Salt).public)

    def _verify_authority(
        self, request: auth_pb2.VerifyTokenAuthorityRequest, call: ServerCall
    ) -> auth_pb2.VerifyTokenAuthorityResponse:
        del call
        signed = self._key(request.Host, request.Salt).sign(request.Payload)
        return auth_pb2.VerifyTokenAuthorityResponse(Signed=signed)

    def _key(self, host: str, salt: bytes) -> AuthorityKey:
        from crossdock.buildkit.session.tokenkeys import AuthorityKey, TokenSeeds

        login = self._login(host)
        secret = login is not None and (login.password is not None or login.identity_token is not None)
        try:
            seed = TokenSeeds(self._seed_dir or "").get(host)
        except CrossdockError as exc:
            raise self._failed(exc) from exc
        return AuthorityKey(salt, seed if secret else b"")


def _can_make_keys() -> bool:
    if os.environ.get("BUILDKIT_NO_CLIENT_TOKEN", "").lower() in ("1", "t", "true"):
        return False
    from importlib.util import find_spec

    return find_spec("cryptography") is not None
