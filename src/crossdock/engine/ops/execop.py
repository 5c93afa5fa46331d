"""``ExecOp``: run a program over mounts; what it writes is a layer.

Spec: moby/buildkit ``solver/llbsolver/ops/exec.go``.
"""

from __future__ import annotations

import os
import posixpath
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine.cache.select import Selector
from crossdock.engine.ops.base import BaseOp, selector_digest
from crossdock.engine.ops.keying import exec_fields, platform_fields
from crossdock.engine.solver import CacheMap, InputKey, KeyHasher
from crossdock.errors import SolveError, StepFailed, StoreFull
from crossdock.llb.ops import SKIP_OUTPUT, ContentCache, ExecOp, MountType, NetMode, SecurityMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.ops.execmounts import ExecMounts
    from crossdock.engine.sandbox.cdi import Device
    from crossdock.engine.sandbox.step import StepResult
    from crossdock.engine.solver import OpContext, Result
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Node
    from crossdock.llb.ops import Mount
    from crossdock.secret import Secret

__all__ = ["ExecSolverOp"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: what the C library says of ENOSPC, and the room in which a program may say so of the store's disk
_FULL, _FULL_BYTES, _NO_BYTES = "No space left on device", 64 << 20, 1 << 20
_FULL_HINT = "no space left on the disk of the store: free some space, or run `crossdock prune`"
_UNKEYED = (MountType.SECRET, MountType.SSH, MountType.TMPFS)


class ExecSolverOp(BaseOp):
    """Carries an :class:`ExecOp` out. Raises: SolveError for a malformed definition or a missing entitlement."""

    __slots__ = ("_devices", "op")

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, ExecOp) or not node.op.meta.args:
            raise self._error(summary="invalid exec op with no args")
        self.op = node.op
        if not any(mount.dest == "/" and mount.mount_type is MountType.BIND for mount in self.op.mounts):
            raise self._error(summary="invalid exec op with no root file system")
        self._devices: Sequence[Device] = ()
        self._check_entitlements()

    @property
    def platform(self) -> Platform:
        """What the program runs on."""
        return self.node.platform or self.env.platform

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: the program and its mounts; see :func:`exec_fields` for what is left out."""
        hasher = KeyHasher("exec")
        platform_fields(hasher, self.platform)
        exec_fields(hasher, self.op)
        keys = []
        for index in range(len(self.node.inputs)):
            mounts = self._mounts_of(index)
            chosen = [Selector(posixpath.join("/", mount.selector), follow=True) for mount in mounts]
            content = bool(mounts) and all(self._by_content(mount) for mount in mounts)
            keys.append(InputKey(selector_digest(chosen) if chosen else "", content))
        return CacheMap(hasher.finish(), tuple(keys))

    def selectors(self) -> dict[int, list[Selector]]:
        """Return the mounted parts by input; all of an input when any mount shows all of it."""
        found = {}
        for index in range(len(self.node.inputs)):
            paths = [posixpath.normpath(posixpath.join("/", m.selector)) for m in self._mounts_of(index)]
            if paths and "/" not in paths:
                found[index] = [Selector(path, follow=True) for path in paths]
        return found

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Run the program. Raises: StepFailed, SolveError, SandboxError, StoreFull, the token's cause."""
        from crossdock.engine.ops.execmounts import ExecMounts

        with ExitStack() as layers:
            mounts = ExecMounts(self, inputs, ctx, layers)
            with mounts.mounted:
                mounts.prepare()
                self._run(mounts, ctx)
            return mounts.commit()

    # --- keys ---

    def _mounts_of(self, index: int) -> list[Mount]:
        return [m for m in self.op.mounts if m.input == index and m.mount_type not in _UNKEYED]

    def _by_content(self, mount: Mount) -> bool:
        """Whether content may stand for the input of a mount: not when what was not selected could reach a result."""
        safe = (
            mount.output == SKIP_OUTPUT
            or mount.readonly
            or posixpath.join("/", mount.selector).strip("/") == ""
        )
        match mount.content_cache:
            case ContentCache.OFF:
                return False
            case ContentCache.ON:
                if not safe:
                    raise self._error(summary=f"the mount at {mount.dest} cannot be keyed by content")
                return True
            case ContentCache.DEFAULT:
                return safe and mount.dest != "/"

    # --- running ---

    def _check_entitlements(self) -> None:
        wanted = []
        if self.op.network is NetMode.HOST:
            wanted.append("network.host")
        if self.op.security is SecurityMode.INSECURE:
            wanted.append("security.insecure")
        for name in wanted:
            if name not in self.env.allow:
                raise self._error(summary=f"{name} is not allowed", hint=f"allow it with --allow {name}")
        if self.op.cdi_devices:
            self._devices = self._select_devices()

    def _select_devices(self) -> Sequence[Device]:
        from crossdock.engine.sandbox.cdi import DeviceGrants, DeviceRegistry

        registry = DeviceRegistry() if self.env.devices is None else self.env.devices()
        try:
            return registry.select(self.op.cdi_devices, DeviceGrants(self.env.allow))
        except SolveError as exc:
            exc.vertex, exc.vertex_name, exc.source = self.vertex, self.node.name, self.node.source
            raise

    def _run(self, mounts: ExecMounts, ctx: OpContext) -> None:
        from crossdock.engine.ops.masking import LogTail, Masker
        from crossdock.engine.sandbox.step import StepSpec
        from crossdock.progress.events import VertexLog, VertexWarning

        if mounts.rootfs is None:
            raise self._error(summary="invalid exec op with no root file system")
        meta = self.op.meta
        variables, secrets = self._secret_variables()
        step = StepSpec(
            rootfs=mounts.rootfs,
            args=meta.args,
            env=(*self._environment(), *variables),
            cwd=meta.cwd,
            user=meta.user,
            platform=self.platform,
            readonly_rootfs=mounts.readonly_rootfs,
            mounts=tuple(mounts.mounts),
            network=self.op.network,
            security=self.op.security,
            hostname=meta.hostname,
            extra_hosts=meta.extra_hosts,
            ulimits=meta.ulimit,
            resources=self.node.metadata.linux_resources,
            cgroup_parent=meta.cgroup_parent,
            remove_mount_stubs_recursive=meta.remove_mount_stubs_recursive,
            devices=tuple(device.edits for device in self._devices),
            hang_deadline_s=self.env.hang_deadline_s if self._is_foreign() else None,
        )
        tail = LogTail()

        def show(stream: int, data: bytes) -> None:
            tail.write(data)
            ctx.sink.emit(
                VertexLog(vertex=self.vertex, stream=stream, data=data, timestamp_ns=time.time_ns())
            )

        masker = Masker((*mounts.secrets, *secrets), show)
        try:
            result = self.env.sandbox().run(step, log=masker.write, cancel=ctx.cancel)
        finally:
            masker.close()
        ctx.cancel.check()
        for text in result.warnings:
            ctx.sink.emit(VertexWarning(vertex=self.vertex, level=1, short=text, source=self.node.source))
        valid = meta.valid_exit_codes or (0,)
        if result.exit_code not in valid or result.failure is not None:
            raise self._failed(result, tail.lines())

    def _is_foreign(self) -> bool:
        return self.platform.architecture != self.env.platform.architecture

    def variables(self) -> tuple[list[str], list[Secret]]:
        """Return all environment variables, and the secrets among them. Raises: SolveError for a missing secret."""
        more, secrets = self._secret_variables()
        return [*self._environment(), *more], secrets

    def _environment(self) -> list[str]:
        env = list(self.op.meta.env)
        proxy = self.op.meta.proxy_env
        if proxy is not None:
            for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
                value = getattr(proxy, name)
                if value:
                    env += [f"{name.upper()}={value}", f"{name}={value}"]
        if not any(variable.startswith("PATH=") for variable in env):
            env.append(f"PATH={_PATH}")
        return env

    def _secret_variables(self) -> tuple[list[str], list[Secret]]:
        variables: list[str] = []
        secrets: list[Secret] = []
        for wanted in self.op.secret_env:
            value = self.env.secrets(wanted.id)
            if value is not None:
                variables.append(f"{wanted.name}={value.reveal().decode('utf-8', 'surrogateescape')}")
                secrets.append(value)
            elif not wanted.optional:
                raise self._error(
                    summary=f"secret {wanted.id}: not found", hint=f"give it with --secret id={wanted.id}"
                )
        return variables, secrets

    def _failed(self, result: StepResult, tail: tuple[str, ...]) -> StepFailed:
        command = " ".join(self.op.meta.args)
        what = f"exit code: {result.exit_code}"
        if result.explanation:
            what = f"{result.explanation} ({what})"
        summary = f'process "{command}" did not complete successfully: {what}'
        full = self._store_is_full(said=any(_FULL in line for line in tail))
        error = StepFailed(
            summary,
            step_exit_code=result.exit_code,
            command=self.op.meta.args,
            log_tail=tail,
            vertex=self.vertex,
            vertex_name=self.node.name or command,
            platform=str(self.platform),
            hint=_FULL_HINT if full else result.hint or None,
            source=self.node.source,
        )
        if full:
            error.exit_code = StoreFull.exit_code
        return error

    def _store_is_full(self, *, said: bool) -> bool:
        """Whether the store's disk is why a step failed; with no word of it, only when there is no room at all."""
        disk = os.statvfs(self.env.store.root)
        return disk.f_bavail * disk.f_frsize < (_FULL_BYTES if said else _NO_BYTES)

    def _error(self, *, summary: str, hint: str | None = None) -> SolveError:
        return SolveError(
            summary, vertex=self.vertex, vertex_name=self.node.name, hint=hint, source=self.node.source
        )
