"""What is asked of a BuildKit daemon besides builds: ``--call`` methods, and Dockerfiles that only it can fetch.

A daemon older than a method is helped out: our own frontend answers, with images resolved by the daemon.

Spec: docker/buildx ``build/build.go`` (CallFunc), ``build/dockerfile.go``; moby/buildkit ``frontend/subrequests``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.session.auth import Auth
from crossdock.buildkit.session.secrets import Secrets
from crossdock.buildkit.solve import SolveOptions, solve
from crossdock.dockerfile.subrequests import METHODS, answer
from crossdock.errors import Cancelled, ContextError, CrossdockError, RemoteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.drivers.plan import Plan
    from crossdock.builders.request import BuildRequest
    from crossdock.buildkit.client import Client
    from crossdock.buildkit.gateway import Gateway, GatewayResult, ResolvedImage
    from crossdock.buildkit.session.server import Attachable
    from crossdock.cancel import CancelToken
    from crossdock.image.platform import Platform
    from crossdock.progress import EventSink

__all__ = ["ask", "fetch_dockerfile"]

_CAPS = "moby.buildkit.frontend.subrequests"
_MAX_DOCKERFILE_BYTES = 2 << 20


def ask(
    client: Client, plan: Plan, request: BuildRequest, sink: EventSink, cancel: CancelToken
) -> dict[str, str]:
    """Ask a ``--call`` method; returns the entries of the answer (``result.json``, ``result.txt``, …).

    Raises: UsageError for an unknown method; what the daemon reports; as ``answer``.
    """
    name = request.call.partition(",")[0]
    method = METHODS.get(name, f"frontend.{name}")
    options = plan.options()
    caps = [c for c in (options.frontend_attrs.get("frontend.caps", ""), _CAPS) if c]
    attrs = {**options.frontend_attrs, "requestid": method, "frontend.caps": ",".join(caps)}
    found: dict[str, bytes] = {}

    def frontend(gateway: Gateway) -> GatewayResult | None:
        try:
            solved = gateway.solve(frontend=options.frontend, frontend_opt=attrs, inputs=plan.inputs)
            found.update(solved.metadata)
        except Cancelled:
            raise
        except CrossdockError as exc:
            if not _is_unknown(exc):
                raise
        if not _is_answer(found):
            found.clear()
            found.update(_own_answer(name, plan, gateway))
        return None

    inner = SolveOptions(entitlements=options.entitlements)
    solve(client, inner, attachables=plan.attachables, sink=sink, cancel=cancel, frontend=frontend)
    return {key: value.decode(errors="replace") for key, value in found.items()}


def _is_answer(metadata: Mapping[str, bytes]) -> bool:
    """Whether the daemon knew the method: the oldest ignore what they do not know, and build."""
    return "result.json" in metadata or "result.txt" in metadata


def _is_unknown(exc: CrossdockError) -> bool:
    code = exc.grpc_code if isinstance(exc, RemoteError) else ""
    return code == "UNIMPLEMENTED" or "unsupported request" in exc.summary or "unknown request" in exc.summary


def _own_answer(method: str, plan: Plan, gateway: Gateway) -> dict[str, bytes]:
    from crossdock.builders.localpaths import LocalFiles
    from crossdock.dockerfile.attrs import options_from_attrs
    from crossdock.dockerfile.syntax import foreign_frontend

    if method not in METHODS:
        summary = f"--call={method} is not supported by this builder"
        raise UsageError(summary, hint=f"methods: {', '.join(METHODS)}")
    name = plan.attrs.get("filename", "Dockerfile")
    files = LocalFiles(plan.directories)
    data = files.read_file(name, local="dockerfile")
    if data is None:
        summary = f"--call={method}: the daemon is too old for it, and the Dockerfile is not on this machine"
        raise ContextError(summary, hint="give a local context, or use --builder embedded")
    options = options_from_attrs(plan.attrs)
    image = foreign_frontend(data, name, options.build_args)
    if image:
        summary = f"the frontend {image} does not answer --call={method}"
        raise UsageError(summary, hint="ask whoever made it what it answers")
    return answer(method, data, name, options, images=_Images(gateway), context=files).metadata()


class _Images:
    """Resolves images through the daemon."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> ResolvedImage:
        return self._gateway.resolve_image_config(ref, platform=platform, mode=mode, log_name=log_name)

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> ResolvedImage:
        del store, platform, log_name
        summary = f"the daemon is too old to answer for {ref}, an image of an OCI layout"
        raise UsageError(summary, hint="use --builder embedded")


def fetch_dockerfile(client: Client, request: BuildRequest, sink: EventSink, cancel: CancelToken) -> bytes:
    """Have the daemon fetch ``request.dockerfile``, a URL.

    Raises: ContextError when it is too large; what the daemon reports.
    """
    from crossdock.builders.drivers.plan import Logins
    from crossdock.builders.secrets import read_secret
    from crossdock.dockerfile.contexts import http_source, named
    from crossdock.llb.codec import marshal
    from crossdock.llb.graph import Node, Output

    url = request.dockerfile
    title = f"[internal] load remote build definition {url}"
    source = Output(Node(http_source(url, filename="Dockerfile"), metadata=named(title)))
    found: list[bytes] = []

    def frontend(gateway: Gateway) -> GatewayResult | None:
        result = gateway.solve(definition=marshal(source))
        (ref,) = result.refs.values()
        found.append(gateway.read_file(ref, "Dockerfile", length=_MAX_DOCKERFILE_BYTES + 1))
        return None

    attachables: list[Attachable] = [
        Auth(Logins(), cancel=cancel, on_error=lambda _: None),
        Secrets({s.id: read_secret(s) for s in request.secrets}),
    ]
    solve(client, SolveOptions(), attachables=attachables, sink=sink, cancel=cancel, frontend=frontend)
    if len(found[0]) > _MAX_DOCKERFILE_BYTES:
        summary = f"{url} is larger than 2 MiB: not a Dockerfile"
        raise ContextError(summary)
    return found[0]
