"""What is known of a running build, gathered from events; the printers draw it.

Holds state only: no output, no threads. Times are nanoseconds since the epoch.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from crossdock.progress.events import Vertex, VertexLog, VertexStatus, VertexWarning
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.progress.events import Event

__all__ = ["Trace", "VertexTrace", "format_bytes", "is_cancelled"]

_TAIL_LINES = 10
_CANCELLED_SUFFIXES = ("context canceled", "cancelled")


def is_cancelled(error: str) -> bool:
    """Whether a vertex's error only says that the build was cancelled."""
    return error.endswith(_CANCELLED_SUFFIXES)


def format_bytes(count: int) -> str:
    """Format with decimal units and two decimals, as BuildKit's progress does: ``29.15MB``, ``512B``."""
    if count < 1000:
        return f"{count}B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.2f}{unit}"
    return f"{value / 1000:.2f}TB"


class VertexTrace:
    """One step: its latest state and what has not been printed of it yet."""

    __slots__ = (
        "block_started_s",
        "closed",
        "count",
        "index",
        "intervals",
        "lines",
        "partial",
        "partial_ns",
        "shown_statuses",
        "statuses",
        "tail",
        "updated",
        "vertex",
        "warned",
        "warnings",
        "window",
        "window_bytes",
    )

    def __init__(self, vertex: Vertex) -> None:
        self.vertex = vertex
        #: number shown, given on first print; 0 before
        self.index = 0
        self.intervals: dict[int, int | None] = {}
        #: its outcome was printed
        self.closed = False
        #: whole log lines not yet printed, each with its time prefix
        self.lines: list[str] = []
        #: the unfinished last line, raw
        self.partial = b""
        #: when that line began
        self.partial_ns = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        #: last raw lines, for the window of the live display
        self.window: deque[str] = deque(maxlen=64)
        self.window_bytes = 0
        self.statuses: dict[str, VertexStatus] = {}
        self.updated: set[str] = set()
        #: status id -> (current, time) when last printed
        self.shown_statuses: dict[str, tuple[int, int]] = {}
        self.warnings: list[VertexWarning] = []
        self.warned = 0
        #: updates since the vertex was last shown, and since when (seconds, monotonic)
        self.count = 0
        self.block_started_s = 0.0

    @property
    def started(self) -> bool:
        """Whether work on it began."""
        return bool(self.intervals)

    @property
    def completed(self) -> bool:
        """Whether it began and every interval of work ended."""
        return self.started and None not in self.intervals.values()

    @property
    def first_start_ns(self) -> int:
        """When work first began; 0 before."""
        return min(self.intervals, default=0)

    def last_stop_ns(self) -> int:
        """When it completed; 0 before."""
        return max((stop for stop in self.intervals.values() if stop is not None), default=0)

    def duration_s(self, now_ns: int) -> float:
        """Seconds of work, overlapping intervals counted once."""
        total, end = 0, 0
        for start, stop in sorted(self.intervals.items()):
            upto = now_ns if stop is None else stop
            total += max(upto - max(start, end), 0)
            end = max(end, upto)
        return total / 1e9

    def note_update(self, now_s: float) -> None:
        """Count an update, for sharing the screen fairly."""
        if self.count == 0:
            self.block_started_s = now_s
        self.count += 1

    def add_log(self, log: VertexLog) -> None:
        """Split output into lines; an unfinished line waits for its end."""
        self.window_bytes += len(log.data)
        began_ns = self.partial_ns if self.partial else log.timestamp_ns
        *whole, self.partial = (self.partial + log.data).split(b"\n")
        for line in whole:
            self._add_line(line, began_ns)
            began_ns = log.timestamp_ns
        self.partial_ns = began_ns

    def finish_log(self) -> None:
        """Treat an unfinished line as finished."""
        if self.partial:
            self._add_line(self.partial, self.partial_ns)
            self.partial = b""

    def _add_line(self, raw: bytes, timestamp_ns: int) -> None:
        text = raw.removesuffix(b"\r").decode("utf-8", "replace")
        start = self.first_start_ns
        seconds = max(timestamp_ns - start, 0) / 1e9 if start and timestamp_ns else 0.0
        digits = 3 if seconds < 10 else 2 if seconds < 100 else 1
        line = f"{seconds:.{digits}f} {text}"
        self.lines.append(line)
        self.tail.append(line)
        self.window.append(text)


