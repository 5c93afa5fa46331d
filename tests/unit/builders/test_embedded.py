"""The parts of the embedded driver that need no engine: the worker's messages, inputs, outputs, refusals."""

from __future__ import annotations

import inspect
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from crossdock import errors
from crossdock.builders.annotations import annotation_attrs
from crossdock.builders.embedded.inputs import gather
from crossdock.builders.embedded.outputs import plan_outputs, reproducible
from crossdock.builders.embedded.steps import EventKeeper, shown
from crossdock.builders.embedded.supported import check_supported
from crossdock.builders.embedded.wire import Channel, pack_error, unpack_error
from crossdock.builders.localpaths import LocalFiles
from crossdock.builders.request import BuildRequest, OutputSpec, SecretSpec
from crossdock.builders.secrets import check_secrets, secret_reader
from crossdock.cancel import CancelToken
from crossdock.engine.exporters.model import ExporterSpec
from crossdock.progress.events import NullSink, Vertex, VertexLog, VertexStatus, VertexWarning
from crossdock.record import replace
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.progress.events import Event

SOURCE = errors.SourceRange(
    errors.SourceFile("Dockerfile", "FROM a\n"), errors.Position(1), errors.Position(1)
)


def every_error() -> Iterator[errors.CrossdockError]:
    values: dict[str, Any] = {
        "host": "h",
        "platform": "linux/arm64",
        "available": ("linux/amd64",),
        "step_exit_code": 7,
        "log_tail": ("a", "b"),
        "detail": "d",
        "hint": "h",
        "source": SOURCE,
        "status": 404,
        "codes": ("X",),
        "vertex": "sha256:a",
        "retryable": True,
    }
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind) and issubclass(kind, errors.CrossdockError):
            known = set(inspect.signature(kind.__init__).parameters)
            yield kind("what happened", **{k: v for k, v in values.items() if k in known})


def send_many(channel: Channel, number: int) -> None:
    for _ in range(10):
        channel.send(number, bytes([number]) * 70_000)


