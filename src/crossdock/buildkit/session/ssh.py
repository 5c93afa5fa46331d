"""Session service ``SSH``: agent sockets forwarded into steps.

Spec: moby/buildkit ``session/sshforward/ssh.proto``.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import grpc

from crossdock.buildkit.proto import ssh_pb2, ssh_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SshForward"]

_CHUNK = 32 * 1024


class SshForward(ssh_pb2_grpc.SSHServicer):
    """Forwards connections to agent sockets, by id (``default`` when a mount names none)."""

    methods = ("/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent")

    def __init__(self, agents: Mapping[str, str]) -> None:
        """``agents``: id -> path of the agent's unix socket."""
        self._agents = dict(agents)

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers."""
        ssh_pb2_grpc.add_SSHServicer_to_server(self, server)

    def CheckAgent(  # noqa: N802 - the protocol's name
        self, request: ssh_pb2.CheckAgentRequest, context: grpc.ServicerContext
    ) -> ssh_pb2.CheckAgentResponse:
        """Say whether an agent was given; NOT_FOUND otherwise."""
        self._path(request.ID, context)
        return ssh_pb2.CheckAgentResponse()

    def ForwardAgent(  # noqa: N802 - the protocol's name
        self, request_iterator: Iterator[ssh_pb2.BytesMessage], context: grpc.ServicerContext
    ) -> Iterator[ssh_pb2.BytesMessage]:
        """Copy between the stream and a new connection to the agent until either ends."""
        name = dict(context.invocation_metadata()).get("buildkit.ssh.id", "")
        path = self._path(name.decode() if isinstance(name, bytes) else name, context)
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(path)
        except OSError as exc:
            agent.close()
            context.abort(grpc.StatusCode.UNAVAILABLE, f"ssh agent {path}: {exc.strerror}")
        threading.Thread(
            target=_to_agent, args=(request_iterator, agent), daemon=True, name="ssh-forward"
        ).start()
        with agent:
            while data := _recv(agent):
                yield ssh_pb2.BytesMessage(data=data)

    def _path(self, name: str, context: grpc.ServicerContext) -> str:
        path = self._agents.get(name or "default")
        if path is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unset ssh forward key {name or 'default'}")
        return path


def _recv(agent: socket.socket) -> bytes:
    try:
        return agent.recv(_CHUNK)
    except OSError:
        return b""


def _to_agent(requests: Iterator[ssh_pb2.BytesMessage], agent: socket.socket) -> None:
    with contextlib.suppress(grpc.RpcError, OSError):
        for message in requests:
            agent.sendall(message.data)
    with contextlib.suppress(OSError):
        agent.shutdown(socket.SHUT_WR)
