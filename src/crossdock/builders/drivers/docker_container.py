"""Driver ``docker-container``: a BuildKit daemon in a container that this driver creates, starts, stops and removes.

Spec: features "docker-container" driver; docker/buildx ``driver/docker-container``.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from typing import TYPE_CHECKING, Any

from crossdock.builders.drivers.base import NodeInfo
from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
from crossdock.builders.drivers.containeropts import ContainerOptions
from crossdock.builders.drivers.docker import engine_endpoint
from crossdock.builders.drivers.engineapi import EngineApi
from crossdock.builders.drivers.steps import Step
from crossdock.buildkit.client import Client
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["DockerContainerDriver", "make"]

_STATE_DIR = "/var/lib/buildkit"
_WSL_LIBRARIES = "/usr/lib/wsl"
_CONFIG_DIR = "buildkit"
_TRIES = 15
#: what of a GitHub workflow goes into provenance
_GITHUB = (
    "GITHUB_ACTOR",
    "GITHUB_EVENT_NAME",
    "GITHUB_JOB",
    "GITHUB_REF",
    "GITHUB_REPOSITORY",
    "GITHUB_REPOSITORY_ID",
    "GITHUB_REPOSITORY_OWNER",
    "GITHUB_RUN_ATTEMPT",
    "GITHUB_RUN_ID",
    "GITHUB_RUN_NUMBER",
    "GITHUB_SERVER_URL",
    "GITHUB_SHA",
    "GITHUB_WORKFLOW",
    "GITHUB_WORKFLOW_REF",
    "GITHUB_WORKFLOW_SHA",
    "RUNNER_ARCH",
    "RUNNER_ENVIRONMENT",
    "RUNNER_OS",
)


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
        container = f"buildx_buildkit_{path.rpartition('/')[2]}"
        super().__init__(self._client, name=container, path=path)
        self._container = container
        self._endpoint = endpoint
        self._options = options
        self._flags = flags
        self._files = files
        self._api = EngineApi(endpoint)

    def _inspect(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._api.get(f"/containers/{self._container}/json")
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
        cancel.check()
        found = self._inspect()
        if found is not None and found["State"]["Running"]:
            self._api.post(f"/containers/{self._container}/stop")

    def rm(self, cancel: CancelToken, /, *, keep_state: bool, keep_daemon: bool) -> None:
        """Remove the container, and its state volume unless ``keep_state``."""
        cancel.check()
        found = self._inspect()
        if found is None or keep_daemon:
            return
        self._api.delete(f"/containers/{self._container}?v=1&force=1")
        volume = f"{self._container}_state"
        if not keep_state and any(m.get("Name") == volume for m in found.get("Mounts") or ()):
            self._api.delete(f"/volumes/{volume}")

    def _create(self, step: Step, cancel: CancelToken) -> None:
        image = self._options.image
        if not self._pull(step, image, cancel):
            with step.part(f"using local image {image}"):
                pass
        cancel.check()
        with step.part(f"creating container {self._container}"):
            info = self._api.get("/info") or {}
            settings = {
                "Image": image,
                "Cmd": self._command(),
                "Env": [f"{k}={v}" for k, v in self._options.env.items()],
                "HostConfig": {
                    "Privileged": True,
                    "Init": True,
                    "RestartPolicy": self._options.restart_policy(),
                    "Mounts": self._mounts(),
                    "NetworkMode": self._options.network,
                    **self._engine_settings(info),
                    **self._options.limits(),
                },
            }
            if not self._api.create(self._container, settings):
                return  # another build has just made it, and starts it
            files = {**self._files, **self._provenance_files()}
            self._api.put_archive(self._container, "/etc", _config_archive(files))
            self._start()

    def _mounts(self) -> list[dict[str, Any]]:
        mounts: list[dict[str, Any]] = [
            {"Type": "volume", "Source": f"{self._container}_state", "Target": _STATE_DIR}
        ]
        local = self._endpoint.host.startswith(("unix://", "npipe://"))
        if os.environ.get("WSL_DISTRO_NAME") and local and os.path.isdir(_WSL_LIBRARIES):
            # Without them no GPU can be described to steps.
            mounts.append(
                {"Type": "bind", "Source": _WSL_LIBRARIES, "Target": _WSL_LIBRARIES, "ReadOnly": True}
            )
        return mounts

    def _pull(self, step: Step, image: str, cancel: CancelToken) -> bool:
        try:
            with step.part(f"pulling image {image}"):
                self._api.pull(image, lambda text: step.log(text.encode()), cancel)
        except BuilderError as exc:
            cancel.check()
            # A builder made from an image that exists only locally is legitimate.
            if self._api.get(f"/images/{image}/json") is None:
                summary = f"cannot pull {image}: {exc.summary}"
                hint = "give an image the Engine has, with --driver-opt image=NAME"
                raise BuilderError(summary, hint=hint) from exc
            return False
        return True

    def _command(self) -> list[str]:
        flags = list(self._flags)
        if "buildkitd.toml" in self._files and not any(f.startswith("--config") for f in flags):
            flags += ["--config", "/etc/buildkit/buildkitd.toml"]
        return flags

    def _engine_settings(self, info: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if info.get("CgroupDriver") == "cgroupfs":
            # One parent for all builders, so that limits can be set on all build activity of the host.
            settings["CgroupParent"] = self._options.cgroup_parent or "/docker/buildx"
        if any("name=userns" in o for o in info.get("SecurityOptions") or ()):
            settings["UsernsMode"] = "host"
        if "nvidia" in (info.get("Runtimes") or {}):
            settings["DeviceRequests"] = [{"Count": -1, "Capabilities": [["gpu"]]}]
        return settings

    def _provenance_files(self) -> dict[str, bytes]:
        """What the daemon adds to the provenance of every build: on GitHub's runners, the workflow."""
        if not self._options.provenance_add_gha or os.environ.get("GITHUB_ACTIONS") != "true":
            return {}
        found = {k.lower(): os.environ[k] for k in _GITHUB if os.environ.get(k)}
        return {"provenance.d/github.json": json.dumps(found).encode()} if found else {}

    def _start(self) -> None:
        self._api.post(f"/containers/{self._container}/start")

    def _wait(self, step: Step, cancel: CancelToken) -> None:
        output = b""
        for attempt in range(1, _TRIES + 1):
            try:
                code, output = self._api.exec(self._container, ["buildctl", "debug", "workers"])
            except BuilderError as exc:
                code, output = 1, exc.summary.encode()
            if code == 0:
                return
            found = self._inspect()
            # What another build is making may not be visible yet.
            state = found["State"] if found is not None else {"Status": "created"}
            if not (state.get("Running") or state.get("Restarting") or state.get("Status") == "created"):
                break  # it will not come back by itself
            cancel.sleep(attempt * 0.12)
        if self._inspect() is not None:
            step.log(self._api.logs(self._container))
        summary = f"the BuildKit daemon in {self._container} did not become ready"
        raise BuilderError(
            summary, detail=output.decode(errors="replace").strip(), hint="its log is shown above"
        )

    # inside the container

    def _client(self) -> Client:
        return Client(self._dial, name=self._container)

    def _dial(self) -> ByteStream:
        return self._api.attach(self._container, ["buildctl", "dial-stdio"], stdin=True)


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
