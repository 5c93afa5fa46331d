"""What a build asks of its client besides files: logins, secrets, agents, uploads.

Spec: moby/buildkit ``session/auth``, ``session/secrets``, ``session/sshforward``, ``session/upload``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from crossdock.buildkit.proto import auth_pb2, secrets_pb2, ssh_pb2, upload_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import ContextError, CrossdockError
from crossdock.registry.credentials import Credential, Credentials
from crossdock.secret import Secret
from crossdock.server.streams import session_failure
from crossdock.server.tokens import SessionTokens, TokenQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from crossdock.buildkit.rpc.channel import Call, Message
    from crossdock.cancel import CancelToken
    from crossdock.image.digest import Digest
    from crossdock.server.sessions import ClientSession
    from crossdock.server.tokens import TokenPool

M = TypeVar("M", bound="Message")

__all__ = ["ClientAgents", "ClientCredentials", "ClientUploads", "get_secret", "unary_call"]

_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105 - a method's name
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_PULL = "/moby.upload.v1.Upload/Pull"
#: the name under which BuildKit asks for Docker Hub
_HUB = {"docker.io": "registry-1.docker.io"}
_BLOCK = 32 * 1024


def unary_call(
    session: ClientSession, method: str, request: Message, response: type[M], cancel: CancelToken
) -> M:
    """Make one call. Raises: RpcError; SessionLost; the token's cause."""
    call = session.start(method)
    with cancel.waking(call.cancel):
        try:
            call.send_raw(prefixed(request.SerializeToString()), end=True)
            return parsed(response, call.result())
        except RpcError:
            cancel.check()
            raise


class ClientCredentials(Credentials):
    """Logins asked of the client, host by host, when a registry first wants one."""

    def __init__(self, find: Callable[[CancelToken], ClientSession], pool: TokenPool) -> None:
        super().__init__(env={})
        self._find = find
        self._tokens = SessionTokens(find, pool)
        # Guards _known.
        self._known_lock = threading.Lock()
        self._known: dict[str, Credential | None] = {}

    def lookup(self, domain: str, repository: str, *, cancel: CancelToken) -> Credential | None:  # noqa: ARG002
        """Return the client's login for a registry; ``None`` is anonymous.

        Raises: SessionLost; ContextError with the client's words; the token's cause.
        """
        with self._known_lock:
            if domain in self._known:
                return self._known[domain]
        found = self._ask(domain, cancel)
        with self._known_lock:
            return self._known.setdefault(domain, found)

    def bearer_token(
        self, domain: str, *, realm: str, service: str, scopes: Sequence[str], cancel: CancelToken
    ) -> tuple[Secret, float] | None:
        """Return a token that the client has fetched; ``None`` when it tells its logins instead.

        Raises: SessionLost; ContextError with the client's words; the token's cause.
        """
        question = TokenQuestion(_HUB.get(domain, domain), realm, service, frozenset(scopes))
        try:
            return self._tokens.get(question, cancel)
        except RpcError as exc:
            session = self._find(cancel)
            raise session_failure(session, exc, f"asking the client for a token for {domain}") from exc

    def places(self) -> str:
        """Name where logins come from, for messages."""
        return "the client"

    def _ask(self, domain: str, cancel: CancelToken) -> Credential | None:
        session = self._find(cancel)
        if not session.supports(_CREDENTIALS):
            return None
        request = auth_pb2.CredentialsRequest(Host=_HUB.get(domain, domain))
        try:
            got = unary_call(session, _CREDENTIALS, request, auth_pb2.CredentialsResponse, cancel)
        except RpcError as exc:
            if exc.code == "UNIMPLEMENTED":
                return None
            raise session_failure(session, exc, f"asking the client for a login to {domain}") from exc
        if not got.Secret:
            return None
        if not got.Username:
            return Credential(identity_token=Secret(got.Secret), origin="the client")
        return Credential(got.Username, Secret(got.Secret), origin="the client")


def get_secret(session: ClientSession, name: str, cancel: CancelToken) -> Secret | None:
    """Return a secret of the client; ``None`` when it has none of that id.

    Raises: SessionLost; ContextError with the client's words; the token's cause.
    """
    if not session.supports(_SECRET):
        return None
    try:
        got = unary_call(
            session, _SECRET, secrets_pb2.GetSecretRequest(ID=name), secrets_pb2.GetSecretResponse, cancel
        )
    except RpcError as exc:
        if exc.code in ("NOT_FOUND", "UNIMPLEMENTED"):
            return None
        raise session_failure(session, exc, f"asking the client for the secret {name}") from exc
    return Secret(got.data)


