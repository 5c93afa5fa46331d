"""Images resolved by the engine for the Dockerfile frontend, shown as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builds.steps import shown
from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.facade import Engine
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.progress.events import EventSink

__all__ = ["EngineImages", "ResolvedSource"]


class ResolvedSource(NamedTuple):
    """An image that something was made of, or that was asked about."""

    ref: str
    platform: Platform | None
    #: of the index when there is one
    digest: str
    #: from an OCI layout rather than a registry
    local: bool = False


class EngineImages:
    """Satisfies the frontend's ``ImageResolver``."""

    def __init__(
        self,
        engine: Engine,
        sink: EventSink,
        cancel: CancelToken,
        layouts: Mapping[str, Callable[[Digest], BinaryIO]] | None = None,
    ) -> None:
        """``layouts``: functions that open a blob, by the name of the OCI layout."""
        self._engine = engine
        self._sink = sink
        self._cancel = cancel
        self._layouts = layouts or {}
        #: every image that was resolved, for provenance; appended to only
        self.resolved: list[ResolvedSource] = []

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> ResolvedImage:
        """Resolve a reference."""
        with shown(self._sink, log_name):
            found = self._engine.resolve_image_config(
                ref, platform=platform, mode=mode, sink=self._sink, cancel=self._cancel
            )
        self.resolved.append(ResolvedSource(ref, platform, found.digest))
        return found

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> ResolvedImage:
        """Find an image of a layout."""
        open_blob = self._layouts.get(store)
        if open_blob is None:
            summary = f"no OCI layout was given under the name {store}"
            raise UsageError(summary)
        with shown(self._sink, log_name):
            found = self._engine.resolve_layout_config(
                ref, open_blob=open_blob, platform=platform, cancel=self._cancel
            )
        self.resolved.append(ResolvedSource(ref, platform, found.digest, local=True))
        return found
