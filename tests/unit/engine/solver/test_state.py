"""The solver's state machine, one behaviour per case, then random graphs in random order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.engine.solver import model
from crossdock.engine.solver.state import TRANSITIONS, SolverState, VertexState
from crossdock.errors import SolveError
from unit.engine.solver.fakes import Driver, FakeCache, FakeOp, vertex


@pytest.fixture
def cache() -> Any:
    return FakeCache()


def driver(cache: Any, seed: Any = 1) -> Any:
    return Driver(random.Random(seed), cache)


def chain(**names: Any) -> Any:
    a, b, c = FakeOp(names.get("a", "a")), FakeOp("b"), FakeOp("c")
    return [a, b, c], [vertex(a), vertex(b, a.name), vertex(c, "b")]


def test_a_chain_runs_each_op_once_in_order(cache: Any) -> None:
    ops, specs = chain()
    done = driver(cache).solve(specs, "c")
    assert done.results == ("c:0(b:0(a:0()))",)
    assert [op.exec_calls for op in ops] == [1, 1, 1]


def test_a_second_solve_runs_nothing(cache: Any) -> None:
    driver(cache).solve(chain()[1], "c")
    ops, specs = chain()
    second = driver(cache)
    assert second.solve(specs, "c").results == ("c:0(b:0(a:0()))",)
    assert [op.exec_calls for op in ops] == [0, 0, 0]
    assert {n.what for n in second.notes} == {"cached"}
    assert [n.vertex for n in second.notes] == ["a", "b", "c"]


def test_a_hit_needs_no_result_of_its_inputs(cache: Any) -> None:
    driver(cache).solve(chain()[1], "c")
    keys = [k for k, v in cache.results.items() if v[0] in ("a:0()", "b:0(a:0())")]
    for key in keys:
        del cache.results[key]
    ops, specs = chain()
    assert driver(cache).solve(specs, "c").results == ("c:0(b:0(a:0()))",)
    assert [op.exec_calls for op in ops] == [0, 0, 0]


def test_what_changed_reruns_and_what_follows_too(cache: Any) -> None:
    driver(cache).solve(chain()[1], "c")
    a, b, c = FakeOp("a"), FakeOp("b2"), FakeOp("c")
    done = driver(cache).solve([vertex(a), vertex(b, "a"), vertex(c, "b2")], "c")
    assert done.results == ("c:0(b2:0(a:0()))",)
    assert (a.exec_calls, b.exec_calls, c.exec_calls) == (0, 1, 1)


def copy_from(text: Any, *, volatile: Any = False) -> Any:
    """A source whose text is given, and a copy that reads only what is left of ``|``."""
    source = FakeOp(text, volatile=volatile)
    copy = FakeOp("copy", content=[0], reads=lambda t: t.split("|")[0])
    run = FakeOp("run")
    return (source, copy, run), [vertex(source), vertex(copy, text), vertex(run, "copy")]


def test_different_definitions_with_the_same_content_meet_again(cache: Any) -> None:
    driver(cache).solve(copy_from("same|one")[1], "run")
    (source, copy, run), specs = copy_from("same|two")
    again = driver(cache)
    again.solve(specs, "run")
    assert (source.exec_calls, copy.content_calls, copy.exec_calls, run.exec_calls) == (1, 1, 0, 0)
    # now the new definition is known too: not even the source is needed
    (source, copy, run), specs = copy_from("same|two")
    driver(cache).solve(specs, "run")
    assert (source.exec_calls, copy.content_calls, copy.exec_calls, run.exec_calls) == (0, 0, 0, 0)


def test_other_content_runs_again(cache: Any) -> None:
    driver(cache).solve(copy_from("same|one")[1], "run")
    (_, copy, run), specs = copy_from("other|one")
    driver(cache).solve(specs, "run")
    assert (copy.exec_calls, run.exec_calls) == (1, 1)


def test_a_volatile_source_is_never_saved_but_its_user_is(cache: Any) -> None:
    driver(cache).solve(copy_from("tree|1", volatile=True)[1], "run")
    assert all("tree" not in str(k) for k in cache.links)
    assert not any(str(v[0]).startswith("tree|1:0") for v in cache.results.values())
    (source, copy, run), specs = copy_from("tree|1", volatile=True)
    driver(cache).solve(specs, "run")
    assert (source.exec_calls, copy.content_calls, copy.exec_calls, run.exec_calls) == (1, 1, 0, 0)


def test_the_user_of_a_volatile_source_is_keyed_by_content_even_if_it_did_not_ask(cache: Any) -> None:
    for expected in (1, 0):
        source, run = FakeOp("dir", volatile=True), FakeOp("run")
        driver(cache).solve([vertex(source), vertex(run, "dir")], "run")
        assert (run.content_calls, run.exec_calls) == (1, expected)


def test_equal_keys_run_once_within_one_solve(cache: Any) -> None:
    one, two = FakeOp("one", key="same"), FakeOp("two", key="same")
    top = FakeOp("top")
    d = driver(cache)
    done = d.solve([vertex(one), vertex(two), vertex(top, "one", "two")], "top")
    assert one.exec_calls + two.exec_calls == 1
    assert done.results is not None
    assert [n.what for n in d.notes if n.vertex in ("one", "two")].count("cached") == 1


def test_equal_content_runs_once_within_one_solve(cache: Any) -> None:
    a, b = FakeOp("x|a"), FakeOp("x|b")
    first = FakeOp("first", key="copy", content=[0], reads=lambda t: t.split("|")[0])
    second = FakeOp("second", key="copy", content=[0], reads=lambda t: t.split("|")[0])
    top = FakeOp("top")
    specs = [
        vertex(a),
        vertex(b),
        vertex(first, "x|a"),
        vertex(second, "x|b"),
        vertex(top, "first", "second"),
    ]
    driver(cache).solve(specs, "top")
    assert first.exec_calls + second.exec_calls == 1


def collected(stages: int, **first: Any) -> Any:
    """Stages that a chain of copies collects one after the other, each by content."""
    sources = [FakeOp(f"s{n}", **(first if not n else {})) for n in range(stages)]
    copies = [FakeOp(f"c{n}", content=[0], reads=lambda text: text.split("|")[0]) for n in range(stages)]
    specs = [vertex(op) for op in sources]
    for n, op in enumerate(copies):
        specs.append(vertex(op, f"s{n}", *([f"c{n - 1}"] if n else [])))
    return sources, copies, specs


def test_stages_collected_one_after_the_other_run_at_once(cache: Any) -> None:
    _, _, specs = collected(4)
    at_work = driver(cache)
    at_work.send(model.AddJob("job", tuple(specs), (("c3", 0),)))
    while any(not isinstance(command, model.Execute) for command in at_work.pending):
        command = next(c for c in at_work.pending if not isinstance(c, model.Execute))
        at_work.pending.remove(command)
        at_work.send(at_work.perform(command))
    assert sorted(command.vertex for command in at_work.pending) == ["s0", "s1", "s2", "s3"]
    at_work.run()
    assert at_work.finished["job"].error is None


def test_stages_are_not_run_for_copies_that_are_cached(cache: Any) -> None:
    """An imported cache of a build's result alone has no more than that."""
    sources, _, specs = collected(4)
    driver(cache).solve(specs, "c3")
    cache.results = {k: v for k, v in cache.results.items() if v[0].startswith("c")}
    for seed in range(20):
        sources, copies, specs = collected(4)
        driver(cache, seed).solve(specs, "c3")
        assert [op.exec_calls for op in (*sources, *copies)] == [0] * 8


