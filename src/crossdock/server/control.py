"""``moby.buildkit.v1.Control``: builds, their progress, sessions, usage.

Spec: moby/buildkit ``api/services/control/control.proto``, ``control/control.go``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from crossdock.buildkit.proto import control_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.cancel import CancelToken
from crossdock.engine.store.gc import GCPolicy
from crossdock.errors import Cancelled, CrossdockError, InternalError, NotSupported, UsageError
from crossdock.server.failures import Missing, answering
from crossdock.server.jobs import Job
from crossdock.server.methods import one_request
from crossdock.server.runner import run_job
from crossdock.server.sessions import ClientSession, SessionStream
from crossdock.server.workers import version_message

if TYPE_CHECKING:
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.engine.facade import Engine
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

    def solve(self, request: control_pb2.SolveRequest, call: ServerCall) -> control_pb2.SolveResponse:
        """Run one build to its end."""
        daemon = self._daemon
        with answering():
            job = daemon.jobs.add(lambda engine: self._job(request, engine), request.Ref)
            call.on_gone(lambda: job.cancel.cancel(Cancelled()))
            record = daemon.history.begin(job)
            trace = daemon.traces.begin(next(iter(call.metadata("traceparent")), ""))
            error: CrossdockError | None = InternalError("the build ended unexpectedly")
            response: dict[str, str] = {}
            try:
                response = run_job(job)
                error = None
            except CrossdockError as exc:
                error = exc
                raise
            finally:
                job.log.finish()
                daemon.history.end(job, record, response, error, trace)
                daemon.jobs.remove(job)
                daemon.housekeeper.built((time.time_ns() - job.created_ns) / 1e9)
            return control_pb2.SolveResponse(ExporterResponse=response)

    def _job(self, request: control_pb2.SolveRequest, engine: Engine) -> Job:
        daemon = self._daemon
        if request.CompatibilityVersion not in _COMPATIBLE:
            summary = f"compatibility version {request.CompatibilityVersion} is not supported"
            raise NotSupported(summary)
        for text in request.Entitlements:
            name = text.partition("=")[0]
            if name not in daemon.entitlements:
                summary = f"granting entitlement {name} is not allowed by build daemon configuration"
                raise UsageError(summary, hint=f"start it with --allow-insecure-entitlement {name}")
        job = Job(
            request.Ref,
            engine=engine,
            sessions=daemon.sessions,
            trees=daemon.trees,
            session_id=request.Session,
            registry=daemon.registry,
            allow=frozenset(request.Entitlements),
            request=request,
        )
        job.frontends, job.recorder = daemon.frontends, daemon.recorder
        job.bridge = lambda answer, inputs: daemon.bridge(job, answer, inputs)
        return job

    def status(self, request: control_pb2.StatusRequest, call: ServerCall) -> None:
        """Follow a build; one that is over is shown from its record."""
        _send_time(call)
        with answering():
            recorded = self._daemon.history.status(request.Ref)
            if recorded is None:
                try:
                    job = self._daemon.jobs.get(request.Ref, active=lambda: call.alive, ended=True)
                except Missing:
                    recorded = self._daemon.history.status(request.Ref)
                    if recorded is None:
                        raise
                else:
                    call.on_gone(job.log.wake)
                    recorded = job.log.read(lambda: call.alive)
            for message in recorded:
                call.send(message)

    def session(self, call: ServerCall) -> None:
        """Be the client's client on the bytes of this call."""
        with answering():
            stream = SessionStream(call)
            session = ClientSession(
                _first(call, "uuid"),
                stream,
                shared_key=_first(call, "sharedkey"),
                name=_first(call, "name"),
                methods=call.metadata(f"{_HEADER}grpc-method"),
            )
            call.on_gone(stream.close)
            call.greet([])
            self._daemon.sessions.serve(session)

    # --- the store ---

    def disk_usage(
        self, request: control_pb2.DiskUsageRequest, _call: ServerCall
    ) -> control_pb2.DiskUsageResponse:
        """List cache records."""
        with answering():
            records = self._daemon.engine.disk_usage(tuple(request.filter))
            if request.ageLimit:
                oldest = time.time_ns() - request.ageLimit
                records = [r for r in records if (r.last_used_ns or r.created_ns) < oldest]
            return control_pb2.DiskUsageResponse(record=[_usage(r) for r in records])

    def prune(self, request: control_pb2.PruneRequest, call: ServerCall) -> None:
        """Remove cache records, and tell which."""
        with answering():
            cancel = CancelToken()
            call.on_gone(lambda: cancel.cancel(Cancelled()))
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
                call.send(_usage(record).SerializeToString())

    # --- the daemon ---

    def list_workers(
        self, request: control_pb2.ListWorkersRequest, _call: ServerCall
    ) -> control_pb2.ListWorkersResponse:
        """Tell of the one worker, unless the filters leave it out."""
        from crossdock.server.filters import matches

        with answering():
            record = self._daemon.worker.record()
            shown = matches(request.filter, {"id": record.ID, "labels": dict(record.Labels)})
            return control_pb2.ListWorkersResponse(record=[record] if shown else [])

    def info(self, _request: control_pb2.InfoRequest, _call: ServerCall) -> control_pb2.InfoResponse:
        """Tell the version."""
        return control_pb2.InfoResponse(buildkitVersion=version_message())

    # --- history ---

    def listen_history(self, request: control_pb2.BuildHistoryRequest, call: ServerCall) -> None:
        """Show records, and what becomes of them unless the client wants no more than there is."""
        _send_time(call)
        with answering():
            history = self._daemon.history
            call.on_gone(history.wake)
            for event in history.listen(request, lambda: call.alive):
                call.send(event.SerializeToString())

    def update_history(
        self, request: control_pb2.UpdateBuildHistoryRequest, _call: ServerCall
    ) -> control_pb2.UpdateBuildHistoryResponse:
        """Pin, delete, or finish writing a record."""
        with answering():
            self._daemon.history.update(request)
            return control_pb2.UpdateBuildHistoryResponse()


def _first(call: ServerCall, name: str) -> str:
    return next(iter(call.metadata(_HEADER + name)), "")


def _send_time(call: ServerCall) -> None:
    """Tell our clock, so that the client can show times by its own."""
    now = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // _NS))
    call.greet([("buildkit-current-timestamp", f"{seconds}.{now % _NS:09d}Z")])


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


def handlers(daemon: Daemon) -> dict[str, Handler]:
    """Return the service's methods."""
    control = Control(daemon)
    pb = control_pb2
    methods: dict[str, Handler] = {
        "Solve": unary(pb.SolveRequest, control.solve),
        "Status": one_request(pb.StatusRequest, control.status),
        "Session": control.session,
        "DiskUsage": unary(pb.DiskUsageRequest, control.disk_usage),
        "Prune": one_request(pb.PruneRequest, control.prune),
        "ListWorkers": unary(pb.ListWorkersRequest, control.list_workers),
        "Info": unary(pb.InfoRequest, control.info),
        "ListenBuildHistory": one_request(pb.BuildHistoryRequest, control.listen_history),
        "UpdateBuildHistory": unary(pb.UpdateBuildHistoryRequest, control.update_history),
    }
    return {f"/moby.buildkit.v1.Control/{name}": method for name, method in methods.items()}
