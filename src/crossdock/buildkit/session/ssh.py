"""Session service ``SSH``: agent sockets forwarded into steps.

Spec: moby/buildkit ``session/sshforward/ssh.proto``.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import ssh_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import NOT_FOUND, UNAVAILABLE, RpcError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["SshForward"]

_CHUNK = 32 * 1024


class SshForward:
    """Forwards connections to agent sockets, by id (``default`` when a mount names none)."""

    def __init__(self, agents: Mapping[str, str]) -> None:
        """``agents``: id -> path of the agent's unix socket."""
        self._agents = dict(agents)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's methods."""
        return {
            "/moby.sshforward.v1.SSH/CheckAgent": unary(ssh_pb2.CheckAgentRequest, self._check),
            "/moby.sshforward.v1.SSH/ForwardAgent": self._forward,
        }

    def _check(self, request: ssh_pb2.CheckAgentRequest, call: ServerCall) -> ssh_pb2.CheckAgentResponse:
        del call
        self._path(request.ID)
        return ssh_pb2.CheckAgentResponse()

    def _forward(self, call: ServerCall) -> None:
        """Copy between the stream and a new connection to the agent until either ends."""
        path = self._path(next(iter(call.metadata("buildkit.ssh.id")), ""))
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(path)
        except OSError as exc:
            agent.close()
            raise RpcError(UNAVAILABLE, f"ssh agent {path}: {exc.strerror}") from exc
        threading.Thread(target=_to_agent, args=(call, agent), daemon=True, name="ssh-forward").start()
        with agent:
            while data := _recv(agent):
                call.send(ssh_pb2.BytesMessage(data=data).SerializeToString())

    def _path(self, name: str) -> str:
        path = self._agents.get(name or "default")
        if path is None:
            raise RpcError(NOT_FOUND, f"unset ssh forward key {name or 'default'}")
        return path


def _recv(agent: socket.socket) -> bytes:
    try:
        return agent.recv(_CHUNK)
    except OSError:
        return b""


def _to_agent(call: ServerCall, agent: socket.socket) -> None:
    with contextlib.suppress(RpcError, OSError):
        for message in call.messages():
            agent.sendall(ssh_pb2.BytesMessage.FromString(message).data)
    with contextlib.suppress(OSError):
        agent.shutdown(socket.SHUT_WR)
