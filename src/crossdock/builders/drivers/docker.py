"""Driver ``docker``: the BuildKit inside a Docker Engine, reached through the Engine's API.

Spec: features "docker" driver; docker/buildx ``driver/docker``.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crossdock.builders.dockerconfig import context_names, endpoint_of
from crossdock.builders.drivers.buildkit import BuildKitDriver
from crossdock.builders.drivers.enginepush import push_image
from crossdock.builders.drivers.steps import Step
from crossdock.buildkit.client import Client
from crossdock.buildkit.engine import EngineDialer, unix_connector
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["DockerDriver", "engine_client", "engine_endpoint", "make"]

_CONNECT_S = 10.0


class DockerDriver(BuildKitDriver):
    """One Docker Engine."""

    engine = True

    def __init__(self, endpoint: DockerEndpoint) -> None:
        super().__init__(lambda: engine_client(endpoint), name=endpoint.context)
        self._endpoint = endpoint

    def push(self, outputs: Outputs, sink: EventSink, cancel: CancelToken) -> None:
        """Push through the Engine's own API: its classic store's exporter cannot."""
        names = [
            name
            for export in outputs.exports
            if export.type == "moby" and export.attrs.get("push", "").lower() in ("true", "1")
            for name in export.attrs.get("name", "").split(",")
        ]
        for name in filter(None, names):
            cancel.check()
            with Step(sink, f"pushing {name} with docker") as step:
                push_image(self._endpoint, name, step, cancel)


def make(group: NodeGroup, node: Node) -> DockerDriver:
    """Make the driver of a docker context."""
    del group
    return DockerDriver(engine_endpoint(node.endpoint))


def engine_endpoint(text: str) -> DockerEndpoint:
    """Return the endpoint a node names: a docker context, or a host URL."""
    if text and "://" in text and text not in context_names():
        default = endpoint_of("default")
        return default if default.host == text else default._replace(host=text, tls_dir="")
    return endpoint_of(text or "default")


def engine_client(endpoint: DockerEndpoint) -> Client:
    """Return a client of the BuildKit behind an endpoint; nothing is dialled yet."""
    dialer = EngineDialer(_connector(endpoint), name=f"the Docker Engine at {endpoint.host}")
    return Client.of_engine(dialer, name=endpoint.host)


def _connector(endpoint: DockerEndpoint) -> Callable[[], socket.socket]:
    url = urlsplit(endpoint.host)
    if url.scheme == "unix":
        return unix_connector(url.path)
    if url.scheme in ("tcp", "http", "https") and url.hostname:
        return _tcp_connector(endpoint, url.hostname, url.port)
    if url.scheme == "ssh":
        summary = f"cannot reach the Docker Engine at {endpoint.host}: ssh:// is not supported by this driver"
        hint = "forward its socket (ssh -L /tmp/docker.sock:/var/run/docker.sock HOST) and set DOCKER_HOST"
        raise BuilderError(summary, hint=hint)
    summary = f"cannot reach the Docker Engine at {endpoint.host}: unknown scheme"
    raise BuilderError(summary)


def _tcp_connector(endpoint: DockerEndpoint, host: str, port: int | None) -> Callable[[], socket.socket]:
    secure = bool(endpoint.tls_dir) or endpoint.host.startswith("https")

    def connect() -> socket.socket:
        import ssl

        try:
            sock = socket.create_connection((host, port or (2376 if secure else 2375)), timeout=_CONNECT_S)
            sock.settimeout(None)
            if not secure:
                return sock
            ca = os.path.join(endpoint.tls_dir, "ca.pem")
            context = ssl.create_default_context(cafile=ca if os.path.exists(ca) else None)
            if not endpoint.tls_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            cert = os.path.join(endpoint.tls_dir, "cert.pem")
            if os.path.exists(cert):
                context.load_cert_chain(cert, os.path.join(endpoint.tls_dir, "key.pem"))
            return context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLError as exc:
            summary = f"TLS with the Docker Engine at {endpoint.host} failed: {exc.reason or exc}"
            raise BuilderError(
                summary, hint=f"check the certificates in {endpoint.tls_dir or 'the system'}"
            ) from exc
        except OSError as exc:
            summary = f"cannot connect to the Docker Engine at {endpoint.host}: {exc.strerror or exc}"
            raise BuilderError(summary) from exc

    return connect
