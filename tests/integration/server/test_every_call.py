"""Every call of every service, replayed wrongly: nothing said, rubbish, half a message, given up, without its build."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import grpc
import pytest

from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.status import RpcError
from integration.server.plain import Build, Client, definition, made_file
from support.grpcstubs import content_pb2_grpc, control_pb2_grpc, gateway_pb2_grpc

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

#: calls that wait for what the peer says next, or for builds, by their nature
PATIENT = ("Session", "ExecProcess", "ListenBuildHistory", "Watch", "Write", "Solve")


def methods() -> list[str]:
    """All that the generated stubs know, as ``/package.Service/Method``."""
    found: list[str] = []

    class Recorder:
        def _note(self, method: str, **_: object) -> None:
            found.append(method)

        unary_unary = unary_stream = stream_unary = stream_stream = _note

    control_pb2_grpc.ControlStub(Recorder())
    gateway_pb2_grpc.LLBBridgeStub(Recorder())
    content_pb2_grpc.ContentStub(Recorder())
    return [*found, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/nobody.knows/This"]


def answers(client: Client, method: str, messages: list[bytes], ref: str = "") -> str:
    """Call with raw messages; returns the status's name, or what came before the deadline."""
    patient = method.rpartition("/")[2] in PATIENT
    metadata = (("buildkit-controlapi-buildid", ref),) if ref else ()
    channel: Any = client.channel  # its type stubs know of no raw messages
    call = channel.stream_stream(method)
    try:
        list(call(iter(messages), metadata=metadata, timeout=1 if patient else 20))
    except grpc.RpcError as exc:
        return str(exc.code().name)
    return "OK"


def allowed(method: str, status: str) -> bool:
    # An unexpected defect would be INTERNAL.
    if status == "INTERNAL":
        return False
    return status != "DEADLINE_EXCEEDED" or method.rpartition("/")[2] in PATIENT


@pytest.mark.parametrize("method", methods())
class TestEveryCall:
    def test_an_empty_message(self, client: Client, method: str) -> None:
        status = answers(client, method, [b""])
        assert allowed(method, status), status
        client.solve(Definition=definition(made_file()))

    def test_rubbish(self, client: Client, build: Build, method: str) -> None:
        rng = random.Random(method)
        for size in (1, 7, 300):
            status = answers(client, method, [rng.randbytes(size)], build.ref)
            assert allowed(method, status), (size, status)

    def test_an_empty_message_about_a_build(self, client: Client, build: Build, method: str) -> None:
        status = answers(client, method, [b""], build.ref)
        assert allowed(method, status), status

    def test_nothing_at_all(self, client: Client, build: Build, method: str) -> None:
        status = answers(client, method, [], build.ref)
        # That there was no request is the caller's mistake, which gRPC's own servers call INTERNAL, too.
        assert allowed(method, status) or status == "INTERNAL", status

    def test_half_a_message_and_then_silence(self, client: Client, build: Build, method: str) -> None:
        before = threading.active_count()
        call = client.own.start(method, metadata=(("buildkit-controlapi-buildid", build.ref),))
        call.send_raw(prefixed(b"x" * 1000)[:500])
        call.cancel()
        with pytest.raises(RpcError):
            list(call.messages())
        deadline = time.monotonic() + 5
        while threading.active_count() > before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        client.solve(Definition=definition(made_file()))


@pytest.mark.parametrize("seed", range(4))
def test_calls_of_a_build_in_any_order(client: Client, build: Build, seed: int) -> None:
    rng = random.Random(seed)
    names = [m for m in methods() if "LLBBridge" in m and not m.endswith(("ExecProcess", "Return"))]

    def one(method: str) -> str:
        return answers(client, method, [b""], build.ref)

    threads = []
    found: list[tuple[str, str]] = []
    for method in rng.choices(names, k=40):
        thread = threading.Thread(target=lambda m=method: found.append((m, one(m))))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(20)
    assert len(found) == 40
    assert not [pair for pair in found if not allowed(*pair)]


def test_what_comes_after_the_end_of_a_build_is_refused(client: Client, build: Build) -> None:
    build.call("Return", _empty())
    build.solve.result(20)
    for method in methods():
        if "LLBBridge" in method:
            assert answers(client, method, [b""], build.ref) in ("NOT_FOUND", "UNKNOWN")


def _empty() -> object:
    from crossdock.buildkit.proto import gateway_pb2

    return gateway_pb2.ReturnRequest()
