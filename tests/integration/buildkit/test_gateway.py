"""The client as a library in a frontend's place: results looked into, processes run over them, sources resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit import (
    Auth,
    Client,
    DirectoryTarget,
    Export,
    FileSend,
    FileSync,
    LocalDir,
    SolveOptions,
)
from crossdock.cancel import CancelToken
from crossdock.errors import RemoteError
from crossdock.llb.codec import marshal
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionMkFile, FileOp
from crossdock.progress import Vertex, VertexWarning
from crossdock.registry import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from crossdock.buildkit import Attachable, Gateway, GatewayResult
    from integration.buildkit.conftest import Events
    from support.relays import Relay
    from support.servers import BaseImages

    Frontend: TypeAlias = Callable[[Gateway], GatewayResult | None]
    Run: TypeAlias = Callable[[Frontend], None]

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


@pytest.fixture
def run(relay: Callable[..., Relay], events: Events, context: Path, base: BaseImages) -> Run:
    """Solve with a function for frontend; the context has a Dockerfile over the base image."""
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nCOPY a /dir/a\nRUN ln -s a /dir/link\n")
    files = FileSync({"context": LocalDir(path=context), "dockerfile": LocalDir(path=context)})

    def start(frontend: Frontend) -> None:
        attachables: list[Attachable] = [files, Auth(Credentials, cancel=CancelToken())]
        with Client(relay().address) as client:
            client.solve(
                SolveOptions(), attachables=attachables, sink=events, cancel=CancelToken(), frontend=frontend
            )

    return start


def built(gateway: Gateway) -> str:
    (ref,) = gateway.solve(
        frontend="dockerfile.v0", frontend_opt={"force-network-mode": "none"}, evaluate=True
    ).refs.values()
    return ref


def test_results_are_looked_into(run: Run) -> None:
    def frontend(gateway: Gateway) -> None:
        ref = built(gateway)
        gateway.evaluate(ref)
        found = {entry.path: entry for entry in gateway.read_dir(ref, "/dir")}
        assert sorted(found) == ["a", "link"]
        assert found["link"].linkname == "a"
        assert [e.path for e in gateway.read_dir(ref, "/dir", pattern="l*")] == ["link"]
        stat = gateway.stat_file(ref, "/dir/a")
        assert (stat.size, stat.is_dir, stat.uid) == (5, False, 0)
        assert gateway.stat_file(ref, "/dir").is_dir
        assert gateway.read_file(ref, "/dir/a", offset=1, length=3) == b"ell"
        assert gateway.inputs() == {}
        with pytest.raises(RemoteError, match="no such file"):
            gateway.stat_file(ref, "/none")

    run(frontend)


def test_processes_run_over_a_result(run: Run) -> None:
    said: dict[int, bytes] = {1: b"", 2: b""}

    def note(stream: int, data: bytes) -> None:
        said[stream] += data

    def frontend(gateway: Gateway) -> None:
        ref = built(gateway)
        with gateway.container(ref, mounts={"/again": ref}, network="none") as container:
            script = "cat; cat /again/dir/a; echo $X >&2; touch /again/x; exit 7"
            code = container.run(
                ["/bin/sh", "-c", script], env=["X=words", "PATH=/bin"], stdin=[b"in", b"put\n"], output=note
            )
            assert code == 7
        with gateway.container(ref, network="none") as container:
            assert container.run(["/bin/true"]) == 0
        with gateway.container(ref, network="none") as container:
            assert container.run(["/bin/none"]) != 0

    run(frontend)
    assert said[1] == b"input\nhello"
    assert said[2].startswith(b"words\n")
    assert b"ead-only file system" in said[2]


def test_sources_are_resolved(run: Run, base: BaseImages) -> None:
    def frontend(gateway: Gateway) -> None:
        if "source.metaresolver" not in gateway.caps:  # BuildKit before v0.13
            return
        found = gateway.resolve_source_meta(f"docker-image://{base.amd64}", mode="pull")
        assert found.image_digest.startswith("sha256:")
        assert b"architecture" in found.image_config
        with pytest.raises(RemoteError):
            gateway.resolve_source_meta(f"docker-image://{base.amd64}-none", mode="pull")

    run(frontend)


def test_warnings_reach_the_progress(run: Run, events: Events) -> None:
    def frontend(gateway: Gateway) -> None:
        built(gateway)
        vertex = next(e.digest for e in events if isinstance(e, Vertex) and e.name.startswith("[2/3]"))
        gateway.warn(vertex, "look here", detail=["closely"], url="https://example.com")

    run(frontend)
    (warning,) = [e for e in events if isinstance(e, VertexWarning)]
    assert (warning.short, warning.detail, warning.url) == ("look here", ("closely",), "https://example.com")


def test_definitions_are_solved_and_exported(
    relay: Callable[..., Relay], events: Events, tmp_path: Path
) -> None:
    """LLB of the caller's own, with no frontend at all."""
    action = FileAction(
        input=-1, secondary_input=-1, output=0, action=FileActionMkFile(path="/made", data=b"by hand")
    )
    definition = marshal(Output(Node(FileOp(actions=(action,)))))
    target = FileSend({0: DirectoryTarget(path=tmp_path / "out")})
    with Client(relay().address) as client:
        client.solve(
            SolveOptions(definition=definition, exports=(Export(type="local"),)),
            attachables=[target],
            sink=events,
            cancel=CancelToken(),
        )
    assert (tmp_path / "out/made").read_bytes() == b"by hand"
