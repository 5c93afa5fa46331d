"""From events to a printer: a queue, one thread, and the choice of the printer.

Events come from many threads; the printer is used by the display's own thread only. Start the display after
``become_worker``: it is a thread.
"""

from __future__ import annotations

import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import TextIO

    from crossdock.progress.events import Event

__all__ = ["MODES", "Display", "Printer", "choose_mode", "make_printer"]

MODES = ("auto", "none", "plain", "quiet", "rawjson", "tty")
_REFRESH_S = 0.1
_CLOSE_S = 5.0


class Printer(Protocol):
    """What the display drives."""

    def update(self, events: Iterable[Event], /) -> None:
        """Take a batch of events."""
        ...

    def refresh(self) -> None:
        """Show progress of time."""
        ...

    def done(self) -> None:
        """Show the end."""
        ...


class SilentPrinter:
    """Shows nothing."""

    def update(self, events: Iterable[Event]) -> None:
        """Drop them."""

    def refresh(self) -> None:
        """Show nothing."""

    def done(self) -> None:
        """Show nothing."""


def choose_mode(asked: str | None, *, quiet: bool = False) -> str:
    """Settle on a mode: the flag, then ``$BUILDKIT_PROGRESS``, then ``auto``; ``quiet`` must not contradict.

    Raises: UsageError for an unknown mode or a contradiction.
    """
    mode = asked or os.environ.get("BUILDKIT_PROGRESS") or "auto"
    if mode not in MODES:
        summary = f"invalid progress mode {mode}"
        raise UsageError(summary, hint=f"modes: {', '.join(MODES)}")
    if quiet and mode not in ("auto", "quiet"):
        summary = f"progress={mode} and quiet cannot be used together"
        raise UsageError(summary)
    return "quiet" if quiet else mode


def make_printer(
    mode: str, out: TextIO, *, description: str = "", short: str = "", phase: str = "Building"
) -> Printer:
    """Make the printer of a mode; ``description`` is plain's first line, ``short`` stands right in the live header.

    Raises: UsageError when ``tty`` is asked for and ``out`` is not a terminal.
    """
    is_tty = out.isatty()
    if mode == "tty" and not is_tty:
        summary = "progress mode tty needs a terminal"
        raise UsageError(summary, hint="use --progress=plain")
    if mode == "tty" or (mode == "auto" and is_tty):
        from crossdock.progress.tty import TtyPrinter

        return TtyPrinter(out, description=short, phase=phase)
    if mode in ("auto", "plain"):
        from crossdock.progress.plain import PlainPrinter

        return PlainPrinter(out, description=description)
    if mode == "rawjson":
        from crossdock.progress.rawjson import RawJsonPrinter

        return RawJsonPrinter(out)
    return SilentPrinter()


class Display:
    """An event sink that shows what it gets; a context manager."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def emit(self, event: Event) -> None:
        """Queue an event; never blocks."""
        self._queue.put(event)

    def close(self) -> None:
        """Show everything that was queued, and the end; a broken output ends the display silently but is re-raised."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        try:
            self._loop()
            self._printer.done()
        except BaseException as exc:  # noqa: BLE001 - the top of a thread; close() raises it again
            self._failure = exc

    def _loop(self) -> None:
        due_s = time.monotonic() + _REFRESH_S
        while True:
            try:
                batch, ended = self._drain(self._queue.get(timeout=max(due_s - time.monotonic(), 0)))
            except Empty:
                batch, ended = [], False
            if batch:
                self._printer.update(batch)
            if ended:
                return
            if time.monotonic() >= due_s:
                self._printer.refresh()
                due_s = time.monotonic() + _REFRESH_S

    def _drain(self, first: Event | None) -> tuple[list[Event], bool]:
        batch: list[Event] = []
        item = first
        while item is not None:
            batch.append(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, False
        return batch, True
