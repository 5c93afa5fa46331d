"""One build on a daemon: we stand in the frontend's place, learn what the daemon can do, and have its own frontend do it.

Spec: features "How a buildx build uses them".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builders.drivers.abilities import (
    attestation_attrs,
    check_attestations,
    check_frontend,
    check_outputs,
    check_policy,
    explained,
)
from crossdock.buildkit.session.server import new_id
from crossdock.buildkit.solve import solve
from crossdock.errors import CrossdockError
from crossdock.progress import VertexWarning
from crossdock.record import replace

if TYPE_CHECKING:
    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.drivers.plan import Plan
    from crossdock.builders.request import BuildRequest
    from crossdock.buildkit.client import Client
    from crossdock.buildkit.gateway import Gateway, GatewayResult
    from crossdock.cancel import CancelToken
    from crossdock.progress import Event, EventSink

__all__ = ["DaemonBuild"]


class DaemonBuild:
    """One build; :attr:`warnings` and :attr:`result` are what it gave besides the answer."""

    def __init__(
        self,
        client: Client,
        plan: Plan,
        outputs: Outputs,
        request: BuildRequest,
        *,
        classic: bool,
        name: str,
    ) -> None:
        self._client = client
        self._plan = plan
        self._outputs = outputs
        self._request = request
        self._classic = classic
        self._name = name
        #: under which the daemon knows the build
        self.ref = new_id()
        self.warnings: list[VertexWarning] = []
        #: what the daemon's frontend answered
        self.result: GatewayResult | None = None
        self._sink: EventSink | None = None

    def run(self, sink: EventSink, cancel: CancelToken, failures: list[CrossdockError]) -> dict[str, str]:
        """Run it and return the exporter's response.

        ``failures`` gets what fails on this side. Raises: the first of them, else what the daemon reports.
        """
        self._sink = sink
        attachables = self._plan.attachables
        if self._outputs.targets:
            from crossdock.buildkit.session.filesend import FileSend

            attachables.append(FileSend(self._outputs.targets, on_error=failures.append))
        if stores := {**self._plan.stores, **self._outputs.stores}:
            from crossdock.buildkit.session.content import ContentStores

            attachables.append(ContentStores(stores))
        self._plan.attrs |= attestation_attrs(self._request, classic=self._classic)
        options = replace(
            self._plan.options(),
            frontend="",
            frontend_inputs={},
            exports=tuple(self._outputs.exports),
            ref=self.ref,
        )
        try:
            return solve(
                self._client,
                options,
                attachables=attachables,
                sink=self,
                cancel=cancel,
                frontend=self._frontend,
            )
        except CrossdockError as exc:
            cancel.check()
            # What failed here, on the client, says more than the daemon's quotation of it.
            if failures:
                raise failures[0] from exc
            if (clearer := explained(exc, name=self._name)) is not None:
                raise clearer from exc
            raise

    def _frontend(self, gateway: Gateway) -> GatewayResult | None:
        check_outputs(len(self._outputs.exports), gateway.llb_caps, name=self._name)
        check_attestations(self._request, gateway.llb_caps, classic=self._classic, name=self._name)
        check_policy(self._request, gateway.llb_caps, name=self._name)
        check_frontend(self._plan, gateway.caps, name=self._name)
        self.result = gateway.solve(
            frontend=self._plan.frontend,
            frontend_opt=self._plan.attrs,
            inputs=self._plan.inputs,
            cache_imports=self._plan.cache_from,
        )
        return self.result

    def emit(self, event: Event, /) -> None:
        """Pass events on and keep the warnings."""
        if isinstance(event, VertexWarning):
            self.warnings.append(event)
        if self._sink is not None:
            self._sink.emit(event)
