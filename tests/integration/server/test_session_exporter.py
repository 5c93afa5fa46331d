"""Outputs that a client names when its build is done."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import exporter_pb2, filesync_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.session.server import Session, control_stream
from integration.server.plain import Client, definition, made_file, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.buildkit.rpc.serve import ServerCall

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

SERVICE = "/moby.exporter.v1.Exporter/"


class Chooser:
    """A client that names its outputs late."""

    def __init__(self, choose: Callable[[Any], Sequence[tuple[str, dict[str, str]]]]) -> None:
        self._choose = choose
        self.asked: list[Any] = []
        self.finished: list[dict[str, str]] = []
        self.received: dict[str, bytes] = {}

    @property
    def handlers(self) -> dict[str, Any]:
        return {
            f"{SERVICE}FindExporters": unary(exporter_pb2.FindExportersRequest, self._find),
            f"{SERVICE}FinalizeExport": unary(exporter_pb2.FinalizeExportRequest, self._finish),
            "/moby.filesync.v1.FileSend/DiffCopy": self._take,
        }

    def _find(self, request: Any, _call: ServerCall) -> Any:
        self.asked.append(request)
        chosen = [exporter_pb2.ExporterRequest(Type=t, Attrs=a) for t, a in self._choose(request)]
        return exporter_pb2.FindExportersResponse(exporters=chosen)

    def _finish(self, request: Any, _call: ServerCall) -> Any:
        self.finished.append(dict(request.exporter_response))
        return exporter_pb2.FinalizeExportResponse()

    def _take(self, call: ServerCall) -> None:
        number = next(iter(call.metadata("buildkit-attachable-exporter-id")))
        parse = filesync_pb2.BytesMessage.FromString
        self.received[number] = b"".join(parse(message).data for message in call.messages())


def built(client: Client, attachable: Chooser | None, **fields: Any) -> Any:
    session = Session()
    if attachable is not None:
        session.allow(attachable)
    session.start(control_stream(client.own))
    try:
        return client.solve(
            Session=session.id, EnableSessionExporter=True, Definition=definition(made_file(b"hi")), **fields
        )
    finally:
        session.close()


def test_what_is_chosen_is_written_and_its_end_is_told(client: Client) -> None:
    chooser = Chooser(lambda _r: [("tar", {})])
    response = built(client, chooser)
    assert len(chooser.asked[0].refs) == 1
    with tarfile.open(fileobj=io.BytesIO(chooser.received["0"])) as archive:
        member = archive.extractfile("file")
        assert member is not None
        assert member.read() == b"hi"
    assert chooser.finished == [dict(response.ExporterResponse)]


def test_it_comes_after_the_outputs_of_the_request(client: Client) -> None:
    from crossdock.buildkit.proto import control_pb2

    chooser = Chooser(lambda _r: [("tar", {})])
    built(client, chooser, Exporters=[control_pb2.Exporter(Type="tar")])
    assert sorted(chooser.received) == ["0", "1"]


def test_nothing_chosen_is_fine(client: Client) -> None:
    chooser = Chooser(lambda _r: [])
    built(client, chooser)
    assert (chooser.received, len(chooser.finished)) == ({}, 1)


def test_a_client_without_the_service_chooses_nothing(client: Client) -> None:
    built(client, None)


def refuse(_request: Any) -> Any:
    raise RpcError("FAILED_PRECONDITION", "no disk left here")


@pytest.mark.parametrize(
    ("choose", "wanted"),
    [
        (lambda _r: [("nope", {})], "nope"),
        (lambda _r: [("local", {"dest": "/etc"})], "dest"),
        (refuse, "no disk left here"),
    ],
)
def test_a_wrong_choice_fails_the_build(client: Client, choose: Any, wanted: str) -> None:
    chooser = Chooser(choose)
    with pytest.raises(grpc.RpcError) as caught:
        built(client, chooser)
    assert wanted in text(caught.value)
    assert not chooser.finished
