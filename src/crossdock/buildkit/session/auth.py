"""Session service ``Auth``: registry logins, asked for by the daemon when it pulls or pushes.

Only ``Credentials`` is offered: a daemon that is not offered the token methods fetches tokens itself.

Spec: moby/buildkit ``session/auth/auth.proto``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import auth_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import FAILED_PRECONDITION, RpcError
from crossdock.errors import CrossdockError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.cancel import CancelToken
    from crossdock.registry.credentials import Credentials

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
    ) -> None:
        # Made when first asked: most builds need no login, and reading configurations has its price.
        self._credentials = credentials
        self._cancel = cancel
        self._on_error = on_error

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's methods."""
        return {"/moby.filesync.v1.Auth/Credentials": unary(auth_pb2.CredentialsRequest, self._login)}

    def _login(self, request: auth_pb2.CredentialsRequest, call: ServerCall) -> auth_pb2.CredentialsResponse:
        """Return the login for a host; empty when there is none, which means anonymous."""
        del call
        host = _HUB.get(request.Host, request.Host)
        try:
            login = self._credentials().lookup(host, "", cancel=self._cancel)
        except CrossdockError as exc:
            if self._on_error is not None:
                self._on_error(exc)
            raise RpcError(FAILED_PRECONDITION, exc.summary) from exc
        if login is None:
            return auth_pb2.CredentialsResponse()
        if login.identity_token is not None:
            return auth_pb2.CredentialsResponse(Secret=login.identity_token.reveal_str())
        secret = login.password.reveal_str() if login.password is not None else ""
        return auth_pb2.CredentialsResponse(Username=login.username, Secret=secret)
