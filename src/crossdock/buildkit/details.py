"""Errors: gRPC statuses with BuildKit's typed details become our errors.

BuildKit sends details as JSON inside ``google.protobuf.Any`` whose type URL ends in ``+json``.

Spec: moby/buildkit ``solver/errdefs/errdefs.proto``, ``util/grpcerrors``, ``frontend/gateway/pb/exit.go``.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import (
    BuilderError,
    Cancelled,
    CrossdockError,
    DockerfileError,
    Position,
    RemoteError,
    SourceFile,
    SourceRange,
    StepFailed,
    StoreFull,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "decode_details",
    "error_from_rpc",
    "error_from_status",
    "rpc_code",
    "source_of",
    "translating",
    "vertex_of",
]

_UNAVAILABLE_HINT = "check that the daemon runs and that the address and its permissions are right"
#: exit codes of ``docker buildx`` by gRPC code
_EXIT_CODES = {"INTERNAL": 100, "RESOURCE_EXHAUSTED": 102, "CANCELLED": 130}


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turn ``RpcError`` into our errors; ``what`` says what was being done."""
    try:
        yield
    except RpcError as exc:
        raise error_from_rpc(exc, what) from exc


def rpc_code(exc: Exception) -> str:
    """Return the status code's name, of our own errors or grpcio's; ``UNKNOWN`` for errors that carry none."""
    code = getattr(exc, "code", None)
    if isinstance(code, str):
        return code
    return str(code().name) if callable(code) else "UNKNOWN"


def error_from_rpc(exc: RpcError, what: str) -> CrossdockError:
    """Build the typed error of a failed call."""
    return error_from_status(exc.code, exc.message, decode_details(exc.details), what)


def error_from_status(code: str, message: str, details: list[tuple[str, Any]], what: str) -> CrossdockError:
    """Build the error from a status' parts: upper-case code name, message, ``(type, JSON value)`` details."""
    if code == "CANCELLED":
        return Cancelled()
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        summary = f"{what}: {message}"
        return BuilderError(summary, hint=_UNAVAILABLE_HINT, retryable=True)
    if code == "UNIMPLEMENTED":
        hint = "the daemon is older than this feature; upgrade BuildKit"
        return RemoteError(f"{what}: {message}", grpc_code=code, hint=hint)
    # Unavailable as the daemon's own code means its call into our session, quoted, not our call to it.
    if "no active session for" in message or "code = Unavailable" in message:
        summary = f"{what}: the daemon lost the connection over which it reads this build's files: {message}"
        return BuilderError(summary, hint="run the build again", retryable=True)
    source = source_of(details)
    vertex = vertex_of(details)
    exits = [d for kind, d in details if kind == "gatewayapi.ExitMessage"]
    exit_code = exits[0].get("Code", 0) if exits else None
    if exit_code is not None:
        return StepFailed(message, step_exit_code=int(exit_code), vertex=vertex, source=source)
    if "no space left on device" in message:
        return StoreFull(f"{what}: {message}", hint="free disk space on the daemon, or run `crossdock prune`")
    if source is not None and vertex is None:
        return DockerfileError(message, source=source)
    exit_code = _EXIT_CODES.get(code, 1)
    return RemoteError(message, grpc_code=code, exit_code=exit_code, source=source, vertex=vertex)


def vertex_of(details: list[tuple[str, Any]]) -> str | None:
    """Return the digest of the step that failed."""
    return next((d.get("digest") for kind, d in details if kind == "errdefs.Vertex"), None)


def decode_details(raw: bytes) -> list[tuple[str, Any]]:
    """Return the ``(type, JSON value)`` details of an encoded ``google.rpc.Status``; what cannot be read is left out."""
    if not raw:
        return []
    from google.protobuf.message import DecodeError  # lazily: only failures pay for them
    from google.rpc.status_pb2 import Status

    status = Status()
    try:
        status.ParseFromString(raw)
    except DecodeError:
        return []  # details we cannot read must not hide the error itself
    out: list[tuple[str, Any]] = []
    for item in status.details:
        kind = item.type_url.rpartition("/")[2]
        if not kind.endswith("+json"):
            continue
        try:
            out.append((kind.removesuffix("+json"), json.loads(item.value)))
        except ValueError:
            continue  # as above
    return out


def source_of(details: list[tuple[str, Any]]) -> SourceRange | None:
    """Return the place in a build file that an error names."""
    for kind, detail in details:
        if kind != "errdefs.Source":
            continue
        info = detail.get("info") or {}
        ranges = detail.get("ranges") or []
        if not ranges:
            continue
        import base64

        text = base64.b64decode(info.get("data") or "").decode(errors="replace")
        spans = [(r.get("start") or {}, r.get("end") or {}) for r in ranges]
        start = min(Position(s.get("line", 0), s.get("character", 0)) for s, _ in spans)
        end = max(Position(e.get("line", 0), e.get("character", 0)) for _, e in spans)
        return SourceRange(SourceFile(info.get("filename") or "Dockerfile", text), start, end)
    return None
