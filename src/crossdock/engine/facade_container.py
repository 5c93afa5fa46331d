"""Containers that a caller opens and runs processes in: a debugger's, or a frontend's.

What is written is thrown away.

Spec: moby/buildkit ``frontend/gateway/container``.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine import facade_look
from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.ops.execmounts import ExecMounts
from crossdock.engine.ops.execop import ExecSolverOp
from crossdock.engine.sandbox.step import BindMount, StepSpec
from crossdock.engine.solver import OpContext
from crossdock.errors import SolveError, UsageError
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import ExecMeta, ExecOp, NetMode, SecurityMode, SourceOp
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade_parts import FileInfo
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.sandbox.step import StepResult, StepStdio
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import HostIP, Mount, SecretEnv
    from crossdock.progress.events import EventSink

__all__ = ["Container", "ContainerSpec"]


class ContainerSpec(Record):
    """What a container is made of."""

    #: ``input`` is an index into ``refs``, -1 for an empty file system
    mounts: tuple[Mount, ...]
    refs: tuple[Ref, ...] = ()
    platform: Platform | None = None
    network: NetMode = NetMode.UNSET
    extra_hosts: tuple[HostIP, ...] = ()
    hostname: str = ""


class _Running:
    """A container whose first process runs."""

    __slots__ = ("id", "over")

    def __init__(self, name: str) -> None:
        self.id = name
        self.over = threading.Event()


class Container:
    """An open container; :meth:`close` gives its mounts up.

    Its first process makes its namespaces; those started while that one runs share them, and end with it.
    """

    def __init__(self, spec: ContainerSpec, env: OpEnv, sink: EventSink, cancel: CancelToken) -> None:
        """Mount everything. Raises: SolveError, NotSupported; SandboxError, StoreFull; the token's cause."""
        self._spec = spec
        self._env = env
        self._stack = ExitStack()
        # Guards _running.
        self._lock = threading.Lock()
        self._running: _Running | None = None
        # What a step's mounts need is an op; this one is never solved.
        inputs = [Output(Node(SourceOp(f"ref://{n}"))) for n in range(len(spec.refs))]
        op = ExecOp(meta=ExecMeta(args=("container",)), mounts=spec.mounts, network=spec.network)
        solver_op = ExecSolverOp(Node(op, inputs, platform=spec.platform), env)
        self._mounts = ExecMounts(solver_op, list(spec.refs), OpContext(cancel, sink), self._stack)
        with ExitStack() as failed:
            failed.callback(self.close)
            self._mounts.prepare()
            failed.pop_all()

    @property
    def makes_terminals(self) -> bool:
        """Whether the runtime hands out the terminals of processes (``StepStdio.console``)."""
        return self._env.sandbox().runtime.name == "crun"

    def run(
        self,
        meta: ExecMeta,
        *,
        security: SecurityMode = SecurityMode.SANDBOX,
        secret_env: Sequence[SecretEnv] = (),
        stdio: StepStdio,
        log: Callable[[int, bytes], None],
        cancel: CancelToken,
    ) -> StepResult:
        """Run a process to its end. Raises: SolveError; as ``Sandbox.run``."""
        if self._mounts.rootfs is None:
            summary = "the container has no root file system"
            raise SolveError(summary)
        if security is SecurityMode.INSECURE and "security.insecure" not in self._env.allow:
            summary = "security.insecure is not allowed"
            raise SolveError(summary)
        spec = self._spec
        op = ExecOp(meta=meta, mounts=spec.mounts, secret_env=tuple(secret_env))
        inputs = [Output(Node(SourceOp(f"ref://{n}"))) for n in range(len(spec.refs))]
        env, secrets = ExecSolverOp(Node(op, inputs, platform=spec.platform), self._env).variables()
        del secrets  # what is written goes to the client whose secrets they are
        step = StepSpec(
            rootfs=self._mounts.rootfs,
            args=meta.args,
            env=tuple(env),
            cwd=meta.cwd or "/",
            user=meta.user,
            platform=spec.platform or self._env.platform,
            readonly_rootfs=self._mounts.readonly_rootfs,
            mounts=tuple(self._mounts.mounts),
            network=spec.network,
            security=security,
            hostname=spec.hostname or meta.hostname,
            extra_hosts=(*spec.extra_hosts, *meta.extra_hosts),
            ulimits=meta.ulimit,
            cgroup_parent=meta.cgroup_parent,
        )
        return self._run(step, stdio, log, cancel)

    def _run(
        self, step: StepSpec, stdio: StepStdio, log: Callable[[int, bytes], None], cancel: CancelToken
    ) -> StepResult:
        """Start the container with the first process; further ones run inside it, as long as that one lives."""
        sandbox = self._env.sandbox()
        with self._lock:
            first = self._running
            mine = self._running = _Running(sandbox.new_id()) if first is None else first
        if first is not None:
            return sandbox.execute(
                first.id, step, log=log, cancel=cancel, stdio=stdio, alive=lambda: not first.over.is_set()
            )
        try:
            return sandbox.run(step, log=log, cancel=cancel, stdio=stdio, step_id=mine.id)
        finally:
            with self._lock:
                self._running = None
            mine.over.set()

    # --- looking ---

    def read_file(self, path: str, mount: int) -> bytes | None:
        """Return a file of one of the mounts; ``None`` when there is none. Raises: UsageError, SolveError."""
        return facade_look.read_file(LayerView([self._directory(mount)]), path)

    def read_dir(self, path: str, mount: int) -> list[FileInfo] | None:
        """Return the entries of a directory; ``None`` when there is none. Raises: UsageError, SolveError."""
        return facade_look.read_dir(LayerView([self._directory(mount)]), path)

    def stat(self, path: str, mount: int) -> FileInfo | None:
        """Return what is at a path; ``None`` when there is nothing. Raises: UsageError, SolveError."""
        return facade_look.stat(LayerView([self._directory(mount)]), path)

    def close(self) -> None:
        """Unmount; idempotent. No process may run any more."""
        with self._stack:
            self._mounts.mounted.close()

    def _directory(self, index: int) -> Path:
        if not 0 <= index < len(self._spec.mounts):
            summary = f"the container has no mount {index}"
            raise UsageError(summary)
        dest = self._spec.mounts[index].dest
        if dest == "/" and self._mounts.rootfs is not None:
            return self._mounts.rootfs
        for mount in self._mounts.mounts:
            if isinstance(mount, BindMount) and mount.dest.rstrip("/") == dest.rstrip("/"):
                return mount.source
        summary = f"the mount at {dest} holds no files"
        raise SolveError(summary)
