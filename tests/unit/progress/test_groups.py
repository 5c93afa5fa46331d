"""Vertices of one progress group are shown as one step."""

from __future__ import annotations

from typing import Any

from crossdock.progress import Vertex, VertexLog
from crossdock.progress.trace import Trace


def member(digest: str, started: int | None = None, completed: int | None = None, **state: Any) -> Vertex:
    return Vertex(
        digest=digest,
        name=f"part {digest}",
        progress_group="g",
        progress_group_name="COPY x y",
        started_ns=started,
        completed_ns=completed,
        **state,
    )


def completed(trace: Trace) -> bool:
    return trace.order[0].completed


def test_a_group_is_one_step_that_ends_with_its_last_member() -> None:
    trace = Trace()
    trace.update([member("a"), member("b"), member("a", started=10, completed=20)], 0.0)
    trace.update([VertexLog(vertex="a", stream=1, data=b"hello\n", timestamp_ns=15)], 0.0)
    assert [t.vertex.name for t in trace.order] == ["COPY x y"]
    assert completed(trace)
    assert [line.partition(" ")[2] for line in trace.order[0].lines] == ["hello"]
    trace.update([member("b", started=30)], 0.0)
    assert not completed(trace)
    trace.update([member("b", started=30, completed=40, error="boom")], 0.0)
    assert completed(trace)
    assert trace.failed()[0].vertex.error == "boom"
    assert trace.counts() == (1, 1)


def test_a_group_is_cached_when_all_that_ran_was() -> None:
    trace = Trace()
    trace.update([member("a"), member("b", started=1, completed=2, cached=True)], 0.0)
    assert trace.order[0].vertex.cached
