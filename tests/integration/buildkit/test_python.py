"""A program switches engines by naming another builder: the same calls, results, events and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import crossdock
from crossdock.builders.create import CreateOptions, create
from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, DockerfileError, StepFailed
from crossdock.image.platform import local_platform
from crossdock.progress import Vertex, VertexLog, VertexWarning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.progress import Event
    from support.relays import Relay
    from support.servers import BaseImages

pytestmark = [
    pytest.mark.needs("root", "docker", "docker26", "registry", "base", "crun", "userns", "overlay"),
    pytest.mark.slow,
]


@pytest.fixture(params=["embedded", "buildkit"])
def builder(
    request: pytest.FixtureRequest,
    relay: Callable[..., Relay],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The name of a builder of each kind."""
    monkeypatch.setenv("CROSSDOCK_ROOT", str(tmp_path / "store"))
    for name in ("BUILDX_BUILDER", "BUILDX_CONFIG", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "embedded":
        return "embedded"
    create(CreateOptions(name="far", driver="remote", endpoint=relay().address))
    return "far"


def test_results(builder: str, context: Path, repository: str, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.index}\nENV COLOUR=red\nCOPY a /\n")
    platforms = ["linux/amd64", "linux/arm64"]
    result = crossdock.build(
        context, builder=builder, tags=[f"{repository}:1"], platforms=platforms, push=True
    )
    assert result.index is not None
    assert result.index.digest == result.digest == result.metadata["containerimage.digest"]
    assert sorted(result.images) == platforms
    for name, image in result.images.items():
        assert str(image.platform) == name
        assert "COLOUR=red" in image.config.env
        assert image.digest.startswith("sha256:")
    assert len({image.digest for image in result.images.values()}) == 2
    assert result.metadata["image.name"] == f"{repository}:1"


def test_one_platform(builder: str, context: Path, repository: str) -> None:
    result = crossdock.build(
        context,
        builder=builder,
        tags=[f"{repository}:1"],
        push=True,
        attests=["type=provenance,disabled=true"],
    )
    (image,) = result.images.values()
    assert result.index is None
    assert image.digest == result.digest
    assert image.config_digest == result.image_id
    assert image.platform.architecture == local_platform().architecture


def test_events_and_warnings(builder: str, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64} as one\nRUN echo words\n")
    events: list[Event] = []
    result = crossdock.build(
        context, builder=builder, network="none", no_cache=True, on_event=events.append,
        platforms=["linux/amd64"],
    )  # fmt: skip
    finished = {e.name for e in events if isinstance(e, Vertex) and e.completed_ns}
    assert {"[internal] load build definition from Dockerfile", "[2/2] RUN echo words"} <= finished
    assert b"words\n" in b"".join(e.data for e in events if isinstance(e, VertexLog))
    if any(isinstance(e, VertexWarning) for e in events):  # BuildKit checks from v0.15 on
        (warning,) = result.warnings
        assert warning.short.startswith("FromAsCasing")
        assert warning.source is not None
        assert warning.source.start.line == 1
    else:
        assert builder == "far"


def test_mistakes_have_their_place(builder: str, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY a /a\nCOPPY b /b\n")
    with pytest.raises(DockerfileError, match=r"unknown instruction.*COPPY") as caught:
        crossdock.build(context, builder=builder)
    assert caught.value.source is not None
    assert caught.value.source.start.line == 3
    assert caught.value.source.file.text.splitlines()[2] == "COPPY b /b"


def test_failed_steps_have_code_output_and_place(builder: str, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo some words && exit 7\n")
    with pytest.raises(StepFailed) as caught:
        crossdock.build(context, builder=builder, network="none", no_cache=True, platforms=["linux/amd64"])
    error = caught.value
    assert error.step_exit_code == 7
    assert error.log_tail[-1] == "some words"
    assert str(error.vertex).startswith("sha256:")
    assert error.vertex_name is not None
    assert "RUN echo some words" in error.vertex_name
    assert error.source is not None
    assert error.source.start.line == 2


def test_cancelling(builder: str, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo started && sleep 600\n")
    cancel = CancelToken()

    def watch(event: Event) -> None:
        if isinstance(event, VertexLog) and b"started" in event.data:
            cancel.cancel()

    with pytest.raises(Cancelled):
        crossdock.build(
            context, builder=builder, network="none", no_cache=True, on_event=watch, cancel=cancel,
            platforms=["linux/amd64"],
        )  # fmt: skip
