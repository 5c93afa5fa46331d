"""What every driver in front of a BuildKit daemon does the same: info, build, usage, prune.

Not for: how the daemon is started or dialled; that is each driver's own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from crossdock.builders.drivers.abilities import check_classic, check_prune, extra_hosts
from crossdock.builders.drivers.daemonbuild import DaemonBuild
from crossdock.builders.drivers.outputs import plan_outputs
from crossdock.builders.drivers.plan import make_plan
from crossdock.builders.drivers.response import (
    built_images,
    built_index,
    decode_metadata,
    layout_tags,
    write_index,
)
from crossdock.builders.localstate import save_state
from crossdock.builders.result import BuildResult
from crossdock.buildkit.solve import SolveOptions, solve
from crossdock.errors import BuilderError, CrossdockError
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.builders.drivers.base import NodeInfo
    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.drivers.plan import Plan
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.usage import PruneRequest, UsageRecord
    from crossdock.buildkit.client import Client, WorkerInfo
    from crossdock.buildkit.client import UsageRecord as DaemonRecord
    from crossdock.buildkit.gateway import Gateway
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["BuildKitDriver", "node_path"]

_SNAPSHOTTER_LABEL = "org.mobyproject.buildkit.worker.snapshotter"
#: seconds to wait for a daemon that should be running
_READY_S = 20.0
_PROBE_S = 20.0

T = TypeVar("T")


def node_path(group: NodeGroup, node: Node) -> str:
    """Return ``builder/node``, the first parts of build references."""
    return f"{group.name}/{node.name}"


class BuildKitDriver:
    """A driver over a function that opens a client; subclasses add how the daemon lives."""

    #: the daemon is a Docker Engine's own BuildKit
    engine = False

    def __init__(
        self,
        connect: Callable[[], Client],
        *,
        name: str,
        path: str,
    ) -> None:
        """``name`` is for messages, ``path`` is :func:`node_path`."""
        self._connect = connect
        self._name = name
        self._path = path

    def client(self) -> Client:
        """Return a new client of the node's daemon, to be closed by the caller. Raises: BuilderError."""
        return self._connect()

    def dial(self) -> ByteStream:
        """Open a stream of raw HTTP/2 to the node's daemon. Raises: BuilderError."""
        with self._connect() as client:
            return client.dial()

    def prepare(self, sink: EventSink, cancel: CancelToken) -> None:
        """Start the node when it is not running; drivers that start nothing do nothing."""

    def info(self, cancel: CancelToken, /) -> NodeInfo:
        """Ask the daemon; ``inactive`` when nothing answers.

        Raises: BuilderError when the daemon cannot be used: no permission, TLS that does not match.
        """
        from crossdock.builders.drivers.base import GcPolicy, NodeInfo

        try:
            with self._connect() as client, cancel.waking(client.close):
                workers = client.workers(timeout_s=_PROBE_S)
                version = client.info(timeout_s=_PROBE_S).version
        except BuilderError as exc:
            cancel.check()
            if not exc.retryable:
                raise
            return NodeInfo(status="inactive")
        return NodeInfo(
            status="running",
            version=version or (workers[0].version.version if workers else ""),
            platforms=tuple(dict.fromkeys(p for w in workers for p in w.platforms)),
            labels={k: v for w in workers for k, v in w.labels.items()},
            gc_policies=tuple(
                GcPolicy(
                    p.all,
                    p.filters,
                    p.keep_duration_ns / 1e9,
                    p.reserved_space,
                    p.max_used_space,
                    p.min_free_space,
                )
                for w in workers
                for p in w.gc_policies
            ),
            devices=tuple(dict.fromkeys(d for w in workers for d in w.devices)),
            features=self._features(workers),
        )

    def _features(self, workers: Sequence[WorkerInfo]) -> dict[str, bool]:
        whole = not self._classic_store(workers)
        names = ("OCI exporter", "Docker exporter", "Cache export", "Multi-platform build", "Direct push")
        return {
            **dict.fromkeys(names, whole),
            "Automatically load images to the Docker Engine image store": self.engine,
        }

    def _classic_store(self, workers: Sequence[WorkerInfo]) -> bool:
        return self.engine and not any(_SNAPSHOTTER_LABEL in w.labels for w in workers)

    def bootstrap(self, sink: EventSink, cancel: CancelToken, /) -> None:
        """Wait until the daemon answers."""
        del sink
        with self._connect() as client:
            client.wait_ready(_READY_S, cancel)

    def stop(self, cancel: CancelToken, /) -> None:
        """Do nothing: this driver did not start the daemon."""

    def rm(self, cancel: CancelToken, /, *, keep_state: bool, keep_daemon: bool) -> None:
        """Do nothing: this driver did not start the daemon."""

    def build(self, request: BuildRequest, sink: EventSink, cancel: CancelToken, /) -> BuildResult:
        """Run a build on the daemon."""
        failures: list[CrossdockError] = []
        self.prepare(sink, cancel)
        with self._connect() as client, cancel.waking(client.close):
            needed = self.engine or any("host-gateway" in h for h in request.add_hosts)
            workers = _asked(client.workers, cancel) if needed else ()
            classic = self._classic_store(workers)
            if classic:
                check_classic(request)
            if request.dockerfile.startswith(("http://", "https://")):
                from crossdock.builders.drivers.questions import fetch_dockerfile

                text = fetch_dockerfile(client, request, sink, cancel)
                request = replace(request, dockerfile="", dockerfile_text=text)
            stdin = self.standard_input() if request.context == "-" else None
            plan = make_plan(request, cancel=cancel, on_error=failures.append, stdin=stdin)
            with plan.stack:
                if request.add_hosts:
                    plan.attrs["add-hosts"] = extra_hosts(request.add_hosts, workers)
                if self.engine and not request.pull:
                    # What was built or loaded before is what FROM means there, not what a registry has.
                    plan.attrs.setdefault("image-resolve-mode", "local")
                if request.call != "build":
                    from crossdock.builders.drivers.questions import ask

                    return BuildResult(metadata=ask(client, plan, request, sink, cancel))
                outputs = plan_outputs(request, engine=self.engine, classic=classic, sink=sink, cancel=cancel)
                with outputs.stack:
                    build = DaemonBuild(client, plan, outputs, request, classic=classic, name=self._name)
                    result = build.run(sink, cancel, failures)
            ref = f"{self._path}/{build.ref}"
            metadata = {**decode_metadata(result), "buildx.build.ref": ref}
            if request.metadata_provenance and not classic:
                from crossdock.builders.drivers.response import provenance

                metadata |= provenance(client, build.ref, request.metadata_provenance)
            images = built_images(client, build.result, metadata)
        if classic:
            self.push(outputs, sink, cancel)
        for layout in outputs.layouts:
            write_index(layout, metadata["containerimage.descriptor"], layout_tags(request.tags))
        if plan.written and "cache.manifest" in metadata:
            metadata["cache.manifest"] = _listed(plan, metadata["cache.manifest"], sink, cancel)
        self.remember(ref, request)
        return BuildResult(
            images=images, metadata=metadata, index=built_index(metadata), warnings=tuple(build.warnings)
        )

    def push(self, outputs: Outputs, sink: EventSink, cancel: CancelToken) -> None:
        """Push what a classic image store could not push itself; only the docker driver has such a store."""

    def standard_input(self) -> BinaryIO:
        """Open the context that comes on standard input."""
        return os.fdopen(os.dup(0), "rb")

    def remember(self, ref: str, request: BuildRequest) -> None:
        """Note where a build, ``ref`` being ``builder/node/ref``, had its context, for who looks at its record."""
        save_state(ref, request)

    def disk_usage(self, filters: Sequence[str], cancel: CancelToken, /) -> list[UsageRecord]:
        """List what the daemon's cache holds."""
        with self._connect() as client, cancel.waking(client.close):
            return [_record(r) for r in _asked(lambda: client.disk_usage(filters), cancel)]

    def prune(self, request: PruneRequest, cancel: CancelToken, /) -> list[UsageRecord]:
        """Remove cache records."""
        with self._connect() as client, cancel.waking(client.close):
            if request.max_used_space or request.min_free_space:
                check_prune(
                    max_used_space=request.max_used_space,
                    min_free_space=request.min_free_space,
                    caps=_caps(client, cancel),
                    name=self._name,
                )
            removed = client.prune(
                filters=request.filters,
                everything=request.all,
                keep_duration_ns=int(request.keep_duration_s * 1e9),
                reserved_space=request.reserved_space,
                max_used_space=request.max_used_space,
                min_free_space=request.min_free_space,
                cancel=cancel,
            )
            return _asked(lambda: [_record(r) for r in removed], cancel)


