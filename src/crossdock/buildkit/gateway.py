"""The gateway (LLBBridge): what a client in a frontend's place may ask of a running build.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto``; the build is named by metadata.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.details import error_from_rpc
from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.rpc.channel import Channel
    from crossdock.buildkit.solve import CacheEntry
    from crossdock.cancel import CancelToken
    from crossdock.image import Platform
    from crossdock.llb import Definition

__all__ = ["Gateway", "GatewayResult", "ResolvedImage"]

_BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
#: seconds until the daemon must know the build
_JOB_S = 20.0


class ResolvedImage(Record):
    """An image reference resolved by the daemon; ``config`` is the raw image config."""

    ref: str
    digest: str
    config: bytes = field(repr=False)


class GatewayResult(Record):
    """What a solve inside the build gave."""

    #: result id by platform, or under ``""`` when there is one
    refs: Mapping[str, str] = field(hash=False)
    metadata: Mapping[str, bytes] = field(hash=False)
    #: the message itself, to be handed to :meth:`Gateway.finish`
    raw: Any = field(repr=False, hash=False)


class Gateway:
    """The gateway of one build; methods raise what the daemon reports, as our errors."""

    def __init__(
        self,
        channel: Channel,
        build_ref: str,
        cancel: CancelToken,
        *,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """``ended`` says whether the build is over already, so that nobody waits for it to begin."""
        self._ended = ended
        self._channel = channel
        self._metadata = (("buildkit-controlapi-buildid", build_ref),)
        self._cancel = cancel
        #: capabilities of frontends, by id
        self.caps: frozenset[str] = frozenset()
        self.llb_caps: frozenset[str] = frozenset()

    def ping(self) -> None:
        """Wait until the daemon knows the build, and learn what it can do."""
        deadline = time.monotonic() + _JOB_S
        while True:
            self._cancel.check()
            try:
                got = self._channel.unary(
                    f"{_BRIDGE}Ping",
                    gateway_pb2.PingRequest(),
                    gateway_pb2.PongResponse,
                    metadata=self._metadata,
                    timeout_s=_JOB_S,
                )
            except RpcError as exc:
                # The job is registered by Control.Solve, which may arrive a little later than this call.
                late = self._ended() or time.monotonic() > deadline
                if late or exc.code in ("UNAVAILABLE", "UNIMPLEMENTED"):
                    raise error_from_rpc(exc, "waiting for the build to start") from exc
                self._cancel.sleep(0.02)
                continue
            self.caps = frozenset(c.ID for c in got.FrontendAPICaps if c.Enabled)
            self.llb_caps = frozenset(c.ID for c in got.LLBCaps if c.Enabled)
            return

    def solve(
        self,
        *,
        frontend: str = "",
        frontend_opt: Mapping[str, str] | None = None,
        definition: Definition | None = None,
        evaluate: bool = False,
        inputs: Mapping[str, Definition] | None = None,
        cache_imports: Sequence[CacheEntry] = (),
    ) -> GatewayResult:
        """Solve a frontend or a definition within the build."""
        request = gateway_pb2.SolveRequest(
            Frontend=frontend,
            FrontendOpt=dict(frontend_opt or {}),
            allowResultReturn=True,
            allowResultArrayRef=True,
            Evaluate=evaluate,
            CacheImports=[gateway_pb2.CacheOptionsEntry(Type=c.type, Attrs=c.attrs) for c in cache_imports],
        )
        if definition is not None:
            request.Definition.CopyFrom(_message(definition))
        for name, value in (inputs or {}).items():
            request.FrontendInputs[name].CopyFrom(_message(value))
        result = self._call("Solve", request, "solving").result
        refs = {k: v.id for k, v in result.refs.refs.items()} or dict(result.refsDeprecated.refs)
        if not refs and (only := result.ref.id or result.refDeprecated):
            refs = {"": only}
        return GatewayResult(refs=refs, metadata=dict(result.metadata), raw=result)

    def resolve_image_config(
        self, ref: str, *, platform: Platform | None = None, mode: str = "default", log_name: str = ""
    ) -> ResolvedImage:
        """Resolve an image reference on the daemon."""
        request = gateway_pb2.ResolveImageConfigRequest(Ref=ref, ResolveMode=mode, LogName=log_name)
        if platform is not None:
            request.Platform.CopyFrom(
                ops_pb2.Platform(OS=platform.os, Architecture=platform.architecture, Variant=platform.variant)
            )
        got = self._call("ResolveImageConfig", request, f"resolving {ref}")
        return ResolvedImage(ref=got.Ref or ref, digest=got.Digest, config=got.Config)

    def read_file(self, ref: str, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Read a file of a result; ``length`` 0 reads to the end."""
        request = gateway_pb2.ReadFileRequest(Ref=ref, FilePath=path)
        if offset or length:
            request.Range.CopyFrom(gateway_pb2.FileRange(Offset=offset, Length=length))
        return bytes(self._call("ReadFile", request, f"reading {path}").Data)

    def finish(self, result: GatewayResult | None) -> None:
        """Hand the final result to the controller, which then exports it; ``None`` = an empty result."""
        raw = result.raw if result is not None else gateway_pb2.Result()
        self._call("Return", gateway_pb2.ReturnRequest(result=raw), "returning the result")

    def fail(self, error: RpcError) -> None:
        """Tell the controller that the build failed, and why; its own answer then says the same."""
        from google.rpc.status_pb2 import Status  # only failures pay for it

        status = Status.FromString(error.details) if error.details else Status()
        if not status.code:
            status.code, status.message = error.number, error.message
        self._call("Return", gateway_pb2.ReturnRequest(error=status), "returning the error")

    def _call(self, method: str, request: Any, what: str) -> Any:
        response = getattr(gateway_pb2, f"{method}Response")
        try:
            call = self._channel.unary_call(f"{_BRIDGE}{method}", request, metadata=self._metadata)
            with self._cancel.waking(call.cancel):
                return response.FromString(call.result())
        except RpcError as exc:
            self._cancel.check()
            raise error_from_rpc(exc, what) from exc


def _message(definition: Definition) -> ops_pb2.Definition:
    from crossdock.buildkit.definitions import definition_message  # most builds send none

    return definition_message(definition)