class TestWire:
    @pytest.mark.parametrize("error", list(every_error()), ids=lambda e: type(e).__name__)
    def test_every_error_arrives_as_it_left(self, error: errors.CrossdockError) -> None:
        sent, received = socket.socketpair()
        with sent, received:
            Channel(sent).send("error", pack_error(error))
            message = Channel(received).receive()
        assert message is not None
        arrived = unpack_error(message[1])
        assert type(arrived) is type(error)
        assert arrived.__dict__.items() >= error.__dict__.items()
        assert str(arrived) == "what happened"
        assert arrived.exit_code == error.exit_code
        with pytest.raises(type(error)):
            raise arrived

    def test_events_and_secrets_arrive(self) -> None:
        events: list[Event] = [
            Vertex(digest="a", name="x", started_ns=1),
            VertexStatus(id="s", vertex="a", current=1),
            VertexLog(vertex="a", stream=1, data=b"\xff"),
            VertexWarning(vertex="a", level=1, short="w", source=SOURCE),
        ]
        request = BuildRequest(context=".", secrets=(SecretSpec(id="s", value=Secret("hidden")),))
        sent, received = socket.socketpair()
        with sent, received:
            Channel(sent).send("run", request, events)
            message = Channel(received).receive()
        assert message is not None
        _, arrived, more = message
        assert more == events
        assert arrived.secrets[0].value.reveal() == b"hidden"

    def test_messages_of_many_threads_do_not_mix(self) -> None:
        sent, received = socket.socketpair()
        with sent, received:
            channel, other = Channel(sent), Channel(received)
            threads = [threading.Thread(target=send_many, args=(channel, n)) for n in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                message = other.receive()
                assert message is not None
                number, data = message
                assert data == bytes([number]) * 70_000
            for thread in threads:
                thread.join()

    def test_a_closed_end_is_none(self) -> None:
        sent, received = socket.socketpair()
        with received:
            sent.send(b"\0\0\0")
            sent.close()
            assert Channel(received).receive() is None


class TestInputs:
    def test_a_directory_with_its_dockerfile(self, tmp_path: Path) -> None:
        (tmp_path / "Dockerfile").write_text("FROM a\n")
        found = gather(BuildRequest(context=str(tmp_path)), None)
        assert found.dockerfile == b"FROM a\n"
        assert found.name == "Dockerfile"
        assert found.directories == {"context": tmp_path, "dockerfile": tmp_path}

    def test_a_lower_case_dockerfile_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "dockerfile").write_text("FROM a\n")
        assert gather(BuildRequest(context=str(tmp_path)), None).name == "dockerfile"

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            (BuildRequest(context="absent"), "path 'absent' not found"),
            (
                BuildRequest(context=".", dockerfile="absent"),
                "failed to read dockerfile: open .*absent: No such file",
            ),
            (BuildRequest(context=".", dockerfile="."), "Is a directory"),
        ],
        ids=["no context", "no Dockerfile", "a directory for a Dockerfile"],
    )
    def test_what_is_missing_is_named(
        self, request_: BuildRequest, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(errors.ContextError, match=error):
            gather(request_, None)

    def test_attributes_are_buildkit_s(self, tmp_path: Path) -> None:
        (tmp_path / "Dockerfile").write_text("")
        (tmp_path / "more").mkdir()
        request = BuildRequest(
            context=str(tmp_path),
            build_args={"A": "1"},
            labels={"l": "2"},
            target="t",
            no_cache_filter=("a", "b"),
            pull=True,
            network="none",
            shm_size=7,
            resources={"memory-swap": "-1", "cpu-shares": "2"},
            named_contexts={"x": str(tmp_path / "more"), "y": "docker-image://z"},
        )
        found = gather(request, None)
        assert found.attrs == {
            "build-arg:A": "1",
            "label:l": "2",
            "target": "t",
            "no-cache": "a,b",
            "image-resolve-mode": "pull",
            "force-network-mode": "none",
            "shm-size": "7",
            "memswap": "-1",
            "cpushares": "2",
            "context:x": "local:context:x",
            "context:y": "docker-image://z",
        }
        assert found.directories["context:x"] == tmp_path / "more"

    @pytest.mark.parametrize("entry", ["h:1.2.3.4", "h=1.2.3.4"])
    def test_hosts_may_be_written_in_both_ways(self, tmp_path: Path, entry: str) -> None:
        (tmp_path / "Dockerfile").write_text("FROM scratch\n")
        request = BuildRequest(context=str(tmp_path), add_hosts=(entry, "v6:[::1]"))
        assert gather(request, None).attrs["add-hosts"] == "h=1.2.3.4,v6=::1"

    def test_files_are_read_inside_the_directory_only(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a").write_text("a")
        (tmp_path / "secret").write_text("s")
        (tmp_path / "in/out").symlink_to("../secret")
        (tmp_path / "in/loop").symlink_to("loop")
        files = LocalFiles({"context": tmp_path / "in"})
        assert files.read_file("a") == b"a"
        for path in ("out", "../secret", "/../secret", "absent", "a/b", "."):
            assert files.read_file(path) is None, path
        assert files.read_file("a", local="other") is None
        with pytest.raises(errors.ContextError):
            files.read_file("loop")

    def test_secrets_are_read_when_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN", "t")
        (tmp_path / "f").write_text("f")
        (tmp_path / "big").write_bytes(bytes(600 * 1024))
        read = secret_reader(
            (
                SecretSpec(id="file", path=str(tmp_path / "f")),
                SecretSpec(id="env", env="TOKEN"),
                SecretSpec(id="value", value=Secret("v")),
                SecretSpec(id="big", path=str(tmp_path / "big")),
            )
        )
        found = [read(name) for name in ("file", "env", "value")]
        assert [s.reveal() if s else b"" for s in found] == [b"f", b"t", b"v"]
        assert read("other") is None
        with pytest.raises(errors.UsageError, match="larger than 500 KiB"):
            read("big")

    def test_missing_secrets_are_refused_early(self, tmp_path: Path) -> None:
        with pytest.raises(errors.UsageError, match="cannot read"):
            check_secrets((SecretSpec(id="a", path=str(tmp_path / "absent")),))
        with pytest.raises(errors.UsageError, match="ABSENT_HERE is not set"):
            check_secrets((SecretSpec(id="a", env="ABSENT_HERE"),))


class TestOutputs:
    def plan(self, *outputs: OutputSpec, multi: bool = False, **more: object) -> list[ExporterSpec]:
        request = replace(BuildRequest(context=".", outputs=outputs), **more)
        return plan_outputs(request, multi_platform=multi, sink=NullSink(), cancel=CancelToken())[0]

    def test_tags_and_annotations_reach_images(self) -> None:
        (spec,) = self.plan(
            OutputSpec(type="oci", dest="x.tar"), tags=("a:1", "b:2"), annotations=("index:k=v", "m=n")
        )
        assert spec.attrs == {
            "annotation-index.k": "v",
            "annotation.m": "n",
            "name": "a:1,b:2",
            "dest": "x.tar",
        }

    def test_files_have_no_name(self) -> None:
        (spec,) = self.plan(OutputSpec(type="local", dest="out"), tags=("a:1",))
        assert spec.attrs == {"dest": "out"}

    def test_loading_without_an_engine_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        with pytest.raises(errors.ExportError, match="no Docker Engine answers") as caught:
            self.plan(OutputSpec(type="docker"))
        assert "dest=" in (caught.value.hint or "")

    def test_deleting_elsewhere_must_be_allowed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        mirror = OutputSpec(type="local", dest="/somewhere", attrs={"mode": "delete"})
        with pytest.raises(errors.UsageError, match="would delete files"):
            self.plan(mirror)
        assert self.plan(mirror, allow=("buildx.local.delete",))
        assert self.plan(replace(mirror, dest="below"))

    @pytest.mark.parametrize(
        ("text", "attrs"),
        [
            ("k=v", {"annotation.k": "v"}),
            ("manifest:k=v=w", {"annotation-manifest.k": "v=w"}),
            (
                "index,manifest[linux/arm64]:k=v",
                {"annotation-index.k": "v", "annotation-manifest[linux/arm64].k": "v"},
            ),
        ],
    )
    def test_annotations(self, text: str, attrs: dict[str, str]) -> None:
        assert annotation_attrs([text]) == attrs

    @pytest.mark.parametrize("text", ["k", "Index:k=v", "manifest[*]:k=v"])
    def test_wrong_annotations(self, text: str) -> None:
        with pytest.raises(errors.UsageError, match="invalid annotation"):
            annotation_attrs([text])

    def test_an_epoch_clamps_file_times_unless_told_otherwise(self) -> None:
        specs = [
            ExporterSpec("image", {"push": "true", "unpack": "false"}),
            ExporterSpec("image", {"unpack": "true"}),
            ExporterSpec("oci", {"rewrite-timestamp": "false"}),
            ExporterSpec("local", {}),
        ]
        assert [s.attrs.get("rewrite-timestamp") for s in reproducible(specs, 1)] == [
            "true",
            None,
            "false",
            None,
        ]
        assert reproducible(specs, None) == specs


def test_attestations_that_are_switched_off_are_fine() -> None:
    check_supported(BuildRequest(context=".", attests={"provenance": None}, allow=("network.host",)))
    with pytest.raises(errors.UsageError, match="unknown entitlement"):
        check_supported(BuildRequest(context=".", allow=("root",)))


class TestSteps:
    def test_a_step_starts_and_ends(self) -> None:
        seen: list[Event] = []
        keeper = EventKeeper(type("Sink", (), {"emit": lambda _self, e: seen.append(e)})())
        with shown(keeper, "[internal] x") as step:
            step.log("line")
        first, line, last = seen
        assert isinstance(first, Vertex)
        assert isinstance(line, VertexLog)
        assert isinstance(last, Vertex)
        assert (first.digest, line.vertex, last.digest) == (step.digest,) * 3
        assert first.completed_ns is None
        assert last.completed_ns is not None
        assert keeper.failed is None

    def test_an_error_is_the_step_s(self) -> None:
        keeper = EventKeeper(NullSink())
        with pytest.raises(ValueError, match="boom"), shown(keeper, "x"):
            raise ValueError("boom")
        assert keeper.failed is not None
        assert keeper.failed.error == "boom"
