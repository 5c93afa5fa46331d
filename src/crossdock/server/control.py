"""``moby.buildkit.v1.Control``: builds, their progress, sessions, usage.

Spec: moby/buildkit ``api/services/control/control.proto``, ``control/control.go``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from crossdock.buildkit.proto import control_pb2
from crossdock.cancel import CancelToken
from crossdock.engine.store.gc import GCPolicy
from crossdock.errors import Cancelled, CrossdockError, NotSupported, UsageError
from crossdock.server.failures import Missing, answering
from crossdock.server.jobs import Job
from crossdock.server.runner import run_job
from crossdock.server.sessions import ClientSession
from crossdock.server.workers import version_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from crossdock.engine.store.usage import UsageRecord
    from crossdock.server.daemon import Daemon

__all__ = ["Control", "handlers"]

_log = logging.getLogger("crossdock.server.control")

_HEADER = "x-docker-expose-session-"
_NS = 1_000_000_000
_BLOCK = 1 << 20
#: values of ``CompatibilityVersion`` whose rules are those served here
_COMPATIBLE = (0, 20, 30)


class Control:
    """The service's methods, as gRPC calls them: one thread each."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    # --- builds ---

    def solve(
        self, request: control_pb2.SolveRequest, context: grpc.ServicerContext
    ) -> control_pb2.SolveResponse:
        """Run one build to its end."""
        daemon = self._daemon
        with answering(context):
            job = daemon.jobs.add(lambda: self._job(request), request.Ref)
            context.add_callback(lambda: job.cancel.cancel(Cancelled()))
            record = daemon.history.begin(job)
            error: CrossdockError | None = None
            response: dict[str, str] = {}
            try:
                response = run_job(job)
            except CrossdockError as exc:
                error = exc
                raise
            finally:
                job.log.finish()
                daemon.history.end(job, record, response, error)
                daemon.jobs.remove(job)
                daemon.collect_garbage_soon()
            return control_pb2.SolveResponse(ExporterResponse=response)

    def _job(self, request: control_pb2.SolveRequest) -> Job:
        daemon = self._daemon
        if request.CompatibilityVersion not in _COMPATIBLE:
            summary = f"compatibility version {request.CompatibilityVersion} is not supported"
            raise NotSupported(summary)
        for name in request.Entitlements:
            if name not in daemon.entitlements:
                summary = f"granting entitlement {name} is not allowed by build daemon configuration"
                raise UsageError(summary, hint=f"start it with --allow-insecure-entitlement {name}")
        return Job(
            request.Ref,
            engine=daemon.engine,
            sessions=daemon.sessions,
            session_id=request.Session,
            registry=daemon.registry,
            allow=frozenset(request.Entitlements),
            request=request,
        )

    def status(self, request: control_pb2.StatusRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Follow a build; one that is over is shown from its record."""
        _send_time(context)
        with answering(context):
            recorded = self._daemon.history.status(request.Ref)
            if recorded is not None:
                yield from recorded
                return
            try:
                job = self._daemon.jobs.get(request.Ref, active=context.is_active, ended=True)
            except Missing:
                recorded = self._daemon.history.status(request.Ref)
                if recorded is None:
                    raise
                yield from recorded
                return
            context.add_callback(job.log.wake)
            yield from job.log.read(context.is_active)

    def session(
        self, messages: Iterator[control_pb2.BytesMessage], context: grpc.ServicerContext
    ) -> Iterator[control_pb2.BytesMessage]:
        """Be the client's client on the bytes of this call."""
        given: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata():
            given.setdefault(key, []).append(value.decode() if isinstance(value, bytes) else value)

        def first(name: str) -> str:
            return given.get(_HEADER + name, [""])[0]

        with answering(context):
            session = ClientSession(
                first("uuid"),
                shared_key=first("sharedkey"),
                name=first("name"),
                methods=given.get(f"{_HEADER}grpc-method", ()),
            )
            context.add_callback(session.close)
            for data in self._daemon.sessions.serve(session, (m.data for m in messages)):
                yield control_pb2.BytesMessage(data=data)

    # --- the store ---

    def disk_usage(
        self, request: control_pb2.DiskUsageRequest, context: grpc.ServicerContext
    ) -> control_pb2.DiskUsageResponse:
        """List cache records."""
        with answering(context):
            records = self._daemon.engine.disk_usage(tuple(request.filter))
            if request.ageLimit:
                oldest = time.time_ns() - request.ageLimit
                records = [r for r in records if (r.last_used_ns or r.created_ns) < oldest]
            return control_pb2.DiskUsageResponse(record=[_usage(r) for r in records])

    def prune(
        self, request: control_pb2.PruneRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.UsageRecord]:
        """Remove cache records, and tell which."""
        with answering(context):
            cancel = CancelToken()
            context.add_callback(lambda: cancel.cancel(Cancelled()))
            policy = GCPolicy(
                filters=tuple(request.filter),
                all=request.all,
                keep_duration_s=request.keepDuration / _NS,
                reserved_space=request.reservedSpace,
                max_used_space=request.maxUsedSpace,
                min_free_space=request.minFreeSpace,
            )
            removed: list[UsageRecord] = []
            self._daemon.engine.prune(policy, on_record=removed.append, cancel=cancel)
            for record in removed:
                yield _usage(record)

    # --- the daemon ---

    def list_workers(
        self, request: control_pb2.ListWorkersRequest, context: grpc.ServicerContext
    ) -> control_pb2.ListWorkersResponse:
        """Tell of the one worker, unless the filters leave it out."""
        from crossdock.server.filters import matches

        with answering(context):
            record = self._daemon.worker.record()
            shown = matches(request.filter, {"id": record.ID, "labels": dict(record.Labels)})
            return control_pb2.ListWorkersResponse(record=[record] if shown else [])

    def info(
        self, _request: control_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> control_pb2.InfoResponse:
        """Tell the version."""
        del context
        return control_pb2.InfoResponse(buildkitVersion=version_message())

    # --- history ---

    def listen_history(
        self, request: control_pb2.BuildHistoryRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.BuildHistoryEvent]:
        """Show records, and what becomes of them unless the client wants no more than there is."""
        _send_time(context)
        with answering(context):
            yield from self._daemon.history.listen(request, context)

    def update_history(
        self, request: control_pb2.UpdateBuildHistoryRequest, context: grpc.ServicerContext
    ) -> control_pb2.UpdateBuildHistoryResponse:
        """Pin, delete, or finish writing a record."""
        with answering(context):
            self._daemon.history.update(request)
            return control_pb2.UpdateBuildHistoryResponse()


def _send_time(context: grpc.ServicerContext) -> None:
    """Tell our clock, so that the client can show times by its own."""
    now = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // _NS))
    context.send_initial_metadata((("buildkit-current-timestamp", f"{seconds}.{now % _NS:09d}Z"),))


def _usage(record: UsageRecord) -> control_pb2.UsageRecord:
    out = control_pb2.UsageRecord(
        ID=record.id,
        Mutable=record.mutable,
        InUse=record.in_use,
        Size=record.size,
        CreatedAt=_stamp(record.created_ns),
        UsageCount=record.usage_count,
        Description=record.description,
        RecordType=record.record_type,
        Shared=record.shared,
        Parents=record.parents,
    )
    if record.last_used_ns:
        out.LastUsedAt.CopyFrom(_stamp(record.last_used_ns))
    return out


def _stamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // _NS, nanos=ns % _NS)


def _methods(control: Control) -> dict[str, Any]:
    """Return the gRPC handlers by method name."""
    import grpc

    pb = control_pb2
    unary, server_stream, both = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )

    def handler(make: Any, method: Any, request: Any, response: Any = None) -> Any:
        serializer = response.SerializeToString if response is not None else None
        return make(method, request_deserializer=request.FromString, response_serializer=serializer)

    return {
        "Solve": handler(unary, control.solve, pb.SolveRequest, pb.SolveResponse),
        "Status": handler(server_stream, control.status, pb.StatusRequest),
        "Session": handler(both, control.session, pb.BytesMessage, pb.BytesMessage),
        "DiskUsage": handler(unary, control.disk_usage, pb.DiskUsageRequest, pb.DiskUsageResponse),
        "Prune": handler(server_stream, control.prune, pb.PruneRequest, pb.UsageRecord),
        "ListWorkers": handler(unary, control.list_workers, pb.ListWorkersRequest, pb.ListWorkersResponse),
        "Info": handler(unary, control.info, pb.InfoRequest, pb.InfoResponse),
        "ListenBuildHistory": handler(
            server_stream, control.listen_history, pb.BuildHistoryRequest, pb.BuildHistoryEvent
        ),
        "UpdateBuildHistory": handler(
            unary, control.update_history, pb.UpdateBuildHistoryRequest, pb.UpdateBuildHistoryResponse
        ),
    }


def handlers(daemon: Daemon) -> grpc.GenericRpcHandler[Any, Any]:
    """Return the service for a gRPC server."""
    import grpc

    return grpc.method_handlers_generic_handler("moby.buildkit.v1.Control", _methods(Control(daemon)))
