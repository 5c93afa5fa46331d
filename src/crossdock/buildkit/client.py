"""Client of a BuildKit daemon: Control and health, typed.

Builds are in :mod:`crossdock.buildkit.solve`, which opens the session they need.

Spec: moby/buildkit ``api/services/control/control.proto``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import grpc

from crossdock.buildkit.channel import connect
from crossdock.buildkit.details import error_from_rpc, rpc_code, translating
from crossdock.buildkit.proto import control_pb2, control_pb2_grpc
from crossdock.buildkit.session.server import control_stream
from crossdock.errors import BuilderError
from crossdock.image import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from google.protobuf.timestamp_pb2 import Timestamp

    from crossdock.buildkit.engine import EngineDialer
    from crossdock.buildkit.proto import worker_pb2
    from crossdock.buildkit.session.server import Session
    from crossdock.buildkit.transport import ByteStream, TlsOptions
    from crossdock.cancel import CancelToken

__all__ = ["Client", "GcPolicy", "UsageRecord", "VersionInfo", "WorkerInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """What the daemon says of itself; empty strings before v0.11."""

    package: str = ""
    version: str = ""
    revision: str = ""
    dockerfile_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPolicy:
    """One garbage collection rule; sizes in bytes, duration in nanoseconds."""

    all: bool
    filters: tuple[str, ...]
    keep_duration_ns: int
    reserved_space: int
    max_used_space: int
    min_free_space: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker of a daemon."""

    id: str
    labels: Mapping[str, str] = field(hash=False)
    platforms: tuple[Platform, ...]
    gc_policies: tuple[GcPolicy, ...]
    version: VersionInfo
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
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
        """``address`` as :func:`crossdock.buildkit.channel.connect`; ``open_session`` when not ``Control.Session``."""
        self._connection = connect(address, tls=tls, name=name)
        self.channel = self._connection.channel
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.open_session = open_session or control_stream(self.control)
        self.name = self._connection.name

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
        self._connection.close()

    def wait_ready(self, timeout_s: float, cancel: CancelToken) -> None:
        """Wait until the daemon answers.

        Raises: BuilderError when it did not within ``timeout_s``, with what the last attempt met.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            cancel.check()
            try:
                self.control.ListWorkers(control_pb2.ListWorkersRequest(), timeout=min(5.0, timeout_s))
            except grpc.RpcError as exc:
                failure = self._connection.dial_failure
                if isinstance(failure, BuilderError) and not failure.retryable:
                    raise failure from exc
                if time.monotonic() > deadline:
                    raise failure or error_from_rpc(exc, f"cannot reach BuildKit at {self.name}") from exc
            else:
                return
            cancel.sleep(0.2)

    def info(self, timeout_s: float = 10) -> VersionInfo:
        """Return the daemon's version; empty for daemons before v0.11, which cannot tell."""
        try:
            got = self.control.Info(control_pb2.InfoRequest(), timeout=timeout_s).buildkitVersion
        except grpc.RpcError as exc:
            if rpc_code(exc) == "UNIMPLEMENTED":
                return VersionInfo()
            raise self._failed(exc, "asking for the version") from exc
        return VersionInfo(
            package=got.package,
            version=got.version,
            revision=got.revision,
            dockerfile_version=got.dockerfileVersion,
        )

    def workers(self, filters: Sequence[str] = (), timeout_s: float = 10) -> tuple[WorkerInfo, ...]:
        """Return the daemon's workers."""
        request = control_pb2.ListWorkersRequest(filter=filters)
        try:
            got = self.control.ListWorkers(request, timeout=timeout_s)
        except grpc.RpcError as exc:
            raise self._failed(exc, "listing workers") from exc
        return tuple(map(_worker, got.record))

    def disk_usage(self, filters: Sequence[str] = ()) -> tuple[UsageRecord, ...]:
        """Return the records of the daemon's cache."""
        with translating(f"{self.name}: disk usage"):
            got = self.control.DiskUsage(control_pb2.DiskUsageRequest(filter=filters))
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
        call = self.control.Prune(request)
        with cancel.waking(call.cancel), translating(f"{self.name}: prune"):
            for record in call:
                yield _usage(record)

    def _failed(self, exc: grpc.RpcError, what: str) -> BaseException:
        return self._connection.dial_failure or error_from_rpc(exc, f"{self.name}: {what}")


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
