"""The protocol itself: odd orders, missing fields, cut streams, hostile names, many clients, from a plain gRPC client."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import (
    content_pb2,
    control_pb2,
    gateway_pb2,
    ops_pb2,
    stat_pb2,
    wire_pb2,
)
from crossdock.buildkit.session.server import Session, control_stream, new_id
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    DiffOp,
    ExecMeta,
    ExecOp,
    FileAction,
    FileActionCopy,
    FileActionMkFile,
    FileActionRm,
    FileOp,
    MergeOp,
    Mount,
    SourceOp,
)
from integration.server.plain import (
    Build,
    Client,
    code,
    copied,
    definition,
    made_file,
    raw_definition,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.buildkit.rpc.serve import ServerCall
    from crossdock.llb.ops import Op
    from integration.server.conftest import Server
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

Packet = wire_pb2.Packet
DIR = 1 << 31 | 0o755


class TestSolve:
    def test_an_empty_definition_solves(self, client: Client) -> None:
        assert dict(client.solve(Definition=definition(made_file())).ExporterResponse) == {}

    def test_an_image_of_a_definition_has_buildkits_keys(self, client: Client) -> None:
        response = client.solve(
            Definition=definition(made_file()),
            Exporters=[control_pb2.Exporter(Type="image", Attrs={"name": "example.com/x:1"})],
        ).ExporterResponse
        assert response["containerimage.digest"].startswith("sha256:")
        assert response["image.name"] == "example.com/x:1"

    @pytest.mark.parametrize(
        ("fields", "wanted"),
        [
            ({"Ref": ""}, "no reference"),
            ({"Frontend": "nope"}, "invalid frontend"),
            ({"Definition": raw_definition([b"\xff\xff\xff"])}, "malformed"),
            ({"Definition": raw_definition([b""])}, "malformed"),
            ({"Frontend": "gateway.v0"}, "no source specified"),
            ({"Frontend": "dockerfile.v0", "FrontendAttrs": {"platform": "a/b/c/d"}}, "a/b/c/d"),
            ({"Frontend": "dockerfile.v0", "FrontendAttrs": {"frontend.caps": "x.y"}}, "x.y"),
            ({"Frontend": "dockerfile.v0"}, "no active session"),
            ({"CompatibilityVersion": 999}, "compatibility version 999"),
            ({"Entitlements": ["security.insecure"]}, "security.insecure"),
            ({"ProxyNetwork": True}, "networks by proxy"),
        ],
    )  # fmt: skip
    def test_a_wrong_request_is_refused_with_a_sentence(
        self, client: Client, fields: dict[str, Any], wanted: str
    ) -> None:
        assert wanted in text(client.failure(**fields))

    @pytest.mark.parametrize(
        ("kind", "attrs", "wanted"),
        [
            ("nope", {}, "nope"),
            ("local", {"dest": "/etc"}, "dest"),
            ("tar", {"dest": "/etc/passwd"}, "dest"),
            ("oci", {"dest": "/tmp/x", "tar": "false"}, "dest"),
        ],
    )
    def test_an_output_never_goes_to_a_path_of_the_server(
        self, client: Client, kind: str, attrs: dict[str, str], wanted: str
    ) -> None:
        exporter = control_pb2.Exporter(Type=kind, Attrs=attrs)
        assert wanted in text(client.failure(Definition=definition(made_file()), Exporters=[exporter]))

    def test_a_definition_that_refers_to_itself_is_refused(self, client: Client) -> None:
        pb = definition(copied(made_file()))
        # The last op names the result; let it name itself by leaving the rest out.
        del pb.metadata[next(iter(pb.metadata))]
        broken = raw_definition([getattr(pb, "def")[-1]])
        assert "missing" in text(client.failure(Definition=broken))

    def test_an_unknown_field_of_an_op_is_unimplemented(self, client: Client) -> None:
        pb = definition(made_file())
        ops = list(getattr(pb, "def"))
        op = ops_pb2.Op.FromString(ops[0]).SerializeToString() + b"\xf2\x7f\x01x"  # field 2046
        import hashlib

        digest = "sha256:" + hashlib.sha256(op).hexdigest()
        last = ops_pb2.Op(inputs=[ops_pb2.Input(digest=digest)]).SerializeToString()
        error = client.failure(Definition=raw_definition([op, last]))
        assert code(error) == "UNIMPLEMENTED"
        assert "2046" in text(error)

    @pytest.mark.parametrize(
        ("op", "index", "wanted"),
        [
            (
                FileOp((FileAction(action=FileActionMkFile(path="/f", data=b""), input=0, output=0),)),
                9,
                "output 9",
            ),
            (
                FileOp((FileAction(action=FileActionMkFile(path="/f", data=b""), input=0, output=7),)),
                0,
                "from 0",
            ),
            (
                FileOp((FileAction(action=FileActionMkFile(path="/\0", data=b""), input=0, output=0),)),
                0,
                "NUL",
            ),
            (FileOp((FileAction(action=FileActionRm(path="/gone"), input=0, output=0),)), 0, "/gone"),
            (
                ExecOp(meta=ExecMeta(args=("/x",), cwd="/"), mounts=(Mount(dest="/", input=3, output=0),)),
                0,
                "input 3 is used",
            ),
            (MergeOp((0, 5)), 0, "input 5 is used"),
            (DiffOp(lower=0, upper=8), 0, "input 8 is used"),
        ],
        ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
    )
    def test_what_refers_to_nothing_is_refused_and_harms_nobody_else(
        self, client: Client, op: Op, index: int, wanted: str
    ) -> None:
        output = Output(Node(op, [Output(made_file(new_id().encode()).node, index)]))
        error = client.failure(Definition=definition(output))
        assert code(error) == "UNKNOWN"
        assert wanted in text(error)
        client.solve(Definition=definition(made_file()))

    def test_a_capability_that_is_not_there_is_unimplemented(self, client: Client) -> None:
        from crossdock.llb.ops import OpMetadata

        output = made_file()
        node = Node(
            output.node.op, metadata=OpMetadata(caps={"file.base": True, "exec.meta.network.proxy": True})
        )
        error = client.failure(Definition=definition(Output(node)))
        assert code(error) == "UNIMPLEMENTED"
        assert "exec.meta.network.proxy" in text(error)

    def test_a_deep_definition_is_no_deeper_than_the_stack(self, client: Client) -> None:
        output = Output(Node(SourceOp("nowhere://x")))
        for _ in range(3000):
            mkfile = FileAction(action=FileActionMkFile(path="/f", data=b""), input=0, output=0)
            output = Output(Node(FileOp((mkfile,)), [output]))
        assert "nowhere://" in text(client.failure(Definition=definition(output)))

    def test_a_huge_message_is_refused_and_the_server_goes_on(self, client: Client) -> None:
        error = client.failure(FrontendAttrs={"x": "y" * (20 << 20)})
        assert code(error) == "RESOURCE_EXHAUSTED"
        client.solve(Definition=definition(made_file()))

    def test_the_same_reference_twice_at_once_is_refused(self, client: Client) -> None:
        ref = new_id()
        waiting = client.control.Solve.future(control_pb2.SolveRequest(Ref=ref))
        _ping(client, ref)
        assert "exists" in text(client.failure(Ref=ref))
        waiting.cancel()


class TestStatus:
    def test_a_client_that_attaches_late_sees_everything(self, client: Client) -> None:
        ref = new_id()
        client.solve(Ref=ref, Definition=definition(made_file(b"late")))
        seen = list(client.control.Status(control_pb2.StatusRequest(Ref=ref), timeout=10))
        assert any(v.HasField("completed") for s in seen for v in s.vertexes)

    def test_a_client_that_attaches_early_is_waited_for(self, client: Client) -> None:
        ref = new_id()
        stream = client.control.Status(control_pb2.StatusRequest(Ref=ref), timeout=20)
        time.sleep(0.3)
        client.solve(Ref=ref, Definition=definition(made_file(b"early")))
        assert any(v.completed.seconds for s in stream for v in s.vertexes)

    def test_an_unknown_build_is_not_found(self, client: Client) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            list(client.control.Status(control_pb2.StatusRequest(Ref="nope"), timeout=20))
        assert code(caught.value) == "NOT_FOUND"


def _ping(client: Client, ref: str) -> Any:
    return client.bridge.Ping(
        gateway_pb2.PingRequest(), metadata=(("buildkit-controlapi-buildid", ref),), timeout=20
    )


class TestGateway:
    def test_capabilities_are_announced(self, build: Build) -> None:
        pong = build.call("Ping", gateway_pb2.PingRequest())
        caps = {c.ID for c in pong.LLBCaps}
        assert {"mergeop", "source.local", "exec.mount.secret"} <= caps
        assert pong.Workers[0].platforms

    def test_files_of_a_result_are_read(self, build: Build) -> None:
        ref = build.solved(made_file(b"0123456789"))
        whole = build.call("ReadFile", gateway_pb2.ReadFileRequest(Ref=ref, FilePath="/file"))
        part = gateway_pb2.ReadFileRequest(
            Ref=ref, FilePath="file", Range=gateway_pb2.FileRange(Offset=3, Length=4)
        )
        assert whole.Data == b"0123456789"
        assert build.call("ReadFile", part).Data == b"3456"
        listed = build.call("ReadDir", gateway_pb2.ReadDirRequest(Ref=ref, DirPath="/"))
        assert [e.path for e in listed.entries] == ["file"]
        assert build.call("StatFile", gateway_pb2.StatFileRequest(Ref=ref, Path="/file")).stat.size == 10

    @pytest.mark.parametrize("path", ["/nope", "../../../etc/passwd", "/file/x"])
    def test_a_path_that_is_not_there_is_not_found(self, build: Build, path: str) -> None:
        ref = build.solved(made_file())
        with pytest.raises(grpc.RpcError) as caught:
            build.call("ReadFile", gateway_pb2.ReadFileRequest(Ref=ref, FilePath=path))
        assert "no such file" in text(caught.value)

    def test_a_result_is_a_definition_to_build_on(self, build: Build) -> None:
        answer = build.call(
            "Solve",
            gateway_pb2.SolveRequest(
                Definition=definition(made_file(b"base")), allowResultReturn=True, allowResultArrayRef=True
            ),
        )
        again = gateway_pb2.SolveRequest(
            Definition=getattr(answer.result.ref, "def"), allowResultReturn=True, allowResultArrayRef=True
        )
        ref = build.call("Solve", again).result.ref.id
        assert build.call("ReadFile", gateway_pb2.ReadFileRequest(Ref=ref, FilePath="/file")).Data == b"base"

    def test_a_returned_result_ends_the_build(self, build: Build) -> None:
        ref = build.solved(made_file())
        result = gateway_pb2.Result(ref=gateway_pb2.Ref(id=ref))
        build.call("Return", gateway_pb2.ReturnRequest(result=result))
        assert build.solve.result(20) is not None

    def test_an_empty_return_ends_the_build(self, build: Build) -> None:
        build.call("Return", gateway_pb2.ReturnRequest())
        assert dict(build.solve.result(20).ExporterResponse) == {}

    def test_a_second_return_is_refused(self, build: Build) -> None:
        ref = build.solved(made_file())
        with pytest.raises(grpc.RpcError):
            build.call(
                "Return",
                gateway_pb2.ReturnRequest(result=gateway_pb2.Result(ref=gateway_pb2.Ref(id="unknown"))),
            )
        build.call(
            "Return", gateway_pb2.ReturnRequest(result=gateway_pb2.Result(ref=gateway_pb2.Ref(id=ref)))
        )
        build.solve.result(20)
        with pytest.raises(grpc.RpcError):
            build.call("Return", gateway_pb2.ReturnRequest())

    def test_a_returned_error_becomes_the_builds(self, build: Build) -> None:
        error = gateway_pb2.ReturnRequest()
        error.error.code, error.error.message = 9, "the frontend gave up"
        build.call("Return", error)
        with pytest.raises(grpc.RpcError) as caught:
            build.solve.result(20)
        assert text(caught.value) == "the frontend gave up"
        assert code(caught.value) == "FAILED_PRECONDITION"

    def test_a_warning_is_shown(self, build: Build, client: Client) -> None:
        build.call("Warn", gateway_pb2.WarnRequest(digest="sha256:" + "0" * 64, level=1, short=b"careful"))
        build.call("Return", gateway_pb2.ReturnRequest())
        build.solve.result(20)
        seen = list(client.control.Status(control_pb2.StatusRequest(Ref=build.ref), timeout=10))
        assert [w.short for s in seen for w in s.warnings] == [b"careful"]

    @pytest.mark.parametrize(
        ("method", "request_"),
        [
            ("Evaluate", gateway_pb2.EvaluateRequest(Ref="nope")),
            ("ReadFile", gateway_pb2.ReadFileRequest(Ref="nope", FilePath="/")),
            ("ReadDir", gateway_pb2.ReadDirRequest()),
            ("ResolveImageConfig", gateway_pb2.ResolveImageConfigRequest(Ref="://")),
            ("ResolveSourceMeta", gateway_pb2.ResolveSourceMetaRequest()),
        ],
    )  # fmt: skip
    def test_what_names_nothing_is_refused(self, build: Build, method: str, request_: Any) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            build.call(method, request_)
        assert code(caught.value) != "INTERNAL", text(caught.value)

    def test_a_call_without_a_build_is_refused(self, client: Client) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            client.bridge.Ping(gateway_pb2.PingRequest(), timeout=10)
        assert "no buildid" in text(caught.value)


@pytest.mark.needs("base")
class TestContainers:
    @pytest.fixture
    def build(self, client: Client, base: BaseImages) -> Iterator[Build]:
        ref = new_id()
        solve = client.control.Solve.future(control_pb2.SolveRequest(Ref=ref))
        made = Build(client, ref, solve)
        made.call("Ping", gateway_pb2.PingRequest())
        root = made.solved(Output(Node(SourceOp(f"docker-image://{base.index}"))))
        extra = made.solved(made_file(b"extra"))
        mounts = [
            ops_pb2.Mount(dest="/", resultID=root),
            ops_pb2.Mount(dest="/extra", resultID=extra, readonly=True),
        ]
        made.call(
            "NewContainer", gateway_pb2.NewContainerRequest(ContainerID="c", Mounts=mounts, hostname="box")
        )
        yield made
        solve.cancel()

    def run(
        self,
        build: Build,
        *args: str,
        tty: bool = False,
        messages: Sequence[Any] = (),
        env: Sequence[str] = (),
    ) -> tuple[int, bytes, bytes]:
        """Run a process; returns its exit code and what it wrote."""
        pb = gateway_pb2
        started = threading.Event()

        def requests() -> Iterator[Any]:
            meta = ops_pb2.Meta(args=args, env=["PATH=/bin", *env], cwd="/")
            init = pb.InitMessage(ContainerID="c", Meta=meta, Fds=[0, 1, 2], Tty=tty)
            yield pb.ExecMessage(ProcessID="p", Init=init)
            assert started.wait(20)
            for message in messages:
                if isinstance(message, float):
                    time.sleep(message)
                else:
                    yield message
            ended.wait(20)

        ended = threading.Event()
        out: dict[int, bytes] = {1: b"", 2: b""}
        exit_code = -1
        metadata = (("buildkit-controlapi-buildid", build.ref),)
        for message in build.client.bridge.ExecProcess(requests(), metadata=metadata, timeout=30):
            match message.WhichOneof("Input"):
                case "Started":
                    started.set()
                case "File":
                    out[message.File.Fd] += message.File.Data
                case "Exit":
                    exit_code = message.Exit.Code
                case "Done":
                    ended.set()
                case other:
                    pytest.fail(f"unexpected message {other}")
        return exit_code, out[1], out[2]

    @staticmethod
    def typed(data: bytes, *, end: bool = False) -> Any:
        return gateway_pb2.ExecMessage(ProcessID="p", File=gateway_pb2.FdMessage(Fd=0, Data=data, EOF=end))

    def test_output_and_exit_codes_come_back(self, build: Build) -> None:
        assert self.run(build, "sh", "-c", "hostname; cat /extra/file; echo oops >&2; exit 7") == (
            7,
            b"box\nextra",
            b"oops\n",
        )

    def test_what_is_typed_is_read(self, build: Build) -> None:
        messages = [self.typed(b"one\n"), self.typed(b"two\n", end=True)]
        assert self.run(build, "cat", messages=messages) == (0, b"one\ntwo\n", b"")

    def test_a_terminal_is_one(self, build: Build) -> None:
        resize = gateway_pb2.ExecMessage(ProcessID="p", Resize=gateway_pb2.ResizeMessage(Rows=33, Cols=77))
        messages = [resize, 0.2, self.typed(b"test -t 1 && stty size; exit 4\n")]
        code_, out, _ = self.run(build, "sh", tty=True, messages=messages)
        assert code_ == 4
        assert b"33 77" in out

    def test_ctrl_c_in_a_terminal_ends_what_runs_in_it_and_not_the_shell(self, build: Build) -> None:
        messages = [
            self.typed(b"sleep 60\n"),
            0.7,
            self.typed(b"\x03"),
            0.3,
            self.typed(b"echo ali''ve; exit 5\n"),
        ]
        code_, out, _ = self.run(build, "sh", tty=True, messages=messages)
        assert code_ == 5
        assert b"alive" in out
        assert b"job control" not in out

    def test_a_second_process_runs_in_the_container_of_the_first(self, build: Build) -> None:
        marker, done, over = threading.Event(), threading.Event(), threading.Event()
        pb = gateway_pb2
        metadata = (("buildkit-controlapi-buildid", build.ref),)

        def requests() -> Iterator[Any]:
            meta = ops_pb2.Meta(args=["sh", "-c", "echo up; read line; exit 3"], env=["PATH=/bin"], cwd="/")
            yield pb.ExecMessage(ProcessID="p", Init=pb.InitMessage(ContainerID="c", Meta=meta, Fds=[0, 1]))
            done.wait(20)
            yield self.typed(b"\n")
            over.wait(20)

        first: list[Any] = []

        def follow() -> None:
            for message in build.client.bridge.ExecProcess(requests(), metadata=metadata, timeout=40):
                first.append(message)
                if message.WhichOneof("Input") == "File" and message.File.Data:
                    marker.set()
                elif message.WhichOneof("Input") == "Done":
                    over.set()

        thread = threading.Thread(target=follow)
        thread.start()
        assert marker.wait(20)
        script = "tr '\\0' ' ' < /proc/1/cmdline; echo; test $$ != 1 && hostname; exit 6"
        code_, out, _ = self.run(build, "sh", "-c", script)
        code_tty, out_tty, _ = self.run(build, "sh", "-c", "tty; test -d /proc/1 && exit 2", tty=True)
        done.set()
        thread.join(20)
        assert code_ == 6
        assert out.startswith(b"sh -c echo up; read line; exit 3")
        assert b"box" in out
        assert code_tty == 2
        assert b"/dev/pts/" in out_tty
        assert [m.Exit.Code for m in first if m.WhichOneof("Input") == "Exit"] == [3]
        # When it has ended, the next one is first again.
        code_, out, _ = self.run(build, "sh", "-c", "echo $$")
        assert (code_, out) == (0, b"1\n")

    def test_a_signal_reaches_the_process(self, build: Build) -> None:
        kill = gateway_pb2.ExecMessage(ProcessID="p", Signal=gateway_pb2.SignalMessage(Name="SIGTERM"))
        script = "trap 'echo caught; exit 9' TERM; echo ready; while true; do sleep 0.05; done"
        code_, out, _ = self.run(build, "sh", "-c", script, messages=[0.5, kill])
        assert (code_, out) == (9, b"ready\ncaught\n")

    def test_files_of_a_living_container_are_read(self, build: Build) -> None:
        self.run(build, "sh", "-c", "echo changed > /new")
        request = gateway_pb2.ReadFileRequest(Ref="c", FilePath="/new")
        assert build.call("ReadFileContainer", request).Data == b"changed\n"
        listed = build.call(
            "ReadDirContainer", gateway_pb2.ReadDirRequest(Ref="c", DirPath="/", MountIndex=1)
        )
        assert [e.path for e in listed.entries] == ["file"]
        found = build.call("StatFileContainer", gateway_pb2.StatFileRequest(Ref="c", Path="/new"))
        assert found.stat.size == 8

    def test_a_program_that_is_not_there_is_an_exit(self, build: Build) -> None:
        assert self.run(build, "/nope")[0] in (127, 255)

    def test_a_released_container_is_gone(self, build: Build) -> None:
        build.call("ReleaseContainer", gateway_pb2.ReleaseContainerRequest(ContainerID="c"))
        with pytest.raises(grpc.RpcError) as caught:
            build.call("ReleaseContainer", gateway_pb2.ReleaseContainerRequest(ContainerID="c"))
        assert code(caught.value) == "NOT_FOUND"

    def test_an_insecure_process_must_be_allowed(self, build: Build) -> None:
        init = gateway_pb2.InitMessage(
            ContainerID="c", Meta=ops_pb2.Meta(args=["true"]), Fds=[1], Security=ops_pb2.INSECURE
        )
        metadata = (("buildkit-controlapi-buildid", build.ref),)
        message = gateway_pb2.ExecMessage(ProcessID="p", Init=init)
        seen = list(build.client.bridge.ExecProcess(iter([message]), metadata=metadata, timeout=30))
        (ended,) = [m.Exit for m in seen if m.WhichOneof("Input") == "Exit"]
        assert "security.insecure is not allowed" in ended.Error.message


class Sync:
    """A session's FileSync service that sends what it is told to."""

    def __init__(self, send: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        self._send = send

    @property
    def handlers(self) -> dict[str, Any]:
        return {"/moby.filesync.v1.FileSync/DiffCopy": self._sync}

    def _sync(self, call: ServerCall) -> None:
        for packet in self._send(map(Packet.FromString, call.messages())):
            call.send(packet.SerializeToString())


def stats(*entries: tuple[str, int] | stat_pb2.Stat) -> list[Any]:
    records = [e if isinstance(e, stat_pb2.Stat) else stat_pb2.Stat(path=e[0], mode=e[1]) for e in entries]
    return [Packet(type=Packet.PACKET_STAT, stat=r) for r in records]


def sync_build(
    client: Client,
    send: Callable[[Iterator[Any]], Iterator[Any]],
    output: Callable[[Output], Output] = copied,
) -> None:
    """Build a local directory that a session of ours sends."""
    session = Session()
    session.allow(Sync(send))
    session.start(control_stream(client.own))
    try:
        local = Output(Node(SourceOp("local://context", {"local.session": session.id})))
        client.solve(Session=session.id, Definition=definition(output(local)))
    finally:
        session.close()


class TestHostileDirectories:
    @pytest.mark.parametrize(
        ("packets", "wanted"),
        [
            (stats(("../up", 0o644)), "not one below"),
            (stats(("/etc", DIR)), "not one below"),
            (stats(("a/../b", 0o644)), "not one below"),
            (stats(("", 0o644)), "not one below"),
            (stats(("a//b", 0o644)), "not one below"),
            (stats(("b", DIR), ("a", DIR)), "out of order"),
            (stats(("a", DIR), ("a", DIR)), "out of order"),
            (stats(("a/b", 0o644)), "without its directory"),
            (stats(stat_pb2.Stat(path="a", mode=1 << 27, linkname="/etc"), ("a/passwd", 0o644)), "without its directory"),
            (stats(stat_pb2.Stat(path="a", mode=0o644, linkname="/etc/passwd")), "hard link"),
            (stats(stat_pb2.Stat(path="a", mode=1 << 26 | 1 << 21, devmajor=1, devminor=3)), "device"),
            ([Packet(type=Packet.PACKET_DATA, ID=7, data=b"x")], "not asked for"),
            ([Packet(type=Packet.PACKET_REQ, ID=7)], "unexpected packet"),
            ([Packet(type=Packet.PACKET_ERR, data=b"disk on fire")], "disk on fire"),
            ([], "ended before"),
        ],
    )  # fmt: skip
    def test_a_hostile_sender_is_refused(self, client: Client, packets: Sequence[Any], wanted: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            sync_build(client, lambda _requests: iter(packets))
        assert wanted in text(caught.value)

    def test_a_link_out_of_the_directory_is_a_link_in_it(self, client: Client) -> None:
        def send(requests: Iterator[Any]) -> Iterator[Any]:
            yield from stats(stat_pb2.Stat(path="link", mode=1 << 27 | 0o777, linkname="/etc/passwd"))
            yield Packet(type=Packet.PACKET_STAT)
            for packet in requests:
                if packet.type == Packet.PACKET_FIN:
                    yield Packet(type=Packet.PACKET_FIN)
                    return

        def followed(local: Output) -> Output:
            copy = FileActionCopy(src="/link", dest="/copy", follow_symlink=True)
            action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
            return Output(Node(FileOp((action,)), [local]))

        with pytest.raises(grpc.RpcError) as caught:
            sync_build(client, send, followed)
        assert "not found" in text(caught.value)

    def test_a_sender_that_vanishes_fails_its_build_alone(self, client: Client) -> None:
        session = Session()

        def send(_requests: Iterator[Any]) -> Iterator[Any]:
            yield from stats(("a", DIR))
            session.close()

        session.allow(Sync(send))
        session.start(control_stream(client.own))
        local = Output(Node(SourceOp("local://context", {"local.session": session.id})))
        error = client.failure(Session=session.id, Definition=definition(copied(local)))
        assert "session" in text(error)
        client.solve(Definition=definition(made_file()))


class TestSessions:
    def test_a_session_needs_a_name_of_its_own(self, client: Client) -> None:
        known = threading.Event()

        class Probed:
            @property
            def handlers(self) -> dict[str, Any]:
                return {"/grpc.health.v1.Health/Check": self._check}

            def _check(self, call: ServerCall) -> None:
                # Asked once the session is known.
                known.set()
                call.send(b"\x08\x01")

        first = Session()
        first.allow(Probed())
        first.start(control_stream(client.own))
        assert known.wait(10)
        second = Session()
        second.id = first.id
        stream = client.control.Session(iter(()), metadata=second.headers, timeout=10)
        try:
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert "already exists" in text(caught.value)
        finally:
            first.close()

    def test_rubbish_instead_of_http2_ends_the_session(self, client: Client) -> None:
        message = control_pb2.BytesMessage(data=b"GET / HTTP/1.1\r\n\r\n" * 100)
        stream = client.control.Session(
            iter([message]), metadata=(("x-docker-expose-session-uuid", new_id()),), timeout=20
        )
        list(stream)
        client.solve(Definition=definition(made_file()))


class TestHistory:
    def test_records_are_listed_pinned_and_deleted(self, client: Client) -> None:
        ref = new_id()
        client.solve(Ref=ref, Definition=definition(made_file(b"history")))
        (record,) = self.listed(client, ref)
        data = b"".join(
            r.data for r in self.content(client)(content_pb2.ReadContentRequest(digest=record.logs.digest))
        )
        assert int.from_bytes(data[:4], "little") + 4 <= len(data) == record.logs.size
        client.control.UpdateBuildHistory(control_pb2.UpdateBuildHistoryRequest(Ref=ref, Pinned=True))
        assert self.listed(client, ref)[0].pinned
        client.control.UpdateBuildHistory(control_pb2.UpdateBuildHistoryRequest(Ref=ref, Delete=True))
        assert not self.listed(client, ref)

    def test_an_error_is_in_the_record(self, client: Client) -> None:
        ref = new_id()
        client.failure(Ref=ref, Frontend="nope")
        assert "invalid frontend" in self.listed(client, ref)[0].error.message

    def test_internal_builds_leave_no_record(self, client: Client) -> None:
        ref = new_id()
        client.solve(Ref=ref, Definition=definition(made_file()), Internal=True)
        assert not self.listed(client, ref)

    def test_a_listener_hears_of_builds(self, client: Client) -> None:
        seen: list[Any] = []
        stream = client.control.ListenBuildHistory(control_pb2.BuildHistoryRequest(ActiveOnly=True))
        ready = threading.Event()

        def listen() -> None:
            try:
                stream.initial_metadata()
                ready.set()
                for event in stream:
                    seen.append(event)  # noqa: PERF402 -- seen while they come
            except grpc.RpcError:
                return

        thread = threading.Thread(target=listen)
        thread.start()
        assert ready.wait(10)
        time.sleep(0.2)
        ref = new_id()
        client.solve(Ref=ref, Definition=definition(made_file()))
        deadline = time.monotonic() + 10
        while len(own := [e.type for e in seen if e.record.Ref == ref]) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        stream.cancel()
        thread.join(10)
        # Others build here, too.
        assert own == [control_pb2.STARTED, control_pb2.COMPLETE]

    @staticmethod
    def listed(client: Client, ref: str) -> list[Any]:
        request = control_pb2.BuildHistoryRequest(EarlyExit=True, Ref=ref)
        return [e.record for e in client.control.ListenBuildHistory(request, timeout=10)]

    @staticmethod
    def content(client: Client) -> Any:
        return client.channel.unary_stream(
            "/containerd.services.content.v1.Content/Read",
            request_serializer=content_pb2.ReadContentRequest.SerializeToString,
            response_deserializer=content_pb2.ReadContentResponse.FromString,
        )


class TestManyClients:
    def test_two_hundred_clients_are_all_served(self, shared: Server) -> None:
        def one(number: int) -> None:
            client = Client(shared.address)
            try:
                client.solve(Definition=definition(made_file(b"%d" % (number % 10))))
            finally:
                client.channel.close()

        with ThreadPoolExecutor(200) as pool:
            list(pool.map(one, range(200)))

    def test_the_same_work_of_many_clients_is_done_once(self, client: Client) -> None:
        refs = [new_id() for _ in range(20)]
        with ThreadPoolExecutor(20) as pool:
            pb = definition(copied(made_file(b"shared")))
            list(pool.map(lambda ref: client.solve(Ref=ref, Definition=pb), refs))
        seen = {v.digest: v for s in self.status(client, refs) for v in s.vertexes if v.HasField("completed")}
        assert seen

    @staticmethod
    def status(client: Client, refs: Sequence[str]) -> list[Any]:
        return [
            s for ref in refs for s in client.control.Status(control_pb2.StatusRequest(Ref=ref), timeout=10)
        ]


def test_workers_are_filtered(client: Client) -> None:
    listed = client.control.ListWorkers(control_pb2.ListWorkersRequest())
    name = listed.record[0].ID
    for filters, count in (([f"id=={name}"], 1), (["id==nope"], 0), ([f"id!={name}"], 0)):
        found = client.control.ListWorkers(control_pb2.ListWorkersRequest(filter=filters))
        assert len(found.record) == count, filters


def test_health_is_serving(client: Client) -> None:
    channel: Any = client.channel
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=10) == b"\x08\x01"


def test_prune_leaves_nothing_that_is_not_used(client: Client, tmp_path: Path) -> None:
    client.solve(Definition=definition(made_file(b"to be pruned")))
    before = client.control.DiskUsage(control_pb2.DiskUsageRequest()).record
    removed = list(client.control.Prune(control_pb2.PruneRequest(all=True), timeout=30))
    assert before
    assert removed
    assert json.dumps(sorted(r.ID for r in removed))
