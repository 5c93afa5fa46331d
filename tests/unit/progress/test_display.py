"""Choosing a printer, feeding it from many threads, rawjson, and the live display."""

from __future__ import annotations

import io
import json
import re
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.errors import Position, SourceFile, SourceRange, UsageError
from crossdock.progress.display import Display, SilentPrinter, choose_mode, make_printer
from crossdock.progress.events import Event, Vertex, VertexLog, VertexStatus, VertexWarning
from crossdock.progress.plain import PlainPrinter
from crossdock.progress.rawjson import RawJsonPrinter
from crossdock.progress.tty import TtyPrinter, parse_colors

if TYPE_CHECKING:
    from collections.abc import Iterable

S = 1_000_000_000
T0 = 1_700_000_000 * S


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUILDKIT_PROGRESS", "BUILDKIT_COLORS", "NO_COLOR", "BUILDKIT_TTY_LOG_LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode(None) == "auto"
    assert choose_mode(None, quiet=True) == "quiet"
    monkeypatch.setenv("BUILDKIT_PROGRESS", "plain")
    assert choose_mode(None) == "plain"
    assert choose_mode("rawjson") == "rawjson"
    with pytest.raises(UsageError, match="invalid progress mode"):
        choose_mode("fancy")
    with pytest.raises(UsageError, match="cannot be used together"):
        choose_mode("tty", quiet=True)


def test_printers() -> None:
    assert isinstance(make_printer("auto", io.StringIO()), PlainPrinter)
    assert isinstance(make_printer("plain", Terminal()), PlainPrinter)
    assert isinstance(make_printer("rawjson", io.StringIO()), RawJsonPrinter)
    assert isinstance(make_printer("quiet", Terminal()), SilentPrinter)
    with pytest.raises(UsageError, match="needs a terminal"):
        make_printer("tty", io.StringIO())


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[str] = set()
        self.ended = False

    def update(self, events: Iterable[Event]) -> None:
        self.events += events
        self.threads.add(threading.current_thread().name)

    def refresh(self) -> None:
        self.threads.add(threading.current_thread().name)

    def done(self) -> None:
        self.ended = True


def test_events_of_many_threads_reach_the_printer_in_one_thread() -> None:
    recorder = Recorder()

    def emit(display: Display, number: int) -> None:
        for step in range(50):
            display.emit(Vertex(digest=f"{number}-{step}", name="x"))

    with Display(recorder) as display:
        threads = [threading.Thread(target=emit, args=(display, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recorder.events) == 200
    assert recorder.threads == {"progress"}
    assert recorder.ended


def test_a_printer_that_fails_is_heard_at_the_end() -> None:
    class Broken(Recorder):
        def update(self, events: Iterable[Event]) -> None:
            raise BrokenPipeError

    display = Display(Broken())
    with pytest.raises(BrokenPipeError), display:
        display.emit(Vertex(digest="a", name="x"))


def test_rawjson_has_the_shape_of_buildkit() -> None:
    out = io.StringIO()
    source = SourceRange(SourceFile("Dockerfile", "FROM a\n"), Position(1, 2), Position(1))
    RawJsonPrinter(out).update(
        [
            Vertex(digest="sha256:a", name="x", inputs=("sha256:b",), started_ns=T0 + 1500, cached=True),
            VertexStatus(id="s", vertex="sha256:a", current=0, total=5, timestamp_ns=T0, started_ns=T0),
            VertexLog(vertex="sha256:a", stream=2, data=b"hi\xff", timestamp_ns=T0),
            VertexWarning(vertex="sha256:a", level=1, short="w", detail=("d",), url="u", source=source),
        ]
    )
    assert json.loads(out.getvalue()) == {
        "vertexes": [
            {
                "digest": "sha256:a",
                "inputs": ["sha256:b"],
                "name": "x",
                "started": "2023-11-14T22:13:20.0000015Z",
                "cached": True,
            }
        ],
        "statuses": [
            {
                "id": "s",
                "vertex": "sha256:a",
                "total": 5,
                "current": 0,
                "timestamp": "2023-11-14T22:13:20Z",
                "started": "2023-11-14T22:13:20Z",
            }
        ],
        "logs": [{"vertex": "sha256:a", "stream": 2, "data": "aGn/", "timestamp": "2023-11-14T22:13:20Z"}],
        "warnings": [
            {
                "vertex": "sha256:a",
                "level": 1,
                "short": "dw==",
                "detail": ["ZA=="],
                "url": "u",
                "sourceInfo": {"filename": "Dockerfile", "data": "RlJPTSBhCg=="},
                "range": [{"start": {"line": 1, "character": 2}, "end": {"line": 1}}],
            }
        ],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"run": "blue", "error": "red"}),
        ("run=cyan:error=255,0,10", {"run": "cyan", "error": "rgb(255,0,10)"}),
        ('run=light-green:cancel="0,1,2"', {"run": "bright_green", "error": "red"}),
        ("run=nope:foo=red:error=256,0,0:warning", {"run": "blue", "error": "red"}),
    ],
)
def test_colours(text: str, expected: dict[str, str]) -> None:
    colors = parse_colors(text)
    assert {k: colors[k] for k in expected} == expected


