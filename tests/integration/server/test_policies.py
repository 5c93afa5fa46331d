"""Source policies: rules with the request, rules of a frontend, a client that decides for itself; real buildx and plain gRPC."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import (
    control_pb2,
    gateway_pb2,
    ops_pb2,
    policy_pb2,
    policysession_pb2,
)
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.session.server import Session, control_stream, new_id
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import SourceOp
from integration.server.plain import Build, Client, copied, definition, made_file, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from crossdock.buildkit.rpc.serve import ServerCall
    from integration.server.conftest import Buildx
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay", "base")

VERIFY = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"
Check = policysession_pb2.CheckPolicyRequest
Answer = policysession_pb2.CheckPolicyResponse


def policy(*rules: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "rules": rules})


def deny(identifier: str) -> policy_pb2.Policy:
    selector = policy_pb2.Selector(identifier=identifier)
    return policy_pb2.Policy(rules=[policy_pb2.Rule(action=policy_pb2.DENY, selector=selector)])


def image(reference: str) -> Output:
    return copied(Output(Node(SourceOp(f"docker-image://{reference}"))))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write a policy and return the environment that names it."""

    def write(*rules: dict[str, Any]) -> dict[str, str]:
        (tmp_path / "policy.json").write_text(policy(*rules))
        return {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(tmp_path / "policy.json")}

    return write


class TestRulesOfARequest:
    @pytest.fixture(params=["buildx", "embedded"])
    def run(self, request: pytest.FixtureRequest, tmp_path: Path, crossdock: Crossdock) -> Any:
        """Build in one of the ways there are, giving what was printed; a failure is the second of the pair."""
        if request.param == "embedded":

            def embedded(env: Mapping[str, str], folder: Path, out: Path) -> tuple[str, bool]:
                done = crossdock(
                    "build", "--builder", "embedded", "--progress", "plain", "-o", str(out), str(folder), env=env)  # fmt: skip
                return done.out + done.err, done.code == 0

            return embedded
        buildx: Buildx = request.getfixturevalue("buildx")

        def served(env: Mapping[str, str], folder: Path, out: Path) -> tuple[str, bool]:
            done = buildx.build("-o", out, folder, env=env, check=False)
            return done.stdout + done.stderr, done.returncode == 0

        return served

    @pytest.mark.needs("dockercli")
    def test_a_denied_image_fails_the_build_before_it_is_fetched(
        self, run: Any, base: BaseImages, tmp_path: Path, written: Any
    ) -> None:
        (tmp_path / "Dockerfile").write_text(f"FROM {base.index}\nRUN true\n")
        env = written({"action": "DENY", "selector": {"identifier": f"docker-image://{base.index}"}})
        shown, ok = run(env, tmp_path, tmp_path / "out")
        assert not ok
        assert f'source "docker-image://{base.index}" denied by policy' in shown
        assert "Dockerfile:1" in shown

    @pytest.mark.needs("dockercli")
    def test_an_image_is_replaced_by_a_pinned_one(
        self, run: Any, base: BaseImages, tmp_path: Path, written: Any
    ) -> None:
        name = base.index.rpartition(":")[0]
        (tmp_path / "Dockerfile").write_text("FROM example.invalid/none:1\nRUN echo ok > /ok\n")
        env = written(
            {
                "action": "CONVERT",
                "selector": {"identifier": r"^docker-image://example\.invalid/(.*)$", "match_type": "REGEX"},
                "updates": {"identifier": f"docker-image://{name}@{base.digest}"},
            }
        )
        shown, ok = run(env, tmp_path, tmp_path / "out")
        assert ok, shown
        assert (tmp_path / "out/ok").read_text() == "ok\n"
        assert (tmp_path / "out/bin/busybox").exists()

    @pytest.mark.needs("dockercli")
    def test_a_file_of_the_web_is_denied(
        self, run: Any, base: BaseImages, tmp_path: Path, written: Any
    ) -> None:
        (tmp_path / "Dockerfile").write_text("FROM scratch\nADD http://example.invalid/x /x\n")
        env = written({"action": "DENY", "selector": {"identifier": "http://*"}})
        shown, ok = run(env, tmp_path, tmp_path / "out")
        assert not ok
        assert 'source "http://example.invalid/x" denied by policy' in shown

    def test_a_wrong_file_is_named(self, crossdock: Crossdock, tmp_path: Path, written: Any) -> None:
        (tmp_path / "Dockerfile").write_text("FROM scratch\n")
        env = written({"action": "DENY"})
        done = crossdock("build", str(tmp_path), env=env)
        assert "policy.json: failed to parse source policy: a rule has no selector" in done.err
        missing = {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(tmp_path / "nope.json")}
        done = crossdock("build", str(tmp_path), env=missing)
        assert "failed to read policy file" in done.err
        assert "nope.json" in done.err

    def test_our_client_hands_the_rules_to_a_daemon(
        self, crossdock: Crossdock, shared: Any, tmp_path: Path, base: BaseImages, written: Any
    ) -> None:
        crossdock("create", "--name", "served", "--driver", "remote", shared.address)
        (tmp_path / "Dockerfile").write_text(f"FROM {base.index}\n")
        env = written({"action": "DENY", "selector": {"identifier": "docker-image://*"}})
        done = crossdock("build", "--builder", "served", str(tmp_path), env=env)
        assert "denied by policy" in done.err

    def test_definitions_are_held_to_the_rules(self, client: Client, base: BaseImages) -> None:
        error = client.failure(
            Definition=definition(image(base.index)), SourcePolicy=deny("docker-image://*")
        )
        assert "denied by policy" in text(error)
        client.solve(Definition=definition(image(base.index)), SourcePolicy=deny("git://*"))
        client.solve(Definition=definition(made_file()), SourcePolicy=deny("*"))

    def test_a_wrong_rule_is_refused_with_a_sentence(self, client: Client) -> None:
        rule = policy_pb2.Rule(selector=policy_pb2.Selector(identifier="(", match_type=policy_pb2.REGEX))
        broken = policy_pb2.Policy(rules=[rule])
        assert "invalid regular expression" in text(client.failure(SourcePolicy=broken))
        nothing = policy_pb2.Policy(rules=[policy_pb2.Rule()])
        assert "no selector" in text(client.failure(SourcePolicy=nothing))


