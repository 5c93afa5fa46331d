"""Build history kept by a daemon: records, their logs, and the blobs attached to them.

Spec: moby/buildkit ``api/services/control/control.proto``, BuildHistory*; logs are a stream of length-prefixed
StatusResponse messages (``solver/llbsolver/history.go``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.buildkit.client import nanoseconds
from crossdock.buildkit.details import translating
from crossdock.buildkit.proto import content_pb2, control_pb2
from crossdock.buildkit.status import events
from crossdock.errors import BuilderError, RemoteError
from crossdock.image import Descriptor
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.buildkit.client import Client
    from crossdock.progress import Event

__all__ = [
    "HistoryRecord",
    "delete_record",
    "finalize_record",
    "has_blob",
    "history",
    "pin_record",
    "read_blob",
    "record_events",
]

_CONTROL = "/moby.buildkit.v1.Control/"
#: asked for by daemons that keep history apart from their cache
_NAMESPACE = ("containerd-namespace", "buildkit_history")


class HistoryRecord(Record):
    """One finished or running build; times in nanoseconds since the epoch."""

    ref: str
    frontend: str
    frontend_attrs: Mapping[str, str] = field(hash=False)
    exporters: tuple[tuple[str, Mapping[str, str]], ...] = field(default_factory=tuple, hash=False)
    error: str = ""
    #: gRPC's number of the error, 0 for none
    error_code: int = 0
    #: the error with all its details, a blob of :func:`read_blob`
    external_error: Descriptor | None = None
    created_ns: int
    completed_ns: int | None
    logs: Descriptor | None
    trace: Descriptor | None
    exporter_response: Mapping[str, str] = field(hash=False)
    #: result descriptors by platform (``""`` when there is one), and their attestations
    results: Mapping[str, tuple[Descriptor, ...]] = field(hash=False)
    attestations: Mapping[str, tuple[Descriptor, ...]] = field(hash=False)
    pinned: bool
    generation: int
    cached_steps: int
    total_steps: int
    completed_steps: int
    warnings: int
    #: the record as the daemon sent it, with its wire names
    raw: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @property
    def status(self) -> str:
        """``Running``, ``Completed``, ``Canceled`` or ``Error``, as buildx shows it."""
        if self.completed_ns is None:
            return "Running"
        if not self.error:
            return "Completed"
        return "Canceled" if "canceled" in self.error else "Error"


def history(
    client: Client, *, ref: str = "", active_only: bool = False, filters: Sequence[str] = (), limit: int = 0
) -> tuple[HistoryRecord, ...]:
    """Return the daemon's records, newest first.

    Raises: BuilderError when the daemon is older than v0.11, which has no history.
    """
    request = control_pb2.BuildHistoryRequest(
        Ref=ref, ActiveOnly=active_only, EarlyExit=True, Filter=filters, Limit=limit
    )
    found: dict[str, HistoryRecord] = {}
    with translating(f"{client.name}: build history"):
        call = client.channel.unary_call(f"{_CONTROL}ListenBuildHistory", request)
        for raw in call.messages():
            event = control_pb2.BuildHistoryEvent.FromString(raw)
            if event.type == control_pb2.DELETED:
                found.pop(event.record.Ref, None)
            else:
                found[event.record.Ref] = _record(event.record)
    return tuple(sorted(found.values(), key=lambda r: r.created_ns, reverse=True))


def delete_record(client: Client, ref: str) -> None:
    """Remove a record and its blobs."""
    with translating(f"{client.name}: removing build {ref}"):
        _update(client, control_pb2.UpdateBuildHistoryRequest(Ref=ref, Delete=True))


def pin_record(client: Client, ref: str, *, pinned: bool) -> None:
    """Keep a record from being dropped by age or count, or let it go."""
    with translating(f"{client.name}: pinning build {ref}"):
        _update(client, control_pb2.UpdateBuildHistoryRequest(Ref=ref, Pinned=pinned))


def finalize_record(client: Client, ref: str) -> None:
    """Have the daemon write what is still pending of a record, its trace above all."""
    with translating(f"{client.name}: finalizing build {ref}"):
        _update(client, control_pb2.UpdateBuildHistoryRequest(Ref=ref, Finalize=True))


def _update(client: Client, request: control_pb2.UpdateBuildHistoryRequest) -> None:
    client.channel.unary(f"{_CONTROL}UpdateBuildHistory", request, control_pb2.UpdateBuildHistoryResponse)


def read_blob(client: Client, blob: Descriptor) -> Iterator[bytes]:
    """Stream a blob of the history."""
    request = content_pb2.ReadContentRequest(digest=blob.digest)
    with translating(f"{client.name}: reading {blob.digest}"):
        method = "/containerd.services.content.v1.Content/Read"
        for raw in client.channel.unary_call(method, request, metadata=(_NAMESPACE,)).messages():
            yield content_pb2.ReadContentResponse.FromString(raw).data


def has_blob(client: Client, blob: Descriptor) -> bool:
    """Whether the daemon still has a blob of the history."""
    request = content_pb2.InfoRequest(digest=blob.digest)
    try:
        with translating(f"{client.name}: looking for {blob.digest}"):
            client.channel.unary(
                "/containerd.services.content.v1.Content/Info",
                request,
                content_pb2.InfoResponse,
                metadata=(_NAMESPACE,),
            )
    except RemoteError as exc:
        if exc.grpc_code in ("NOT_FOUND", "UNIMPLEMENTED"):
            return False
        raise
    return True


def record_events(client: Client, record: HistoryRecord) -> Iterator[Event]:
    """Replay the progress of a finished build, or follow that of a running one."""
    if record.completed_ns is None:
        with translating(f"{client.name}: status of {record.ref}"):
            request = control_pb2.StatusRequest(Ref=record.ref)
            for raw in client.channel.unary_call(f"{_CONTROL}Status", request).messages():
                yield from events(control_pb2.StatusResponse.FromString(raw))
        return
    if record.logs is None:
        summary = f"build {record.ref} has no logs"
        raise BuilderError(summary)
    for raw in _messages(b"".join(read_blob(client, record.logs))):
        yield from events(control_pb2.StatusResponse.FromString(raw))


def _messages(data: bytes) -> Iterator[bytes]:
    """Split at the little-endian 32-bit lengths before each message."""
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def _descriptor(message: control_pb2.Descriptor) -> Descriptor:
    return Descriptor.from_json(
        {
            "mediaType": message.media_type,
            "digest": message.digest,
            "size": message.size,
            "annotations": dict(message.annotations),
        },
        "build history",
    )


def _record(record: control_pb2.BuildHistoryRecord) -> HistoryRecord:
    # Of several platforms, each has attestations of its own, and the index is the whole's.
    groups = {**({"": record.Result} if record.HasField("Result") else {}), **record.Results}
    return HistoryRecord(
        ref=record.Ref,
        frontend=record.Frontend,
        frontend_attrs=dict(record.FrontendAttrs),
        exporters=tuple((e.Type, dict(e.Attrs)) for e in record.Exporters),
        error=record.error.message,
        error_code=record.error.code,
        external_error=_descriptor(record.externalError) if record.HasField("externalError") else None,
        created_ns=nanoseconds(record.CreatedAt),
        completed_ns=nanoseconds(record.CompletedAt) if record.HasField("CompletedAt") else None,
        logs=_descriptor(record.logs) if record.HasField("logs") else None,
        trace=_descriptor(record.trace) if record.HasField("trace") else None,
        exporter_response=dict(record.ExporterResponse),
        results={k: tuple(map(_descriptor, _results(g))) for k, g in groups.items()},
        attestations={k: tuple(map(_descriptor, g.Attestations)) for k, g in groups.items()},
        pinned=record.pinned,
        generation=record.Generation,
        cached_steps=record.numCachedSteps,
        total_steps=record.numTotalSteps,
        completed_steps=record.numCompletedSteps,
        warnings=record.numWarnings,
        raw=_plain(record),
    )


def _plain(message: Any) -> dict[str, Any]:
    """Return a message as JSON values under its wire names, unset fields left out (as Go writes such structs)."""
    out: dict[str, Any] = {}
    for found, value in message.ListFields():
        if found.message_type is not None and found.message_type.GetOptions().map_entry:
            inner = found.message_type.fields_by_name["value"].message_type is not None
            out[found.name] = {str(k): _plain(v) if inner else v for k, v in sorted(value.items())}
        elif isinstance(value, str | bytes | int | float):
            out[found.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
        elif found.message_type is not None:
            many = not hasattr(value, "ListFields")
            out[found.name] = [_plain(v) for v in value] if many else _plain(value)
        else:
            out[found.name] = list(value)
    return out


def _results(group: control_pb2.BuildResultInfo) -> list[control_pb2.Descriptor]:
    if group.Results:
        return [group.Results[k] for k in sorted(group.Results)]
    return [group.ResultDeprecated] if group.HasField("ResultDeprecated") else []