def pull_upload(session: ClientSession, url_path: str, cancel: CancelToken) -> Iterator[bytes]:
    """Yield a stream that the client uploads.

    Raises: SessionLost; ContextError with the client's words; the token's cause.
    """
    if not session.supports(_PULL):
        summary = "the client uploads nothing"
        raise ContextError(summary)
    call = session.start(_PULL, (("urlpath", url_path), ("urlhost", "buildkit-session")))
    try:
        with cancel.waking(call.cancel):
            for message in call.messages():
                yield parsed(upload_pb2.BytesMessage, message).data
    except RpcError as exc:
        cancel.check()
        raise session_failure(session, exc, "receiving an upload") from exc
    finally:
        call.cancel()


class ClientUploads:
    """What a client uploads for one build: each stream comes once, whoever asks for it again. Safe from any thread."""

    def __init__(self, find: Callable[[CancelToken], ClientSession]) -> None:
        self._find = find
        # Guards _received; held while a stream comes.
        self._lock = threading.Lock()
        self._received: dict[str, Digest] = {}

    def __call__(
        self, path: str, store: Callable[[Iterable[bytes]], Digest], cancel: CancelToken, /
    ) -> Digest:
        """Have ``store`` take in a stream, or return what it returned before.

        Raises: as :func:`pull_upload`, and what ``store`` raises.
        """
        with self._lock:
            if path not in self._received:
                self._received[path] = store(pull_upload(self._find(cancel), path, cancel))
            return self._received[path]


class ClientAgents:
    """The client's ssh agents as sockets here, made when first asked for; :meth:`close` removes them."""

    def __init__(self, find: Callable[[], ClientSession], cancel: CancelToken) -> None:
        self._find = find
        self._cancel = cancel
        # Guards _sockets and _listeners.
        self._lock = threading.Lock()
        self._sockets: dict[str, Path | None] = {}
        self._listeners: list[socket.socket] = []
        self._dir = ""

    def get(self, name: str) -> Path | None:
        """Return the socket for an agent; ``None`` when the client has none of that id.

        Raises: SessionLost; ContextError with the client's words; the token's cause.
        """
        with self._lock:
            if name not in self._sockets:
                self._sockets[name] = self._open(name)
            return self._sockets[name]

    def close(self) -> None:
        """Remove the sockets."""
        with self._lock:
            for listener in self._listeners:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            if self._dir:
                shutil.rmtree(self._dir, ignore_errors=True)

    def _open(self, name: str) -> Path | None:
        session = self._find()
        if not session.supports(_FORWARD_AGENT):
            return None
        try:
            request = ssh_pb2.CheckAgentRequest(ID=name)
            unary_call(session, _CHECK_AGENT, request, ssh_pb2.CheckAgentResponse, self._cancel)
        except RpcError as exc:
            if exc.code in ("NOT_FOUND", "UNIMPLEMENTED") or "unset ssh forward key" in str(exc):
                return None
            raise session_failure(session, exc, f"asking the client for the ssh agent {name}") from exc
        if not self._dir:
            self._dir = tempfile.mkdtemp(prefix="crossdock-ssh-")
        path = Path(self._dir, f"agent{len(self._listeners)}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen(8)
        self._listeners.append(listener)
        threading.Thread(
            target=_accept, args=(listener, session, name), name="ssh-agent", daemon=True
        ).start()
        return path


def _accept(listener: socket.socket, session: ClientSession, name: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(
            target=_forward, args=(connection, session, name), name="ssh-forward", daemon=True
        ).start()


def _forward(connection: socket.socket, session: ClientSession, name: str) -> None:
    with connection, contextlib.suppress(OSError, RpcError, CrossdockError):
        call = session.start(_FORWARD_AGENT, (("buildkit.ssh.id", name),))
        threading.Thread(target=_to_client, args=(connection, call), name="ssh-out", daemon=True).start()
        try:
            for message in call.messages():
                connection.sendall(parsed(ssh_pb2.BytesMessage, message).data)
        finally:
            call.cancel()
            connection.shutdown(socket.SHUT_RDWR)


def _to_client(connection: socket.socket, call: Call) -> None:
    with contextlib.suppress(OSError, RpcError):
        while data := connection.recv(_BLOCK):
            call.send(ssh_pb2.BytesMessage(data=data).SerializeToString())
        call.end()