def test_a_stage_that_waits_for_a_local_directory_runs_nothing_early(cache: Any) -> None:
    """A directory is read in a moment: what it leads to may be cached."""
    sources, _, specs = collected(3, volatile=True)
    driver(cache).solve(specs, "c2")
    cache.results = {k: v for k, v in cache.results.items() if v[0].startswith("c")}
    for seed in range(20):
        sources, copies, specs = collected(3, volatile=True)
        driver(cache, seed).solve(specs, "c2")
        assert [op.exec_calls for op in (*sources, *copies)] == [1, 0, 0, 0, 0, 0]


def test_ignoring_the_cache_runs_again_once_and_saves_for_the_next(cache: Any) -> None:
    driver(cache).solve(chain()[1], "c")
    ops, specs = chain()
    specs[1] = specs[1]._replace(nonce="n1", id="b")
    done = driver(cache).solve(specs, "c")
    assert [op.exec_calls for op in ops] == [
        0,
        1,
        1,
    ]  # c uses the new result, not what was built on the old one
    assert done.error is None
    ops, specs = chain()
    driver(cache).solve(specs, "c")
    assert [op.exec_calls for op in ops] == [0, 0, 0]


def test_an_error_names_the_vertex_and_stops_the_job(cache: Any) -> None:
    a, b, c = FakeOp("a"), FakeOp("b", fails=SolveError("boom")), FakeOp("c")
    d = driver(cache)
    done = d.solve([vertex(a), vertex(b, "a"), vertex(c, "b")], "c")
    assert done.results is None
    assert done.vertex == "b"
    assert str(done.error) == "boom"
    assert c.exec_calls == 0
    assert d.state.idle


