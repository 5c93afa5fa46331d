"""Exporting platforms that are built while others still are: a slow, emulated platform then does not keep the rest waiting."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.ahead import Ahead
    from crossdock.engine.exporters.model import ExporterSpec, PlatformImage
    from crossdock.engine.facade import Engine

__all__ = ["EarlyExport"]


def _load_the_rest() -> threading.Thread:
    """Load what the end of the build needs, while the interpreter waits for steps."""

    def load() -> None:
        import crossdock.engine.explain.recorder
        import crossdock.engine.facade_reads
        import crossdock.engine.store.durability
        import crossdock.engine.store.upkeep
        import crossdock.engine.store.usage  # noqa: F401

    thread = threading.Thread(target=load, name="load", daemon=True)
    thread.start()
    return thread


class EarlyExport:
    """Begins the export of one build. A context manager; nothing is loaded before there is something to do."""

    def __init__(
        self,
        engine: Engine,
        specs: Sequence[ExporterSpec],
        *,
        multi_platform: bool,
        epoch_s: int | None,
        cancel: CancelToken,
    ) -> None:
        self._engine = engine
        self._specs = specs
        self._multi_platform = multi_platform
        self._epoch_s = epoch_s
        self._cancel = cancel
        self._stack = ExitStack()
        #: what was begun, for the export
        self.ahead: Ahead | None = None

    def __enter__(self) -> EarlyExport:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, image: PlatformImage) -> None:
        """Begin with a platform that is built. Does not wait, and never fails: the solver's thread calls it."""
        if not self._specs:
            return
        try:
            self._begin(image)
        except (CrossdockError, OSError, RuntimeError) as exc:  # RuntimeError: no more threads
            # The solver goes on; the export comes to the same point, and tells.
            from logging import getLogger

            getLogger(__name__).debug("export ahead of time: %s", exc)

    def _begin(self, image: PlatformImage) -> None:
        if self.ahead is None:
            self._stack.callback(_load_the_rest().join)
            self.ahead = self._stack.enter_context(
                self._engine.exporting_ahead(
                    self._specs,
                    multi_platform=self._multi_platform,
                    epoch_s=self._epoch_s,
                    cancel=self._cancel,
                )
            )
        self.ahead.add(image)
