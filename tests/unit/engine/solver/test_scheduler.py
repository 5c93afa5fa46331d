"""The scheduler with real threads: sharing, cancelling, errors, and closing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.solver import Scheduler
from crossdock.errors import Cancelled, SolveError
from unit.engine.solver.fakes import FakeCache, FakeOp, vertex


class Watcher:
    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []
        self.events: list[Any] = []

    def notify(self, vertex: Any, what: Any, error: Any) -> None:
        self.notes.append((vertex, what))

    def emit(self, vertex: Any, event: Any) -> None:
        self.events.append((vertex, event))


@pytest.fixture
def cache() -> Any:
    return FakeCache()


@pytest.fixture
def scheduler(cache: Any) -> Any:
    made = Scheduler(cache, parallelism=4)
    yield made
    made.close(5)


def in_thread(fn: Any) -> Any:
    box = {}

    def work() -> None:
        try:
            box["value"] = fn()
        except BaseException as exc:  # noqa: BLE001 -- handed to the test
            box["error"] = exc

    thread = threading.Thread(target=work)
    thread.start()
    return thread, box


def test_a_graph_is_solved_and_cached(scheduler: Any, cache: Any) -> None:
    def graph() -> Any:
        ops = [FakeOp("a"), FakeOp("b"), FakeOp("c")]
        return ops, [vertex(ops[0]), vertex(ops[1], "a"), vertex(ops[2], "a", "b")]

    for expected in (1, 0):
        ops, specs = graph()
        watcher = Watcher()
        assert scheduler.solve(specs, [("c", 0)], watcher=watcher, cancel=CancelToken()) == (
            "c:0(a:0(),b:0(a:0()))",
        )
        assert [op.exec_calls for op in ops] == [expected] * 3
        assert ("c", "done" if expected else "cached") in watcher.notes


def test_independent_ops_run_at_once_and_no_more_than_the_limit(cache: Any) -> None:
    scheduler = Scheduler(cache, parallelism=2)
    lock, running, peak = threading.Lock(), 0, 0

    class Busy(FakeOp):
        def execute(self, inputs: Any, ctx: Any) -> Any:
            nonlocal running, peak
            with lock:
                running += 1
                peak = max(peak, running)
            threading.Event().wait(0.03)
            with lock:
                running -= 1
            return super().execute(inputs, ctx)

    specs = [vertex(Busy(f"o{n}")) for n in range(6)]
    scheduler.solve(specs, [(s.id, 0) for s in specs], watcher=Watcher(), cancel=CancelToken())
    scheduler.close(5)
    assert peak == 2


def test_two_solves_of_one_vertex_share_it_and_the_last_to_leave_cancels(scheduler: Any) -> None:
    op = FakeOp("a")
    op.gate = threading.Event()
    one, two = CancelToken(), CancelToken()
    first, first_box = in_thread(
        lambda: scheduler.solve([vertex(op)], [("a", 0)], watcher=Watcher(), cancel=one)
    )
    assert op.started.wait(5)
    second, second_box = in_thread(
        lambda: scheduler.solve([vertex(op)], [("a", 0)], watcher=Watcher(), cancel=two)
    )
    one.cancel()
    first.join(5)
    assert isinstance(first_box["error"], Cancelled)
    op.gate.set()
    second.join(5)
    assert second_box.get("value") == ("a:0()",) or isinstance(second_box.get("error"), Cancelled) is False
    assert op.exec_calls <= 2


@pytest.mark.parametrize("written", [3, 5000])
def test_who_joins_late_hears_what_was_said_before(scheduler: Any, written: int) -> None:
    """All of it, or the end of it when it is long; nothing twice, and in order."""
    heard = threading.Event()

    class Talking(FakeOp):
        def execute(self, inputs: Any, ctx: Any) -> Any:
            for number in range(written):
                ctx.sink.emit(number)
            self.started.set()
            assert heard.wait(10)
            ctx.sink.emit("end")
            return super().execute(inputs, ctx)

    class Late(Watcher):
        def notify(self, vertex: Any, what: Any, error: Any) -> None:
            super().notify(vertex, what, error)
            if what == "started":
                heard.set()

    op, early, late = Talking("a"), Watcher(), Late()
    first, _ = in_thread(
        lambda: scheduler.solve([vertex(op)], [("a", 0)], watcher=early, cancel=CancelToken())
    )
    assert op.started.wait(5)
    scheduler.solve([vertex(op)], [("a", 0)], watcher=late, cancel=CancelToken())
    first.join(5)
    said = [event for _, event in early.events]
    assert said == [*range(written), "end"]
    told = [event for _, event in late.events]
    assert told == said[-len(told) :]
    assert len(told) > min(written, 1000)


def test_cancelling_stops_the_op(scheduler: Any) -> None:
    op = FakeOp("a")
    op.gate = threading.Event()
    token = CancelToken()
    thread, box = in_thread(
        lambda: scheduler.solve([vertex(op)], [("a", 0)], watcher=Watcher(), cancel=token)
    )
    assert op.started.wait(5)
    cause = Cancelled("ctrl-c")
    token.cancel(cause)
    thread.join(5)
    assert box["error"] is cause
    scheduler.close(5)
    assert op.cancelled


def test_the_error_of_an_op_is_raised_as_it_is(scheduler: Any) -> None:
    error = SolveError("boom")
    watcher = Watcher()
    with pytest.raises(SolveError) as caught:
        scheduler.solve([vertex(FakeOp("a", fails=error))], [("a", 0)], watcher=watcher, cancel=CancelToken())
    assert caught.value is error
    assert watcher.notes == [("a", "started"), ("a", "failed")]


def test_a_foreign_exception_in_an_op_fails_the_vertex_not_the_solver(scheduler: Any) -> None:
    with pytest.raises(ValueError, match="odd"):
        scheduler.solve(
            [vertex(FakeOp("a", fails=ValueError("odd")))],
            [("a", 0)],
            watcher=Watcher(),
            cancel=CancelToken(),
        )
    assert scheduler.solve([vertex(FakeOp("b"))], [("b", 0)], watcher=Watcher(), cancel=CancelToken())


def test_two_schedulers_on_one_cache_run_a_key_once(cache: Any) -> None:
    ops = [FakeOp("a"), FakeOp("a")]
    for op in ops:
        op.gate = threading.Event()
    schedulers = [Scheduler(cache, parallelism=2) for _ in ops]
    watchers = [Watcher(), Watcher()]
    threads = [
        in_thread(lambda s=s, o=o, w=w: s.solve([vertex(o)], [("a", 0)], watcher=w, cancel=CancelToken()))
        for s, o, w in zip(schedulers, ops, watchers, strict=True)
    ]
    while not any(op.started.is_set() for op in ops):
        threading.Event().wait(0.005)
    for op in ops:
        assert op.gate is not None
        op.gate.set()
    for thread, _ in threads:
        thread.join(5)
    for scheduler in schedulers:
        scheduler.close(5)
    assert [box["value"] for _, box in threads] == [("a:0()",)] * 2
    assert sum(op.exec_calls for op in ops) == 1
    assert {w.notes[-1] for w in watchers} == {("a", "done"), ("a", "cached")}


def test_a_cancelled_token_is_refused_before_anything_starts(scheduler: Any) -> None:
    token = CancelToken()
    token.cancel()
    op = FakeOp("a")
    with pytest.raises(Cancelled):
        scheduler.solve([vertex(op)], [("a", 0)], watcher=Watcher(), cancel=token)
    assert op.cache_map_calls == 0


def test_closing_ends_what_runs(cache: Any) -> None:
    scheduler = Scheduler(cache, parallelism=2)
    op = FakeOp("a")
    op.gate = threading.Event()
    thread, box = in_thread(
        lambda: scheduler.solve([vertex(op)], [("a", 0)], watcher=Watcher(), cancel=CancelToken())
    )
    assert op.started.wait(5)
    scheduler.close(5)
    thread.join(5)
    assert isinstance(box["error"], Cancelled)


def test_a_watcher_hears_of_its_own_vertices_only(scheduler: Any) -> None:
    ops = [FakeOp("one", key="same"), FakeOp("two", key="same")]
    ops[0].gate = threading.Event()
    watchers = [Watcher(), Watcher()]
    first, _ = in_thread(
        lambda: scheduler.solve([vertex(ops[0])], [("one", 0)], watcher=watchers[0], cancel=CancelToken())
    )
    assert ops[0].started.wait(5)
    second, box = in_thread(
        lambda: scheduler.solve([vertex(ops[1])], [("two", 0)], watcher=watchers[1], cancel=CancelToken())
    )
    while ops[1].cache_map_calls == 0:
        threading.Event().wait(0.005)
    ops[0].gate.set()
    first.join(5)
    second.join(5)
    assert box["value"] == ("one:0()",)
    assert ops[1].exec_calls == 0
    assert {name for name, _ in watchers[1].notes} == {"two"}


def test_each_output_is_told_as_soon_as_it_is_there(scheduler: Any) -> None:
    """The quick one while the slow one still works; both with their numbers."""
    quick, slow = FakeOp("quick"), FakeOp("slow")
    slow.gate = threading.Event()
    told: list[tuple[int, Any]] = []

    def on_output(number: int, result: Any) -> None:
        told.append((number, result))
        if slow.gate is not None:
            slow.gate.set()

    results = scheduler.solve(
        [vertex(slow), vertex(quick)],
        [("slow", 0), ("quick", 0)],
        watcher=Watcher(),
        cancel=CancelToken(),
        on_output=on_output,
    )
    assert told == [(1, "quick:0()"), (0, "slow:0()")]
    assert results == ("slow:0()", "quick:0()")


def test_a_defect_fails_what_is_under_way_and_nothing_later(
    scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeOp):
        def cache_map(self, ctx: object) -> Any:
            return object()

    waiting = FakeOp("waiting")
    waiting.gate = threading.Event()
    thread, box = in_thread(
        lambda: scheduler.solve([vertex(waiting)], [("waiting", 0)], watcher=Watcher(), cancel=CancelToken())
    )
    assert waiting.started.wait(10)
    with pytest.raises(AttributeError):
        scheduler.solve([vertex(Broken("b"))], [("b", 0)], watcher=Watcher(), cancel=CancelToken())
    thread.join(10)
    assert isinstance(box["error"], AttributeError)
    assert "the solver broke" in caplog.text
    assert scheduler.settle(10), "what ran was cancelled"
    good = scheduler.solve([vertex(FakeOp("g"))], [("g", 0)], watcher=Watcher(), cancel=CancelToken())
    assert good == ("g:0()",)
