"""The embedded driver: this machine, without a daemon.

A node is ``running`` when it was booted since the machine started: booting checks the sandbox and executes a probe
for every platform. Nothing stays behind when a build ends; ``stop`` only forgets that the node was booted.

The engine works inside a worker namespace. A process that is one already (the command line) works right here; any
other starts a worker process for each operation.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from crossdock._version import __version__
from crossdock.builders.bootrecord import (
    BootRecord,
    default_root,
    has_records,
    read_record,
    remove_record,
    write_record,
)
from crossdock.errors import StoreError, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.drivers.base import NodeInfo
    from crossdock.builders.embedded.settings import StepSettings
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.builders.usage import PruneRequest, UsageRecord
    from crossdock.cancel import CancelToken
    from crossdock.engine.store.check import Problem
    from crossdock.progress.events import EventSink

__all__ = ["EmbeddedDriver", "make"]

_FEATURES = {
    "OCI exporter": True,
    "Docker exporter": True,
    "Cache export": True,
    "Multi-platform build": True,
    "Direct push": True,
}


def make(group: NodeGroup, node: Node) -> EmbeddedDriver:
    """Make the driver of a node."""
    return EmbeddedDriver(group, node)


class EmbeddedDriver:
    """One node of the embedded engine; its store is shared by all of them unless the option ``root`` says else."""

    def __init__(self, group: NodeGroup, node: Node) -> None:
        self._group = group
        self._node = node
        options = node.driver_opts or {}
        # Settled before the worker namespace is entered: inside, everybody is root.
        self.root = options.get("root") or default_root()
        self._max_used_space = options.get("max-used-space") or os.environ.get("CROSSDOCK_MAX_USED_SPACE", "")

    def info(self, cancel: CancelToken) -> NodeInfo:
        """Read the boot record; starts nothing."""
        from crossdock.builders.drivers.base import NodeInfo

        cancel.check()
        record = read_record(self.root, self._node.name)
        if record is None:
            return NodeInfo(status="inactive", features=_FEATURES)
        return NodeInfo(
            status="running",
            version=f"v{__version__}",
            platforms=record.platforms,
            notes=record.notes,
            labels=record.labels,
            features=_FEATURES,
        )

    def bootstrap(self, sink: EventSink, cancel: CancelToken) -> None:
        """Check the sandbox, the runtime and the store, and execute a probe for every platform."""
        record = cast("BootRecord", self._call("bootstrap", self._settings(), sink, cancel))
        self._write(record)

    def stop(self, cancel: CancelToken) -> None:
        """Forget that the node was booted."""
        cancel.check()
        with translate({OSError: self._refuse}):
            remove_record(self.root, self._node.name)

    def rm(self, cancel: CancelToken, *, keep_state: bool, keep_daemon: bool) -> None:
        """Forget the node, and remove a store that is its alone; the usual one stays (``prune`` empties it).

        Raises: StoreError when a running build uses the store: it stays.
        """
        del keep_daemon
        self.stop(cancel)
        if not keep_state and self._has_own_store():
            from crossdock.progress.events import NullSink

            self._call("remove_store", None, NullSink(), cancel)

    def _has_own_store(self) -> bool:
        """Whether the option ``root`` names a store that nobody else is known to use."""
        if "root" not in (self._node.driver_opts or {}) or not os.path.exists(f"{self.root}/version"):
            return False
        own = os.path.realpath(self.root)
        if own == os.path.realpath(default_root()) or has_records(self.root):
            return False
        from crossdock.builders.store import BuilderStore

        with BuilderStore().transaction() as txn:
            groups = [group for group in txn.list() if group.name != self._group.name]
        others = [node.driver_opts or {} for group in groups for node in group.nodes]
        return all(os.path.realpath(options["root"]) != own for options in others if "root" in options)

    def build(self, request: BuildRequest, sink: EventSink, cancel: CancelToken) -> BuildResult:
        """Build here."""
        payload = (request, self._needs_record(), self._limit_bytes(), self._settings())
        result, record = self._call("build", payload, sink, cancel)
        if record is not None:
            self._write(record)
        return self._with_ref(cast("BuildResult", result), request)

    def _with_ref(self, result: BuildResult, request: BuildRequest) -> BuildResult:
        """Give the build a name of buildx's form, ``builder/node/ref``, in its metadata."""
        if request.call != "build":
            return result
        from crossdock.record import replace

        ref = f"{self._group.name}/{self._node.name}/{os.urandom(13).hex()[:25]}"
        return replace(result, metadata={**result.metadata, "buildx.build.ref": ref})

    def disk_usage(self, filters: Sequence[str], cancel: CancelToken) -> list[UsageRecord]:
        """List cache records."""
        from crossdock.progress.events import NullSink

        return cast("list[UsageRecord]", self._call("disk_usage", tuple(filters), NullSink(), cancel))

    def prune(self, request: PruneRequest, cancel: CancelToken) -> list[UsageRecord]:
        """Remove cache records."""
        from crossdock.progress.events import NullSink

        return cast("list[UsageRecord]", self._call("prune", request, NullSink(), cancel))

    def check_store(self, cancel: CancelToken, *, repair: bool, contents: bool) -> list[Problem]:
        """Look for damage in the store; with ``repair`` drop it."""
        from crossdock.progress.events import NullSink

        return cast("list[Problem]", self._call("check_store", (repair, contents), NullSink(), cancel))

    def _limit_bytes(self) -> int:
        """Return what the store may hold, 0 for no limit. Raises: UsageError."""
        if not self._max_used_space:
            return 0
        from crossdock.builders.values import parse_bytes

        return max(parse_bytes(self._max_used_space), 0)

    def _settings(self) -> StepSettings:
        from crossdock.builders.embedded.settings import step_settings

        return step_settings(self._node.driver_opts or {}, os.environ)

    def _needs_record(self) -> bool:
        return read_record(self.root, self._node.name) is None

    def _write(self, record: BootRecord) -> None:
        with translate({OSError: self._refuse}):
            write_record(self.root, self._node.name, record)

    def _refuse(self, exc: BaseException) -> StoreError:
        return StoreError(
            f"cannot write below {self.root}: {exc}", hint="set CROSSDOCK_ROOT to a directory of yours"
        )

    def _call(self, operation: str, payload: object, sink: EventSink, cancel: CancelToken) -> Any:
        from crossdock.engine.sandbox.worker import current_worker

        if current_worker() is not None:
            from crossdock.builders.embedded.operations import run

            return run(operation, self.root, payload, sink, cancel)
        from crossdock.builders.embedded.spawn import call_in_worker

        with translate({OSError: self._refuse}):
            os.makedirs(self.root, mode=0o755, exist_ok=True)
        return call_in_worker(operation, self.root, payload, sink, cancel)
