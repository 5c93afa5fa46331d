"""Records of builds as clients find them: blobs, traces, limits, restarts; with our own ``history`` as a client."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import content_pb2, control_pb2
from crossdock.buildkit.session.server import new_id
from integration.server.conftest import start
from integration.server.plain import Client, definition, made_file, text

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx, Server
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

Update = control_pb2.UpdateBuildHistoryRequest
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def listed(client: Client, *filters: str, limit: int = 0) -> list[Any]:
    request = control_pb2.BuildHistoryRequest(EarlyExit=True, Filter=filters, Limit=limit)
    return [event.record for event in client.control.ListenBuildHistory(request, timeout=20)]


def blob(client: Client, digest: str) -> bytes:
    read = client.channel.unary_stream(
        "/containerd.services.content.v1.Content/Read",
        request_serializer=content_pb2.ReadContentRequest.SerializeToString,
        response_deserializer=content_pb2.ReadContentResponse.FromString,
    )
    return b"".join(part.data for part in read(content_pb2.ReadContentRequest(digest=digest), timeout=20))


def build(client: Client, content: bytes = b"", **fields: Any) -> str:
    ref = new_id()
    client.solve(Ref=ref, Definition=definition(made_file(content)), **fields)
    return ref


class TestBlobs:
    def test_an_image_is_described_with_its_manifests_though_the_cache_is_pruned(
        self, client: Client
    ) -> None:
        ref = build(
            client, b"image", Exporters=[control_pb2.Exporter(Type="image", Attrs={"name": "e.com/x:1"})]
        )
        list(client.control.Prune(control_pb2.PruneRequest(all=True), timeout=30))
        (record,) = listed(client, f"ref=={ref}")
        described = record.Result.Results[0]
        assert described.digest == record.ExporterResponse["containerimage.digest"]
        assert record.Result.ResultDeprecated == described
        manifest = json.loads(blob(client, described.digest))
        assert json.loads(blob(client, manifest["config"]["digest"]))["rootfs"]["diff_ids"]

    def test_provenance_is_there_though_nobody_asked_for_it(self, client: Client) -> None:
        ref = build(client, b"provenance")
        (record,) = listed(client, f"ref=={ref}")
        (described,) = record.Result.Attestations
        assert described.annotations["in-toto.io/predicate-type"] == "https://slsa.dev/provenance/v1"
        predicate = json.loads(blob(client, described.digest))
        assert predicate["runDetails"]["metadata"]["invocationId"] == ref
        assert predicate["buildDefinition"]["internalParameters"]["buildConfig"]

    def test_the_trace_is_there_once_it_is_asked_for(self, client: Client) -> None:
        ref = new_id()
        request = control_pb2.SolveRequest(Ref=ref, Definition=definition(made_file(b"trace")))
        header = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
        client.control.Solve(request, metadata=header, timeout=30)
        client.control.UpdateBuildHistory(Update(Ref=ref, Finalize=True), timeout=20)
        (record,) = listed(client, f"ref=={ref}")
        assert record.trace.media_type == "application/vnd.buildkit.otlp.json.v0"
        spans = list(objects(blob(client, record.trace.digest).decode()))
        root = spans[0]
        assert root["Name"] == "moby.buildkit.v1.Control/Solve"
        assert (root["Parent"]["TraceID"], root["Parent"]["SpanID"]) == (TRACE_ID, PARENT_ID)
        assert {span["SpanContext"]["TraceID"] for span in spans} == {TRACE_ID}
        assert [span["Parent"]["SpanID"] for span in spans[1:]] == [root["SpanContext"]["SpanID"]]

    def test_spans_that_the_client_exports_are_among_them(self, client: Client) -> None:
        export = client.channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        ref = new_id()
        waiting = client.control.Solve.future(
            control_pb2.SolveRequest(Ref=ref), metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
        )
        _until_started(client, ref)
        export(exported_span("from the client"), timeout=20)
        waiting.cancel()
        _until_ended(client, ref)
        client.control.UpdateBuildHistory(Update(Ref=ref, Finalize=True), timeout=20)
        (record,) = listed(client, f"ref=={ref}")
        names = [span["Name"] for span in objects(blob(client, record.trace.digest).decode())]
        assert names == ["from the client", "moby.buildkit.v1.Control/Solve"]


class TestFilters:
    def test_status_time_and_limit(self, client: Client) -> None:
        good, bad = build(client, b"good"), new_id()
        client.failure(Ref=bad, Frontend="nope")
        assert bad in [r.Ref for r in listed(client, "status==error")]
        assert good not in [r.Ref for r in listed(client, "status==error")]
        assert [r.Ref for r in listed(client, "startedAt>1h", limit=2)] == [bad, good]
        assert not listed(client, "startedAt<1h")
        assert not listed(client, "duration>1h,status==completed")
        assert {good, bad} <= {r.Ref for r in listed(client, "status==error", "status==completed")}

    @pytest.mark.parametrize("wrong", ["startedAt>soon", "duration<x", "ref=", "=a"])
    def test_a_malformed_filter_is_refused(self, client: Client, wrong: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            listed(client, wrong)
        assert "filter" in text(caught.value)


class TestLimits:
    def test_records_beyond_the_limits_go_with_their_blobs(
        self, tmp_path: Path, crossdock: Crossdock
    ) -> None:
        (tmp_path / "x.toml").write_text("[history]\nmaxAge = 0\nmaxEntries = 2\n")
        server = start(tmp_path, crossdock, "--config", str(tmp_path / "x.toml"))
        client = Client(server.address)
        pinned = build(client, b"0")
        client.control.UpdateBuildHistory(Update(Ref=pinned, Pinned=True), timeout=20)
        refs = [build(client, bytes([number])) for number in range(1, 6)]
        assert {r.Ref for r in listed(client)} == {pinned, *refs[-2:]}
        for ref in (pinned, *refs[-2:]):
            client.control.UpdateBuildHistory(Update(Ref=ref, Finalize=True), timeout=20)
        kept = {r.logs.digest for r in listed(client)} | {r.trace.digest for r in listed(client)}
        kept |= {a.digest for r in listed(client) for a in r.Result.Attestations}
        client.channel.close()
        assert server.stop() == 0
        blobs = {f"sha256:{path.name}" for path in (server.root / "history/blobs").iterdir()}
        assert blobs == kept

    def test_records_survive_a_killed_server(self, tmp_path: Path, crossdock: Crossdock) -> None:
        server = start(tmp_path, crossdock)
        client = Client(server.address)
        kept = build(client, b"kept")
        waiting = client.control.Solve.future(control_pb2.SolveRequest(Ref="unfinished"))
        _until_started(client, "unfinished")
        (server.root / "history/half.blobs").write_text("sha256:" + "0" * 64 + "\n")
        (server.root / "history/blobs" / ("0" * 64)).write_text("left")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(20)
        with pytest.raises(grpc.RpcError):
            waiting.result(20)
        client.channel.close()
        again = start(tmp_path, crossdock)
        client = Client(again.address)
        (record,) = listed(client)
        assert record.Ref == kept
        assert blob(client, record.logs.digest)
        assert not (server.root / "history/half.blobs").exists()
        assert not (server.root / "history/blobs" / ("0" * 64)).exists()
        client.channel.close()
        assert again.stop() == 0


@pytest.mark.needs("base", "dockercli", "qemu", "binfmt")
def test_our_own_history_reads_what_buildx_built(
    buildx: Buildx, server: Server, crossdock: Crossdock, base: BaseImages, tmp_path: Path, repository: str
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nARG A\nRUN echo hello; uname -m > /m\n")
    two = ("--platform", "linux/amd64,linux/arm64")
    buildx.build(*two, "-t", f"{repository}:1", "--push", "--build-arg", "A=5", tmp_path / "c")
    buildx.build("-", stdin=f"FROM {base.index}\nRUN echo bad; exit 4\n".encode(), check=False)
    crossdock("create", "--name", "served", "--driver", "remote", server.address).ok()

    def history(*args: str | Path) -> str:
        return crossdock("history", *args, "--builder", "served").ok().out

    rows = history("ls").splitlines()
    assert ["Error" in rows[1], "Completed" in rows[2]] == [True, True]
    shown = history("inspect", "^1")
    for wanted in ("linux/amd64, linux/arm64", "pkg:docker/", "slsa.dev/provenance/v1", "index.v1+json"):
        assert wanted in shown
    assert "exit code: 4" in history("inspect")
    assert "hello" in crossdock("history", "logs", "^1", "--builder", "served").ok().out
    assert '"operationName": "[linux/arm64 2/2] RUN echo hello; uname -m > /m"' in history("trace", "^1")
    attachment = history("inspect", "attachment", "--type", "provenance", "--platform", "linux/arm64", "^1")
    assert json.loads(attachment)["buildDefinition"]
    history("export", "-o", tmp_path / "x.dockerbuild", "^1")
    assert (tmp_path / "x.dockerbuild").stat().st_size > 1000
    history("rm", "--all")
    assert len(history("ls").splitlines()) == 1


def exported_span(name: str) -> bytes:
    """An ``ExportTraceServiceRequest`` with one span."""
    from crossdock.llb.wire import message
    from crossdock.llb.wire import text as text_field

    span = message(1, bytes.fromhex(TRACE_ID)) + message(2, b"12345678") + text_field(5, name)
    return message(1, message(2, message(2, span)))


def objects(text: str) -> Any:
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        value, at = decoder.raw_decode(text, at)
        at += 1
        yield value


def _until_started(client: Client, ref: str) -> None:
    request = control_pb2.BuildHistoryRequest(ActiveOnly=True)
    stream = client.control.ListenBuildHistory(request, timeout=20)
    next(event for event in stream if event.record.Ref == ref)
    stream.cancel()


def _until_ended(client: Client, ref: str) -> None:
    request = control_pb2.BuildHistoryRequest(Ref=ref, EarlyExit=True)
    events = list(client.control.ListenBuildHistory(request, timeout=20))
    assert events[-1].type == control_pb2.COMPLETE
