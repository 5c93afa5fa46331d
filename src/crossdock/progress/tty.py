"""The live display of a terminal: one line per step, a window of log lines under the busiest ones.

``rich`` is imported when a display is made, so only on a terminal.

Spec: moby/buildkit ``util/progress/progressui/display.go`` for layout and environment variables.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from crossdock.progress.trace import Trace, VertexTrace, format_bytes, is_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO

    from rich.live import Live
    from rich.text import Text

    from crossdock.progress.events import Event, VertexStatus

__all__ = ["TtyPrinter", "parse_colors"]

_DEFAULT_COLORS = {"run": "blue", "cancel": "yellow", "warning": "yellow", "error": "red"}
_NAMES = ("black", "blue", "cyan", "green", "magenta", "red", "white", "yellow")
_NAMED = {"default": "default", **{n: n for n in _NAMES}, **{f"light-{n}": f"bright_{n}" for n in _NAMES}}
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]"
)
_MIN_WINDOW = 6
_MIN_NAME_WIDTH = 12


def parse_colors(text: str) -> dict[str, str]:
    """Read ``BUILDKIT_COLORS`` (``run=cyan:error=255,0,0``) over the defaults; wrong parts are ignored, as there."""
    colors = dict(_DEFAULT_COLORS)
    for item in text.split(":"):
        key, _, value = item.strip('"').partition("=")
        key, value = key.strip().lower(), value.strip().lower()
        if key not in colors:
            continue
        parts = value.split(",")
        if value in _NAMED:
            colors[key] = _NAMED[value]
        elif len(parts) == 3 and all(p.isdigit() and int(p) <= 255 for p in parts):
            colors[key] = f"rgb({','.join(parts)})"
    return colors


class TtyPrinter:
    """Draws a :class:`Trace` in place; used by one thread."""

    def __init__(
        self,
        out: TextIO,
        *,
        description: str = "",
        phase: str = "Building",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        no_color = bool(os.environ.get("NO_COLOR"))
        self._colors = {} if no_color else parse_colors(os.environ.get("BUILDKIT_COLORS", ""))
        self._console = Console(
            file=out, force_terminal=True, no_color=no_color, highlight=False, soft_wrap=False
        )
        self._phase, self._description, self._clock = phase, description, clock
        lines = os.environ.get("BUILDKIT_TTY_LOG_LINES", "")
        self._window = int(lines) if lines.isdigit() and int(lines) > 0 else _MIN_WINDOW
        self.trace = Trace()
        self._out = out
        self._live: Live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._start_ns = clock()
        self._live.start()

    def update(self, events: Iterable[Event]) -> None:
        """Take events; drawn at the next refresh."""
        self.trace.update(events, time.monotonic())
        for trace in self.trace.by_digest.values():
            trace.lines.clear()

    def refresh(self) -> None:
        """Draw what fits the screen."""
        self._live.update(self._draw(whole=False), refresh=True)

    def done(self) -> None:
        """Leave the whole display in the scroll-back, then the logs of failed steps."""
        self._live.stop()
        self._console.print(self._draw(whole=True), overflow="crop", no_wrap=True, crop=True)
        self._out.write(self.trace.failure_text())
        self._out.flush()

    def _draw(self, *, whole: bool) -> Text:
        from rich.text import Text

        width, height = self._console.size
        rows: list[tuple[str, str]] = []
        for trace in self.trace.order:
            rows += self._rows(trace, width)
        windows = {} if whole else self._windows(height)
        if not whole:
            rows = self._fit(width, height, windows)
        text = Text(self._header(width, whole=whole) + "\n", no_wrap=True, overflow="crop")
        for line, style in rows:
            text.append(line + "\n", style or None)
        text.rstrip()
        return text

    def _header(self, width: int, *, whole: bool) -> str:
        completed, total = self.trace.counts()
        start = self.trace.start_ns or self._start_ns
        state = " FINISHED" if whole and completed and completed == total else ""
        left = f"[+] {self._phase} {(self._clock() - start) / 1e9:.1f}s ({completed}/{total}){state}"
        return _align(left, self._description, width - 1)

    def _fit(self, width: int, height: int, windows: dict[str, list[str]]) -> list[tuple[str, str]]:
        """Choose rows for a screen: the newest, with running steps kept when older ones must go."""
        blocks: list[tuple[bool, list[tuple[str, str]]]] = []
        for trace in self.trace.order:
            rows = self._rows(trace, width)
            rows += [
                (f" => => # {line}"[: width - 1], "dim") for line in windows.get(trace.vertex.digest, ())
            ]
            blocks.append((not trace.completed, rows))
        room = max(height - 2, 1)
        excess = sum(len(rows) for _, rows in blocks) - room
        for finished_only in (True, False):
            kept = []
            for running, rows in blocks:
                if excess > 0 and not (finished_only and running):
                    excess -= len(rows)
                else:
                    kept.append((running, rows))
            blocks = kept
        return [row for _, rows in blocks for row in rows]

    def _windows(self, height: int) -> dict[str, list[str]]:
        """Log windows for running steps with output, the most talkative first, while there is room."""
        running = [t for t in self.trace.order if not t.completed]
        talking = sorted((t for t in running if t.window_bytes), key=lambda t: -t.window_bytes)
        size = max(_MIN_WINDOW, min(self._window, height - _MIN_WINDOW - 1))
        free = height - 2 - len(running)
        shown: dict[str, list[str]] = {}
        for trace in talking:
            if free <= size + 3:
                break
            lines = [*trace.window, trace.partial.decode("utf-8", "replace")][-size - 1 :]
            cleaned = [_clean(line) for line in lines]
            shown[trace.vertex.digest] = [line for line in cleaned if line][-size:]
            free -= size + 3
        return shown

    def _rows(self, trace: VertexTrace, width: int) -> list[tuple[str, str]]:
        vertex, now = trace.vertex, self._clock()
        name, style = vertex.name, ""
        if vertex.error:
            cancelled = is_cancelled(vertex.error)
            name = f"{'CANCELED' if cancelled else 'ERROR'} {name}"
            style = "cancel" if cancelled else "error"
        elif trace.completed:
            style = "run"
        if vertex.cached:
            name = f"CACHED {name}"
        rows = [self._row(name, "", trace.duration_s(now), style, width)]
        for status in trace.statuses.values():
            if status.started_ns is not None:
                done = status.completed_ns is not None
                seconds = ((status.completed_ns or now) - status.started_ns) / 1e9
                rows.append(
                    self._row(
                        f"=> {status.id}",
                        _status_text(status, seconds),
                        seconds,
                        "run" if done else "",
                        width,
                    )
                )
        seconds = trace.duration_s(now)
        rows += [self._row(f"WARN: {w.short}", "", seconds, "warning", width) for w in trace.warnings]
        return rows

    def _row(self, name: str, status: str, seconds: float, style: str, width: int) -> tuple[str, str]:
        timer = f"{0.0 if seconds < 0.05 else seconds:3.1f}s"
        left = width - len(" => ") - len(timer) - 2
        if status and left > 20:
            left -= len(status) + 1
            name = f"{_clean(name)[: max(left, _MIN_NAME_WIDTH)]} {status}"
        else:
            name = _clean(name)[: max(left, _MIN_NAME_WIDTH)]
        return _align(f" => {name}", timer, width - 1), self._colors.get(style, "")


def _status_text(status: VertexStatus, seconds: float) -> str:
    if not status.total:
        return format_bytes(status.current) if status.current else ""
    text = f"{format_bytes(status.current)} / {format_bytes(status.total)}"
    if status.completed_ns is None and status.current and seconds >= 0.5:
        text += f" {format_bytes(int(status.current / seconds))}/s"
    return text


def _align(left: str, right: str, width: int) -> str:
    room = max(width - len(right) - 1, 0)
    return f"{left[:room]:<{room}} {right}"


def _clean(line: str) -> str:
    """Keep what a terminal would show of one line: after the last return, without escape sequences."""
    return _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2].replace("\t", "    "))
