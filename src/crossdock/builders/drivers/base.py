"""What a driver is: how a node is reached, started, asked and used.

One driver object serves one node. Implementations are listed in :mod:`crossdock.builders.drivers.table`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from crossdock.record import NamedTuple, Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.builders.usage import PruneRequest, UsageRecord
    from crossdock.cancel import CancelToken
    from crossdock.image.platform import Platform
    from crossdock.progress.events import EventSink

__all__ = ["Driver", "GcPolicy", "NodeInfo", "Status"]

Status: TypeAlias = Literal["inactive", "starting", "running", "stopping", "stopped"]


class GcPolicy(NamedTuple):
    """One rule by which a node drops cache; sizes in bytes, 0 where the rule says nothing."""

    all: bool
    filters: tuple[str, ...]
    keep_duration_s: float
    reserved_space: int
    max_used_space: int
    min_free_space: int


class NodeInfo(Record):
    """What a node says of itself."""

    status: Status
    #: version of the engine behind it, ``""`` when unknown
    version: str = ""
    #: everything the node can run, best first
    platforms: tuple[Platform, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    #: human-readable "platform: how it is run" lines, only where the driver knows
    notes: tuple[str, ...] = ()
    gc_policies: tuple[GcPolicy, ...] = ()
    #: devices that steps may ask for, by name
    devices: tuple[str, ...] = ()
    #: features by buildx's names, e.g. ``OCI exporter``
    features: Mapping[str, bool] = field(default_factory=dict)


class Driver(Protocol):
    """One node, reached in one way."""

    def info(self, cancel: CancelToken, /) -> NodeInfo:
        """Ask for status, version and platforms; does not start anything."""
        ...

    def bootstrap(self, sink: EventSink, cancel: CancelToken, /) -> None:
        """Start the node, or check that it works; shows what it does as steps. Idempotent."""
        ...

    def stop(self, cancel: CancelToken, /) -> None:
        """Stop the node; what is stored stays. Idempotent."""
        ...

    def rm(self, cancel: CancelToken, /, *, keep_state: bool, keep_daemon: bool) -> None:
        """Remove the node; its state too unless ``keep_state``."""
        ...

    def build(self, request: BuildRequest, sink: EventSink, cancel: CancelToken, /) -> BuildResult:
        """Run a build whose platforms were all assigned to this node."""
        ...

    def disk_usage(self, filters: Sequence[str], cancel: CancelToken, /) -> list[UsageRecord]:
        """List what the node's cache holds."""
        ...

    def prune(self, request: PruneRequest, cancel: CancelToken, /) -> list[UsageRecord]:
        """Remove cache records; returns what was removed."""
        ...
