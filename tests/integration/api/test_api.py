"""The Python API on real parts: builds from a program with threads of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import crossdock
from crossdock.builders.usage import PruneRequest
from crossdock.progress.events import Vertex, VertexLog

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.progress.events import Event
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    monkeypatch.setenv("CROSSDOCK_ROOT", str(root))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    for name in ("BUILDX_BUILDER", "BUILDX_CONFIG", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nENV COLOUR=red\nRUN uname -m\n")
    return folder


@pytest.mark.needs("qemu", "binfmt")
def test_a_build_for_two_platforms_returns_what_was_made(context: Path, repository: str, store: Path) -> None:
    events: list[Event] = []
    result = crossdock.build(
        context,
        tags=[f"{repository}:1"],
        platforms=["linux/amd64", "linux/arm64"],
        push=True,
        on_event=events.append,
    )
    assert result.index is not None
    assert result.index.digest == result.digest == result.metadata["containerimage.digest"]
    assert set(result.images) == {"linux/amd64", "linux/arm64"}
    arm = result.images["linux/arm64"]
    assert "COLOUR=red" in arm.config.env
    assert arm.digest.startswith("sha256:")
    assert arm.digest != result.images["linux/amd64"].digest
    logs = b"".join(e.data for e in events if isinstance(e, VertexLog))
    assert b"x86_64" in logs
    assert b"aarch64" in logs
    assert any(isinstance(e, Vertex) and e.completed_ns for e in events)
    assert crossdock.Builder.get().nodes()[0].status == "running"


def test_the_dockerfile_may_be_given_as_text_and_outputs_as_flags(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = crossdock.build(
        tmp_path, dockerfile=b"FROM scratch\nCOPY file /\n", outputs=[f"type=local,dest={tmp_path}/out"]
    )
    assert (tmp_path / "out/file").read_text() == "x"
    assert result.index is None


def test_a_secret_value_reaches_the_step(context: Path, base: BaseImages) -> None:
    text = f'FROM {base.index}\nRUN --mount=type=secret,id=s test "$(cat /run/secrets/s)" = hidden\n'
    crossdock.build(context, dockerfile=text.encode(), secrets={"s": crossdock.Secret("hidden")})


def test_a_failed_step_is_an_error_with_its_parts(context: Path, base: BaseImages) -> None:
    text = f"FROM {base.index}\n\nRUN echo one && echo two >&2 && exit 3\n"
    with pytest.raises(crossdock.StepFailed) as caught:
        crossdock.build(context, dockerfile=text.encode())
    error = caught.value
    assert error.step_exit_code == 3
    assert [line.rpartition(" ")[2] for line in error.log_tail] == ["one", "two"]
    assert error.source is not None
    assert error.source.start.line == 3
    assert error.platform == str(crossdock.Platform("linux", "amd64"))
    assert error.vertex_name is not None
    assert "RUN echo one" in error.vertex_name


def test_a_registry_error_has_status_and_host(context: Path, repository: str) -> None:
    with pytest.raises(crossdock.NotFoundError) as caught:
        crossdock.build(context, dockerfile=f"FROM {repository}:absent\n".encode())
    assert caught.value.status == 404
    assert caught.value.host == repository.partition("/")[0]


def test_cancelling_from_another_thread_ends_the_build(context: Path, base: BaseImages) -> None:
    token = crossdock.CancelToken()
    ended: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, VertexLog) and b"started" in event.data:
            ended.append(time.monotonic())
            threading.Timer(0.1, token.cancel).start()

    text = f"FROM {base.index}\nRUN echo started && sleep 971\n"
    with pytest.raises(crossdock.Cancelled):
        crossdock.build(context, dockerfile=text.encode(), on_event=on_event, cancel=token)
    assert time.monotonic() - ended[0] < 2
    assert "sleep 971" not in processes()


def test_two_builds_at_once_on_one_store(context: Path, base: BaseImages) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        text = f"FROM {base.index}\nRUN sleep 0.3; echo shared\nRUN echo {number}\n"
        try:
            crossdock.build(context, dockerfile=text.encode())
        except crossdock.CrossdockError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_worker_ends_with_a_killed_caller(context: Path, base: BaseImages, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN echo started && sleep 972\n")
    script = (
        "import crossdock, sys\n"
        "crossdock.build(sys.argv[1], on_event=lambda e: print(getattr(e, 'data', b''), flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(context)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "started" in line:
            break
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 5
    while "sleep 972" in processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "sleep 972" not in processes()


def test_usage_and_prune(context: Path) -> None:
    crossdock.build(context)
    builder = crossdock.Builder.get()
    records = builder.disk_usage()
    assert sum(r.size_bytes for r in records) > 1_000_000
    removed = builder.prune(PruneRequest(all=True))
    assert removed
    assert sum(r.size_bytes for r in builder.disk_usage()) < sum(r.size_bytes for r in records)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import crossdock\n"
        "assert not [m for m in set(sys.modules) - before if not m.startswith('crossdock') and m != '__future__'], "
        "set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors_and_all_names_resolve() -> None:
    for name in crossdock.__all__:
        assert getattr(crossdock, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = crossdock.nope


def processes() -> str:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found.append(file.read().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)
