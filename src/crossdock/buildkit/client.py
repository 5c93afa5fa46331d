"""Client of a BuildKit daemon: Control and health, typed.

Builds are in :mod:`crossdock.buildkit.solve`, which opens the session they need.

Spec: moby/buildkit ``api/services/control/control.proto``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from crossdock.buildkit.details import error_from_rpc, translating
from crossdock.buildkit.dial import dialer
from crossdock.buildkit.proto import control_pb2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.status import UNIMPLEMENTED, RpcError
from crossdock.buildkit.session.server import control_stream
from crossdock.errors import BuilderError
from crossdock.image import Platform
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from google.protobuf.timestamp_pb2 import Timestamp

    from crossdock.buildkit.engine import EngineDialer
    from crossdock.buildkit.gateway import Gateway, GatewayResult
    from crossdock.buildkit.history import HistoryRecord
    from crossdock.buildkit.proto import worker_pb2
    from crossdock.buildkit.session.server import Attachable, Session
    from crossdock.buildkit.solve import SolveOptions
    from crossdock.buildkit.transport import ByteStream, TlsOptions
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["Client", "GcPolicy", "UsageRecord", "VersionInfo", "WorkerInfo"]


_CONTROL = "/moby.buildkit.v1.Control/"
_LIST_WORKERS, _INFO = f"{_CONTROL}ListWorkers", f"{_CONTROL}Info"
_DISK_USAGE, _PRUNE = f"{_CONTROL}DiskUsage", f"{_CONTROL}Prune"


class VersionInfo(Record):
    """What the daemon says of itself; empty strings before v0.11."""

    package: str = ""
    version: str = ""
    revision: str = ""
    dockerfile_version: str = ""


class GcPolicy(Record):
    """One garbage collection rule; sizes in bytes, duration in nanoseconds."""

    all: bool
    filters: tuple[str, ...]
    keep_duration_ns: int
    reserved_space: int
    max_used_space: int
    min_free_space: int


class WorkerInfo(Record):
    """One worker of a daemon."""

    id: str
    labels: Mapping[str, str] = field(hash=False)
    platforms: tuple[Platform, ...]
    gc_policies: tuple[GcPolicy, ...]
    version: VersionInfo
    devices: tuple[str, ...] = ()


class UsageRecord(Record):
    """One record of the daemon's cache; sizes in bytes, times in nanoseconds since the epoch."""

    id: str
    mutable: bool
    in_use: bool
    size: int
    parents: tuple[str, ...]
    created_ns: int
    last_used_ns: int | None
    usage_count: int
    description: str
    record_type: str
    shared: bool


