"""The little of the Docker Engine API that is needed without the ``docker`` package: ping, info, image load.

Spec: Docker Engine API v1.24 and later; ``/_ping``, ``/info``, ``/images/load``.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crossdock.errors import BuilderError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator
    from http.client import HTTPConnection

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.cancel import CancelToken

__all__ = [
    "EnginePing",
    "connect",
    "has_containerd_store",
    "load_image",
    "ping",
    "ssh_command",
    "tls_context",
]

_PING_TIMEOUT_S = 2.0
_CONTAINERD_DRIVER_TYPE = "io.containerd.snapshotter.v1"


class EnginePing(NamedTuple):
    """What an engine says to a ping."""

    api_version: str
    #: ``1`` classic, ``2`` BuildKit
    builder_version: str


def connect(endpoint: DockerEndpoint, *, timeout_s: float | None = None) -> HTTPConnection:
    """Make a connection to an engine (not yet opened).

    Raises: BuilderError for a URL scheme that this program cannot reach.
    """
    import http.client

    url = urlsplit(endpoint.host)
    if url.scheme == "unix":
        path = url.path or "/var/run/docker.sock"
        connection = http.client.HTTPConnection("docker", timeout=timeout_s)

        def open_unix() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout_s)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            connection.sock = sock

        # Its own connect() sets TCP options, which unix sockets refuse.
        connection.connect = open_unix  # type: ignore[method-assign]
        return connection
    if url.scheme in ("tcp", "http", "https") and url.hostname:
        if endpoint.tls_dir or url.scheme == "https":
            port = url.port or 2376
            return http.client.HTTPSConnection(
                url.hostname, port, timeout=timeout_s, context=tls_context(endpoint)
            )
        return http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=timeout_s)
    if url.scheme == "ssh" and url.hostname:
        return _over_ssh(endpoint.host, timeout_s)
    summary = f"cannot reach the Docker Engine at {endpoint.host}: unknown scheme"
    raise BuilderError(summary, hint="use unix://, tcp:// or ssh://")


def ssh_command(host: str) -> list[str]:
    """Return the command whose standard streams are a connection to the Engine behind ``ssh://[user@]host[:port]``.

    Spec: docker/cli ``cli/connhelper``.
    """
    url = urlsplit(host)
    argv = ["ssh", "-o", "ConnectTimeout=30", "-T"]
    argv += ["-l", url.username] if url.username else []
    argv += ["-p", str(url.port)] if url.port else []
    remote = ["docker", *(["--host", f"unix://{url.path}"] if url.path not in ("", "/") else [])]
    return [*argv, "--", url.hostname or "", *remote, "system", "dial-stdio"]


def _over_ssh(host: str, timeout_s: float | None) -> HTTPConnection:
    import http.client

    from crossdock.buildkit.transport import ProcessStream

    class SshConnection(http.client.HTTPConnection):
        stream: ProcessStream | None = None

        def connect(self) -> None:
            self.stream = ProcessStream(ssh_command(host))
            self.sock = self.stream.socket
            self.sock.settimeout(timeout_s)

        def close(self) -> None:
            super().close()
            if self.stream is not None:
                self.stream.close()

    return SshConnection("docker")


def tls_context(endpoint: DockerEndpoint) -> ssl.SSLContext:
    """Return the TLS settings of an endpoint. Raises: BuilderError when a file is not what it should be."""
    import ssl

    ca = os.path.join(endpoint.tls_dir, "ca.pem")
    cert, key = os.path.join(endpoint.tls_dir, "cert.pem"), os.path.join(endpoint.tls_dir, "key.pem")
    try:
        context = ssl.create_default_context(cafile=ca if os.path.exists(ca) else None)
        if os.path.exists(cert):
            context.load_cert_chain(cert, key)
    except OSError as exc:  # SSLError is one
        summary = f"cannot use the certificates in {endpoint.tls_dir}: {exc}"
        raise BuilderError(summary) from exc
    if not endpoint.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def ping(endpoint: DockerEndpoint) -> EnginePing | None:
    """Ask whether an engine answers; ``None`` when not, whatever the reason."""
    from http.client import HTTPException

    try:
        with closing(connect(endpoint, timeout_s=_PING_TIMEOUT_S)) as connection:
            connection.request("GET", "/_ping")
            response = connection.getresponse()
            response.read()
    except (OSError, HTTPException, BuilderError):
        return None
    if response.status != 200:
        return None
    return EnginePing(response.headers.get("Api-Version", ""), response.headers.get("Builder-Version", ""))


def has_containerd_store(endpoint: DockerEndpoint) -> bool:
    """Whether the engine keeps images in containerd, so that it holds several platforms of one image.

    Raises: BuilderError when it does not answer.
    """
    info = _get_json(endpoint, "/info")
    status = info.get("DriverStatus") or []
    return any(list(row)[:2] == ["driver-type", _CONTAINERD_DRIVER_TYPE] for row in status)


def _get_json(endpoint: DockerEndpoint, path: str) -> dict[str, Any]:
    with _translated(endpoint):
        connection = connect(endpoint, timeout_s=10.0)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
    if response.status != 200:
        raise _refused(endpoint, response.status, body)
    data = json.loads(body)
    return data if isinstance(data, dict) else {}


def load_image(
    endpoint: DockerEndpoint,
    chunks: Iterable[bytes],
    *,
    on_message: Callable[[str], None],
    cancel: CancelToken,
) -> None:
    """Stream an image archive into the engine; ``on_message`` gets what it says of it.

    Raises: BuilderError when the engine cannot be reached or refuses; Cancelled.
    """
    with _translated(endpoint):
        connection = connect(endpoint)
        with cancel.waking(lambda: _shut(connection)):
            try:
                headers = {"Content-Type": "application/x-tar"}
                connection.request(
                    "POST", "/images/load?quiet=1", body=iter(chunks), headers=headers, encode_chunked=True
                )
                response = connection.getresponse()
                body = response.read()
            except OSError:
                cancel.check()
                raise
            finally:
                connection.close()
    if response.status != 200:
        raise _refused(endpoint, response.status, body)
    for text, failed in _messages(body):
        if failed:
            summary = f"the Docker Engine refused the image: {text}"
            raise BuilderError(summary)
        on_message(text)


def _messages(body: bytes) -> Iterator[tuple[str, bool]]:
    for line in body.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            yield line.decode("utf-8", "replace"), False
            continue
        if isinstance(message, dict):
            if message.get("error"):
                yield str(message["error"]), True
            elif message.get("stream"):
                yield str(message["stream"]).strip(), False


def _shut(connection: HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already gone


def _refused(endpoint: DockerEndpoint, status: int, body: bytes) -> BuilderError:
    try:
        text = str(json.loads(body).get("message") or "")
    except (ValueError, AttributeError):
        text = body[:200].decode("utf-8", "replace")
    return BuilderError(f"the Docker Engine at {endpoint.host} answered {status}: {text}".rstrip(": "))


def _translated(endpoint: DockerEndpoint) -> Any:
    from http.client import HTTPException

    from crossdock.errors import translate

    def make(exc: BaseException) -> BuilderError:
        return BuilderError(
            f"cannot reach the Docker Engine at {endpoint.host}: {exc}",
            hint="is it running, and may you use it? DOCKER_HOST or `docker context use` choose another",
        )

    return translate({OSError: make, HTTPException: make})
