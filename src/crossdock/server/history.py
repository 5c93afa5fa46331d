"""The record of past builds: what was asked, what came of it, the whole progress, the trace.

Logs, errors, traces, provenance and the manifests of results are blobs that clients read through the content service. A
record is complete a few seconds after its build, when the spans of the client have had time to arrive, or at once when a
client asks for it. Records beyond the limits go when a build ends.

Spec: moby/buildkit ``solver/llbsolver/history`` (events, limits, the form of logs), ``solver/llbsolver/history.go``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from crossdock.buildkit.proto import control_pb2
from crossdock.errors import CrossdockError, StoreError, StoreFull, UsageError
from crossdock.record import NamedTuple
from crossdock.server.failures import status_of
from crossdock.server.historyfilter import record_filter
from crossdock.server.historystore import HistoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from crossdock.engine.exporters import BuiltImage
    from crossdock.server.jobs import Job
    from crossdock.server.tracing import BuildTrace

__all__ = ["History", "HistoryLimits"]

_log = logging.getLogger("crossdock.server.history")

_LOGS = "application/vnd.buildkit.status.v0"
_ERROR = "application/vnd.googeapis.google.rpc.status+proto"
_TRACE = "application/vnd.buildkit.otlp.json.v0"
_STATEMENT = "application/vnd.in-toto+json"
_PREDICATE = "in-toto.io/predicate-type"
_NS = 1_000_000_000
#: seconds that the client's spans have to arrive
_TRACE_S = 3.0
#: values that are secrets, or long: shown as they are in no record
_HIDDEN_ATTRS = ("build-arg:HTTP_PROXY", "build-arg:HTTPS_PROXY")

Record = control_pb2.BuildHistoryRecord
Event = control_pb2.BuildHistoryEvent


class HistoryLimits:
    """Records kept: the newest ``entries`` and those younger than ``age_s``."""

    __slots__ = ("age_s", "entries")

    def __init__(self, *, entries: int = 50, age_s: float = 48 * 3600) -> None:
        self.entries = entries
        self.age_s = age_s


class _Entry(NamedTuple):
    """What is kept in memory of a record that is on disk."""

    created_ns: int
    completed_ns: int
    pinned: bool


class History:
    """All records. Safe from any thread."""

    def __init__(self, root: Path, limits: HistoryLimits) -> None:
        """Read what is there. Raises: StoreError."""
        self._store = HistoryStore(root)
        self._limits = limits
        # Guards what follows; notified when there is an event or the thread has work.
        self._changed = threading.Condition()
        self._active: dict[str, Record] = {}
        self._done = {record.Ref: _entry(record) for record in self._store.records()}
        self._store.tidy()
        #: what is yet to be told to each listener
        self._listeners: list[deque[Event]] = []
        #: traces of builds that are over, with when they are written at the latest
        self._traces: dict[str, tuple[float, BuildTrace]] = {}
        #: traces being written
        self._writing: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    # --- builds ---

    def begin(self, job: Job) -> Record | None:
        """Note that a build starts; internal ones have no record."""
        request = job.request
        if request.Internal or not self._store.accepts(job.ref):
            return None
        record = Record(
            Ref=job.ref,
            Frontend=request.Frontend,
            FrontendAttrs={k: v for k, v in request.FrontendAttrs.items() if k not in _HIDDEN_ATTRS},
            Exporters=request.Exporters,
            CreatedAt=_stamp(job.created_ns),
        )
        with self._changed:
            self._active[job.ref] = record
            self._tell(control_pb2.STARTED, record)
        return record

    def end(
        self,
        job: Job,
        record: Record | None,
        response: Mapping[str, str],
        error: CrossdockError | None,
        trace: BuildTrace,
    ) -> None:
        """Write the record of a build that is over; a full disk loses the record, not the build."""
        ended_ns = time.time_ns()
        trace.finish(job.created_ns, ended_ns, error=error.summary if error else "", steps=job.log.vertices())
        if record is None:
            trace.close()
            return
        record.CompletedAt.CopyFrom(_stamp(ended_ns))
        record.ExporterResponse.update(response)
        record.numCachedSteps, record.numTotalSteps, record.numCompletedSteps = job.log.counts()
        record.numWarnings = job.log.warnings
        written = self._write_whole(job, record, error)
        with self._changed:
            self._active.pop(record.Ref, None)
            if written:
                self._done[record.Ref] = _entry(record)
                self._traces[record.Ref] = (time.monotonic() + _TRACE_S, trace)
                self._start_thread()
            self._tell(control_pb2.COMPLETE, record)
        if not written:
            trace.close()
        self._trim()

    def _write_whole(self, job: Job, record: Record, error: CrossdockError | None) -> bool:
        """Write a record and its blobs; false when that cannot be done."""
        attested = job.attests.for_record()
        try:
            with self._store.writing():
                blobs = self._put_logs(record, job)
                blobs += self._put_attestations(record, attested)
                for number, image in job.exported.items():
                    blobs += self._put_result(record, number, image, job)
                if error is not None:
                    blobs += self._put_error(record, error)
                self._store.write(record, blobs)
        except (StoreError, StoreFull) as exc:
            _log.warning("the record of build %s is lost: %s", record.Ref, exc.summary)
            return False
        return True

    def _put_logs(self, record: Record, job: Job) -> list[str]:
        pieces = []
        for message in job.log.messages():
            pieces += [len(message).to_bytes(4, "little"), message]
        record.logs.CopyFrom(self._store.put(b"".join(pieces), _LOGS))
        return [record.logs.digest]

    def _put_attestations(self, record: Record, attested: Mapping[str, list[tuple[str, bytes]]]) -> list[str]:
        """Note what was attested: of the one result under ``""``, or of the result of each platform."""
        blobs = []
        for name, own in attested.items():
            result = record.Results[name] if name else record.Result
            for kind, content in own:
                descriptor = self._store.put(content, _STATEMENT)
                descriptor.annotations[_PREDICATE] = kind
                result.Attestations.append(descriptor)
                blobs.append(descriptor.digest)
        return blobs

    def _put_result(self, record: Record, number: int, image: BuiltImage, job: Job) -> list[str]:
        """Note an image, with its manifests, configs and statements, which the store may collect at any time."""
        found = [(image.raw, image.descriptor.media_type)]
        for platform in image.platforms:
            found.append((platform.manifest.raw, platform.descriptor.media_type))
            found.append((platform.config_raw, "application/vnd.oci.image.config.v1+json"))
        for attestation in image.attestations:
            found.append((attestation.raw, attestation.descriptor.media_type))
            content = job.engine.store.content
            found += [(content.read(blob.digest), blob.media_type) for blob in attestation.blobs]
        blobs = [self._store.put(*one).digest for one in found]
        described = control_pb2.Descriptor(
            media_type=image.descriptor.media_type,
            digest=image.descriptor.digest,
            size=image.descriptor.size,
            annotations=image.descriptor.annotations,
        )
        if not record.Result.HasField("ResultDeprecated"):
            record.Result.ResultDeprecated.CopyFrom(described)
        record.Result.Results[number].CopyFrom(described)
        return blobs

    def _put_error(self, record: Record, error: CrossdockError) -> list[str]:
        status = status_of(error)
        record.externalError.CopyFrom(self._store.put(status.SerializeToString(), _ERROR))
        record.error.ParseFromString(status.SerializeToString())
        del record.error.details[:]
        return [record.externalError.digest]

    # --- reading ---

    def status(self, ref: str) -> Iterator[bytes] | None:
        """Return the progress of a build that is over, as encoded messages; ``None`` when there is no record of it.

        Raises: StoreError.
        """
        with self._changed:
            if ref not in self._done:
                return None
        record = self._store.read(ref)
        if record is None or not record.logs.digest:
            return None
        return _frames(self._store.blob(record.logs.digest) or b"")

    def blob(self, digest: str) -> bytes | None:
        """Return a blob of a record; ``None`` when there is none. Raises: StoreError."""
        return self._store.blob(digest)

    def listen(self, request: control_pb2.BuildHistoryRequest, wanted: Callable[[], bool]) -> Iterator[Event]:
        """Yield records, active ones first, then what happens, until the client wants no more.

        Call :meth:`wake` when ``wanted`` changes. Raises: UsageError for a malformed filter; StoreError.
        """
        matches = record_filter(request.Filter)
        events: deque[Event] = deque()
        with self._changed:
            self._listeners.append(events)
            active = [self._active[request.Ref]] if request.Ref in self._active else []
            if not request.Ref:
                active = list(self._active.values())
            done = [] if request.ActiveOnly else self._newest(request.Ref)
        try:
            yield from (
                Event(type=control_pb2.STARTED, record=record) for record in active if matches(record)
            )
            left = request.Limit or len(done)
            for ref in done:
                record = self._store.read(ref)
                if left > 0 and record is not None and matches(record):
                    left -= 1
                    yield Event(type=control_pb2.COMPLETE, record=record)
            yield from self._follow(request, events, matches, wanted, early=not (request.Ref and active))
        finally:
            with self._changed:
                self._listeners = [one for one in self._listeners if one is not events]

    def _newest(self, ref: str) -> list[str]:
        if ref:
            return [ref] if ref in self._done else []
        return sorted(self._done, key=lambda name: -self._done[name].created_ns)

    def _follow(
        self,
        request: control_pb2.BuildHistoryRequest,
        events: deque[Event],
        matches: Callable[[Record], bool],
        wanted: Callable[[], bool],
        *,
        early: bool,
    ) -> Iterator[Event]:
        """Yield what happens from now on; who exits early gets only the end of the one build it waits for."""
        if request.EarlyExit and early:
            return
        while True:
            with self._changed:
                while not events and wanted() and not self._closed:
                    self._changed.wait()
                if not events or not wanted():
                    return
                event = events.popleft()
            if (request.Ref and event.record.Ref != request.Ref) or not matches(event.record):
                continue
            yield event
            if request.EarlyExit and event.type == control_pb2.COMPLETE:
                return

    # --- changing ---

    def update(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, delete or finalise a record. Raises: UsageError when there is none; StoreError, StoreFull."""
        with self._changed:
            if request.Ref not in self._done:
                if request.Finalize and request.Ref in self._active:
                    return
                summary = f"no build history record {request.Ref}"
                raise UsageError(summary)
        if request.Delete:
            self._delete(request.Ref)
        elif request.Finalize:
            self._write_trace(request.Ref)
        else:
            self._rewrite(request.Ref, lambda record: _pin(record, request.Pinned))

    def close(self) -> None:
        """End all listeners; what is not written yet is."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        for ref in list(self._traces):
            self._write_trace(ref)

    def wake(self) -> None:
        """Have listeners look whether they are still wanted."""
        with self._changed:
            self._changed.notify_all()

    # --- traces ---

    def _start_thread(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="history", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        """Write traces whose time has come, until there is none left."""
        while True:
            with self._changed:
                now = time.monotonic()
                due = [ref for ref, (at, _) in self._traces.items() if at <= now]
                if not due:
                    if self._closed or not self._traces:
                        self._thread = None
                        return
                    self._changed.wait(min(at for at, _ in self._traces.values()) - now)
                    continue
            for ref in due:
                try:
                    self._write_trace(ref)
                except CrossdockError as exc:
                    _log.warning("the trace of build %s is lost: %s", ref, exc.summary)

    def _write_trace(self, ref: str) -> None:
        """Add the trace to a record; waits for another thread that does. Raises: StoreError, StoreFull."""
        with self._changed:
            while ref in self._writing:
                self._changed.wait()
            found = self._traces.pop(ref, None)
            if found is None:
                return
            self._writing.add(ref)
        try:
            encoded = found[1].encode()
            with self._store.writing():
                descriptor = self._store.put(encoded, _TRACE)
                self._rewrite(ref, lambda record: record.trace.CopyFrom(descriptor), descriptor.digest)
        finally:
            found[1].close()
            with self._changed:
                self._writing.discard(ref)
                self._changed.notify_all()

    # --- inside ---

    def _rewrite(self, ref: str, change: Callable[[Record], object], *blobs: str) -> None:
        """Change a record that is written, if it is still there. Raises: StoreError, StoreFull."""
        with self._store.writing():
            record = self._store.read(ref)
            if record is None:
                return
            change(record)
            record.Generation += 1
            self._store.write(record, [*self._store.blobs_of(ref), *blobs])
        with self._changed:
            if ref in self._done:
                self._done[ref] = _entry(record)
                self._tell(control_pb2.COMPLETE, record)

    def _tell(self, kind: control_pb2.BuildHistoryEventType, record: Record) -> None:
        if self._listeners:
            event = Event(type=kind, record=record)
            for events in self._listeners:
                events.append(event)
        self._changed.notify_all()

    def _trim(self) -> None:
        """Delete records that are both too many and too old."""
        oldest = time.time_ns() - int(self._limits.age_s * _NS)
        with self._changed:
            loose = [(entry.completed_ns, ref) for ref, entry in self._done.items() if not entry.pinned]
        loose.sort(reverse=True)
        for completed_ns, ref in loose[self._limits.entries :]:
            if completed_ns < oldest:
                try:
                    self._delete(ref)
                except StoreError as exc:
                    _log.warning("the record of build %s cannot be removed: %s", ref, exc.summary)

    def _delete(self, ref: str) -> None:
        with self._changed:
            if self._done.pop(ref, None) is None:
                return
            trace = self._traces.pop(ref, None)
            self._tell(control_pb2.DELETED, Record(Ref=ref))
        if trace is not None:
            trace[1].close()
        self._store.remove(ref)


def _pin(record: Record, pinned: bool) -> None:
    record.pinned = pinned


def _entry(record: Record) -> _Entry:
    return _Entry(record.CreatedAt.ToNanoseconds(), record.CompletedAt.ToNanoseconds(), record.pinned)


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _stamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // _NS, nanos=ns % _NS)
