"""Outputs that a client names when its build is done, and its word that all is written.

Spec: moby/buildkit ``session/exporter/exporter.proto``, ``solver/llbsolver/export.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import exporter_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.engine.exporters.model import ExporterSpec
from crossdock.server.clientcalls import unary_call
from crossdock.server.export import check_outputs
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.server.jobs import Job
    from crossdock.server.results import Results

__all__ = ["finish_outputs", "session_outputs"]

_FIND = "/moby.exporter.v1.Exporter/FindExporters"
_FINISH = "/moby.exporter.v1.Exporter/FinalizeExport"
#: a client that does not know the call wants nothing of it
_UNKNOWN = ("UNIMPLEMENTED", "UNAVAILABLE")


def session_outputs(job: Job, results: Results) -> list[ExporterSpec]:
    """Ask the client what to make of a result. Raises: SessionLost; ContextError with its words; UsageError; NotSupported."""
    session = job.session(job.cancel)
    if not session.supports(_FIND):
        return []
    request = exporter_pb2.FindExportersRequest(
        metadata=results.metadata, refs=[ref.id for ref in results.refs.values() if ref is not None]
    )
    try:
        found = unary_call(session, _FIND, request, exporter_pb2.FindExportersResponse, job.cancel)
    except RpcError as exc:
        if exc.code in _UNKNOWN and not session.closed:
            return []
        raise session_failure(session, exc, "asking the client for its outputs") from exc
    specs = [ExporterSpec(one.Type, dict(one.Attrs)) for one in found.exporters]
    check_outputs(specs, attested=job.attests.attested)
    return specs


def finish_outputs(job: Job, response: Mapping[str, str]) -> None:
    """Tell the client that everything is written. Raises: SessionLost; ContextError with its words."""
    session = job.session(job.cancel)
    if not session.supports(_FINISH):
        return
    request = exporter_pb2.FinalizeExportRequest(exporter_response=dict(response))
    try:
        unary_call(session, _FINISH, request, exporter_pb2.FinalizeExportResponse, job.cancel)
    except RpcError as exc:
        if exc.code not in _UNKNOWN or session.closed:
            raise session_failure(session, exc, "telling the client that its outputs are written") from exc