def _listed(plan: Plan, written: Mapping[str, Any], sink: EventSink, cancel: CancelToken) -> dict[str, Any]:
    """List what was exported to local caches in their indexes; returns the manifest that is listed."""
    from crossdock.image import Descriptor

    manifest = Descriptor.from_json(written, "the daemon's cache.manifest")
    listed = manifest
    for cache in plan.written:
        listed = cache.adopt(manifest, sink, cancel)
    return listed.to_json()


def _asked(question: Callable[[], T], cancel: CancelToken) -> T:
    """Ask; a connection that cancelling closed is a cancellation."""
    try:
        return question()
    except CrossdockError:
        cancel.check()
        raise


def _caps(client: Client, cancel: CancelToken) -> frozenset[str]:
    """Return what the daemon's LLB understands, which it tells within builds only: here, one of nothing."""
    from crossdock.progress import NullSink

    found: list[frozenset[str]] = []

    def frontend(gateway: Gateway) -> None:
        found.append(gateway.llb_caps)

    solve(client, SolveOptions(internal=True), sink=NullSink(), cancel=cancel, frontend=frontend)
    return found[0]


def _record(record: DaemonRecord) -> UsageRecord:
    from crossdock.builders.usage import UsageRecord

    return UsageRecord(
        id=record.id,
        mutable=record.mutable,
        in_use=record.in_use,
        size_bytes=record.size,
        parents=record.parents,
        created_at=record.created_ns / 1e9,
        last_used_at=record.last_used_ns / 1e9 if record.last_used_ns is not None else None,
        usage_count=record.usage_count,
        description=record.description,
        record_type=record.record_type,
        shared=record.shared,
    )
