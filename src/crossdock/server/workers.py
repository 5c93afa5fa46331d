"""What the server says of itself: one worker, its platforms and rules.

Spec: moby/buildkit ``api/types/worker.proto``; labels ``org.mobyproject.buildkit.worker.*``.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.buildkit.proto import worker_pb2
from crossdock.emulation.platforms import offered_platforms
from crossdock.server.results import platform_to_pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.engine.facade import Engine
    from crossdock.engine.store.gc import GCPolicy
    from crossdock.image.platform import Platform

__all__ = ["Worker", "version_message"]

_LABEL = "org.mobyproject.buildkit.worker."
#: the Dockerfile features this version has, as buildx compares them
_DOCKERFILE_VERSION = "1.20.0"
#: BuildKit's API level that is served; clients compare it
_API_VERSION = "v0.25.0"


def version_message() -> worker_pb2.BuildkitVersion:
    """Return name and version."""
    return worker_pb2.BuildkitVersion(
        package="crossdock",
        version=f"{_API_VERSION}+crossdock.{__version__}",
        revision=__version__,
        dockerfileVersion=_DOCKERFILE_VERSION,
    )


class Worker:
    """The one worker; platforms are probed when somebody first asks. Safe from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        labels: Mapping[str, str],
        platforms: Sequence[Platform],
        policies: Sequence[GCPolicy],
        network: str,
        max_age_s: float | None = None,
    ) -> None:
        """``max_age_s``: seconds after which the machine is looked at again; ``None`` never."""
        self._engine = engine
        self._labels = dict(labels)
        self._chosen = tuple(platforms)
        self.policies = tuple(policies)
        self._network = network
        self._max_age_s = max_age_s
        self.id = _worker_id(engine)
        # Guards _platforms and _found_at; held while platforms are probed, once.
        self._lock = threading.Lock()
        self._platforms: tuple[Platform, ...] | None = None
        self._found_at = 0.0

    def platforms(self) -> tuple[Platform, ...]:
        """Return the platforms that steps can run on, the machine's own first. Raises: SandboxError."""
        if self._chosen:
            return self._chosen
        with self._lock:
            now = time.monotonic()
            stale = self._max_age_s is not None and now - self._found_at > self._max_age_s
            if self._platforms is None or stale:
                offers = offered_platforms(self._engine.sandbox().emulator, verify=True)
                self._platforms = tuple(offer.platform for offer in offers if not offer.problem)
                self._found_at = now
            return self._platforms

    def record(self) -> worker_pb2.WorkerRecord:
        """Return the worker as clients see it. Raises: SandboxError."""
        labels = {
            f"{_LABEL}executor": "oci",
            f"{_LABEL}hostname": os.uname().nodename,
            f"{_LABEL}snapshotter": self._engine.sandbox().root_mounts,
            f"{_LABEL}network": self._network,
            f"{_LABEL}oci.process-mode": "sandbox",
            f"{_LABEL}selinux.enabled": "false",
            "crossdock.version": __version__,
            **self._labels,
        }
        record = worker_pb2.WorkerRecord(
            ID=self.id,
            Labels=labels,
            platforms=[platform_to_pb(p) for p in self.platforms()],
            BuildkitVersion=version_message(),
        )
        for device in self._engine.devices().all():
            record.CDIDevices.add(
                Name=device.name, AutoAllow=device.auto_allowed, Annotations=dict(device.annotations)
            )
        record.GCPolicy.extend(_policy(p) for p in self.policies)
        return record


def _worker_id(engine: Engine) -> str:
    """Return the store's own id, made once: builders know a worker by it."""
    from crossdock.buildkit.session.server import new_id

    path = engine.store.root / "workerid"
    try:
        return path.read_text(encoding="ascii").strip() or new_id()
    except FileNotFoundError:
        name = new_id()
        path.write_text(name + "\n", encoding="ascii")
        return name


def _policy(policy: GCPolicy) -> worker_pb2.GCPolicy:
    return worker_pb2.GCPolicy(
        all=policy.all,
        keepDuration=int(policy.keep_duration_s * 1e9),
        filters=policy.filters,
        reservedSpace=policy.reserved_space,
        maxUsedSpace=policy.max_used_space,
        minFreeSpace=policy.min_free_space,
    )
