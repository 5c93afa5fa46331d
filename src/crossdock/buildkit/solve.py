"""Run one build on a daemon: open the session, solve, follow the status, cancel cleanly.

Spec: moby/buildkit ``client/solve.go`` for the order of calls; features "How a buildx build uses them".
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from crossdock.buildkit.details import error_from_rpc
from crossdock.buildkit.proto import control_pb2, ops_pb2
from crossdock.buildkit.rpc.status import CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, RpcError
from crossdock.buildkit.rpc.streams import ConnectionLost
from crossdock.buildkit.session.server import Session, new_id
from crossdock.buildkit.status import events
from crossdock.errors import BuilderError, StepFailed
from crossdock.progress import VertexLog
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.client import Client
    from crossdock.buildkit.gateway import Gateway, GatewayResult
    from crossdock.buildkit.rpc.channel import Call
    from crossdock.buildkit.session.server import Attachable
    from crossdock.cancel import CancelToken
    from crossdock.errors import CrossdockError
    from crossdock.llb import Definition
    from crossdock.llb.policyrules import Policy
    from crossdock.progress import Event, EventSink

__all__ = ["CacheEntry", "Export", "SolveOptions", "solve"]

_SOLVE, _STATUS = "/moby.buildkit.v1.Control/Solve", "/moby.buildkit.v1.Control/Status"
#: seconds the status stream may stay silent once the solve has ended
_STATUS_GRACE_S = 5.0
#: lines of a failed step's output kept for its error
_TAIL_LINES = 25


class Export(Record):
    """One exporter and its attributes, as the daemon knows them (client-side ``dest`` removed)."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)