def test_a_failure_cancels_what_else_runs_for_the_job(cache: Any) -> None:
    slow, bad, top = FakeOp("slow"), FakeOp("bad", fails=SolveError("no")), FakeOp("top")
    d = driver(cache)
    d.send(model.AddJob("j", (vertex(slow), vertex(bad), vertex(top, "slow", "bad")), (("top", 0),)))
    while not any(isinstance(p, model.Execute) and p.vertex == "bad" for p in d.pending) or not any(
        isinstance(p, model.Execute) and p.vertex == "slow" for p in d.pending
    ):
        command = next(p for p in d.pending if not isinstance(p, model.Execute))
        d.pending.remove(command)
        d.send(d.perform(command))
    running = next(p for p in d.pending if p.vertex == "slow")
    failing = next(p for p in d.pending if p.vertex == "bad")
    d.send(d.perform(failing))
    assert d.cancels == [running.token]
    assert d.finished["j"].vertex == "bad"


def test_only_the_last_interested_job_cancels(cache: Any) -> None:
    specs = chain()[1]
    d = driver(cache)
    d.send(model.AddJob("one", tuple(specs), (("c", 0),)))
    d.send(model.AddJob("two", tuple(specs), (("c", 0),)))
    while not any(isinstance(p, model.Execute) for p in d.pending):
        d.step()
    d.send(model.RemoveJob("one"))
    assert d.cancels == []
    d.send(model.RemoveJob("two"))
    assert len(d.cancels) >= 1
    assert d.state.idle
    assert d.state.state_of("a") is None
    d.run()  # late answers are ignored
    assert d.finished == {}


def test_a_vertex_only_keyed_for_others_stops_when_nobody_wants_it(cache: Any) -> None:
    specs = chain()[1]
    driver(cache).solve(specs, "c")
    key = next(k for k, v in cache.results.items() if v[0] == "a:0()")
    del cache.results[key]
    a, b, c = FakeOp("a"), FakeOp("b"), FakeOp("c")
    d = driver(cache)
    hold = FakeOp("hold")
    # "wide" needs a's result, "cached" only its key
    other = vertex(FakeOp("other"), "a")
    d.send(
        model.AddJob(
            "cached", (vertex(a), vertex(b, "a"), vertex(c, "b"), vertex(hold)), (("c", 0), ("hold", 0))
        )
    )
    d.send(model.AddJob("wide", (vertex(a), other), (("other", 0),)))
    while d.state.state_of("a") is not VertexState.RUNNING:
        command = next(p for p in d.pending if getattr(p, "vertex", "") != "hold")
        d.pending.remove(command)
        d.send(d.perform(command))
    d.send(model.RemoveJob("wide"))
    assert d.state.state_of("a") is VertexState.CONTENT_KEYED
    assert len(d.cancels) == 1
    d.run()
    assert d.finished["cached"].error is None


def test_outputs_are_told_apart(cache: Any) -> None:
    two = FakeOp("two", outputs=2)
    left, right = FakeOp("l", key="same"), FakeOp("r", key="same")
    specs = [vertex(two), vertex(left, ("two", 0)), vertex(right, ("two", 1))]
    done = driver(cache).solve(specs, "l", "r")
    assert done.results == ("l:0(two:0())", "r:0(two:1())")


def test_a_solve_of_nothing_ends_at_once(cache: Any) -> None:
    assert driver(cache).solve([]).results == ()


def test_late_joiner_hears_the_present_state(cache: Any) -> None:
    specs = chain()[1]
    d = driver(cache)
    d.send(model.AddJob("one", tuple(specs), (("c", 0),)))
    while d.state.state_of("b") is not VertexState.RUNNING:
        d.step()
    d.notes.clear()
    d.send(model.AddJob("two", tuple(specs), (("c", 0),)))
    assert [(n.vertex, n.what) for n in sorted(d.notes)] == [("a", "cached"), ("b", "started")]


def test_every_transition_in_the_table_is_documented() -> None:
    text = (__import__("pathlib").Path(__file__).parents[4] / "docs/dev/solver.md").read_text()
    for start, end in TRANSITIONS:
        assert f"| {start.name} | {end.name} |" in text


def test_the_story_tells_a_vertex_life(cache: Any) -> None:
    d = driver(cache)
    d.solve(chain()[1], "c")
    assert d.state.story("a").splitlines()[0] == "AskCacheMap"
    assert "running -> done" in d.state.story("a")


def test_an_answer_to_an_unknown_command_is_ignored() -> None:
    state = SolverState()
    assert state.handle(model.RunDone(77, ("x",))) == []


# --- random ----------------------------------------------------------------------------------------------------


