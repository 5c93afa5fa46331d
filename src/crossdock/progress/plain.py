"""Numbered steps on a plain stream: ``#5 [linux/arm64 2/4] RUN make``.

Steps run in parallel but one is shown at a time: the shown one changes when it completes, when another has been
silent for ten seconds, or when the others together deserve the place.

Spec: moby/buildkit ``util/progress/progressui/printer.go``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock.progress.trace import Trace, VertexTrace, format_bytes, is_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO

    from crossdock.progress.events import Event, VertexStatus

__all__ = ["PlainPrinter"]

_ANTI_FLICKER_S = 5.0
_MAX_SILENCE_S = 10.0
_MIN_STATUS_DELTA_NS = 5_000_000_000
_MIN_STATUS_FRACTION = 0.05


class PlainPrinter:
    """Prints a :class:`Trace`; used by one thread."""

    def __init__(
        self, out: TextIO, *, description: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._description = description
        self._clock = clock
        self.trace = Trace()
        self._current = ""
        self._next_index = 1
        self._printed_any = False

    def update(self, events: Iterable[Event]) -> None:
        """Take events; printed at the next refresh, so that a quick start and end make one line."""
        self.trace.update(events, self._clock())

    def refresh(self) -> None:
        """Print what is new."""
        self._print_completed()
        rest = [d for d in self.trace.updates if self.trace.by_digest[d].started]
        if not rest:
            self._continue_open()
        else:
            self._print_active(rest)
        self._out.flush()

    def done(self) -> None:
        """Print everything that is left, then the logs of failed steps."""
        self.refresh()
        for trace in self.trace.order:
            if trace.completed:
                if not trace.closed:
                    self._print_vertex(trace, force_outcome=True)
            elif trace.lines or trace.partial or trace.updated:
                trace.finish_log()
                self._print_vertex(trace)
        self._out.write(self.trace.failure_text())
        self._out.flush()

    def _print_completed(self) -> None:
        by_digest = self.trace.by_digest
        for digest in [d for d in self.trace.updates if _only_warns(by_digest[d])]:
            # Its outcome was printed; the summary at the end of a build lists warnings again.
            self.trace.updates.discard(digest)
        finished = [by_digest[d] for d in self.trace.updates if by_digest[d].completed]
        finished.sort(key=lambda t: (t.vertex.digest != self._current, t.last_stop_ns()))
        for trace in finished:
            self._print_vertex(trace)

    def _continue_open(self) -> None:
        """Without news, make sure that some running step is the shown one."""
        if self._current:
            return
        for trace in self.trace.order:
            if not trace.completed:
                self._print_vertex(trace)
                return

    def _print_active(self, rest: list[str]) -> None:
        by_digest = self.trace.by_digest
        if self._current in rest:
            self._print_vertex(by_digest[self._current])
            rest.remove(self._current)
        if not rest:
            return
        now = self._clock()
        speeds = {d: self._speed(by_digest[d], now) for d in rest}
        best = max(speeds, key=lambda d: speeds[d])
        if not self._current:
            self._print_vertex(by_digest[best])
            return
        silent = [d for d in rest if now - by_digest[d].block_started_s > _MAX_SILENCE_S]
        if silent:
            self._print_vertex(by_digest[silent[0]])
            return
        shown = by_digest[self._current]
        mine = self._speed(shown, now)
        share = mine / ((mine + sum(speeds.values())) or 1.0)
        if share < 1 and _ANTI_FLICKER_S / (1 - share) < now - shown.block_started_s:
            self._print_vertex(by_digest[best])

    @staticmethod
    def _speed(trace: VertexTrace, now: float) -> float:
        return trace.count / max(now - trace.block_started_s, 1e-3)

    def _print_vertex(self, trace: VertexTrace, *, force_outcome: bool = False) -> None:
        digest = trace.vertex.digest
        if not trace.index:
            trace.index, self._next_index = self._next_index, self._next_index + 1
        if digest != self._current:
            self._switch_to(trace)
        if trace.completed:
            trace.finish_log()
        open_status = self._print_statuses(trace)
        for warning in trace.warnings[trace.warned :]:
            self._line(trace, f"WARN: {warning.short}")
        trace.warned = len(trace.warnings)
        for line in trace.lines:
            self._line(trace, line)
        trace.lines.clear()
        self._current = digest
        self.trace.updates.discard(digest)
        if trace.completed and (force_outcome or not open_status):
            self._current, trace.count, trace.closed = "", 0, True
            self._line(trace, _outcome(trace))

    def _switch_to(self, trace: VertexTrace) -> None:
        if self._current:
            old = self.trace.by_digest[self._current]
            old.finish_log()
            for line in old.lines:
                self._line(old, line)
            old.lines.clear()
            old.count = 0
            self._out.write(f"#{old.index} ...\n")
        if self._printed_any:
            self._out.write("\n")
        elif self._description:
            self._out.write(f"#0 {self._description}\n\n")
        self._printed_any = True
        self._line(trace, trace.vertex.name)

    def _print_statuses(self, trace: VertexTrace) -> bool:
        """Print changed transfers; True when one of them is still under way."""
        is_open = False
        for status_id, status in trace.statuses.items():
            if status_id not in trace.updated or status.started_ns is None:
                continue
            if not _worth_printing(status, trace.shown_statuses.get(status_id)):
                continue
            trace.shown_statuses[status_id] = (status.current, status.timestamp_ns)
            self._line(trace, _status_text(status))
            is_open = is_open or status.completed_ns is None
        trace.updated.clear()
        return is_open

    def _line(self, trace: VertexTrace, text: str) -> None:
        self._out.write(f"#{trace.index} {text}\n")


def _only_warns(trace: VertexTrace) -> bool:
    return trace.closed and not (trace.lines or trace.partial or trace.updated)


def _worth_printing(status: VertexStatus, last: tuple[int, int] | None) -> bool:
    if last is None or status.completed_ns is not None:
        return True
    fraction = (status.current - last[0]) / status.total if status.total else 0.0
    return fraction >= _MIN_STATUS_FRACTION or status.timestamp_ns - last[1] >= _MIN_STATUS_DELTA_NS


def _status_text(status: VertexStatus) -> str:
    text = status.id
    if status.total:
        text += f" {format_bytes(status.current)} / {format_bytes(status.total)}"
    elif status.current:
        text += f" {format_bytes(status.current)}"
    seconds = ((status.completed_ns or status.timestamp_ns) - (status.started_ns or 0)) / 1e9
    if seconds > 0.01:
        text += f" {seconds:.1f}s"
    if status.completed_ns is not None:
        return text + " done"
    if status.current and seconds >= 1:
        text += f" {format_bytes(int(status.current / seconds))}/s"
    return text


def _outcome(trace: VertexTrace) -> str:
    vertex = trace.vertex
    if vertex.error:
        return "CANCELED" if is_cancelled(vertex.error) else f"ERROR: {vertex.error}"
    if vertex.cached:
        return "CACHED"
    return f"DONE {trace.duration_s(0):.1f}s"
