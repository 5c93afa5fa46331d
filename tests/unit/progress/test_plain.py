"""Numbered steps on a plain stream, in BuildKit's format."""

from __future__ import annotations

import io
import random

from hypothesis import given
from hypothesis import strategies as st

from crossdock.progress.events import Event, Vertex, VertexLog, VertexStatus, VertexWarning
from crossdock.progress.plain import PlainPrinter
from crossdock.progress.trace import Trace, format_bytes

S = 1_000_000_000
T0 = 1_700_000_000 * S


def vertex(digest: str, name: str, start: float, stop: float | None = None, **more: object) -> Vertex:
    return Vertex(
        digest=digest,
        name=name,
        started_ns=T0 + int(start * S),
        completed_ns=None if stop is None else T0 + int(stop * S),
        **more,  # type: ignore[arg-type]
    )


def log(digest: str, data: bytes, at: float) -> VertexLog:
    return VertexLog(vertex=digest, stream=1, data=data, timestamp_ns=T0 + int(at * S))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def printed(*batches: list[Event], description: str = "") -> str:
    out, clock = io.StringIO(), Clock()
    printer = PlainPrinter(out, description=description, clock=clock)
    for batch in batches:
        clock.now += 0.1
        printer.update(batch)
        printer.refresh()
    printer.done()
    return out.getvalue()


def test_a_step_from_start_to_end() -> None:
    text = printed(
        [vertex("a", "[linux/arm64 2/4] RUN make", 0)],
        [log("a", b"one\ntw", 0.123)],
        [log("a", b"o\n", 12.5)],
        [vertex("a", "[linux/arm64 2/4] RUN make", 0, 12.6)],
        description='building with "x" instance using embedded driver',
    )
    assert text == (
        '#0 building with "x" instance using embedded driver\n\n'
        "#1 [linux/arm64 2/4] RUN make\n#1 0.123 one\n#1 0.123 two\n#1 DONE 12.6s\n"
    )


def test_cached_and_cancelled_and_failed_steps() -> None:
    failed = 'process "/bin/sh -c false" did not complete successfully: exit code: 1'
    text = printed(
        [
            vertex("a", "FROM x", 0, 0.0, cached=True),
            vertex("b", "RUN sleep", 0, 1.0, error="context canceled"),
            vertex("c", "RUN false", 0),
            log("c", b"oops\n", 0.5),
            vertex("c", "RUN false", 0, 2.0, error=failed),
        ]
    )
    assert "#1 FROM x\n#1 CACHED\n" in text
    assert "#2 RUN sleep\n#2 CANCELED\n" in text
    assert f"#3 RUN false\n#3 0.500 oops\n#3 ERROR: {failed}\n" in text
    assert text.endswith("------\n > RUN false:\n0.500 oops\n------\n")


def test_the_last_ten_lines_of_a_failed_step_are_repeated() -> None:
    lines = b"".join(b"line %d\n" % n for n in range(30))
    text = printed([vertex("a", "RUN x", 0), log("a", lines, 1), vertex("a", "RUN x", 0, 2, error="boom")])
    tail = text.partition("------\n")[2]
    assert "line 19\n" not in tail
    assert all(f"line {n}\n" in tail for n in range(20, 30))


def test_an_unfinished_line_is_printed_at_the_end() -> None:
    text = printed([vertex("a", "RUN x", 0), log("a", b"no newline", 1)], [vertex("a", "RUN x", 0, 2)])
    assert "#1 1.000 no newline\n#1 DONE 2.0s\n" in text


def test_characters_cut_between_events_are_whole_again() -> None:
    data = "grüße\n".encode()
    text = printed([vertex("a", "RUN x", 0), log("a", data[:3], 1), log("a", data[3:], 1)])
    assert "grüße" in text


