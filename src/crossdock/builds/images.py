"""Images resolved by the engine for the Dockerfile frontend, shown as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builds.steps import shown
from crossdock.errors import NotSupported

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.engine.facade import Engine
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.image.platform import Platform
    from crossdock.progress.events import EventSink

__all__ = ["EngineImages"]


class EngineImages:
    """Satisfies the frontend's ``ImageResolver``."""

    def __init__(self, engine: Engine, sink: EventSink, cancel: CancelToken) -> None:
        self._engine = engine
        self._sink = sink
        self._cancel = cancel

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> ResolvedImage:
        """Resolve a reference."""
        with shown(self._sink, log_name):
            return self._engine.resolve_image_config(
                ref, platform=platform, mode=mode, sink=self._sink, cancel=self._cancel
            )

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> ResolvedImage:
        """Refuse: OCI layouts as contexts are not read yet."""
        del store, platform, log_name
        summary = f"the OCI layout {ref} cannot be read yet"
        raise NotSupported(summary)
