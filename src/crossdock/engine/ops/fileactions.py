"""Carries the actions of a file op out, layer by layer."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from crossdock.engine.cache.localview import LocalView
from crossdock.engine.cache.refs import SCRATCH, LocalTree, Ref
from crossdock.engine.cache.select import expand
from crossdock.engine.ops.chmod import parse_mode
from crossdock.engine.ops.copytree import CopyOptions, copy
from crossdock.engine.ops.owner import find_owner
from crossdock.engine.ops.upper import Owner, Upper
from crossdock.errors import SolveError, translate
from crossdock.llb.ops import (
    FileActionCopy,
    FileActionMkDir,
    FileActionMkFile,
    FileActionRm,
    FileActionSymlink,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.engine.cache.select import Match
    from crossdock.engine.cache.view import View
    from crossdock.engine.ops.fileop import FileSolverOp, Plan, Step
    from crossdock.engine.ops.pack import DeferredContents
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.store import LayerId, NewLayer
    from crossdock.layers.decompress import ByteSource
    from crossdock.llb.ops import ChownOpt, FileActionKind

__all__ = ["FileActions"]

_MODE = 0o777
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileActions:
    """One execution of a file op."""

    def __init__(self, op: FileSolverOp, plan: Plan, inputs: Sequence[Result], ctx: OpContext) -> None:
        self._op = op
        self._plan = plan
        self._inputs = inputs
        self._ctx = ctx
        #: number of an action -> the committed state after it
        self._states: dict[int, Ref] = {}

    def run(self) -> list[Result]:
        """Return the outputs. Raises: SolveError, ContextError, StoreFull, the token's cause."""
        with translate({OSError: self._os_error}):
            for step in self._plan.steps:
                self._step(step)
        return [self._states[number] for number in self._plan.outputs]

    def _os_error(self, exc: BaseException) -> SolveError:
        text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        where = ""
        if isinstance(exc, OSError) and isinstance(exc.filename, str):
            # Only the part inside the build's file system means something to the user.
            where = exc.filename.partition("/fs/")[2] or os.path.basename(exc.filename)
        summary = f"{text}: /{where}" if where else text
        return SolveError(summary, vertex=self._op.vertex, vertex_name=self._op.node.name)

    def _step(self, step: Step) -> None:
        env = self._op.env
        base = env.packed(self._state(step.base), self._op.vertex, self._ctx)
        lowers = env.directories(base, self._op.vertex, self._ctx)
        description = self._op.node.name or "file operation"
        with env.store.layers.new(env.lease, kind="file", description=description) as layer:
            work = _LayerWork(self, layer, lowers, self._deferral(step))
            for number in step.actions:
                self._ctx.cancel.check()
                work.act(number, self._op.op.actions[number].action)
            ref = Ref((*base.layers, work.commit()))
        for number in step.actions:
            self._states[number] = ref

    def _deferral(self, step: Step) -> DeferredContents | None:
        """Return what may take note of large files to be packed from where they are.

        Only where nothing but an image is made of the result, and nothing but copies makes it.
        """
        env = self._op.env
        if env.pack is None or self._op.vertex not in env.only_packed or len(self._plan.steps) != 1:
            return None
        kinds = [self._op.op.actions[number].action for number in step.actions]
        if not all(isinstance(kind, FileActionCopy) and not kind.attempt_unpack for kind in kinds):
            return None
        from crossdock.engine.ops.pack import DeferredContents

        return DeferredContents()

    def _state(self, index: int) -> Result:
        if index < 0:
            return SCRATCH
        if index < len(self._inputs):
            return self._inputs[index]
        return self._states[index - len(self._inputs)]

    def view_of(self, index: int) -> View:
        """Return a view of an input or of a finished action's result."""
        return self._op.env.view(self._state(index), self._op.vertex, self._ctx)

    def is_local(self, index: int) -> bool:
        """Whether an input is a local directory."""
        return isinstance(self._state(index), LocalTree)