class TestRulesOfAFrontend:
    def test_a_solve_may_bring_more_rules(self, build: Build, base: BaseImages) -> None:
        request = gateway_pb2.SolveRequest(
            Definition=definition(image(base.index)),
            SourcePolicies=[deny("docker-image://*")],
            allowResultReturn=True,
            Evaluate=True,
        )
        with pytest.raises(grpc.RpcError) as caught:
            build.call("Solve", request)
        assert "denied by policy" in text(caught.value)
        assert build.solved(image(base.index))

    @pytest.mark.parametrize("method", ["ResolveImageConfig", "ResolveSourceMeta"])
    def test_images_are_not_resolved_against_the_rules(
        self, build: Build, base: BaseImages, method: str
    ) -> None:
        rules = [deny("docker-image://*")]
        request: Any = gateway_pb2.ResolveImageConfigRequest(Ref=base.index, SourcePolicies=rules)
        if method == "ResolveSourceMeta":
            source = ops_pb2.SourceOp(identifier=f"docker-image://{base.index}")
            request = gateway_pb2.ResolveSourceMetaRequest(Source=source, SourcePolicies=rules)
        with pytest.raises(grpc.RpcError) as caught:
            build.call(method, request)
        assert "denied by policy" in text(caught.value)


class _Verifier:
    """A client that decides about sources."""

    def __init__(self, decide: Callable[[Any], Any]) -> None:
        self._decide = decide
        self.seen: list[Any] = []
        self._lock = threading.Lock()

    @property
    def handlers(self) -> dict[str, Any]:
        return {VERIFY: unary(Check, self._check)}

    def _check(self, request: Any, _call: ServerCall) -> Any:
        with self._lock:
            self.seen.append(request)
        return self._decide(request)


def decision(action: int, *messages: str, update: str = "") -> Any:
    made = policysession_pb2.DecisionResponse(
        action=action,  # type: ignore[arg-type]
        denyMessages=[policysession_pb2.DenyMessage(message=m) for m in messages],
    )
    if update:
        made.update.identifier = update
    return Answer(decision=made)


