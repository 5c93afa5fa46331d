"""The part of the Docker Engine API that the docker-container driver needs: one container, its execs, its image.

Spec: Docker Engine API v1.24 and later.
"""

from __future__ import annotations

import base64
import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from crossdock.builders.dockerengine import connect
from crossdock.builders.drivers.docker import engine_dialer
from crossdock.buildkit.engine import upgrade
from crossdock.errors import BuilderError
from crossdock.image import parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cancel import CancelToken
    from crossdock.registry.credentials import Credential

__all__ = ["EngineApi", "ExecStream"]

_TIMEOUT_S = 60.0


class EngineApi:
    """Requests to one Engine, each over a connection of its own. Raises (everywhere): BuilderError; Cancelled."""

    def __init__(self, endpoint: DockerEndpoint) -> None:
        self._endpoint = endpoint

    def get(self, path: str) -> Any:
        """Return a resource; ``None`` when there is none."""
        return self._json("GET", path, tolerated=404)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Make or change something; returns the answer's JSON."""
        return self._json("POST", path, body)

    def create(self, container: str, settings: Mapping[str, Any]) -> bool:
        """Create a container; false when there is one of that name by now."""
        path = f"/containers/create?name={quote(container)}"
        return self._json("POST", path, settings, tolerated=409) is not None

    def delete(self, path: str) -> None:
        """Remove something; what is gone already is fine."""
        self._json("DELETE", path, tolerated=404)

    def put_archive(self, container: str, folder: str, tar: bytes) -> None:
        """Unpack an archive in a container."""
        path = f"/containers/{container}/archive?path={quote(folder)}"
        self._request("PUT", path, tar, {"Content-Type": "application/x-tar"})

    def logs(self, container: str) -> bytes:
        """Return all that a container has said."""
        raw = self._request("GET", f"/containers/{container}/logs?stdout=1&stderr=1", None, {})
        return b"".join(data for _, data in _frames(raw))

    def pull(self, image: str, on_text: Callable[[str], None], cancel: CancelToken) -> None:
        """Pull an image with the login for its registry; ``on_text`` is told of each layer."""
        from crossdock.registry import Credentials

        ref = parse_reference(image).with_default_tag()
        login = Credentials().lookup(ref.domain, ref.path, cancel=cancel)
        query = {"fromImage": ref.repository, "tag": str(ref.digest or ref.tag)}
        headers = {"X-Registry-Auth": registry_auth(login, ref.domain)}
        for message in self._messages(f"/images/create?{urlencode(query)}", headers, cancel):
            if error := message.get("error"):
                raise BuilderError(str(error))
            if message.get("status") and not message.get("progressDetail"):
                name = f"{message['id']}: " if message.get("id") else ""
                on_text(f"{name}{message['status']}\n")

    def exec(self, container: str, argv: Sequence[str]) -> tuple[int, bytes]:
        """Run a command; returns its exit code and output."""
        stream = self.attach(container, argv, stdin=False)
        try:
            parts = list(iter(lambda: stream.recv(65536), b""))
        finally:
            stream.close()
        found = self.get(f"/exec/{stream.identity}/json") or {}
        return int(found.get("ExitCode") or 0), b"".join(parts) + stream.stderr

    def attach(self, container: str, argv: Sequence[str], *, stdin: bool) -> ExecStream:
        """Start a command and return its streams."""
        settings = {"Cmd": list(argv), "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True}
        identity = str(self.post(f"/containers/{container}/exec", settings)["Id"])
        body = json.dumps({"Detach": False, "Tty": False}).encode()
        headers = [("Upgrade", "tcp"), ("Content-Type", "application/json")]
        name = f"the Docker Engine at {self._endpoint.host}"
        dial = engine_dialer(self._endpoint)
        return ExecStream(upgrade(dial, f"/exec/{identity}/start", headers, body=body, name=name), identity)

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tolerated: int = 0
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        raw = self._request(method, path, data, {"Content-Type": "application/json"}, tolerated=tolerated)
        try:
            return json.loads(raw) if raw.strip() else None
        except ValueError as exc:
            summary = f"the Docker Engine at {self._endpoint.host} gave no JSON for {path}"
            raise BuilderError(summary) from exc

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, tolerated: int = 0
    ) -> bytes:
        connection = connect(self._endpoint, timeout_s=_TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            raw = response.read()
        except (OSError, HTTPException) as exc:
            raise self._unreachable(exc) from exc
        finally:
            connection.close()
        if response.status == tolerated:
            return b""
        if response.status >= 400:
            raise self._refused(raw, response.status)
        return raw

    def _messages(
        self, path: str, headers: Mapping[str, str], cancel: CancelToken
    ) -> Iterator[dict[str, Any]]:
        connection = connect(self._endpoint)
        try:
            with cancel.waking(connection.close):
                connection.request("POST", path, headers=dict(headers))
                response = connection.getresponse()
                if response.status >= 400:
                    raise self._refused(response.read(), response.status)
                for line in response:
                    if line.strip():
                        yield json.loads(line)
        except (OSError, HTTPException, ValueError, AttributeError) as exc:
            cancel.check()
            raise self._unreachable(exc) from exc
        finally:
            connection.close()

    def _refused(self, raw: bytes, status: int) -> BuilderError:
        try:
            text = json.loads(raw)["message"]
        except (ValueError, KeyError, TypeError):
            text = raw[:200].decode(errors="replace") or f"HTTP status {status}"
        return BuilderError(f"the Docker Engine at {self._endpoint.host} refused: {text}")

    def _unreachable(self, exc: Exception) -> BuilderError:
        summary = f"cannot reach the Docker Engine at {self._endpoint.host}: {exc}"
        hint = "is the Engine running?"
        if isinstance(exc, PermissionError):
            hint = "add your user to the group that owns its socket (usually `docker`)"
        return BuilderError(summary, hint=hint, retryable=not isinstance(exc, PermissionError))


def registry_auth(login: Credential | None, domain: str) -> str:
    """Return the header by which an Engine gets a login."""
    auth: dict[str, str] = {}
    if login is not None:
        auth = {"username": login.username, "serveraddress": domain}
        if login.password is not None:
            auth["password"] = login.password.reveal_str()
        if login.identity_token is not None:
            auth["identitytoken"] = login.identity_token.reveal_str()
    return base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()


def _frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(raw):
        length = int.from_bytes(raw[at + 4 : at + 8], "big")
        yield raw[at], raw[at + 8 : at + 8 + length]
        at += 8 + length


class ExecStream:
    """An attached exec: frames of stdout and stderr are read, plain bytes are written.

    Spec: Docker Engine API, "Attach to a container", stream format.
    """

    def __init__(self, stream: ByteStream, identity: str) -> None:
        self._stream = stream
        #: the exec's id
        self.identity = identity
        #: the last of what the command wrote to stderr
        self.stderr = b""
        self._buffer = b""
        self._left = 0
        self.sendall = stream.sendall
        self.shutdown_write = stream.shutdown_write
        self.close = stream.close

    @property
    def failure(self) -> str:
        """What the command said on stderr, for error messages."""
        return self.stderr.decode(errors="replace").strip()

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of standard output; empty at the end."""
        while True:
            while self._left == 0:
                header = self._exactly(8)
                if len(header) < 8:
                    return b""
                length = int.from_bytes(header[4:], "big")
                if header[0] == 2:
                    self.stderr = (self.stderr + self._exactly(length))[-4096:]
                    continue
                self._left = length
            data = self._some(min(size, self._left))
            self._left -= len(data)
            return data

    def _some(self, count: int) -> bytes:
        if not self._buffer:
            self._buffer = self._stream.recv(256 * 1024)
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (block := self._some(count - len(data))):
            data += block
        return data
