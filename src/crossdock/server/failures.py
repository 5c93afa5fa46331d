"""Errors on their way out: our errors as gRPC statuses with BuildKit's typed details.

Details travel as JSON inside ``google.protobuf.Any``; buildx shows its excerpts from them.

Spec: moby/buildkit ``util/grpcerrors``, ``solver/errdefs/errdefs.proto``, ``frontend/gateway/pb/exit.go``.
"""

from __future__ import annotations

import base64
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.rpc.status import CODES, RpcError
from crossdock.errors import (
    Cancelled,
    CrossdockError,
    DockerfileError,
    InternalError,
    NotSupported,
    SolveError,
    StepFailed,
    StoreFull,
)
from crossdock.server.statuslog import source_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.rpc.status_pb2 import Status

    from crossdock.errors import SourceRange

__all__ = ["ClientFailure", "Missing", "Unsupported", "answering", "status_of"]

_log = logging.getLogger("crossdock.server")

_PREFIX = "github.com/moby/buildkit/"


class Missing(CrossdockError):
    """What a call names does not exist: a build, a path of a result, a blob."""

    code = "missing"


class Unsupported(NotSupported):
    """A frontend lacks what is demanded of it: a capability, or an answer to a kind of question."""

    def __init__(self, summary: str, *, capability: str = "", question: str = "") -> None:
        super().__init__(summary)
        self.capability = capability
        self.question = question


class ClientFailure(CrossdockError):
    """A client that is its build's frontend failed; its status is handed on as it came."""

    code = "client-failed"

    def __init__(self, status: Status) -> None:
        self.status = status
        if not status.message:
            self.status = type(status)()
            self.status.CopyFrom(status)
            self.status.message = "the frontend failed and gave no reason"
        super().__init__(self.status.message)


# Go's clients print any code but UNKNOWN before the message: only those that say something are used.
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (Cancelled, "CANCELLED"),
    (NotSupported, "UNIMPLEMENTED"),
    (StoreFull, "RESOURCE_EXHAUSTED"),
    (Missing, "NOT_FOUND"),
    (InternalError, "INTERNAL"),
)


@contextmanager
def answering() -> Iterator[None]:
    """Turn what a block raises into the call's status."""
    try:
        yield
    except RpcError:
        raise  # the peer is gone
    except CrossdockError as exc:
        raise _rpc_error(exc) from exc
    except Exception as exc:
        _log.error("unexpected %s: %s", type(exc).__name__, exc, exc_info=exc)
        raise _rpc_error(InternalError(f"unexpected {type(exc).__name__}: {exc}")) from exc


def _rpc_error(error: CrossdockError) -> RpcError:
    status = status_of(error)
    code = CODES[status.code] if 0 < status.code < len(CODES) else "UNKNOWN"
    return RpcError(code, status.message, status.SerializeToString())


def status_of(error: BaseException) -> Status:
    """Return an error as a ``google.rpc.Status`` with details."""
    from google.rpc.status_pb2 import Status as Message

    if isinstance(error, ClientFailure):
        return error.status
    status = Message(code=_number(error), message=_text(error))
    for name, value in _details(error):
        status.details.add(type_url=_PREFIX + name + "+json", value=json.dumps(value).encode())
    return status


def _number(error: BaseException) -> int:
    name = next((name for kind, name in _CODES if isinstance(error, kind)), "UNKNOWN")
    return CODES.index(name)


def _text(error: BaseException) -> str:
    if isinstance(error, Cancelled):
        return "context canceled"
    if not isinstance(error, CrossdockError):
        return f"unexpected {type(error).__name__}: {error}"
    text = error.summary
    if isinstance(error, DockerfileError) and error.source is not None and "line " not in text:
        text = f"dockerfile parse error on line {error.source.start.line}: {text}"
    if error.hint:
        text += f" ({error.hint})"
    return text


def _details(error: BaseException) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    if isinstance(error, StepFailed):
        out.append(("gatewayapi.ExitMessage", {"Code": error.step_exit_code}))
    if isinstance(error, Unsupported) and error.capability:
        out.append(("errdefs.FrontendCap", {"name": error.capability}))
    if isinstance(error, Unsupported) and error.question:
        # Clients ask another frontend then.
        out.append(("errdefs.Subrequest", {"name": error.question}))
    messages = getattr(error, "messages", ())
    if messages:
        denied = {"action": "DENY", "denyMessages": [{"message": text} for text in messages]}
        out.append(("policysession.DecisionResponse", denied))
    if isinstance(error, SolveError) and error.vertex:
        out.append(("errdefs.Vertex", {"digest": error.vertex.partition("!")[0]}))
        out.append(("errdefs.Solve", {"description": _description(error)}))
    if isinstance(error, CrossdockError) and error.source is not None:
        out.append(("errdefs.Source", _source(error.source)))
    return out


def _description(error: SolveError) -> dict[str, str]:
    return {"llb.customname": error.vertex_name} if error.vertex_name else {}


def _source(source: SourceRange) -> dict[str, Any]:
    info, ranges = source_info(source)
    return {
        "info": {
            "filename": info.filename,
            "data": base64.b64encode(info.data).decode(),
            "language": info.language,
        },
        "ranges": [{"start": {"line": r.start.line}, "end": {"line": r.end.line}} for r in ranges],
    }
