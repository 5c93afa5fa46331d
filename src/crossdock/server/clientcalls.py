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
from typing import TYPE_CHECKING, Any

import grpc

from crossdock.buildkit.details import rpc_code
from crossdock.buildkit.proto import auth_pb2, secrets_pb2, ssh_pb2, upload_pb2
from crossdock.errors import ContextError
from crossdock.registry.credentials import Credential, Credentials
from crossdock.secret import Secret
from crossdock.server.streams import Outgoing, session_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.server.sessions import ClientSession

__all__ = ["ClientAgents", "ClientCredentials", "get_secret", "pull_upload"]

_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105 - a method's name
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_PULL = "/moby.upload.v1.Upload/Pull"
#: the name under which BuildKit asks for Docker Hub
_HUB = {"docker.io": "registry-1.docker.io"}
_CALL_S = 60.0
_BLOCK = 32 * 1024


def _unary(session: ClientSession, method: str, request: Any, response: Any, cancel: CancelToken) -> Any:
    """Make one call. Raises: grpc.RpcError; SessionLost; the token's cause."""
    stub: Any = session.channel.unary_unary(
        method,
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    try:
        future = stub.future(request, timeout=_CALL_S)
    except ValueError as exc:
        lost = session.lost("its connection is closed")
        raise lost from exc
    try:
        with cancel.waking(future.cancel):
            return future.result()
    except grpc.FutureCancelledError as exc:
        cancel.check()
        lost = session.lost("its connection is closed")
        raise lost from exc


class ClientCredentials(Credentials):
    """Logins asked of the client, host by host, when a registry first wants one."""

    def __init__(self, find: Callable[[CancelToken], ClientSession]) -> None:
        super().__init__(env={})
        self._find = find
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

    def places(self) -> str:
        """Name where logins come from, for messages."""
        return "the client"

    def _ask(self, domain: str, cancel: CancelToken) -> Credential | None:
        session = self._find(cancel)
        if not session.supports(_CREDENTIALS):
            return None
        request = auth_pb2.CredentialsRequest(Host=_HUB.get(domain, domain))
        try:
            got = _unary(session, _CREDENTIALS, request, auth_pb2.CredentialsResponse, cancel)
        except grpc.RpcError as exc:
            if rpc_code(exc) == "UNIMPLEMENTED":
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
        got = _unary(
            session, _SECRET, secrets_pb2.GetSecretRequest(ID=name), secrets_pb2.GetSecretResponse, cancel
        )
    except grpc.RpcError as exc:
        if rpc_code(exc) in ("NOT_FOUND", "UNIMPLEMENTED"):
            return None
        raise session_failure(session, exc, f"asking the client for the secret {name}") from exc
    return Secret(got.data)


def pull_upload(session: ClientSession, url_path: str, out: BinaryIO, cancel: CancelToken) -> None:
    """Write a stream that the client uploads.

    Raises: SessionLost; ContextError with the client's words; OSError of ``out``; the token's cause.
    """
    if not session.supports(_PULL):
        summary = "the client uploads nothing"
        raise ContextError(summary)
    stub: Any = session.channel.stream_stream(
        _PULL,
        request_serializer=upload_pb2.BytesMessage.SerializeToString,
        response_deserializer=upload_pb2.BytesMessage.FromString,
    )
    outgoing: Outgoing[upload_pb2.BytesMessage] = Outgoing()
    try:
        call = stub(iter(outgoing), metadata=(("urlpath", url_path), ("urlhost", "buildkit-session")))
    except ValueError as exc:
        lost = session.lost("its connection is closed")
        raise lost from exc
    try:
        with cancel.waking(call.cancel):
            out.writelines(message.data for message in call)
    except grpc.RpcError as exc:
        cancel.check()
        raise session_failure(session, exc, "receiving an upload") from exc
    finally:
        outgoing.close()
        call.cancel()


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
            _unary(session, _CHECK_AGENT, request, ssh_pb2.CheckAgentResponse, self._cancel)
        except grpc.RpcError as exc:
            if rpc_code(exc) in ("NOT_FOUND", "UNIMPLEMENTED") or "unset ssh forward key" in str(exc):
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
    stub: Any = session.channel.stream_stream(
        _FORWARD_AGENT,
        request_serializer=ssh_pb2.BytesMessage.SerializeToString,
        response_deserializer=ssh_pb2.BytesMessage.FromString,
    )
    with connection, contextlib.suppress(OSError, ValueError, grpc.RpcError):
        call = stub(_blocks(connection), metadata=(("buildkit.ssh.id", name),))
        try:
            for message in call:
                connection.sendall(message.data)
        finally:
            call.cancel()
            connection.shutdown(socket.SHUT_RDWR)


def _blocks(connection: socket.socket) -> Iterator[ssh_pb2.BytesMessage]:
    while True:
        try:
            data = connection.recv(_BLOCK)
        except OSError:
            return
        if not data:
            return
        yield ssh_pb2.BytesMessage(data=data)
