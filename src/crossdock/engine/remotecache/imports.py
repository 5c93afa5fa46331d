"""``--cache-from``: load caches side by side; one that fails costs a warning, never the build."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.engine.exporters.report import reported
from crossdock.engine.remotecache.spec import make_backend
from crossdock.errors import CacheError, CrossdockError
from crossdock.layers.compression import parse_bool
from crossdock.progress.events import VertexWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import Backend, Stored
    from crossdock.engine.remotecache.place import Surroundings
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.progress.events import EventSink

__all__ = ["DEADLINE_S", "import_caches"]

#: seconds that a cache has to show its manifest and config
DEADLINE_S = 60.0
_POLL_S = 0.05


class _Loading:
    """One cache being loaded."""

    def __init__(self, spec: CacheSpec, around: Surroundings, sink: EventSink, cancel: CancelToken) -> None:
        self.backend = make_backend(spec, around, exported=False)
        self.mounts = parse_bool("mounts", spec.attrs.get("mounts", "false"))
        self.stored: Stored | None = None
        self.failure: BaseException | None = None
        self._sink = sink
        self._token = CancelToken(cancel)
        self._thread = threading.Thread(target=self._run, name="cache-import", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        name = f"importing cache manifest from {self.backend.name}"
        with reported(self._sink, name, self.backend.name) as report:
            try:
                self.stored = self.backend.load(self._token)
                if self.stored is None:
                    summary = f"there is no build cache at {self.backend.name}"
                    raise CacheError(summary)
            except BaseException as exc:  # noqa: BLE001 -- top of a thread; the one that waits decides
                self.failure = exc
                if not self._token.cancelled:
                    self._warn(report, exc)

    def _warn(self, report: Report, exc: BaseException) -> None:
        text = exc.summary if isinstance(exc, CrossdockError) else f"{type(exc).__name__}: {exc}"
        detail = (exc.hint,) if isinstance(exc, CrossdockError) and exc.hint else ()
        short = f"build cache {self.backend.name} is not used: {text}"
        self._sink.emit(VertexWarning(vertex=report.vertex, level=1, short=short, detail=detail))

    def wait(self, deadline: float, cancel: CancelToken) -> None:
        """Wait for the end, give up at the deadline. Raises: the token's cause."""
        while self._thread.is_alive() and time.monotonic() < deadline:
            cancel.check()
            self._thread.join(_POLL_S)
        cancel.check()
        if self._thread.is_alive():
            late = CacheError(f"it did not answer within {DEADLINE_S:.0f} seconds")
            self._token.cancel(late)
            self._thread.join(1.0)
            vertex = f"importing cache manifest from {self.backend.name}"
            with reported(self._sink, vertex, self.backend.name) as report:
                self._warn(report, late)
            self.stored = None
        self._token.close()


def import_caches(
    specs: Sequence[CacheSpec], around: Surroundings, *, sink: EventSink, cancel: CancelToken
) -> list[tuple[Backend, Stored, bool]]:
    """Load caches; returns those that can be used, in the order given, and whether each is to give cache mounts.

    Raises: UsageError, NotSupported for what a cache needs; the token's cause.
    """
    loads = [_Loading(spec, around, sink, cancel) for spec in specs]
    deadline = time.monotonic() + DEADLINE_S
    for load in loads:
        load.wait(deadline, cancel)
    return [(load.backend, load.stored, load.mounts) for load in loads if load.stored is not None]