class _LayerWork:
    """The actions that go into one layer."""

    def __init__(
        self,
        actions: FileActions,
        layer: NewLayer,
        lowers: Sequence[Path],
        deferred: DeferredContents | None,
    ) -> None:
        self._actions = actions
        self._op = actions._op
        self._ctx = actions._ctx
        self._layer = layer
        self._lowers = lowers
        self._deferred = deferred
        self._upper = Upper(lowers, layer.fs, lenient_owner=self._op.env.lenient_owner)
        self._number = 0
        self._measured = True

    def commit(self) -> LayerId:
        """Make the layer permanent."""
        env = self._op.env
        if self._deferred and env.pack is not None:
            from crossdock.engine.ops.pack import pack

            return pack(env.store, self._layer, self._deferred, env.pack, self._ctx.cancel)
        return self._layer.commit(size_bytes=self._upper.size_bytes if self._measured else None)

    def act(self, number: int, action: FileActionKind) -> None:
        """Carry one action out."""
        self._number = number
        match action:
            case FileActionCopy():
                self._copy(action)
            case FileActionMkFile():
                self._make_file(action)
            case FileActionMkDir():
                self._make_directory(action)
            case FileActionRm():
                self._remove(action)
            case FileActionSymlink():
                self._symlink(action)

    def _owner(self, option: ChownOpt | None) -> Owner | None:
        return find_owner(option, self._view_of, lambda text: self._op.warn(self._ctx, text))

    def _view_of(self, index: int) -> View:
        """The state being made is seen as it is so far."""
        before = index - len(self._op.node.inputs)
        if before >= 0 and before not in self._actions._states:
            return self._upper.view
        return self._actions.view_of(index)

    def _make_directory(self, action: FileActionMkDir) -> None:
        path = self._upper.resolve(action.path)
        owner, time = self._owner(action.owner), _time(action.timestamp_ns)
        if action.make_parents:
            self._upper.make_directories(path, action.mode & _MODE, owner, time)
        elif self._upper.lookup(path) is None:
            self._need_parent(path)
            self._upper.make_directory(path, action.mode & _MODE, owner, time)

    def _make_file(self, action: FileActionMkFile) -> None:
        path = self._upper.resolve(action.path)
        self._need_parent(path)
        before = self._upper.lookup(path)
        real = self._upper.make_room(path)
        fd = os.open(real, _CREATE, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(action.data)
        self._upper.note_size(len(action.data))
        owner = self._owner(action.owner)
        mode = action.mode & _MODE
        if before is not None and before.is_file:
            # What exists is rewritten, not replaced: it keeps owner and mode.
            mode = before.st.st_mode & 0o7777
            self._upper.chown(real, owner or Owner(before.uid, before.gid))
        elif owner is not None:
            self._upper.chown(real, owner)
        os.chmod(real, mode)
        _set_time(real, _time(action.timestamp_ns))

    def _symlink(self, action: FileActionSymlink) -> None:
        path = self._upper.resolve(action.newpath)
        self._need_parent(path)
        if self._upper.lookup(path) is not None:
            summary = f"cannot make the link /{path}: {os.strerror(errno.EEXIST)}"
            raise SolveError(summary, vertex=self._op.vertex)
        real = self._upper.make_room(path)
        os.symlink(action.oldpath, real)
        owner = self._owner(action.owner)
        if owner is not None:
            self._upper.chown(real, owner)
        _set_time(real, _time(action.timestamp_ns))

    def _remove(self, action: FileActionRm) -> None:
        self._measured = False
        paths = [action.path]
        if action.allow_wildcard:
            matches = expand(self._upper.view, action.path, wildcard=True, follow=False)
            paths = [match.path for match in matches]
        for path in paths:
            parts = [part for part in path.split("/") if part not in ("", ".")]
            if not parts:
                summary = "cannot remove the root directory"
                raise SolveError(summary, vertex=self._op.vertex)
            parent = self._upper.resolve("/".join(parts[:-1]))
            goal = f"{parent}/{parts[-1]}" if parent else parts[-1]
            if self._upper.lookup(goal) is None and not action.allow_not_found:
                summary = f"cannot remove {path}: {os.strerror(errno.ENOENT)}"
                raise SolveError(summary, vertex=self._op.vertex)
            self._upper.remove(goal)

    def _need_parent(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        node = self._upper.lookup(parent)
        if node is None or not node.is_dir:
            why = os.strerror(errno.ENOENT if node is None else errno.ENOTDIR)
            summary = f"cannot create /{path}: /{parent}: {why}"
            raise SolveError(summary, vertex=self._op.vertex)

    # --- copy ---

    def _copy(self, action: FileActionCopy) -> None:
        index = self._op.op.actions[self._number].secondary_input
        source = self._actions.view_of(index)
        owner = self._owner(action.owner)
        options = CopyOptions(
            owner=owner,
            mode=_mode(action),
            made_mode=action.mode & 0o7777 if action.mode >= 0 and not action.mode_str else 0o755,
            time_ns=_time(action.timestamp_ns),
            include=action.include_patterns,
            exclude=action.exclude_patterns,
            contents=action.dir_copy_contents,
            replace=action.always_replace_existing_dest_paths,
            defer=self._deferred,
        )

        def unpack(match: Match, destination: str) -> bool:
            return self._unpack(source, match, destination, owner, options.time_ns)

        copy(
            source,
            self._upper,
            action,
            options,
            unpack=unpack if action.attempt_unpack else None,
            cancel=self._ctx.cancel,
        )

    def _unpack(
        self, source: View, match: Match, destination: str, owner: Owner | None, time_ns: int | None
    ) -> bool:
        """Unpack a match that is an archive into ``destination``."""
        node = match.node
        if node.is_link:
            found = expand(source, match.path, wildcard=False, follow=True)
            node = found[0].node if found else node
        if not node.is_file:
            return False
        from crossdock.layers import is_archive

        with os.fdopen(source.open(node), "rb") as stream:
            if not is_archive(stream):
                return False
            if isinstance(source, LocalView):
                source.unchanged(node, os.fstat(stream.fileno()))
        path = self._upper.resolve(destination)
        self._upper.make_directories(path, 0o755, owner, time_ns)
        self._upper.directory(path)
        with os.fdopen(source.open(node), "rb") as stream:
            self._extract(stream, path, owner)
        return True

    def _extract(self, stream: ByteSource, path: str, owner: Owner | None) -> None:
        """Unpack over what is there; links among it count, so it must be seen as a whole."""
        from crossdock.layers import extract_archive

        env = self._op.env

        def extract(root: Path) -> None:
            extract_archive(
                stream,
                root / path,
                owner=None if owner is None else (owner.uid, owner.gid),
                ignore_chown_errors=env.lenient_owner,
                cancel=self._ctx.cancel,
            )

        if not self._lowers:
            extract(self._layer.fs)
        else:
            with env.sandbox().mounted(self._lowers, upper=self._layer.fs, work=self._layer.work) as root:
                extract(root)
        self._upper.forget()
        self._measured = False


def _mode(action: FileActionCopy) -> Callable[[int], int] | None:
    if action.mode_str:
        return parse_mode(action.mode_str)
    if action.mode < 0:
        return None
    value = action.mode & 0o7777
    return lambda _mode: value


def _time(timestamp_ns: int) -> int | None:
    return None if timestamp_ns == -1 else timestamp_ns


def _set_time(real: str, time_ns: int | None) -> None:
    if time_ns is not None:
        os.utime(real, ns=(time_ns, time_ns), follow_symlinks=False)
