"""A program that is a frontend: served on its standard streams, as one in a container is."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit.proto import gateway_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.cancel import CancelToken
from crossdock.engine.sandbox.step import StepResult
from crossdock.errors import SolveError
from crossdock.server.answer import Answer
from crossdock.server.imagefrontend import serve_stdio
from crossdock.server.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.engine.sandbox.step import StepStdio

pb = gateway_pb2

FRONTEND = """
import os, sys
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.proto import gateway_pb2 as pb

class Stdio:
    def recv(self, size):
        return os.read(0, size)
    def sendall(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view):]
    def shutdown_write(self):
        pass
    def close(self):
        pass

channel = Channel(Stdio)
def call(name, request, response):
    return channel.unary("/moby.buildkit.v1.frontend.LLBBridge/" + name, request, response)
pong = call("Ping", pb.PingRequest(), pb.PongResponse)
print("caps:", len(pong.LLBCaps), file=sys.stderr)
big = call("ReadFile", pb.ReadFileRequest(Ref="r", FilePath="/big"), pb.ReadFileResponse)
result = pb.Result(metadata={"size": str(len(big.Data)).encode()})
call("Return", pb.ReturnRequest(result=result), pb.ReturnResponse)
sys.stderr.flush()
os._exit(0)
"""


def runner(script: str) -> Callable[..., StepResult]:
    """Run a Python program instead of a container."""

    def run(stdio: StepStdio, log: Callable[[int, bytes], None], cancel: CancelToken) -> StepResult:
        del cancel
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=stdio.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        stdio.started(process.pid)
        assert process.stdout is not None
        assert process.stderr is not None
        while data := os.read(process.stdout.fileno(), 65536):
            log(1, data)
        log(2, process.stderr.read())
        code = process.wait(30)
        process.stdout.close()
        process.stderr.close()
        return StepResult(exit_code=code)

    return run


def handlers(answer: Answer) -> dict[str, object]:
    def returned(request: pb.ReturnRequest, _call: object) -> pb.ReturnResponse:
        answer.give(Results.from_pb(request.result, {}))
        return pb.ReturnResponse()

    prefix = "/moby.buildkit.v1.frontend.LLBBridge/"
    return {
        prefix + "Ping": unary(pb.PingRequest, lambda _r, _c: pb.PongResponse()),
        prefix + "ReadFile": unary(
            pb.ReadFileRequest, lambda _r, _c: pb.ReadFileResponse(Data=b"x" * 3_000_000)
        ),
        prefix + "Return": unary(pb.ReturnRequest, returned),
    }


def test_a_frontend_asks_and_returns_over_its_standard_streams() -> None:
    answer, shown = Answer(), bytearray()
    result = serve_stdio(runner(FRONTEND), handlers(answer), shown.extend, CancelToken())  # type: ignore[arg-type]
    assert result.exit_code == 0
    assert b"caps: 0" in shown
    assert answer.wait(CancelToken()).metadata == {"size": b"3000000"}


@pytest.mark.parametrize(
    "script",
    [
        "import os; os._exit(3)",
        "import os; os.write(1, b'hello, I am not HTTP/2'); os._exit(3)",
        "import os, time; os.read(0, 10); os._exit(3)",
    ],
    ids=["ends at once", "speaks nonsense", "breaks off"],
)
def test_a_program_that_is_no_frontend_ends_without_an_answer(script: str) -> None:
    answer = Answer()
    result = serve_stdio(runner(script), handlers(answer), lambda _data: None, CancelToken())  # type: ignore[arg-type]
    assert result.exit_code == 3
    assert not answer.given


def test_an_answer_is_given_once_and_errors_are_raised() -> None:
    answer = Answer()
    answer.give(SolveError("no"))
    with pytest.raises(SolveError, match="no"):
        answer.wait(CancelToken())
    with pytest.raises(Exception, match="already set"):
        answer.give(SolveError("again"))
