"""Driver ``docker-container``: a BuildKit daemon in a container that this driver creates, starts, stops and removes.

Spec: features "docker-container" driver; docker/buildx ``driver/docker-container``.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
import weakref
from typing import TYPE_CHECKING, Any

from crossdock.builders.dockerengine import load_image
from crossdock.builders.drivers.base import NodeInfo
from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
from crossdock.builders.drivers.containeropts import ContainerOptions
from crossdock.builders.drivers.docker import engine_dialer, engine_endpoint
from crossdock.builders.drivers.steps import Step
from crossdock.buildkit.client import Client
from crossdock.buildkit.transport import Bridge
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.progress import EventSink

__all__ = ["DockerContainerDriver", "make"]

_STATE_DIR = "/var/lib/buildkit"
_CONFIG_DIR = "buildkit"
_TRIES = 15


def make(group: NodeGroup, node: Node) -> DockerContainerDriver:
    """Make the driver of one node.

    Raises: UsageError for an unknown or malformed driver option.
    """
    options = ContainerOptions.parse(node.driver_opts or {}, builder=group.name)
    return DockerContainerDriver(
        node_path(group, node),
        engine_endpoint(node.endpoint),
        options,
        flags=list(node.flags or ()),
        files=node.files or {},
    )


class DockerContainerDriver(BuildKitDriver):
    """One container on one Engine."""

    def __init__(
        self,
        path: str,
        endpoint: DockerEndpoint,
        options: ContainerOptions,
        *,
        flags: list[str],
        files: Mapping[str, bytes],
    ) -> None:
        def load(chunks: Iterator[bytes]) -> None:
            load_image(endpoint, chunks, on_message=lambda _text: None, cancel=CancelToken())

        container = f"buildx_buildkit_{path.rpartition('/')[2]}"
        super().__init__(self._client, name=container, path=path, load=load)
        self._container = container
        self._endpoint = endpoint
        self._options = options
        self._flags = flags
        self._files = files
        self._api_client: Any = None

    # the Engine

    @property
    def _api(self) -> Any:
        if self._api_client is None:
            import docker

            base, tls = self._endpoint.host, docker_tls(self._endpoint)
            if base.startswith("ssh://"):
                # The SDK would want paramiko; a socket that leads to the program `ssh` does as well.
                bridge = Bridge(engine_dialer(self._endpoint))
                weakref.finalize(self, bridge.close)
                base = f"http+{bridge.target}".replace("unix:", "unix://")
            with _engine_errors(self._endpoint):
                self._api_client = docker.APIClient(base_url=base, version="auto", tls=tls, timeout=60)
        return self._api_client

    def _inspect(self) -> dict[str, Any] | None:
        from docker.errors import NotFound

        with _engine_errors(self._endpoint):
            try:
                found: dict[str, Any] = self._api.inspect_container(self._container)
            except NotFound:
                return None
        return found

    # life

    def info(self, cancel: CancelToken, /) -> NodeInfo:
        """Say whether the container exists and runs, and ask the daemon when it does."""
        try:
            found = self._inspect()
        except BuilderError:
            return NodeInfo(status="inactive")
        if found is None:
            return NodeInfo(status="inactive")
        if not found["State"]["Running"]:
            return NodeInfo(status="stopped")
        return super().info(cancel)

    def bootstrap(self, sink: EventSink, cancel: CancelToken, /) -> None:
        """Create the container if needed, start it, and wait until the daemon answers."""
        with Step(sink, "[internal] booting buildkit") as step:
            if self._inspect() is None:
                self._create(step, cancel)
            else:
                with step.part(f"starting container {self._container}"):
                    self._start()
            self._wait(step, cancel)

    def prepare(self, sink: EventSink, cancel: CancelToken) -> None:
        """Create or start the container when it is not running."""
        found = self._inspect()
        if found is None or not found["State"]["Running"]:
            self.bootstrap(sink, cancel)

    def stop(self, cancel: CancelToken, /) -> None:
        """Stop the container; its state volume stays."""
        del cancel
        found = self._inspect()
        if found is not None and found["State"]["Running"]:
            with _engine_errors(self._endpoint):
                self._api.stop(self._container)

    def rm(self, cancel: CancelToken, /, *, keep_state: bool, keep_daemon: bool) -> None:
        """Remove the container, and its state volume unless ``keep_state``."""
        del cancel
        found = self._inspect()
        if found is None or keep_daemon:
            return
        with _engine_errors(self._endpoint):
            self._api.remove_container(self._container, v=True, force=True)
            volume = f"{self._container}_state"
            if not keep_state and any(m.get("Name") == volume for m in found.get("Mounts") or ()):
                self._api.remove_volume(volume)

    def _create(self, step: Step, cancel: CancelToken) -> None:
        image = self._options.image
        pulled = self._pull(step, image)
        cancel.check()
        if not pulled:
            with step.part(f"using local image {image}"):
                pass
        with step.part(f"creating container {self._container}"), _engine_errors(self._endpoint):
            host_config = self._api.create_host_config(
                privileged=True,
                init=True,
                restart_policy=self._options.restart_policy(),
                mounts=[{"Type": "volume", "Source": f"{self._container}_state", "Target": _STATE_DIR}],
                network_mode=self._options.network or None,
                **self._engine_settings(),
                **self._options.limits(),
            )
            self._api.create_container(
                image,
                command=self._command(),
                name=self._container,
                environment=dict(self._options.env),
                host_config=host_config,
            )
            self._api.put_archive(self._container, "/etc", _config_archive(self._files))
            self._start()

    def _pull(self, step: Step, image: str) -> bool:
        from docker.errors import APIError, ImageNotFound

        try:
            with step.part(f"pulling image {image}"), _engine_errors(self._endpoint):
                for message in self._api.pull(image, stream=True, decode=True):
                    if "error" in message:
                        raise BuilderError(str(message["error"]))
        except (BuilderError, APIError) as exc:
            # A builder made from an image that exists only locally is legitimate.
            try:
                self._api.inspect_image(image)
            except (ImageNotFound, APIError):
                summary = f"cannot pull {image}: {exc}"
                hint = "give an image the Engine has, with --driver-opt image=NAME"
                raise BuilderError(summary, hint=hint) from exc
            return False
        return True

    def _command(self) -> list[str]:
        flags = list(self._flags)
        if "buildkitd.toml" in self._files and not any(f.startswith("--config") for f in flags):
            flags += ["--config", "/etc/buildkit/buildkitd.toml"]
        return flags

    def _engine_settings(self) -> dict[str, Any]:
        info = self._api.info()
        settings: dict[str, Any] = {}
        if info.get("CgroupDriver") == "cgroupfs":
            # One parent for all builders, so that limits can be set on all build activity of the host.
            settings["cgroup_parent"] = self._options.cgroup_parent or "/docker/buildx"
        if any("name=userns" in o for o in info.get("SecurityOptions") or ()):
            settings["userns_mode"] = "host"
        return settings

    def _start(self) -> None:
        with _engine_errors(self._endpoint):
            self._api.start(self._container)

    def _wait(self, step: Step, cancel: CancelToken) -> None:
        output = b""
        for attempt in range(1, _TRIES + 1):
            code, output = self._exec(["buildctl", "debug", "workers"])
            if code == 0:
                return
            cancel.sleep(attempt * 0.12)
        with _engine_errors(self._endpoint):
            step.log(self._api.logs(self._container))
        step.log(output)
        summary = f"the BuildKit daemon in {self._container} did not become ready"
        raise BuilderError(summary, detail=output.decode(errors="replace"), hint="its log is shown above")

    # inside the container

    def _exec(self, argv: list[str]) -> tuple[int, bytes]:
        with _engine_errors(self._endpoint):
            handle = self._api.exec_create(self._container, argv)
            output: bytes = self._api.exec_start(handle["Id"])
            return int(self._api.exec_inspect(handle["Id"])["ExitCode"] or 0), output

    def _client(self) -> Client:
        return Client(self._dial, name=self._container)

    def _dial(self) -> DemuxStream:
        with _engine_errors(self._endpoint):
            handle = self._api.exec_create(self._container, ["buildctl", "dial-stdio"], stdin=True)
            opened = self._api.exec_start(handle["Id"], socket=True)
        return DemuxStream(opened)


class DemuxStream:
    """An attached exec: frames of stdout and stderr are read, plain bytes are written.

    Spec: Docker Engine API, "Attach to a container", stream format.
    """

    def __init__(self, opened: Any) -> None:
        # http.client hides the socket in the file it made of it; both must be closed.
        self._file = opened
        self._sock: socket.socket = getattr(opened, "_sock", opened)
        self._sock.settimeout(None)
        self._left = 0
        self.stderr = b""

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of standard output; empty at the end."""
        try:
            while self._left == 0:
                header = self._exactly(8)
                if len(header) < 8:
                    return b""
                length = int.from_bytes(header[4:], "big")
                if header[0] == 2:
                    self.stderr = (self.stderr + self._exactly(length))[-4096:]
                    continue
                self._left = length
            data = self._sock.recv(min(size, self._left))
        except OSError:
            return b""
        self._left -= len(data)
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (block := self._sock.recv(count - len(data))):
            data += block
        return data

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send to the command's standard input."""
        self._sock.sendall(data)

    def shutdown_write(self) -> None:
        """Close the command's standard input."""
        import socket

        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the stream; a blocked ``recv`` returns."""
        import socket

        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, ValueError):
            self._file.close()
        self._sock.close()


def _config_archive(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        made: set[str] = set()
        for name in ("", *files):
            parts = [_CONFIG_DIR, *name.split("/")[:-1]] if name else [_CONFIG_DIR]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    made.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, int(time.time_ns() // 10**9)
                    tar.addfile(entry)
            if name:
                entry = tarfile.TarInfo(f"{_CONFIG_DIR}/{name}")
                entry.size, entry.mode = len(files[name]), 0o600
                tar.addfile(entry, io.BytesIO(files[name]))
    return out.getvalue()


def docker_tls(endpoint: DockerEndpoint) -> Any:
    """Return the SDK's TLS settings of an endpoint; ``False`` without TLS."""
    if not endpoint.tls_dir:
        return False
    import docker

    pair = (f"{endpoint.tls_dir}/cert.pem", f"{endpoint.tls_dir}/key.pem")
    return docker.tls.TLSConfig(
        client_cert=pair, ca_cert=f"{endpoint.tls_dir}/ca.pem", verify=endpoint.tls_verify
    )


@contextlib.contextmanager
def _engine_errors(endpoint: DockerEndpoint) -> Iterator[None]:
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as exc:
        summary = f"the Docker Engine at {endpoint.host} refused: {exc.explanation or exc}"
        raise BuilderError(summary) from exc
    except (DockerException, OSError) as exc:
        summary = f"cannot reach the Docker Engine at {endpoint.host}: {exc}"
        raise BuilderError(summary, hint="is the Engine running, and may you use its socket?") from exc
