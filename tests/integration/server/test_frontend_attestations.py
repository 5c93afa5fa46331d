"""Attestations that a frontend made itself and returned with its result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import control_pb2, gateway_pb2
from crossdock.buildkit.session.server import new_id
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionMkDir, FileActionMkFile, FileOp
from integration.server.plain import Build, Client, made_file, text
from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs("crun", "userns", "overlay", "base")

KIND = "https://example.com/checked/v1"
Attestation = gateway_pb2.Attestation


def files(entries: dict[str, Any]) -> Output:
    """A file system of JSON documents in /folder."""
    actions = [FileAction(action=FileActionMkDir(path="/folder"), input=-1, output=-1)]
    for number, (name, document) in enumerate(entries.items()):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        action = FileActionMkFile(path=f"/folder/{name}", data=data)
        actions.append(FileAction(action=action, input=number, output=-1))
    last = actions[-1]
    actions[-1] = FileAction(action=last.action, input=last.input, output=0)
    return Output(Node(FileOp(tuple(actions))))


@pytest.fixture
def pushing(client: Client, repository: str) -> Iterator[Build]:
    """A build whose frontend is the test and whose result is pushed to ``repository``."""
    ref = new_id()
    exporter = control_pb2.Exporter(Type="image", Attrs={"name": f"{repository}:1", "push": "true"})
    solve = client.control.Solve.future(control_pb2.SolveRequest(Ref=ref, Exporters=[exporter]))
    made = Build(client, ref, solve)
    made.call("Ping", gateway_pb2.PingRequest())
    yield made
    solve.cancel()


def returned(build: Build, *attestations: Any, key: str = "linux/amd64") -> None:
    result = gateway_pb2.Result(ref=gateway_pb2.Ref(id=build.solved(made_file())))
    result.attestations[key].attestation.extend(attestations)
    build.call("Return", gateway_pb2.ReturnRequest(result=result))


def statements(repository: str) -> list[tuple[dict[str, Any], str]]:
    """Statements in the repository, and the digest of the image that they are beside."""

    def get(name: str) -> Any:
        return json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout)

    image, attesting = get(f"{repository}:1")["manifests"]
    manifest = get(f"{repository}@{attesting['digest']}")
    import urllib.request

    found = []
    host, _, path = repository.partition("/")
    for layer in manifest["layers"]:
        with urllib.request.urlopen(f"http://{host}/v2/{path}/blobs/{layer['digest']}") as answer:
            found.append((json.load(answer), image["digest"]))
    return found


def test_a_document_becomes_a_statement_about_the_image(pushing: Build, repository: str) -> None:
    ref = gateway_pb2.Ref(id=pushing.solved(files({"a.json": {"by": "us"}})))
    returned(pushing, Attestation(ref=ref, path="/folder/a.json", inTotoPredicateType=KIND))
    pushing.solve.result(60)
    ((statement, image),) = statements(repository)
    assert (statement["predicateType"], statement["predicate"]) == (KIND, {"by": "us"})
    assert {s["digest"]["sha256"] for s in statement["subject"]} == {image.partition(":")[2]}


def test_it_may_be_about_something_else(pushing: Build, repository: str) -> None:
    ref = gateway_pb2.Ref(id=pushing.solved(files({"a.json": {}})))
    subject = gateway_pb2.InTotoSubject(kind=gateway_pb2.Raw, digest=["sha256:" + "1" * 64], name="thing")
    returned(
        pushing,
        Attestation(ref=ref, path="folder/a.json", inTotoPredicateType=KIND, inTotoSubjects=[subject]),
    )
    pushing.solve.result(60)
    ((statement, _),) = statements(repository)
    assert statement["subject"] == [{"name": "thing", "digest": {"sha256": "1" * 64}}]


def test_a_bundle_is_a_folder_of_statements(pushing: Build, repository: str) -> None:
    subject = {"name": "x", "digest": {"sha256": "2" * 64}}
    documents = {
        "a.json": {"predicateType": KIND, "predicate": {"n": 1}},
        "b.json": {"predicateType": KIND, "predicate": {"n": 2}, "subject": [subject]},
    }
    ref = gateway_pb2.Ref(id=pushing.solved(files(documents)))
    returned(
        pushing,
        Attestation(kind=gateway_pb2.Bundle, ref=ref, path="/folder", inTotoPredicateType=KIND),
    )
    pushing.solve.result(60)
    found = [statement for statement, _ in statements(repository)]
    assert [s["predicate"]["n"] for s in found] == [1, 2]
    assert found[1]["subject"] == [subject]


def bad(build: Build, document: Any = b"{}", **fields: Any) -> Any:
    ref = gateway_pb2.Ref(id=build.solved(files({"a.json": document})))
    return Attestation(**{"ref": ref, "path": "/folder/a.json", **fields})


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda b: bad(b, ref=gateway_pb2.Ref()), "does not have available content"),
        (lambda b: bad(b, ref=gateway_pb2.Ref(id="nope")), "no such ref"),
        (lambda b: bad(b, path=""), "does not have set path"),
        (lambda b: bad(b, inTotoPredicateType="https://slsa.dev/provenance/v1"), "may not set provenance"),
        (lambda b: bad(b, kind=7), "not known"),
    ],
)
def test_nonsense_is_refused_when_it_is_returned(
    build: Build, make: Callable[[Build], Any], wanted: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        returned(build, make(build))
    assert wanted in text(caught.value)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda b: bad(b, path="/folder/none"), "no such file"),
        (lambda b: bad(b, kind=gateway_pb2.Bundle, path="/none"), "no such directory"),
        (lambda b: bad(b, b"rubbish", kind=gateway_pb2.Bundle, path="/folder"), "cannot decode in-toto"),
        (lambda b: bad(b, {"x": 1}, kind=gateway_pb2.Bundle, path="/folder"), "no in-toto statement"),
        (
            lambda b: bad(b, {"predicateType": "https://slsa.dev/provenance/v0.2"}, kind=gateway_pb2.Bundle, path="/folder"),
            "may not bundle provenance",
        ),
        (
            lambda b: bad(b, {"predicateType": "x"}, kind=gateway_pb2.Bundle, path="/folder", inTotoPredicateType=KIND),
            "does not match required",
        ),
    ],
)  # fmt: skip
def test_nonsense_fails_the_build_with_a_sentence(
    pushing: Build, make: Callable[[Build], Any], wanted: str
) -> None:
    returned(pushing, make(pushing))
    with pytest.raises(grpc.RpcError) as caught:
        pushing.solve.result(60)
    assert wanted in text(caught.value)
