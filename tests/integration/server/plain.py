"""A gRPC client of the server without any of a real client's manners, and the graphs it sends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import control_pb2, gateway_pb2, ops_pb2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.session.server import new_id
from crossdock.buildkit.transport import SocketStream
from crossdock.llb.codec import encode_definition, marshal
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionCopy, FileActionMkFile, FileOp
from support.grpcstubs import control_pb2_grpc, gateway_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence


class Client:
    """A gRPC client without any of a real client's manners."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address.replace("unix://", "unix:"),
            options=[
                ("grpc.max_metadata_size", 4 << 20),
                ("grpc.absolute_max_metadata_size", 8 << 20),
                ("grpc.default_authority", "localhost"),
                ("grpc.max_send_message_length", 64 << 20),
            ],
        )
        #: the project's own, for sessions
        self.own = Channel(lambda: connected(address.removeprefix("unix://")))
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.bridge: Any = gateway_pb2_grpc.LLBBridgeStub(self.channel)

    def solve(self, **fields: Any) -> Any:
        fields.setdefault("Ref", new_id())
        return self.control.Solve(control_pb2.SolveRequest(**fields), timeout=60)

    def failure(self, **fields: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.solve(**fields)
        return caught.value


def connected(path: str) -> SocketStream:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return SocketStream(sock)


def definition(output: Output | None) -> ops_pb2.Definition:
    return ops_pb2.Definition.FromString(encode_definition(marshal(output)))


def raw_definition(ops: Sequence[bytes]) -> ops_pb2.Definition:
    made = ops_pb2.Definition()
    getattr(made, "def").extend(ops)
    return made


def made_file(text: bytes = b"x") -> Output:
    action = FileAction(action=FileActionMkFile(path="/file", data=text), input=-1, output=0)
    return Output(Node(FileOp((action,))))


def copied(source: Output) -> Output:
    copy = FileActionCopy(src="/", dest="/", dir_copy_contents=True, allow_wildcard=True)
    return Output(Node(FileOp((FileAction(action=copy, input=-1, secondary_input=0, output=0),)), [source]))


def code(error: grpc.RpcError) -> str:
    name: str = error.code().name
    return name


def text(error: grpc.RpcError) -> str:
    return str(error.details())


class Build:
    """A build whose frontend is the test."""

    def __init__(self, client: Client, ref: str, solve: Any) -> None:
        self.client = client
        self.ref = ref
        self.solve = solve

    def call(self, method: str, request: Any) -> Any:
        metadata = (("buildkit-controlapi-buildid", self.ref),)
        return getattr(self.client.bridge, method)(request, metadata=metadata, timeout=30)

    def solved(self, output: Output) -> str:
        request = gateway_pb2.SolveRequest(
            Definition=definition(output), allowResultReturn=True, allowResultArrayRef=True
        )
        return str(self.call("Solve", request).result.ref.id)
