"""The daemon: one engine, its services, from start to a clean end.

Spec: moby/buildkit ``cmd/buildkitd``; sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine.facade import Engine, EngineOptions
from crossdock.engine.store.gc import default_policies
from crossdock.registry.config import RegistryConfig
from crossdock.server import content, control, gateway, health
from crossdock.server.gateway import Containers, LLBBridge, build_id
from crossdock.server.history import History, HistoryLimits
from crossdock.server.housekeeping import Housekeeper
from crossdock.server.jobs import Jobs
from crossdock.server.lefttree import TreeMemory
from crossdock.server.listen import Listeners
from crossdock.server.sessions import SessionManager
from crossdock.server.tracing import TraceRecorder
from crossdock.server.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.buildkit.proto import ops_pb2
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.server.answer import Answer
    from crossdock.server.jobs import Job
    from crossdock.server.options import ServerOptions

__all__ = ["Daemon", "serve"]

_log = logging.getLogger("crossdock.server")

#: seconds in which cancelled builds must end
_STOP_S = 20.0


class Daemon:
    """What the services share."""

    def __init__(self, options: ServerOptions, engine: Engine, *, records: Path | None = None) -> None:
        """``records``: the folder of build records, which is in the store when it is ``None``."""
        self.engine = engine
        self.entitlements = options.entitlements
        self.registry = RegistryConfig(hosts=options.registries)
        self.sessions = SessionManager()
        self.trees = TreeMemory()
        self.jobs = Jobs(engine)
        limits = HistoryLimits(entries=options.history_entries, age_s=options.history_age_s)
        self.history = History(records or engine.store.root / "history", limits)
        self.traces = TraceRecorder()
        policies = options.policies
        if policies is None:
            disk = os.statvfs(engine.store.root)
            policies = default_policies(disk.f_frsize * disk.f_blocks)
        self.worker = Worker(
            engine,
            labels=options.labels,
            platforms=options.platforms,
            policies=policies,
            network=options.network,
            max_age_s=options.platforms_age_s,
        )
        self.frontends = options.frontends
        #: takes down the solves of builds
        self.recorder: SolveRecorder | None = None
        self.housekeeper = Housekeeper(engine.store, policies, max_bytes=options.max_used_space)
        self.housekeeper.start()

    def find_job(self, call: ServerCall) -> Job:
        """Return the build that a gateway call names. Raises: Missing, UsageError."""
        return self.jobs.get(build_id(call), active=lambda: call.alive)

    def handlers(self) -> dict[str, Handler]:
        """Return the methods of all services."""
        return {
            **control.handlers(self),
            **gateway.handlers(LLBBridge(self.find_job, self.worker), Containers(self.find_job)),
            **content.handlers(self.engine, self.history),
            **health.handlers(self.traces),
        }

    def bridge(
        self, job: Job, answer: Answer, inputs: Mapping[str, ops_pb2.Definition]
    ) -> dict[str, Handler]:
        """Return what a frontend in a container may ask for, about its own build alone."""
        bridge = LLBBridge(lambda _call: job, self.worker, answer, inputs)
        return {**gateway.handlers(bridge, Containers(lambda _call: job)), **health.handlers(self.traces)}

    def close(self) -> None:
        """Cancel builds and end everything."""
        if not self.jobs.close(_STOP_S):
            _log.warning("a cancelled build has not ended in time")
        self.history.close()
        self.sessions.close()
        self.housekeeper.close()


class _Stop:
    """Waits for SIGTERM or SIGINT. A signal that the kernel gives to another thread would not end a wait for an event."""

    def __init__(self) -> None:
        self._asked = False
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True

    def wait(self) -> None:
        """Return when one has come."""
        while not self._asked:
            os.read(self._wake_r, 64)


def serve(options: ServerOptions, passed: Mapping[str, Sequence[int]]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. The process must be a worker already.

    Raises: UsageError, ConfigError for addresses; StoreError.
    """
    stop = _Stop()
    for note in options.notes:
        _log.warning("%s", note)
    listeners = Listeners()
    with ExitStack() as stack:
        stack.callback(listeners.disconnect)
        stack.callback(listeners.close)
        # First: whoever connects while the store is opened waits.
        listeners.open(options.addresses, tls=options.tls, owner=(options.uid, options.gid), passed=passed)
        engine = stack.enter_context(Engine.open(_engine_options(options)))
        daemon = Daemon(options, engine)
        stack.callback(daemon.close)
        listeners.serve(daemon.handlers())
        for address in options.addresses:
            _log.info("running server on %s", address)
        notify("READY=1")
        stop.wait()
        _log.info("stopping")
        notify("STOPPING=1")
        listeners.close()
    return 0


def _engine_options(options: ServerOptions) -> EngineOptions:
    return EngineOptions(
        options.root,
        parallelism=options.parallelism,
        max_used_space=options.max_used_space,
        hang_deadline_s=options.hang_deadline_s,
        network=options.network,
        runtime=options.runtime,
        dns=options.dns,
        cgroup_parent=options.cgroup_parent,
        cdi=options.cdi,
    )


def notify(state: str) -> None:
    """Tell the service manager, when there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as exc:
        _log.warning("cannot notify the service manager: %s", exc)
