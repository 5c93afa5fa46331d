"""Vertices of one progress group are shown as one step."""

from __future__ import annotations

from crossdock.progress import Vertex, VertexLog
from crossdock.progress.trace import Trace


def member(digest: str, **state: object) -> Vertex:
    return Vertex(
        digest=digest, name=f"part {digest}", progress_group="g", progress_group_name="COPY x y", **state
    )  # type: ignore[arg-type]


def test_a_group_is_one_step_that_ends_with_its_last_member() -> None:
    trace = Trace()
    trace.update([member("a"), member("b"), member("a", started_ns=10, completed_ns=20)], 0.0)
    trace.update([VertexLog(vertex="a", stream=1, data=b"hello\n", timestamp_ns=15)], 0.0)
    assert [t.vertex.name for t in trace.order] == ["COPY x y"]
    assert trace.order[0].completed
    assert [line.partition(" ")[2] for line in trace.order[0].lines] == ["hello"]
    trace.update([member("b", started_ns=30)], 0.0)
    assert not trace.order[0].completed
    trace.update([member("b", started_ns=30, completed_ns=40, error="boom")], 0.0)
    assert trace.order[0].completed
    assert trace.failed()[0].vertex.error == "boom"
    assert trace.counts() == (1, 1)


def test_a_group_is_cached_when_all_that_ran_was() -> None:
    trace = Trace()
    trace.update([member("a"), member("b", started_ns=1, completed_ns=2, cached=True)], 0.0)
    assert trace.order[0].vertex.cached