def asking(client: Client, decide: Callable[[Any], Any], output: Output) -> _Verifier:
    """Build with a client that decides; returns it."""
    verifier = _Verifier(decide)
    session = Session()
    session.allow(verifier)
    session.start(control_stream(client.own))
    try:
        client.solve(Session=session.id, SourcePolicySession=session.id, Definition=definition(output))
    finally:
        session.close()
    return verifier


class TestAClientThatDecides:
    def test_what_is_allowed_is_built(self, client: Client, base: BaseImages) -> None:
        verifier = asking(client, lambda _r: decision(policy_pb2.ALLOW), image(base.index))
        assert [r.Source.Source.identifier for r in verifier.seen] == [f"docker-image://{base.index}"]

    def test_its_words_come_back(self, client: Client, base: BaseImages) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            asking(client, lambda _r: decision(policy_pb2.DENY, "not on a Friday"), image(base.index))
        assert "not allowed by policy: not on a Friday" in text(caught.value)
        failed: Any = caught.value
        details = dict(failed.trailing_metadata())["grpc-status-details-bin"]
        assert b"policysession.DecisionResponse" in details
        assert b'"denyMessages": [{"message": "not on a Friday"}]' in details

    def test_a_source_is_replaced_and_asked_about_again(self, client: Client, base: BaseImages) -> None:
        real = f"docker-image://{base.index}"

        def decide(request: Any) -> Any:
            known = request.Source.Source.identifier
            return decision(policy_pb2.ALLOW) if known == real else decision(policy_pb2.CONVERT, update=real)

        verifier = asking(client, decide, image("example.invalid/none:1"))
        assert [r.Source.Source.identifier for r in verifier.seen] == [
            "docker-image://example.invalid/none:1",
            real,
        ]

    def test_it_may_ask_what_an_image_is_first(self, client: Client, base: BaseImages) -> None:
        def decide(request: Any) -> Any:
            if request.Source.Image.Digest:
                return decision(policy_pb2.ALLOW)
            wanted = gateway_pb2.ResolveSourceMetaRequest(Source=request.Source.Source)
            return Answer(request=wanted)

        verifier = asking(client, decide, image(base.index))
        assert verifier.seen[-1].Source.Image.Digest == base.digest
        assert json.loads(verifier.seen[-1].Source.Image.Config)["os"] == "linux"

    @pytest.mark.parametrize(
        ("decide", "wanted"),
        [
            (lambda _r: Answer(), "no decision"),
            (lambda _r: decision(policy_pb2.CONVERT), "requires updated source"),
            (
                lambda r: decision(policy_pb2.CONVERT, update=r.Source.Source.identifier + "x"),
                "too many mutations",
            ),
            (
                lambda _r: Answer(
                    request=gateway_pb2.ResolveSourceMetaRequest(
                        Source=ops_pb2.SourceOp(identifier="docker-image://example.invalid/other")
                    )
                ),
                "different source",
            ),
            (
                lambda r: Answer(request=gateway_pb2.ResolveSourceMetaRequest(Source=r.Source.Source)),
                "too many policy requests",
            ),
        ],
    )
    def test_one_that_makes_no_sense_ends_the_build(
        self, client: Client, base: BaseImages, decide: Any, wanted: str
    ) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            asking(client, decide, image(base.index))
        assert wanted in text(caught.value)

    def test_one_that_does_not_come_ends_the_build(self, client: Client, base: BaseImages) -> None:
        error = client.failure(SourcePolicySession=new_id(), Definition=definition(image(base.index)))
        assert "no active session" in text(error)

    def test_a_session_without_the_service_is_no_permission(self, client: Client, base: BaseImages) -> None:
        session = Session()
        session.start(control_stream(client.own))
        try:
            error = client.failure(SourcePolicySession=session.id, Definition=definition(image(base.index)))
        finally:
            session.close()
        assert "policy" in text(error)


def test_the_capabilities_say_so(build: Build) -> None:
    pong = build.call("Ping", gateway_pb2.PingRequest())
    assert {"source.policy", "source.policy.session"} <= {c.ID for c in pong.LLBCaps}
    assert control_pb2.SolveRequest.DESCRIPTOR.fields_by_name["SourcePolicy"].number == 12
