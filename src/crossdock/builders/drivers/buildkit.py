"""What every driver in front of a BuildKit daemon does the same: info, build, usage, prune.

Not for: how the daemon is started or dialled; that is each driver's own.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from crossdock.builders.drivers.base import NodeInfo
from crossdock.builders.drivers.outputs import plan_outputs
from crossdock.builders.drivers.plan import make_plan
from crossdock.builders.drivers.questions import ask, fetch_dockerfile
from crossdock.builders.result import BuildResult, BuiltIndex
from crossdock.builders.usage import UsageRecord
from crossdock.buildkit.session.content import ContentStores
from crossdock.buildkit.session.filesend import FileSend
from crossdock.buildkit.solve import SolveOptions, solve
from crossdock.errors import BuilderError, CrossdockError
from crossdock.progress import VertexWarning
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.usage import PruneRequest
    from crossdock.buildkit.client import Client, WorkerInfo
    from crossdock.buildkit.client import UsageRecord as DaemonRecord
    from crossdock.cancel import CancelToken
    from crossdock.progress import Event, EventSink

__all__ = ["BuildKitDriver"]

_SNAPSHOTTER_LABEL = "org.mobyproject.buildkit.worker.snapshotter"
#: seconds to wait for a daemon that should be running
_READY_S = 20.0


class BuildKitDriver:
    """A driver over a function that opens a client; subclasses add how the daemon lives."""

    #: the daemon is a Docker Engine's own BuildKit
    engine = False

    def __init__(
        self,
        connect: Callable[[], Client],
        *,
        name: str,
        load: Callable[[Iterator[bytes]], None] | None = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._load = load

    def info(self, cancel: CancelToken, /) -> NodeInfo:
        """Ask the daemon; ``inactive`` when it does not answer."""
        try:
            with self._connect() as client, cancel.waking(client.close):
                workers = client.workers(timeout_s=10)
                version = client.info().version
        except BuilderError:
            return NodeInfo(status="inactive")
        return NodeInfo(
            status="running",
            version=version or workers[0].version.version,
            platforms=tuple(dict.fromkeys(p for w in workers for p in w.platforms)),
            labels={k: v for w in workers for k, v in w.labels.items()},
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
        with self._connect() as client:
            workers = client.workers()
            classic = self._classic_store(workers)
            if classic and len(request.platforms) > 1:
                summary = "the Docker Engine's classic image store cannot build several platforms at once"
                hint = "use --builder embedded, or switch the Engine to the containerd image store"
                raise BuilderError(summary, hint=hint)
            if request.dockerfile.startswith(("http://", "https://")):
                text = fetch_dockerfile(client, request, sink, cancel)
                request = replace(request, dockerfile="", dockerfile_text=text)
            plan = make_plan(request, cancel=cancel, on_error=failures.append, stdin=_stdin(request))
            with plan.stack:
                if request.call != "build":
                    return BuildResult(metadata=ask(client, plan, request, sink, cancel))
                outputs = plan_outputs(request, engine=self.engine, load=self._load)
                attachables = list(plan.attachables)
                if outputs.targets:
                    attachables.append(FileSend(outputs.targets, on_error=failures.append))
                if outputs.stores:
                    attachables.append(ContentStores(outputs.stores))
                options = _with_exports(plan.options(), outputs)
                watcher = _Warnings(sink)
                try:
                    response = solve(client, options, attachables=attachables, sink=watcher, cancel=cancel)
                except CrossdockError as exc:
                    cancel.check()
                    # What failed here, on the client, says more than the daemon's quotation of it.
                    if failures:
                        raise failures[0] from exc
                    raise
        if classic:
            self.push(outputs, sink, cancel)
        for layout in outputs.layouts:
            _write_index(layout, response, request)
        return BuildResult(
            metadata=_metadata(response), index=_index(response), warnings=tuple(watcher.warnings)
        )

    def push(self, outputs: Outputs, sink: EventSink, cancel: CancelToken) -> None:
        """Push what a classic image store could not push itself; only the docker driver has such a store."""

    def disk_usage(self, filters: Sequence[str], cancel: CancelToken, /) -> list[UsageRecord]:
        """List what the daemon's cache holds."""
        with self._connect() as client, cancel.waking(client.close):
            return [_record(r) for r in client.disk_usage(filters)]

    def prune(self, request: PruneRequest, cancel: CancelToken, /) -> list[UsageRecord]:
        """Remove cache records."""
        with self._connect() as client:
            removed = client.prune(
                filters=request.filters,
                everything=request.all,
                keep_duration_ns=int(request.keep_duration_s * 1e9),
                reserved_space=request.reserved_space,
                max_used_space=request.max_used_space,
                min_free_space=request.min_free_space,
                cancel=cancel,
            )
            return [_record(r) for r in removed]


class _Warnings:
    """Passes events on and keeps the warnings."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self.warnings: list[VertexWarning] = []

    def emit(self, event: Event, /) -> None:
        if isinstance(event, VertexWarning):
            self.warnings.append(event)
        self._sink.emit(event)


def _stdin(request: BuildRequest) -> Any:
    return os.fdopen(os.dup(0), "rb") if request.context == "-" else None


def _with_exports(options: SolveOptions, outputs: Outputs) -> SolveOptions:
    return replace(options, exports=tuple(outputs.exports))


def _metadata(response: dict[str, str]) -> dict[str, Any]:
    """Decode values that BuildKit sends as base64 JSON."""
    out: dict[str, Any] = dict(response)
    if text := response.get("containerimage.descriptor"):
        out["containerimage.descriptor"] = json.loads(base64.b64decode(text))
    if text := response.get("cache.manifest"):
        out["cache.manifest"] = json.loads(text)
    return out


def _index(response: dict[str, str]) -> BuiltIndex | None:
    text = response.get("containerimage.descriptor")
    if not text:
        return None
    descriptor = json.loads(base64.b64decode(text))
    media_type = str(descriptor.get("mediaType", ""))
    if "index" not in media_type and "manifest.list" not in media_type:
        return None
    return BuiltIndex(digest=str(descriptor["digest"]), media_type=media_type, size=int(descriptor["size"]))


def _write_index(root: Path, response: dict[str, str], request: BuildRequest) -> None:
    """Add what was built to the layout's ``index.json``, replacing entries of the same name."""
    descriptor = json.loads(base64.b64decode(response["containerimage.descriptor"]))
    path = root / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    name_key = "org.opencontainers.image.ref.name"
    tags = [t.rpartition(":")[2] if ":" in t.rpartition("/")[2] else "latest" for t in request.tags] or [""]
    kept = [m for m in index["manifests"] if (m.get("annotations") or {}).get(name_key) not in tags]
    for tag in tags:
        annotations = {**descriptor.get("annotations", {}), **({name_key: tag} if tag else {})}
        kept.append({**descriptor, **({"annotations": annotations} if annotations else {})})
    index["manifests"] = kept
    temporary = path.with_name(".index.json.new")
    temporary.write_text(json.dumps(index))
    temporary.replace(path)
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _record(record: DaemonRecord) -> UsageRecord:
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
