"""Images resolved by the engine for the Dockerfile frontend, shown as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builds.steps import shown
from crossdock.errors import SolveError, UsageError
from crossdock.llb.ops import SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.facade import Engine
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.llb.policy import SourcePolicies
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
        policies: SourcePolicies | None = None,
    ) -> None:
        """``layouts``: functions that open a blob, by the name of the OCI layout; ``policies`` may replace references."""
        self._engine = engine
        self._sink = sink
        self._cancel = cancel
        self._layouts = layouts or {}
        self.policies = policies
        #: every image that was resolved, for provenance; appended to only
        self.resolved: list[ResolvedSource] = []

    def resolve_image(
        self, ref: str, *, platform: Platform, mode: str, log_name: str, policed: bool = False
    ) -> ResolvedImage:
        """Resolve a reference; what is found may be another one, where a policy says so, unless it was asked already.

        Raises: PolicyDenied; as ``Engine.resolve_image_config``.
        """
        with shown(self._sink, log_name):
            wanted = SourceOp(f"docker-image://{ref}")
            if not policed:
                wanted = self._policed(wanted, platform)
            target = wanted.identifier.removeprefix("docker-image://")
            found = self._engine.resolve_image_config(
                target, platform=platform, mode=mode, sink=self._sink, cancel=self._cancel
            )
            pinned = wanted.attrs.get("image.checksum", "")
            if pinned and pinned != found.digest:
                summary = f"{target} is {found.digest}, not {pinned}"
                raise SolveError(summary)
        self.resolved.append(ResolvedSource(target, platform, found.digest))
        return found

    def _policed(self, op: SourceOp, platform: Platform) -> SourceOp:
        """Return an image source as the policies want it, which must still be an image."""
        if not self.policies:
            return op
        changed = self.policies.evaluate(op, platform)
        scheme = op.identifier.partition("://")[0]
        if not changed.identifier.startswith(f"{scheme}://"):
            summary = f"the policy makes {changed.identifier} of {op.identifier}, which has no image config"
            raise SolveError(summary)
        return changed

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> ResolvedImage:
        """Find an image of a layout."""
        open_blob = self._layouts.get(store)
        if open_blob is None:
            summary = f"no OCI layout was given under the name {store}"
            raise UsageError(summary)
        with shown(self._sink, log_name):
            ref = self._policed(SourceOp(f"oci-layout://{ref}"), platform).identifier.removeprefix(
                "oci-layout://"
            )
            found = self._engine.resolve_layout_config(
                ref, open_blob=open_blob, platform=platform, cancel=self._cancel
            )
        self.resolved.append(ResolvedSource(ref, platform, found.digest, local=True))
        return found
