"""The record of past builds: what was asked, what came of it, the whole progress.

A record is a file ``REF.pb``; logs and errors are blobs beside them, named by digest and read by clients through the
content service. Records beyond the limits go when a build ends.

Spec: moby/buildkit ``solver/llbsolver/history`` (events, limits, the form of logs).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from crossdock.buildkit.proto import control_pb2
from crossdock.errors import CrossdockError, StoreError, StoreFull, UsageError, translate
from crossdock.server.failures import status_of
from crossdock.server.filters import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from crossdock.server.jobs import Job

__all__ = ["History", "HistoryLimits"]

_LOGS = "application/vnd.buildkit.status.v0"
_ERROR = "application/vnd.googeapis.google.rpc.status+proto"
_STATEMENT = "application/vnd.in-toto+json"
_PREDICATE = "in-toto.io/predicate-type"
_NS = 1_000_000_000
_REF = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
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


class History:
    """All records. Safe from any thread."""

    def __init__(self, root: Path, limits: HistoryLimits) -> None:
        """Read what is there. Raises: StoreError."""
        self._root = root
        self._blobs = root / "blobs"
        self._limits = limits
        # Guards what follows; notified when there is an event.
        self._changed = threading.Condition()
        self._active: dict[str, Record] = {}
        self._done: dict[str, Record] = {}
        self._events: list[Event] = []
        #: number of the first event in _events
        self._first = 0
        self._closed = False
        with translate({OSError: _unreadable}):
            self._blobs.mkdir(parents=True, exist_ok=True)
            for path in root.glob("*.pb"):
                try:
                    record = Record.FromString(path.read_bytes())
                except DecodeError:
                    path.unlink()  # half-written by a machine that lost power
                    continue
                self._done[record.Ref] = record

    # --- builds ---

    def begin(self, job: Job) -> Record | None:
        """Note that a build starts; internal ones have no record."""
        request = job.request
        if request.Internal or not _REF.fullmatch(job.ref):
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
        self, job: Job, record: Record | None, response: Mapping[str, str], error: CrossdockError | None
    ) -> None:
        """Write the record of a build that is over; a full disk loses the record, not the build."""
        if record is None:
            return
        record.CompletedAt.CopyFrom(_stamp(time.time_ns()))
        record.ExporterResponse.update(response)
        record.numCachedSteps, record.numTotalSteps, record.numCompletedSteps = job.log.counts()
        record.numWarnings = job.log.warnings
        try:
            self._put_logs(record, job)
            self._put_attestations(record, job)
            if error is not None:
                self._put_error(record, error)
            self._write(record)
        except (StoreError, StoreFull):
            pass
        with self._changed:
            self._active.pop(record.Ref, None)
            self._done[record.Ref] = record
            self._tell(control_pb2.COMPLETE, record)
        self._trim()

    def _put_logs(self, record: Record, job: Job) -> None:
        pieces = []
        for message in job.log.messages():
            pieces += [len(message).to_bytes(4, "little"), message]
        record.logs.CopyFrom(self._put(b"".join(pieces), _LOGS))

    def _put_attestations(self, record: Record, job: Job) -> None:
        """Note what was attested: in the result, or for several platforms in the result of each."""
        predicates = job.attests.predicates()
        for name, own in predicates.items():
            result = record.Results[name] if len(predicates) > 1 else record.Result
            for kind, content in own:
                descriptor = self._put(content, _STATEMENT)
                descriptor.annotations[_PREDICATE] = kind
                result.Attestations.append(descriptor)

    def _put_error(self, record: Record, error: CrossdockError) -> None:
        status = status_of(error)
        record.externalError.CopyFrom(self._put(status.SerializeToString(), _ERROR))
        record.error.ParseFromString(status.SerializeToString())
        del record.error.details[:]

    # --- reading ---

    def status(self, ref: str) -> Iterator[bytes] | None:
        """Return the progress of a build that is over, as encoded messages; ``None`` when there is no record of it."""
        with self._changed:
            record = self._done.get(ref)
        if record is None or not record.logs.digest:
            return None
        return _frames(self.blob(record.logs.digest) or b"")

    def blob(self, digest: str) -> bytes | None:
        """Return a blob of a record; ``None`` when there is none. Raises: StoreError."""
        path = self._path(digest)
        if path is None:
            return None
        with translate({OSError: _unreadable}):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def listen(self, request: control_pb2.BuildHistoryRequest, wanted: Callable[[], bool]) -> Iterator[Event]:
        """Yield records, active ones first, then what happens, until the client wants no more.

        Call :meth:`wake` when ``wanted`` changes.
        """
        with self._changed:
            at = self._first + len(self._events)
            active = [r for r in self._active.values() if _wanted(r, request)]
            done = [r for r in self._done.values() if _wanted(r, request)] if not request.ActiveOnly else []
        for record in active:
            yield Event(type=control_pb2.STARTED, record=record)
        done.sort(key=lambda r: -r.CreatedAt.ToNanoseconds())
        for record in done[: request.Limit or None]:
            yield Event(type=control_pb2.COMPLETE, record=record)
        if request.EarlyExit and not (request.Ref and active):
            return
        while True:
            with self._changed:
                while at >= self._first + len(self._events) and wanted() and not self._closed:
                    self._changed.wait()
                if self._closed or not wanted():
                    return
                events = self._events[max(0, at - self._first) :]
                at = self._first + len(self._events)
            for event in events:
                if _wanted(event.record, request):
                    yield event
                    if request.EarlyExit and request.Ref and event.type == control_pb2.COMPLETE:
                        return

    # --- changing ---

    def update(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, delete or finalise a record. Raises: UsageError when there is none; StoreError, StoreFull."""
        with self._changed:
            record = self._done.get(request.Ref)
            if record is None:
                if request.Finalize and request.Ref in self._active:
                    return
                summary = f"no build history record {request.Ref}"
                raise UsageError(summary)
        if request.Delete:
            self._delete(record)
        elif not request.Finalize and record.pinned != request.Pinned:
            record.pinned = request.Pinned
            record.Generation += 1
            self._write(record)
            with self._changed:
                self._tell(control_pb2.COMPLETE, record)

    def close(self) -> None:
        """End all listeners."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- inside ---

    def wake(self) -> None:
        """Have listeners look whether they are still wanted."""
        with self._changed:
            self._changed.notify_all()

    def _tell(self, kind: control_pb2.BuildHistoryEventType, record: Record) -> None:
        self._events.append(Event(type=kind, record=record))
        if len(self._events) > 1000:
            del self._events[:500]
            self._first += 500
        self._changed.notify_all()

    def _trim(self) -> None:
        """Delete records that are both too many and too old."""
        oldest = time.time_ns() - int(self._limits.age_s * _NS)
        with self._changed:
            loose = [r for r in self._done.values() if not r.pinned]
        loose.sort(key=lambda r: -r.CompletedAt.ToNanoseconds())
        for record in loose[self._limits.entries :]:
            if record.CompletedAt.ToNanoseconds() < oldest:
                self._delete(record)

    def _delete(self, record: Record) -> None:
        with self._changed:
            if self._done.pop(record.Ref, None) is None:
                return
            used = {digest for other in self._done.values() for digest in _blobs_of(other)}
            self._tell(control_pb2.DELETED, Record(Ref=record.Ref))
        with translate({OSError: _unreadable}):
            (self._root / f"{record.Ref}.pb").unlink(missing_ok=True)
            for digest in _blobs_of(record):
                path = self._path(digest)
                if path is not None and digest not in used:
                    path.unlink(missing_ok=True)

    def _put(self, data: bytes, media_type: str) -> control_pb2.Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        _replace(self._blobs / digest.removeprefix("sha256:"), data)
        return control_pb2.Descriptor(media_type=media_type, digest=digest, size=len(data))

    def _write(self, record: Record) -> None:
        _replace(self._root / f"{record.Ref}.pb", record.SerializeToString())

    def _path(self, digest: str) -> Path | None:
        match = _DIGEST.fullmatch(digest)
        return self._blobs / match[1] if match else None


def _blobs_of(record: Record) -> list[str]:
    results = [record.Result, *record.Results.values()]
    attested = [descriptor.digest for result in results for descriptor in result.Attestations]
    return [record.logs.digest, record.externalError.digest, *attested]


def _wanted(record: Record, request: control_pb2.BuildHistoryRequest) -> bool:
    if request.Ref and record.Ref != request.Ref:
        return False
    if not request.Filter:
        return True
    state = (
        "running" if not record.HasField("CompletedAt") else "error" if record.error.message else "completed"
    )
    fields = {
        "ref": record.Ref,
        "status": state,
        "repository": record.FrontendAttrs.get("vcs:source", ""),
        "startedAt": record.CreatedAt.ToJsonString(),
    }
    return matches(request.Filter, fields)


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole. Raises: StoreError, StoreFull."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    with translate({OSError: _unreadable}):
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _unreadable(exc: BaseException) -> StoreError:
    return StoreError(f"cannot use the build history: {exc}")


def _stamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // _NS, nanos=ns % _NS)