def events(*, finished: bool) -> list[Event]:
    stop = T0 + S if finished else None
    return [
        Vertex(digest="a", name="[internal] load", started_ns=T0, completed_ns=T0 + S // 10),
        Vertex(digest="b", name="[linux/arm64 1/2] FROM x", started_ns=T0, completed_ns=T0, cached=True),
        Vertex(digest="c", name="[linux/arm64 2/2] RUN make", started_ns=T0),
        VertexStatus(
            id="sha256:abc", vertex="a", current=5_000_000, total=10_000_000, started_ns=T0, timestamp_ns=T0
        ),
        VertexLog(vertex="c", stream=1, data=b"first\n\x1b[31mred\x1b[0m\nold\rnew\n", timestamp_ns=T0),
        Vertex(digest="c", name="[linux/arm64 2/2] RUN make", started_ns=T0, completed_ns=stop),
    ]


def screen(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_live_display_shows_steps_transfers_and_a_log_window() -> None:
    out = Terminal()
    printer = TtyPrinter(out, description="embedded:x", clock=lambda: T0 + 2 * S)
    printer.update(events(finished=False))
    printer.refresh()
    text = screen(out.getvalue())
    printer.done()
    assert re.search(r"\[\+\] Building 2\.0s \(2/3\) +embedded:x", text)
    assert re.search(r" => \[internal\] load +0\.1s", text)
    assert re.search(r" => => sha256:abc 5\.00MB / 10\.00MB 2\.50MB/s +2\.0s", text)
    assert " => CACHED [linux/arm64 1/2] FROM x" in text
    assert " => => # red" in text
    assert " => => # new" in text
    assert "old" not in text


def test_the_end_of_the_live_display_stays_whole_even_on_a_small_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "6")
    out = Terminal()
    printer = TtyPrinter(out, clock=lambda: T0 + 2 * S)
    many: list[Event] = [
        Vertex(digest=str(n), name=f"STEP {n}", started_ns=T0, completed_ns=T0 + S) for n in range(20)
    ]
    printer.update(many)
    printer.refresh()
    small = screen(out.getvalue())
    assert "STEP 0 " not in small
    assert "STEP 19" in small
    printer.done()
    text = screen(out.getvalue())
    assert all(f"STEP {n} " in text for n in range(20))
    assert "(20/20) FINISHED" in text


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    printer = TtyPrinter(out, clock=lambda: T0 + 2 * S)
    printer.update(events(finished=True))
    printer.done()
    assert not re.search(r"\x1b\[3[0-9]", out.getvalue())


def test_names_with_brackets_are_not_markup() -> None:
    out = Terminal()
    printer = TtyPrinter(out, clock=lambda: T0 + 2 * S)
    printer.update([Vertex(digest="a", name="[bold]x[/bold]", started_ns=T0, completed_ns=T0)])
    printer.done()
    assert "[bold]x[/bold]" in screen(out.getvalue())
