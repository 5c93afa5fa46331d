from __future__ import annotations

from typing import Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters.parallel import run_parallel
from crossdock.engine.exporters.report import reported
from crossdock.errors import Cancelled, ExportError
from crossdock.progress import Vertex, VertexStatus


def test_a_stage_starts_and_ends_under_one_vertex(events: Any) -> None:
    with reported(events, "exporting to image", "0") as report, report.stage("exporting layers"):
        pass
    first, *statuses, last = events.events
    assert isinstance(first, Vertex)
    assert first.name == "exporting to image"
    assert [s.completed_ns is None for s in statuses] == [True, False]
    assert {s.vertex for s in statuses} == {first.digest} == {last.digest}


def test_a_failure_is_the_vertexs_error(events: Any) -> None:
    summary = "cannot write"
    with pytest.raises(ExportError), reported(events, "exporting", "0"):
        raise ExportError(summary)
    assert events.events[-1].error == "cannot write"


def test_a_transfer_of_nothing_is_not_shown(events: Any) -> None:
    with reported(events, "x", "0") as report:
        with report.transfer("sha256:a", "pushing", 100):
            pass
        with report.transfer("sha256:b", "pushing", 100) as progress:
            for position in range(0, 101, 10):
                progress(position)
    shown = [e for e in events.events if isinstance(e, VertexStatus)]
    assert {s.id for s in shown} == {"sha256:b"}
    assert len(shown) == 2  # the first and the last: those between came too soon
    assert (shown[-1].current, shown[-1].total) == (100, 100)
    assert shown[-1].completed_ns is not None


def test_results_come_in_order_whatever_finishes_first() -> None:
    token = CancelToken()
    assert run_parallel(lambda n, _: n * n, range(50), workers=4, cancel=token) == [n * n for n in range(50)]
    assert run_parallel(lambda n, _: n, [], workers=4, cancel=token) == []


def test_the_first_failure_stops_the_rest_and_is_raised() -> None:
    seen: list[int] = []

    def work(number: int, cancel: CancelToken) -> None:
        seen.append(number)
        if number == 0:
            summary = "first"
            raise ExportError(summary)
        cancel.sleep(30)

    with pytest.raises(ExportError, match="first"):
        run_parallel(work, range(100), workers=3, cancel=CancelToken())
    assert len(seen) <= 5


def test_cancelling_from_outside_ends_all() -> None:
    token = CancelToken()

    def work(number: int, cancel: CancelToken) -> None:
        if number == 3:
            token.cancel()
        cancel.sleep(30)

    with pytest.raises(Cancelled):
        run_parallel(work, range(8), workers=4, cancel=token)