def test_switching_between_running_steps_shows_dots() -> None:
    text = printed(
        [vertex("a", "RUN a", 0), log("a", b"from a\n", 0.1)],
        [vertex("b", "RUN b", 0), log("b", b"from b\n", 0.2), vertex("b", "RUN b", 0, 0.3)],
        [log("a", b"again\n", 0.4), vertex("a", "RUN a", 0, 0.5)],
    )
    assert text == (
        "#1 RUN a\n#1 0.100 from a\n#1 ...\n\n#2 RUN b\n#2 0.200 from b\n#2 DONE 0.3s\n\n"
        "#1 RUN a\n#1 0.400 again\n#1 DONE 0.5s\n"
    )


def test_a_silent_step_gives_way_after_ten_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    printer = PlainPrinter(out, clock=clock)
    printer.update([vertex("a", "RUN a", 0), log("a", b"x\n", 0)])
    printer.refresh()
    printer.update([vertex("b", "RUN b", 0), log("b", b"y\n", 0)])
    printer.refresh()
    assert "RUN b" not in out.getvalue()
    clock.now += 11
    printer.refresh()
    assert "RUN b" in out.getvalue()


def test_transfers_show_bytes_time_and_rate() -> None:
    def status(current: int, at: float, *, done: bool = False) -> VertexStatus:
        stamp = T0 + int(at * S)
        return VertexStatus(
            id="sha256:abc",
            vertex="a",
            current=current,
            total=20_000_000,
            started_ns=T0,
            timestamp_ns=stamp,
            completed_ns=stamp if done else None,
        )

    text = printed(
        [vertex("a", "pushing", 0), status(1_000_000, 0.5)],
        [status(1_100_000, 0.6)],
        [status(10_000_000, 2.0)],
        [status(20_000_000, 4.0, done=True), vertex("a", "pushing", 0, 4.0)],
    )
    assert "#1 sha256:abc 1.00MB / 20.00MB 0.5s\n" in text
    assert "1.10MB" not in text
    assert "#1 sha256:abc 10.00MB / 20.00MB 2.0s 5.00MB/s\n" in text
    assert "#1 sha256:abc 20.00MB / 20.00MB 4.0s done\n#1 DONE 4.0s\n" in text


def test_warnings_are_shown_once() -> None:
    warning = VertexWarning(vertex="a", level=1, short="careful")
    text = printed([vertex("a", "RUN x", 0), warning], [vertex("a", "RUN x", 0, 1)])
    assert text.count("#1 WARN: careful\n") == 1


def test_internal_and_unknown_vertices_are_not_shown() -> None:
    text = printed([vertex("a", "hidden", 0, 1, internal=True), log("a", b"x\n", 0), log("zzz", b"y\n", 0)])
    assert text == ""


def test_overlapping_intervals_count_once() -> None:
    trace = Trace()
    trace.update([vertex("a", "x", 0, 2), vertex("a", "x", 1, 3), vertex("a", "x", 5, 6)], 0.0)
    assert trace.by_digest["a"].duration_s(0) == 4.0


def test_sizes() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 29_150_000, 3_200_000_000, 4_000_000_000_000)] == [
        "0B",
        "999B",
        "1.00kB",
        "29.15MB",
        "3.20GB",
        "4.00TB",
    ]


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_every_line_and_outcome_is_printed_exactly_once_in_any_order(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    queues: list[list[Event]] = []
    for step in range(steps):
        events: list[Event] = [vertex(f"v{step}", f"STEP {step}", 0)]
        events += [log(f"v{step}", f"{step}-{n}\n".encode(), 0.1 * n) for n in range(chance.randrange(5))]
        events.append(vertex(f"v{step}", f"STEP {step}", 0, 1))
        queues.append(events)
    out, clock = io.StringIO(), Clock()
    printer = PlainPrinter(out, clock=clock)
    expected = [f"{s}-{n}" for s, q in enumerate(queues) for n in range(len(q) - 2)]
    while any(queues):
        queue = chance.choice([q for q in queues if q])
        printer.update([queue.pop(0)])
        printer.refresh()
        clock.now += chance.choice([0, 0.1, 12])
    printer.done()
    lines = out.getvalue().splitlines()
    for line in expected:
        assert sum(text.endswith(f" {line}") for text in lines) == 1
    assert sum(text.endswith("DONE 1.0s") for text in lines) == steps
