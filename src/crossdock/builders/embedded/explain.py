"""Why steps were not cached: recorded by every build in which some ran, told to those who ask (``--explain``)."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from crossdock.builders.request import BuildRequest
    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import View
    from crossdock.engine.explain.recorder import StepRecorder
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.store import Store
    from crossdock.llb.graph import Node

__all__ = ["Explainer"]


class Explainer:
    """Records one build. Loads nothing as long as nothing ran."""

    def __init__(self, request: BuildRequest) -> None:
        #: whether somebody asks why
        self.wanted = request.explain
        # Builds of the same context and Dockerfile are compared.
        context = request.context
        if os.path.isdir(context):
            context = os.path.realpath(context)
        self._project = f"{context}\0{request.dockerfile}"
        # Held while a solve is taken down: several of one build may end at the same time.
        self._lock = threading.Lock()
        self._recorder: StepRecorder | None = None

    def take(
        self,
        nodes: Mapping[str, Node],
        keyed: Sequence[KeyedVertex],
        ran: Collection[str],
        reads: Mapping[str, tuple[View, Sequence[Selector]]],
        stage_reads: Mapping[str, tuple[View, Sequence[Selector], str]],
        cancel: CancelToken,
    ) -> None:
        """Take a solve down, as the engine asks for. Safe from any thread."""
        with self._lock:
            if self._recorder is None:
                from crossdock.engine.explain.recorder import StepRecorder

                self._recorder = StepRecorder(self._project, wanted=self.wanted)
            self._recorder.take(nodes, keyed, ran, reads, stage_reads, cancel)

    def finish(self, store: Store) -> list[dict[str, object]]:
        """Save what was recorded; returns why steps ran, for those who asked."""
        if self._recorder is None:
            return []
        return [why.to_json() for why in self._recorder.finish(store)]