def random_graph(rng: random.Random, size: int, jobs: int) -> Any:
    """Ops with few distinct keys and contents, so that vertices merge often."""
    ops: list[FakeOp] = []
    specs: list[model.VertexSpec] = []
    for n in range(size):
        count = min(n, rng.choice((0, 1, 1, 2, 3)))
        inputs = [f"v{rng.randrange(n)}" for _ in range(count)]
        op = FakeOp(
            f"v{n}",
            key=f"k{rng.randrange(max(2, size // 2))}",
            content=[i for i in range(count) if rng.random() < 0.4],
            volatile=count == 0 and rng.random() < 0.3,
            reads=lambda t: str(len(t) % 3),
        )
        if rng.random() < 0.03:
            op.fails = SolveError(f"v{n} fails")
        ops.append(op)
        specs.append(vertex(op, *inputs, nonce="n" if rng.random() < 0.1 else ""))
    wanted = [tuple((f"v{rng.randrange(size)}", 0) for _ in range(rng.randrange(1, 4))) for _ in range(jobs)]
    return ops, specs, wanted


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9), size=st.integers(1, 20), jobs=st.integers(1, 4), warm=st.booleans())
def test_any_order_ends_with_every_job_answered_and_nothing_run_twice(
    seed: Any, size: Any, jobs: Any, warm: Any
) -> None:
    rng = random.Random(seed)
    ops, specs, wanted = random_graph(rng, size, jobs)
    cache = FakeCache()
    if warm:
        Driver(random.Random(seed + 1), cache).solve(specs, wanted[0][0])
        for op in ops:
            op.exec_calls = 0
        for key in list(cache.results):
            if rng.random() < 0.3:  # as after a prune
                del cache.results[key]
    d = Driver(rng, cache)
    left = set()
    for n in range(jobs):
        d.send(model.AddJob(f"j{n}", tuple(specs), wanted[n]))
        for _ in range(rng.randrange(6)):
            d.step()
        if rng.random() < 0.3:
            d.send(model.RemoveJob(f"j{n}"))
            left.add(f"j{n}")
    d.run()
    for n in range(jobs):
        name = f"j{n}"
        if name in left:
            continue
        done = d.finished[name]
        assert (done.results is None) == (done.error is not None)
    assert d.state.idle
    assert d.state.state_of("v0") is None
    if not left and not any(op.fails for op in ops):
        assert all(op.exec_calls <= jobs for op in ops)
    if jobs == 1 and not left:
        assert all(op.exec_calls <= 1 for op in ops)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), size=st.integers(1, 14))
def test_results_do_not_depend_on_the_order_of_events(seed: Any, size: Any) -> None:
    def outcome(order: int) -> Any:
        ops, specs, wanted = random_graph(random.Random(seed), size, 1)
        for op in ops:
            op.fails = None
            op.name = op.key  # equal keys give equal results, as real ops do
            op.reads = lambda t: t
        return Driver(random.Random(order)).solve(specs, *wanted[0]).results

    assert outcome(1) == outcome(2) == outcome(3)


class TestOutputsThatAreNotThere:
    """A definition may refer to what an op turns out not to give; a cache may know less than the op."""

    def test_a_user_of_one_fails(self, cache: Any) -> None:
        done = driver(cache).solve([vertex(FakeOp("a")), vertex(FakeOp("b"), ("a", 9))], "b")
        assert isinstance(done.error, SolveError)
        assert "output 9 of a is used, which has 1" in str(done.error)
        assert done.vertex == "b"

    def test_a_user_that_reads_its_content_fails(self, cache: Any) -> None:
        user = FakeOp("b", content=[0], inputs=1)
        done = driver(cache).solve([vertex(FakeOp("a")), vertex(user, ("a", 9))], "b")
        assert "output 9 of a is used" in str(done.error)

    def test_a_solve_that_asks_for_one_fails_also_when_all_is_known(self, cache: Any) -> None:
        for _ in range(2):
            done = driver(cache).solve([vertex(FakeOp("a"))], ("a", 2))
            assert "output 2 of a is used, which has 1" in str(done.error)
        d = driver(cache)
        assert d.solve([vertex(FakeOp("a"))], "a").results
        assert "output 2 of a" in str(d.solve([vertex(FakeOp("a"))], ("a", 2)).error)

    def test_a_record_with_too_few_is_no_hit(self, cache: Any) -> None:
        assert driver(cache).solve([vertex(FakeOp("a"))], "a").results
        two = FakeOp("a", outputs=2)
        done = driver(cache).solve([vertex(two)], ("a", 1))
        assert done.results == ("a:1()",)
        assert two.exec_calls == 1

    def test_others_go_on(self, cache: Any) -> None:
        d = driver(cache)
        bad = (vertex(FakeOp("a")), vertex(FakeOp("b"), ("a", 9)))
        good = (vertex(FakeOp("a")), vertex(FakeOp("c"), "a"))
        d.send(model.AddJob("bad", bad, (("b", 0),)))
        d.send(model.AddJob("good", good, (("c", 0),)))
        d.run()
        assert d.finished["bad"].error is not None
        assert d.finished["good"].results == ("c:0(a:0())",)
