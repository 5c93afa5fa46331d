"""Processes in a container over a build's result: what a frontend runs, or a debugger.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto``, NewContainer, ExecProcess.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from crossdock.buildkit.details import decode_details, error_from_rpc, error_from_status
from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.status import CODES, RpcError
from crossdock.buildkit.session.server import new_id
from crossdock.errors import BuilderError, CrossdockError, StepFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from crossdock.buildkit.gateway import Gateway
    from crossdock.buildkit.rpc.channel import Call

__all__ = ["GatewayContainer"]

_IN, _OUT, _ERR = 0, 1, 2
_BLOCK = 32 * 1024
#: the exit code of what could not be started, or was not heard of any more
_UNKNOWN = 255


class GatewayContainer:
    """A container whose root is a result; a context manager that releases it.

    It lives as long as its first process; others may join it meanwhile.

    ``mounts`` are further results by the path at which they are seen, read-only; ``network``: host or none.
    """

    def __init__(
        self,
        gateway: Gateway,
        ref: str,
        *,
        mounts: Mapping[str, str] | None = None,
        network: str = "",
        hostname: str = "",
    ) -> None:
        """Begin it. Raises: what the daemon reports; RemoteError UNIMPLEMENTED before v0.8."""
        self._gateway = gateway
        self._id = new_id()
        modes = {"": ops_pb2.UNSET, "host": ops_pb2.HOST, "none": ops_pb2.NONE}
        request = gateway_pb2.NewContainerRequest(
            ContainerID=self._id,
            Mounts=[
                ops_pb2.Mount(dest="/", resultID=ref),
                *(ops_pb2.Mount(dest=path, resultID=r, readonly=True) for path, r in (mounts or {}).items()),
            ],
            Network=modes[network],
            hostname=hostname,
        )
        gateway.call("NewContainer", request, "starting a container")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        request = gateway_pb2.ReleaseContainerRequest(ContainerID=self._id)
        try:
            self._gateway.call("ReleaseContainer", request, "releasing a container")
        except StepFailed:
            return  # how its processes ended has been told by run()
        except CrossdockError:
            if kind is None:
                raise

    def run(
        self,
        args: Iterable[str],
        *,
        env: Iterable[str] = (),
        cwd: str = "/",
        user: str = "",
        stdin: Iterable[bytes] = (),
        output: Callable[[int, bytes], object] = lambda _stream, _data: None,
    ) -> int:
        """Run a process to its end and return its exit code; ``output(1 or 2, data)`` gets what it writes.

        Raises: what the daemon reports; the token's cause.
        """
        process = new_id()
        meta = ops_pb2.Meta(args=list(args), env=list(env), cwd=cwd, user=user)
        init = gateway_pb2.InitMessage(ContainerID=self._id, Meta=meta, Fds=[_IN, _OUT, _ERR])
        cancel = self._gateway.cancel
        try:
            call = self._gateway.start("ExecProcess")
            with cancel.waking(call.cancel):
                _send(call, gateway_pb2.ExecMessage(ProcessID=process, Init=init))
                feeder = threading.Thread(
                    target=_feed, args=(call, process, stdin), daemon=True, name="exec-stdin"
                )
                return _follow(call, feeder, output)
        except RpcError as exc:
            cancel.check()
            raise error_from_rpc(exc, "running a process in a container") from exc


def _send(call: Call, message: gateway_pb2.ExecMessage) -> None:
    call.send_raw(prefixed(message.SerializeToString()))


def _feed(call: Call, process: str, stdin: Iterable[bytes]) -> None:
    try:
        for data in stdin:
            for at in range(0, len(data), _BLOCK):
                part = gateway_pb2.FdMessage(Fd=_IN, Data=data[at : at + _BLOCK])
                _send(call, gateway_pb2.ExecMessage(ProcessID=process, File=part))
        end = gateway_pb2.FdMessage(Fd=_IN, EOF=True)
        _send(call, gateway_pb2.ExecMessage(ProcessID=process, File=end))
    except RpcError:
        return  # the process has ended, as its reader learns


def _follow(call: Call, feeder: threading.Thread, output: Callable[[int, bytes], object]) -> int:
    code: int | None = None
    try:
        for raw in call.messages():
            message = gateway_pb2.ExecMessage.FromString(raw)
            match message.WhichOneof("Input"):
                case "Started":
                    feeder.start()
                case "File" if message.File.Data:
                    output(message.File.Fd, message.File.Data)
                case "Exit":
                    code = _exit_code(message.Exit)
                case "Done":
                    break  # what is written last comes between the two
                case _:
                    continue
    except RpcError:
        # The call may end with the process's failure as its own.
        if code is None:
            raise
    call.cancel()
    if code is None:
        summary = "the daemon ended a process without telling its exit code"
        raise BuilderError(summary, retryable=True)
    return code


def _exit_code(said: gateway_pb2.ExitMessage) -> int:
    error = said.Error
    if error.code and said.Code in (0, _UNKNOWN):
        details = decode_details(error.SerializeToString())
        if not any(kind == "gatewayapi.ExitMessage" for kind, _ in details):
            raise error_from_status(CODES[error.code], error.message, details, "running a process")
    return said.Code