class Trace:
    """All steps of a build, in the order in which they started."""

    def __init__(self) -> None:
        self.by_digest: dict[str, VertexTrace] = {}
        #: started steps, in order
        self.order: list[VertexTrace] = []
        #: digests with something new to print
        self.updates: set[str] = set()
        self.warnings: list[VertexWarning] = []
        self.start_ns = 0
        #: vertex -> the group it is displayed as part of
        self._group_of: dict[str, str] = {}
        #: group -> its members' latest states
        self._groups: dict[str, dict[str, Vertex]] = {}

    def update(self, events: Iterable[Event], now_s: float) -> None:
        """Take events; those about unknown vertices are ignored."""
        for event in events:
            if isinstance(event, Vertex):
                self._vertex(event, now_s)
                continue
            if isinstance(event, VertexWarning):
                self.warnings.append(event)
            shown_as = self._group_of.get(event.vertex, event.vertex)
            trace = self.by_digest.get(shown_as)
            if trace is None:
                continue
            if isinstance(event, VertexStatus):
                trace.statuses[event.id] = event
                trace.updated.add(event.id)
            elif isinstance(event, VertexLog):
                trace.add_log(event)
            else:
                trace.warnings.append(event)
            trace.note_update(now_s)
            self.updates.add(shown_as)

    def _vertex(self, vertex: Vertex, now_s: float) -> None:
        if vertex.internal:
            return
        if vertex.progress_group:
            vertex = self._grouped(vertex)
        trace = self.by_digest.get(vertex.digest)
        if trace is None:
            trace = self.by_digest[vertex.digest] = VertexTrace(vertex)
        changed = vertex != trace.vertex or not trace.started
        if trace.started and vertex.started_ns is None:
            return  # a late first announcement must not reset what is known
        trace.vertex = vertex
        if vertex.started_ns is None:
            return
        if not trace.started:
            self.order.append(trace)
            self.start_ns = self.start_ns or vertex.started_ns
        trace.intervals[vertex.started_ns] = vertex.completed_ns
        trace.closed = trace.closed and trace.completed
        if changed:
            trace.note_update(now_s)
            self.updates.add(vertex.digest)

    def _grouped(self, vertex: Vertex) -> Vertex:
        """Return the vertex that stands for a member's whole group."""
        group = vertex.progress_group
        self._group_of[vertex.digest] = group
        members = self._groups.setdefault(group, {})
        earlier = members.get(vertex.digest)
        if earlier is None or earlier.started_ns is None or vertex.started_ns is not None:
            members[vertex.digest] = vertex
        states = members.values()
        started = [v.started_ns for v in states if v.started_ns is not None]
        stops = [v.completed_ns for v in states if v.completed_ns is not None]
        # A member that is announced but never needed does not hold the group open.
        over = bool(stops) and len(stops) == len(started)
        return replace(
            vertex,
            digest=group,
            name=vertex.progress_group_name or vertex.name,
            started_ns=min(started, default=None),
            completed_ns=max(stops) if over else None,
            cached=over and all(v.cached for v in states if v.started_ns is not None),
            error=next((v.error for v in states if v.error), ""),
        )

    def counts(self) -> tuple[int, int]:
        """Completed and known steps."""
        return sum(t.completed for t in self.by_digest.values()), len(self.by_digest)

    def failed(self) -> list[VertexTrace]:
        """Steps with an error other than cancellation, in order."""
        return [t for t in self.order if t.vertex.error and not is_cancelled(t.vertex.error)]

    def failure_text(self) -> str:
        """Repeat the log tail of every failed step between rules."""
        out: list[str] = []
        for trace in self.failed():
            out += ["------", f" > {trace.vertex.name}:", *trace.tail, "------"]
        return "".join(line + "\n" for line in out)
