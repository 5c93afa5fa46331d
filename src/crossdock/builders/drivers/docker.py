"""Driver ``docker``: the BuildKit inside a Docker Engine, reached through the Engine's API.

Spec: features "docker" driver; docker/buildx ``driver/docker``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crossdock.builders.dockerconfig import context_names, endpoint_of
from crossdock.builders.dockerengine import ssh_command, tls_context
from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
from crossdock.builders.drivers.steps import Step
from crossdock.buildkit.client import Client
from crossdock.buildkit.dial import open_tcp, open_tls
from crossdock.buildkit.engine import EngineDialer, unix_dialer
from crossdock.buildkit.transport import ProcessStream
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["DockerDriver", "engine_client", "engine_dialer", "engine_endpoint", "make"]


class DockerDriver(BuildKitDriver):
    """One Docker Engine."""

    engine = True

    def __init__(self, endpoint: DockerEndpoint, *, path: str = "default/default") -> None:
        super().__init__(lambda: engine_client(endpoint), name=endpoint.context, path=path)
        self._endpoint = endpoint

    def push(self, outputs: Outputs, sink: EventSink, cancel: CancelToken) -> None:
        """Push through the Engine's own API: its classic store's exporter cannot."""
        names = [
            name
            for export in outputs.exports
            if export.type == "moby" and export.attrs.get("push", "").lower() in ("true", "1")
            for name in export.attrs.get("name", "").split(",")
        ]
        from crossdock.builders.drivers.enginepush import push_image

        for name in filter(None, names):
            cancel.check()
            with Step(sink, f"pushing {name} with docker") as step:
                push_image(self._endpoint, name, step, cancel)


def make(group: NodeGroup, node: Node) -> DockerDriver:
    """Make the driver of a docker context."""
    return DockerDriver(engine_endpoint(node.endpoint), path=node_path(group, node))


def engine_endpoint(text: str) -> DockerEndpoint:
    """Return the endpoint a node names: a docker context, or a host URL."""
    if text and "://" in text and text not in context_names():
        default = endpoint_of("default")
        return default if default.host == text else default._replace(host=text, tls_dir="")
    return endpoint_of(text or "default")


def engine_client(endpoint: DockerEndpoint) -> Client:
    """Return a client of the BuildKit behind an endpoint; nothing is dialled yet."""
    dialer = EngineDialer(engine_dialer(endpoint), name=f"the Docker Engine at {endpoint.host}")
    return Client.of_engine(dialer, name=endpoint.host)


def engine_dialer(endpoint: DockerEndpoint) -> Callable[[], ByteStream]:
    """Return a function that opens a stream to an Engine's API.

    Raises: BuilderError for a scheme that cannot be reached. What is returned raises BuilderError.
    """
    url = urlsplit(endpoint.host)
    if url.scheme == "unix":
        return unix_dialer(url.path or "/var/run/docker.sock")
    if url.scheme in ("tcp", "http", "https") and url.hostname:
        return _tcp_dialer(endpoint, url.hostname, url.port)
    if url.scheme == "ssh" and url.hostname:
        argv = ssh_command(endpoint.host)
        return lambda: ProcessStream(argv)
    summary = f"cannot reach the Docker Engine at {endpoint.host}: unknown scheme"
    raise BuilderError(summary, hint="use unix://, tcp:// or ssh://")


def _tcp_dialer(endpoint: DockerEndpoint, host: str, port: int | None) -> Callable[[], ByteStream]:
    secure = bool(endpoint.tls_dir) or endpoint.host.startswith("https")
    context = tls_context(endpoint) if secure else None

    def dial() -> ByteStream:
        try:
            below = open_tcp(host, port or (2376 if secure else 2375))
        except OSError as exc:
            summary = f"cannot connect to the Docker Engine at {endpoint.host}: {exc.strerror or exc}"
            raise BuilderError(summary, hint="is the Engine running?", retryable=True) from exc
        if context is None:
            return below
        hint = f"check the certificates in {endpoint.tls_dir or 'the system'}"
        what = f"the Docker Engine at {endpoint.host}"
        return open_tls(below, context, server_name=host, what=what, hint=hint)

    return dial
