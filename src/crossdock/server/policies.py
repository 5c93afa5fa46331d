"""Source policies of a build: rules that came with its request, and a client that decides for itself.

Spec: moby/buildkit ``solver/llbsolver/policy.go``, ``sourcepolicy/policysession/policysession.proto``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import gateway_pb2, ops_pb2, policysession_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import SolveError
from crossdock.llb.ops import SourceOp
from crossdock.llb.policy import PolicyDenied, SourcePolicies
from crossdock.llb.policyrules import Action, Policy
from crossdock.server.clientcalls import unary_call
from crossdock.server.results import platform_to_pb
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.buildkit.proto import policy_pb2
    from crossdock.image.platform import Platform
    from crossdock.server.jobs import Job

__all__ = ["ClientDenied", "job_policies", "read_policies"]

_CHECK = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"
#: questions that a client may have about one source
_MAX_QUESTIONS = 10


class ClientDenied(PolicyDenied):
    """The client's own policy does not allow a source; ``messages`` are its words."""

    def __init__(self, summary: str, messages: tuple[str, ...]) -> None:
        super().__init__(summary)
        self.messages = messages


def read_policies(given: Iterable[policy_pb2.Policy]) -> list[Policy]:
    """Read policies of a request. Raises: UsageError."""
    return [Policy.from_bytes(one.SerializeToString()) for one in given]


def job_policies(job: Job) -> SourcePolicies:
    """Return the policies of a build. Raises: UsageError."""
    request = job.request
    rules = read_policies([request.SourcePolicy]) if request.HasField("SourcePolicy") else []
    session = request.SourcePolicySession
    return SourcePolicies(rules, _Verifier(job, session).ask if session else None)


class _Verifier:
    """Asks the client about each source, and tells it what it wants to know first."""

    def __init__(self, job: Job, session_id: str) -> None:
        self._job = job
        self._session_id = session_id

    def ask(self, op: SourceOp, platform: Platform | None) -> SourceOp:
        """Return the source as the client wants it. Raises: ClientDenied; SolveError; SessionLost; the token's cause."""
        source = ops_pb2.SourceOp(identifier=op.identifier, attrs=dict(op.attrs))
        known = gateway_pb2.ResolveSourceMetaResponse(Source=source)
        for _ in range(_MAX_QUESTIONS):
            answer = self._check(known, platform)
            kind = answer.WhichOneof("result")
            if kind == "decision":
                return self._decided(op, answer.decision)
            if kind != "request":
                summary = "no decision in policy response"
                raise SolveError(summary)
            wanted = answer.request
            if wanted.Source.identifier != op.identifier or dict(wanted.Source.attrs) != dict(op.attrs):
                summary = (
                    f"policy requested different source: {wanted.Source.identifier!r} != {op.identifier!r}"
                )
                raise SolveError(summary)
            from crossdock.server.sourcemeta import resolve_source

            known = resolve_source(self._job, wanted, asking=False)
        summary = f"too many policy requests for {op.identifier}"
        raise SolveError(summary)

    def _check(
        self, known: gateway_pb2.ResolveSourceMetaResponse, platform: Platform | None
    ) -> policysession_pb2.CheckPolicyResponse:
        job = self._job
        session = job.sessions.get(self._session_id, job.cancel)
        request = policysession_pb2.CheckPolicyRequest(Source=known)
        if platform is not None:
            request.Platform.CopyFrom(platform_to_pb(platform))
        try:
            return unary_call(session, _CHECK, request, policysession_pb2.CheckPolicyResponse, job.cancel)
        except RpcError as exc:
            raise session_failure(session, exc, "asking the client's source policy") from exc

    @staticmethod
    def _decided(op: SourceOp, decision: policysession_pb2.DecisionResponse) -> SourceOp:
        action = int(decision.action)
        if action == Action.ALLOW:
            return op
        if action == Action.CONVERT:
            if not decision.HasField("update"):
                summary = "convert action requires updated source"
                raise SolveError(summary)
            return SourceOp(decision.update.identifier, dict(decision.update.attrs))
        messages = tuple(message.message for message in decision.denyMessages)
        reason = f": {', '.join(messages)}" if messages else ""
        summary = f'source "{op.identifier}" not allowed by policy{reason}'
        raise ClientDenied(summary, messages)