class Client:
    """A connection to one daemon; a context manager. Safe from any thread."""

    def __init__(
        self,
        address: str | Callable[[], ByteStream],
        *,
        tls: TlsOptions | None = None,
        open_session: Callable[[Session], ByteStream] | None = None,
        name: str = "",
    ) -> None:
        """``address`` is a URL, or a function that dials; ``open_session`` when not ``Control.Session``.

        Nothing is dialled before the first call. Raises: UsageError for a bad address; BuilderError for bad TLS files.
        """
        dial = dialer(address, tls) if isinstance(address, str) else address
        #: opens a byte stream to the daemon, beside the one that calls use
        self.dial = dial
        self.channel = Channel(
            dial,
            authority=tls.server_name if tls and tls.server_name else "localhost",
            secure=tls is not None,
        )
        self.open_session = open_session or control_stream(self.channel)
        #: the address, for messages
        self.name = name or (address if isinstance(address, str) else "the daemon")

    @classmethod
    def of_engine(cls, dialer: EngineDialer, *, name: str) -> Client:
        """Return a client of the BuildKit inside a Docker Engine."""
        return cls(dialer.grpc, open_session=dialer.session, name=name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; idempotent."""
        self.channel.close()

    def wait_ready(self, timeout_s: float, cancel: CancelToken) -> None:
        """Wait until the daemon answers.

        Raises: BuilderError when it did not within ``timeout_s``, with what the last attempt met.
        """
        deadline = time.monotonic() + timeout_s
        request = control_pb2.ListWorkersRequest()
        with cancel.waking(self.close):
            while True:
                cancel.check()
                try:
                    self.channel.unary(
                        _LIST_WORKERS, request, control_pb2.ListWorkersResponse, timeout_s=min(5.0, timeout_s)
                    )
                except (RpcError, BuilderError) as exc:
                    cancel.check()
                    failure = (
                        error_from_rpc(exc, f"cannot reach BuildKit at {self.name}")
                        if isinstance(exc, RpcError)
                        else exc
                    )
                    if not failure.retryable or time.monotonic() > deadline:
                        raise failure from exc
                else:
                    return
                cancel.sleep(0.2)

    def info(self, timeout_s: float = 10) -> VersionInfo:
        """Return the daemon's version; empty for daemons before v0.11, which cannot tell."""
        try:
            got = self.channel.unary(
                _INFO, control_pb2.InfoRequest(), control_pb2.InfoResponse, timeout_s=timeout_s
            ).buildkitVersion
        except RpcError as exc:
            if exc.code == UNIMPLEMENTED:
                return VersionInfo()
            raise error_from_rpc(exc, f"{self.name}: asking for the version") from exc
        return VersionInfo(
            package=got.package,
            version=got.version,
            revision=got.revision,
            dockerfile_version=got.dockerfileVersion,
        )

    def solve(
        self,
        options: SolveOptions,
        *,
        attachables: Sequence[Attachable] = (),
        sink: EventSink,
        cancel: CancelToken,
        frontend: Callable[[Gateway], GatewayResult | None] | None = None,
    ) -> dict[str, str]:
        """Run a build; see :func:`crossdock.buildkit.solve.solve`."""
        from crossdock.buildkit.solve import solve

        return solve(self, options, attachables=attachables, sink=sink, cancel=cancel, frontend=frontend)

    def history(
        self, *, ref: str = "", active_only: bool = False, limit: int = 0
    ) -> tuple[HistoryRecord, ...]:
        """Return the builds that the daemon remembers; see :func:`crossdock.buildkit.history.history`."""
        from crossdock.buildkit.history import history

        return history(self, ref=ref, active_only=active_only, limit=limit)

    def healthy(self, timeout_s: float = 10) -> bool:
        """Ask the daemon's health service; daemons without one that answer otherwise are healthy. Raises: BuilderError."""
        with translating(f"{self.name}: health"):
            call = self.channel.start("/grpc.health.v1.Health/Check", timeout_s=timeout_s)
            call.send_raw(prefixed(b""), end=True)
            try:
                # HealthCheckResponse{status: SERVING}
                return call.result() == b"\x08\x01"
            except RpcError as exc:
                if exc.code == UNIMPLEMENTED:
                    return True
                raise

    def workers(self, filters: Sequence[str] = (), timeout_s: float = 10) -> tuple[WorkerInfo, ...]:
        """Return the daemon's workers."""
        request = control_pb2.ListWorkersRequest(filter=filters)
        with translating(f"{self.name}: listing workers"):
            got = self.channel.unary(
                _LIST_WORKERS, request, control_pb2.ListWorkersResponse, timeout_s=timeout_s
            )
        return tuple(map(_worker, got.record))

    def disk_usage(self, filters: Sequence[str] = ()) -> tuple[UsageRecord, ...]:
        """Return the records of the daemon's cache."""
        with translating(f"{self.name}: disk usage"):
            request = control_pb2.DiskUsageRequest(filter=filters)
            got = self.channel.unary(_DISK_USAGE, request, control_pb2.DiskUsageResponse)
        return tuple(map(_usage, got.record))

    def prune(
        self,
        *,
        filters: Sequence[str] = (),
        everything: bool = False,
        keep_duration_ns: int = 0,
        reserved_space: int = 0,
        max_used_space: int = 0,
        min_free_space: int = 0,
        cancel: CancelToken,
    ) -> Iterator[UsageRecord]:
        """Remove records, yielding each as it goes; sizes in bytes."""
        request = control_pb2.PruneRequest(
            filter=filters,
            all=everything,
            keepDuration=keep_duration_ns,
            reservedSpace=reserved_space,
            maxUsedSpace=max_used_space,
            minFreeSpace=min_free_space,
        )
        with translating(f"{self.name}: prune"):
            call = self.channel.unary_call(_PRUNE, request)
            with cancel.waking(call.cancel):
                for raw in call.messages():
                    yield _usage(control_pb2.UsageRecord.FromString(raw))


def nanoseconds(stamp: Timestamp) -> int:
    """Return nanoseconds since the epoch."""
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def _worker(record: worker_pb2.WorkerRecord) -> WorkerInfo:
    version = record.BuildkitVersion
    return WorkerInfo(
        id=record.ID,
        labels=dict(record.Labels),
        platforms=tuple(
            Platform(p.OS, p.Architecture, p.Variant, p.OSVersion, tuple(p.OSFeatures))
            for p in record.platforms
        ),
        gc_policies=tuple(
            GcPolicy(
                all=p.all,
                filters=tuple(p.filters),
                keep_duration_ns=p.keepDuration,
                reserved_space=p.reservedSpace,
                max_used_space=p.maxUsedSpace,
                min_free_space=p.minFreeSpace,
            )
            for p in record.GCPolicy
        ),
        version=VersionInfo(package=version.package, version=version.version, revision=version.revision),
        devices=tuple(d.Name for d in record.CDIDevices),
    )


def _usage(record: control_pb2.UsageRecord) -> UsageRecord:
    return UsageRecord(
        id=record.ID,
        mutable=record.Mutable,
        in_use=record.InUse,
        size=record.Size,
        parents=tuple(record.Parents) or ((record.Parent,) if record.Parent else ()),
        created_ns=nanoseconds(record.CreatedAt),
        last_used_ns=nanoseconds(record.LastUsedAt) if record.HasField("LastUsedAt") else None,
        usage_count=record.UsageCount,
        description=record.Description,
        record_type=record.RecordType,
        shared=record.Shared,
    )
