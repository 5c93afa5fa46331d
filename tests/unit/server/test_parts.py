"""Small parts of the server: filters, progress, errors, addresses, results, history."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.buildkit.proto import control_pb2, gateway_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import (
    Cancelled,
    DockerfileError,
    NotSupported,
    Position,
    SolveError,
    SourceFile,
    SourceRange,
    StepFailed,
    StoreFull,
    UsageError,
)
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import SourceOp
from crossdock.progress.events import Vertex, VertexLog, VertexWarning
from crossdock.server.failures import ClientFailure, Missing, Unsupported, answering, status_of
from crossdock.server.filters import matches
from crossdock.server.listen import Listeners, parse_address, passed_sockets
from crossdock.server.policies import ClientDenied
from crossdock.server.results import ResultRef, Results, platforms_of
from crossdock.server.statuslog import StatusLog

if TYPE_CHECKING:
    from pathlib import Path

WHERE = SourceRange(SourceFile("Dockerfile", "FROM x\nRUN y\n"), Position(2), Position(2))


class TestFilters:
    RECORD = {"id": "abc", "labels": {"com.example": "one"}}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("filters", "wanted"),
        [
            ([], True),
            (["id==abc"], True),
            (["id==x"], False),
            (["id!=x"], True),
            (["id~=^a"], True),
            (["id==x", "id==abc"], True),
            (["id==abc,id==x"], False),
            (['labels."com.example"==one'], True),
            (["labels.other"], False),
            (["id"], True),
            (["nope"], False),
        ],
    )
    def test_comma_is_and_several_are_or(self, filters: list[str], wanted: bool) -> None:
        assert matches(filters, self.RECORD) is wanted

    @pytest.mark.parametrize("text", ["==x", "id~=(", "id=x"])
    def test_malformed_filters_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            matches([text], self.RECORD)


def vertex(name: str, **more: Any) -> Vertex:
    return Vertex(digest=f"sha256:{name}", name=name, **more)


def read(log: StatusLog) -> control_pb2.StatusResponse:
    return control_pb2.StatusResponse.FromString(b"".join(log.read(lambda: True)))


class TestStatusLog:
    def test_a_late_reader_gets_all_of_it_in_order(self) -> None:
        log = StatusLog()
        log.emit(vertex("a", started_ns=1_500_000_000))
        log.emit(VertexLog(vertex="sha256:a", stream=1, data=b"hi", timestamp_ns=2))
        log.emit(VertexWarning(vertex="sha256:a", level=1, short="careful", source=WHERE))
        log.emit(vertex("a", started_ns=1_500_000_000, completed_ns=2_000_000_000, cached=True))
        log.finish()
        got = read(log)
        assert [v.cached for v in got.vertexes] == [False, True]
        assert (got.vertexes[0].started.seconds, got.vertexes[0].started.nanos) == (1, 500_000_000)
        assert got.logs[0].msg == b"hi"
        assert got.warnings[0].info.filename == "Dockerfile"
        assert got.warnings[0].ranges[0].start.line == 2
        assert log.counts() == (1, 1, 1)

    def test_a_waiting_reader_ends_with_the_build(self) -> None:
        log = StatusLog()
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.extend(log.read(lambda: True)))
        thread.start()
        log.emit(vertex("a"))
        log.finish()
        thread.join(5)
        assert not thread.is_alive()
        assert got

    def test_a_reader_that_is_gone_ends(self) -> None:
        log = StatusLog()
        wanted = [True]
        thread = threading.Thread(target=lambda: list(log.read(lambda: wanted[0])))
        thread.start()
        wanted[0] = False
        log.wake()
        thread.join(5)
        assert not thread.is_alive()

    def test_endless_output_is_cut_once(self) -> None:
        log = StatusLog()
        for _ in range(5):
            log.emit(VertexLog(vertex="sha256:a", stream=1, data=b"x" * (1 << 20)))
        log.finish()
        data = b"".join(entry.msg for entry in read(log).logs)
        assert data.count(b"output clipped") == 1
        assert len(data) < (2 << 20) + 100

    def test_the_first_failure_is_remembered(self) -> None:
        log = StatusLog()
        log.emit(vertex("a", error="first"))
        log.emit(vertex("b", error="second"))
        assert log.failed is not None
        assert log.failed.error == "first"


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (Cancelled(), 1),
            (UsageError("x"), 2),
            (Missing("x"), 5),
            (StoreFull("x"), 8),
            (NotSupported("x"), 12),
        ],
    )
    def test_codes(self, error: Exception, code: int) -> None:
        assert status_of(error).code == code

    def test_a_failed_step_has_buildkits_details(self) -> None:
        error = StepFailed("process failed", step_exit_code=3, vertex="sha256:v!salt", source=WHERE)
        details = {d.type_url: json.loads(d.value) for d in status_of(error).details}
        prefix = "github.com/moby/buildkit/"
        assert details[prefix + "gatewayapi.ExitMessage+json"] == {"Code": 3}
        assert details[prefix + "errdefs.Vertex+json"] == {"digest": "sha256:v"}
        source = details[prefix + "errdefs.Source+json"]
        assert source["info"]["filename"] == "Dockerfile"
        assert source["ranges"] == [{"start": {"line": 2}, "end": {"line": 2}}]

    def test_a_wrong_dockerfile_names_its_line(self) -> None:
        assert "line 2" in status_of(DockerfileError("unknown instruction", source=WHERE)).message

    def test_a_clients_status_is_handed_on_as_it_came(self) -> None:
        from google.rpc.status_pb2 import Status

        status = Status(code=9, message="no")
        with pytest.raises(RpcError) as caught, answering():
            raise ClientFailure(status)
        assert (caught.value.code, caught.value.message) == ("FAILED_PRECONDITION", "no")

    @pytest.mark.parametrize(
        ("error", "kind", "value"),
        [
            (Unsupported("no", capability="a.b"), "errdefs.FrontendCap", {"name": "a.b"}),
            (Unsupported("no", question="frontend.x"), "errdefs.Subrequest", {"name": "frontend.x"}),
            (
                ClientDenied("no", ("first", "second")),
                "policysession.DecisionResponse",
                {"action": "DENY", "denyMessages": [{"message": "first"}, {"message": "second"}]},
            ),
        ],
    )
    def test_what_clients_act_on_is_typed(self, error: Exception, kind: str, value: object) -> None:
        (detail,) = status_of(error).details
        assert detail.type_url == f"github.com/moby/buildkit/{kind}+json"
        assert json.loads(detail.value) == value

    def test_a_defect_is_internal(self) -> None:
        with pytest.raises(RpcError) as caught, answering():
            raise KeyError("x")
        assert caught.value.code == "INTERNAL"


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "target"),
        [
            ("unix:///run/x.sock", "/run/x.sock"),
            ("tcp://0.0.0.0:1234", "0.0.0.0:1234"),
            ("tcp://:1234", "0.0.0.0:1234"),
            ("tcp://[::1]:1234", "[::1]:1234"),
            ("fd://", ""),
            ("fd://buildkit", "buildkit"),
        ],
    )
    def test_read(self, text: str, target: str) -> None:
        assert parse_address(text).target == target

    @pytest.mark.parametrize("text", ["", "/x", "unix://x", "tcp://host", "tcp://host:x", "npipe:////x"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            parse_address(text)

    def test_sockets_for_another_process_are_not_ours(self) -> None:
        assert passed_sockets({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 8) == {}

    def test_a_living_daemons_socket_is_not_taken(self, tmp_path: Path) -> None:
        first, second = Listeners(), Listeners()
        address = parse_address(f"unix://{tmp_path}/s")
        first.open([address], tls=None, passed={})
        with pytest.raises(UsageError, match="another daemon"):
            second.open([address], tls=None, passed={})
        first.close()
        assert not (tmp_path / "s").exists()

    def test_a_dead_daemons_socket_is(self, tmp_path: Path) -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "s"))
        listeners = Listeners()
        listeners.open([parse_address(f"unix://{tmp_path}/s")], tls=None, passed={})
        listeners.close()

    def test_a_file_in_the_way_stays(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("mine")
        with pytest.raises(UsageError, match="no socket"):
            Listeners().open([parse_address(f"unix://{tmp_path}/s")], tls=None, passed={})
        assert (tmp_path / "s").read_text() == "mine"


class TestResults:
    OUTPUT = Output(Node(SourceOp("docker-image://x")))

    def test_a_result_survives_the_wire(self) -> None:
        ref = ResultRef(self.OUTPUT)
        results = Results({"linux/amd64": ref, "linux/arm64": None}, {"k": b"v"}, single=False)
        again = Results.from_pb(results.to_pb(arrays=True), {ref.id: ref})
        assert again.refs == {"linux/amd64": ref, "linux/arm64": None}
        assert again.metadata == {"k": b"v"}
        assert not again.single

    @pytest.mark.parametrize("arrays", [True, False])
    def test_one_file_system_is_a_single_result(self, arrays: bool) -> None:
        ref = ResultRef(self.OUTPUT)
        results = Results.of(None)
        results.refs[""] = ref
        again = Results.from_pb(results.to_pb(arrays=arrays), {ref.id: ref})
        assert again.single
        assert again.refs == {"": ref}

    def test_an_unknown_reference_is_refused(self) -> None:
        message = gateway_pb2.Result(ref=gateway_pb2.Ref(id="nope"))
        with pytest.raises(UsageError, match="nope"):
            Results.from_pb(message, {})

    def test_platforms_come_from_the_metadata(self) -> None:
        listed = {"Platforms": [{"ID": "linux/arm64", "Platform": {"os": "linux", "architecture": "arm64"}}]}
        config = b'{"architecture":"arm64","os":"linux","config":{"Env":["A=b"]}}'
        metadata = {
            "refs.platforms": json.dumps(listed).encode(),
            "containerimage.config/linux/arm64": config,
            "source.date.epoch/linux/arm64": b"42",
        }
        (found,) = platforms_of(Results({"linux/arm64": None}, metadata, single=False))
        assert str(found.platform) == "linux/arm64"
        assert found.config is not None
        assert found.config.env == ["A=b"]
        assert found.epoch_s == 42

    @pytest.mark.parametrize(
        ("refs", "metadata"),
        [
            ({"a": None}, {}),
            ({"a": None}, {"refs.platforms": b"{"}),
            ({"a": None}, {"refs.platforms": b'{"Platforms":[{"ID":"b","Platform":{"os":"l","architecture":"x"}}]}'}),
            ({"a": None}, {"refs.platforms": b'{"Platforms":[{"ID":"a","Platform":{}}]}'}),
        ],
    )  # fmt: skip
    def test_malformed_metadata_is_refused(self, refs: dict[str, None], metadata: dict[str, bytes]) -> None:
        with pytest.raises(SolveError):
            platforms_of(Results(refs, metadata, single=False))
