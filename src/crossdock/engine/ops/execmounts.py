"""The mounts of an exec: from the definition to directories, and from what was written to results.

Spec: moby/buildkit ``frontend/gateway/container/container.go`` (PrepareMounts), ``solver/llbsolver/mounts/mount.go``.
"""

from __future__ import annotations

import posixpath
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import SCRATCH, Ref
from crossdock.engine.cache.view import resolve
from crossdock.engine.sandbox.step import BindMount, SecretMount, SshMount, TmpfsMount
from crossdock.errors import SolveError
from crossdock.llb.ops import SKIP_OUTPUT, CacheSharing, MountType
from crossdock.progress.events import VertexStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Literal

    from crossdock.engine.ops.execop import ExecSolverOp
    from crossdock.engine.sandbox.step import StepMount
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.store import NewLayer
    from crossdock.llb.ops import Mount
    from crossdock.secret import Secret

__all__ = ["ExecMounts"]

_SHARING: dict[CacheSharing, Literal["shared", "private", "locked"]] = {
    CacheSharing.SHARED: "shared",
    CacheSharing.PRIVATE: "private",
    CacheSharing.LOCKED: "locked",
}


class ExecMounts:
    """What one execution mounts.

    ``layers`` holds the layers being written, :attr:`mounted` what is mounted: results are committed after the mounts
    are gone and before the layers are given up.
    """

    def __init__(self, op: ExecSolverOp, inputs: Sequence[Result], ctx: OpContext, layers: ExitStack) -> None:
        self._op = op
        self._inputs = inputs
        self._ctx = ctx
        self._layers = layers
        self.mounted = ExitStack()
        self.rootfs: Path | None = None
        self.readonly_rootfs = False
        self.mounts: list[StepMount] = []
        #: secrets that appear as files, for masking
        self.secrets: list[Secret] = []
        #: output number -> what becomes it: a state, or a base and the layer written on top
        self._outputs: dict[int, tuple[Ref, NewLayer | None]] = {}
        #: cache mounts in use by name and base: a step that mounts one twice must not wait for itself
        self._caches: dict[tuple[str, str], Path] = {}

    def prepare(self) -> None:
        """Mount everything. Raises: SolveError, SandboxError, StoreFull, the token's cause."""
        for mount in sorted(self._op.op.mounts, key=lambda m: m.dest):
            match mount.mount_type:
                case MountType.BIND:
                    self._bind(mount)
                case MountType.CACHE:
                    self._cache(mount)
                case MountType.TMPFS:
                    self.mounts.append(TmpfsMount(dest=self._dest(mount), size_bytes=mount.tmpfs_size or 0))
                case MountType.SECRET:
                    self._secret(mount)
                case MountType.SSH:
                    self._ssh(mount)

    def commit(self) -> list[Result]:
        """Return the outputs; nothing may be mounted any more."""
        results: list[Result] = []
        for number in sorted(self._outputs):
            base, layer = self._outputs[number]
            results.append(base if layer is None else Ref((*base.layers, layer.commit())))
        return results

    # --- kinds ---

    def _bind(self, mount: Mount) -> None:
        base = self._base(mount)
        root = mount.dest == "/"
        wanted = mount.output != SKIP_OUTPUT
        if root:
            self.readonly_rootfs = mount.readonly
        if mount.readonly and not root and mount.input >= 0:
            if wanted:
                self._outputs[mount.output] = (base, None)
            path = self._mounted(base, None)
        else:
            # Written to; thrown away unless it is an output.
            layer = self._new_layer(mount)
            if wanted:
                self._outputs[mount.output] = (base, layer)
            path = self._mounted(base, layer)
        if root:
            self.rootfs = path
            return
        source = self._select(path, mount)
        self.mounts.append(BindMount(source=source, dest=self._dest(mount), readonly=mount.readonly))

    def _cache(self, mount: Mount) -> None:
        if mount.cache_opt is None:
            raise self._invalid(mount, "has no cache options")
        env = self._op.env
        base = self._base(mount)
        if mount.output != SKIP_OUTPUT and mount.input >= 0:
            self._outputs[mount.output] = (base, None)

        def fill(directory: Path) -> None:
            if env.fill_mount is not None:
                source = self._op.node.inputs[mount.input] if mount.input >= 0 else None
                start = ("", 0) if source is None else (source.node.digest, source.index)
                if env.fill_mount(key[0], start, directory, self._op.vertex, self._ctx):
                    return
            if not base.layers:
                return
            from crossdock.engine.cache.layerview import LayerView
            from crossdock.engine.ops.copytree import CopyOptions, copy_tree
            from crossdock.engine.ops.upper import Upper

            view = LayerView(env.directories(base, self._op.vertex, self._ctx))
            upper = Upper([], directory, lenient_owner=env.lenient_owner)
            copy_tree(view, upper, CopyOptions(), self._ctx.cancel)

        key = (mount.cache_opt.id or mount.dest, ",".join(base.layers))
        path = self._caches.get(key)
        if path is None:
            path = self._caches[key] = self.mounted.enter_context(
                env.store.mounts.use(
                    env.lease,
                    name=key[0],
                    sharing=_SHARING[mount.cache_opt.sharing],
                    cancel=self._ctx.cancel,
                    base=key[1],
                    fill=fill if base.layers or env.fill_mount is not None else None,
                    waiting=self._waiting(key[0]),
                )
            )
        source = self._select(path, mount)
        self.mounts.append(BindMount(source=source, dest=self._dest(mount), readonly=mount.readonly))

    def _waiting(self, name: str) -> Callable[[bool], None]:
        """Return what shows that the step waits for others to be done with a cache mount."""
        started = 0

        def show(begun: bool) -> None:
            nonlocal started
            now = time.time_ns()
            started = now if begun else started
            what = f"waiting for the cache mount {name}, in use elsewhere"
            status = VertexStatus(
                id=what,
                vertex=self._op.vertex,
                name=what,
                timestamp_ns=now,
                started_ns=started,
                completed_ns=None if begun else now,
            )
            self._ctx.sink.emit(status)

        return show

    def _secret(self, mount: Mount) -> None:
        option = mount.secret_opt
        if option is None or not option.id:
            raise self._invalid(mount, "names no secret")
        value = self._op.env.secrets(option.id)
        if value is None:
            if option.optional:
                return
            raise self._missing(option.id, "secret", f"give it with --secret id={option.id},src=FILE")
        self.secrets.append(value)
        self.mounts.append(
            SecretMount(
                dest=self._dest(mount), data=value, uid=option.uid, gid=option.gid, mode=option.mode & 0o777
            )
        )

    def _ssh(self, mount: Mount) -> None:
        option = mount.ssh_opt
        if option is None:
            raise self._invalid(mount, "has no ssh options")
        name = option.id or "default"
        agent = self._op.env.ssh(name)
        if agent is None:
            if option.optional:
                return
            raise self._missing(name, "ssh agent", f"give it with --ssh {name}")
        self.mounts.append(
            SshMount(
                dest=self._dest(mount), agent=agent, uid=option.uid, gid=option.gid, mode=option.mode & 0o777
            )
        )

    # --- inside ---

    def _base(self, mount: Mount) -> Ref:
        if mount.input < 0:
            return SCRATCH
        result = self._op.input(self._inputs, mount.input)
        return self._op.env.packed(result, self._op.vertex, self._ctx)

    def _new_layer(self, mount: Mount) -> NewLayer:
        env = self._op.env
        description = self._op.node.name or f"mount {mount.dest} from exec"
        return self._layers.enter_context(
            env.store.layers.new(env.lease, kind="exec", description=description)
        )

    def _mounted(self, base: Ref, layer: NewLayer | None) -> Path:
        env = self._op.env
        lowers = env.directories(base, self._op.vertex, self._ctx)
        upper, work = (layer.fs, layer.work) if layer is not None else (None, None)
        return self.mounted.enter_context(env.sandbox().mounted(lowers, upper=upper, work=work))

    def _select(self, path: Path, mount: Mount) -> Path:
        """Return the selected part of a mounted file system, links resolved inside it."""
        if mount.selector.strip("/") in ("", "."):
            return path
        from crossdock.engine.cache.layerview import LayerView

        node = resolve(LayerView([path]), mount.selector, follow=True)
        if node is None:
            summary = f'"/{mount.selector.strip("/")}": not found'
            raise SolveError(summary, vertex=self._op.vertex, vertex_name=self._op.node.name)
        return path / node.path

    def _dest(self, mount: Mount) -> str:
        return posixpath.normpath(posixpath.join("/", self._op.op.meta.cwd, mount.dest))

    def _invalid(self, mount: Mount, why: str) -> SolveError:
        summary = f"the mount at {mount.dest} {why}"
        return SolveError(summary, vertex=self._op.vertex, vertex_name=self._op.node.name)

    def _missing(self, name: str, kind: str, hint: str) -> SolveError:
        summary = f"{kind} {name}: not found"
        return SolveError(summary, vertex=self._op.vertex, vertex_name=self._op.node.name, hint=hint)