class CacheEntry(Record):
    """One cache import or export."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)


class SolveOptions(Record):
    """What to solve: a frontend with attributes, or a definition."""

    frontend: str = ""
    frontend_attrs: Mapping[str, str] = field(default_factory=dict, hash=False)
    definition: Definition | None = None
    frontend_inputs: Mapping[str, Definition] = field(default_factory=dict, hash=False)
    exports: tuple[Export, ...] = ()
    cache_exports: tuple[CacheEntry, ...] = ()
    cache_imports: tuple[CacheEntry, ...] = ()
    entitlements: tuple[str, ...] = ()
    #: build reference; generated when empty
    ref: str = ""
    shared_key: str = ""
    internal: bool = False
    #: rules for the sources of the build
    source_policy: Policy | None = None


def solve(
    client: Client,
    options: SolveOptions,
    *,
    attachables: Sequence[Attachable] = (),
    sink: EventSink,
    cancel: CancelToken,
    frontend: Callable[[Gateway], GatewayResult | None] | None = None,
) -> dict[str, str]:
    """Run a build to its end and return the exporter response.

    With ``frontend``, we are the frontend: it is called with the build's gateway and its result is exported.
    Cancelling ends the solve on the daemon too. Raises: what the daemon reports, as our errors; a failed step carries
    the tail of its log.
    """
    return _Solve(client, options, sink, cancel).run(attachables, frontend)


class _Solve:
    def __init__(self, client: Client, options: SolveOptions, sink: EventSink, cancel: CancelToken) -> None:
        self._client = client
        self._options = options
        self._sink = sink
        self._cancel = cancel
        self._ref = options.ref or new_id()
        self._tails = _Tails()

    def run(
        self, attachables: Sequence[Attachable], frontend: Callable[[Gateway], GatewayResult | None] | None
    ) -> dict[str, str]:
        self._cancel.check()
        session = Session(shared_key=self._options.shared_key)
        for attachable in attachables:
            session.allow(attachable)
        try:
            call, status = self._begin(session)
            follower = threading.Thread(
                target=self._follow, args=(status,), name="buildkit-status", daemon=True
            )
            follower.start()
            try:
                with self._cancel.waking(call.cancel):
                    if frontend is not None:
                        self._run_frontend(frontend, call)
                    return dict(self._wait(call).ExporterResponse)
            finally:
                follower.join(_STATUS_GRACE_S)
                status.cancel()
                follower.join()
        finally:
            session.close()

    def _begin(self, session: Session) -> tuple[Call, Call]:
        """Open the session and start both calls."""
        channel = self._client.channel
        try:
            session.start(self._client.open_session)
            call = channel.unary_call(_SOLVE, self._request(session.id))
            return call, channel.unary_call(_STATUS, control_pb2.StatusRequest(Ref=self._ref))
        except (RpcError, ConnectionLost) as exc:
            self._cancel.check()
            raise self._failed(exc) from exc

    def _run_frontend(self, frontend: Callable[[Gateway], GatewayResult | None], call: Call) -> None:
        from crossdock.buildkit.gateway import Gateway

        gateway = Gateway(self._client.channel, self._ref, self._cancel, ended=lambda: call.ended)
        try:
            gateway.ping()
            result = frontend(gateway)
        except BaseException as exc:
            cause = exc.__cause__
            if call.ended and not self._cancel.cancelled:
                return  # before the frontend came to anything: the solve knows why
            if not isinstance(cause, RpcError) or cause.code in (UNAVAILABLE, CANCELLED, DEADLINE_EXCEEDED):
                # The daemon would wait for our answer for ever.
                call.cancel()
                if not self._client.channel.reached and not self._cancel.cancelled:
                    why = "it accepts connections and says nothing"
                    raise self._unreached(why) from exc
                raise
            # The record of the build shall say what failed, not that somebody gave up.
            gateway.fail(cause)
            return
        gateway.finish(result)

    def _wait(self, call: Call) -> control_pb2.SolveResponse:
        try:
            return control_pb2.SolveResponse.FromString(call.result())
        except RpcError as exc:
            self._cancel.check()
            raise self._failed(exc) from exc

    def _failed(self, exc: RpcError | ConnectionLost) -> CrossdockError:
        """Return the error of a build that the daemon ended, or of a daemon that is not there (any more)."""
        name = self._client.name
        if isinstance(exc, ConnectionLost) or exc.code == UNAVAILABLE:
            text = exc.message if isinstance(exc, RpcError) else str(exc)
            if not self._client.channel.reached:
                return self._unreached(text)
            summary = f"the connection to {name} was lost during the build: {text}"
            return BuilderError(summary, hint="is the daemon still running?", retryable=True)
        error = error_from_rpc(exc, f"{name}: build failed")
        if isinstance(error, StepFailed) and error.vertex:
            error.log_tail = self._tails.of(error.vertex)
            error.vertex_name = self._tails.name_of(error.vertex)
        return error

    def _unreached(self, why: str) -> BuilderError:
        summary = f"cannot reach BuildKit at {self._client.name}: {why}"
        return BuilderError(summary, hint="is that the daemon's address?", retryable=True)

    def _request(self, session_id: str) -> control_pb2.SolveRequest:
        options = self._options
        exports = [control_pb2.Exporter(Type=e.type, Attrs=e.attrs) for e in options.exports]
        request = control_pb2.SolveRequest(
            Ref=self._ref,
            Session=session_id,
            Frontend=options.frontend,
            FrontendAttrs={**options.frontend_attrs, **self._cache_attrs()},
            FrontendInputs={k: _definition(v) for k, v in options.frontend_inputs.items()},
            Entitlements=options.entitlements,
            Internal=options.internal,
            Exporters=exports,
            Cache=control_pb2.CacheOptions(
                Exports=[
                    control_pb2.CacheOptionsEntry(Type=c.type, Attrs=c.attrs) for c in options.cache_exports
                ],
                Imports=[
                    control_pb2.CacheOptionsEntry(Type=c.type, Attrs=c.attrs) for c in options.cache_imports
                ],
            ),
        )
        if exports:
            # Daemons before v0.13 read the first exporter here.
            request.ExporterDeprecated = options.exports[0].type
            request.ExporterAttrsDeprecated.update(options.exports[0].attrs)
        if options.source_policy is not None:
            request.SourcePolicy.MergeFromString(options.source_policy.to_bytes())
        if options.definition is not None:
            request.Definition.CopyFrom(_definition(options.definition))
        return request

    def _cache_attrs(self) -> dict[str, str]:
        """Tell the frontend of imported caches: it is the frontend that asks for them."""
        if not self._options.frontend or not self._options.cache_imports:
            return {}
        entries = [{"Type": c.type, "Attrs": dict(c.attrs)} for c in self._options.cache_imports]
        return {"cache-imports": json.dumps(entries)}

    def _follow(self, call: Call) -> None:
        try:
            for raw in call.messages():
                for event in events(control_pb2.StatusResponse.FromString(raw)):
                    self._tails.see(event)
                    self._sink.emit(event)
        except RpcError:
            # The stream is only a report: the solve's own answer says what went wrong.
            return


class _Tails:
    """The last lines of every step's output."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}
        self._names: dict[str, str] = {}

    def see(self, event: Event) -> None:
        """Remember names and output."""
        if isinstance(event, VertexLog):
            kept = (self._data.get(event.vertex, b"") + event.data)[-16_384:]
            self._data[event.vertex] = kept
        elif name := getattr(event, "name", ""):
            self._names[getattr(event, "digest", "")] = name

    def of(self, vertex: str) -> tuple[str, ...]:
        """Return the last lines of one step."""
        text = self._data.get(vertex, b"").decode(errors="replace")
        return tuple(text.splitlines()[-_TAIL_LINES:])

    def name_of(self, vertex: str) -> str | None:
        """Return the display name of one step."""
        return self._names.get(vertex)


def _definition(definition: Definition) -> ops_pb2.Definition:
    from crossdock.buildkit.definitions import definition_message  # most builds send none

    return definition_message(definition)
