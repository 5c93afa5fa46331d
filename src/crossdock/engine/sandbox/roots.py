"""Which way root file systems are mounted on this machine: overlayfs, else fuse-overlayfs, else copies.

The first refusal of the kernel decides for the rest of the process.
"""

from __future__ import annotations

import errno
import itertools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.sandbox import mounts
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["RootMounts"]

#: what a kernel or file system says that does no overlay (for this user, on this disk)
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS})


class RootMounts:
    """Mounts root file systems below ``directory``; ``scratch_dir`` is on disk, for read-only copies.

    Safe from any thread.
    """

    def __init__(self, directory: Path, *, empty: Path, scratch_dir: Path | None, way: str) -> None:
        #: ``overlay``, ``fuse-overlayfs`` or ``native`` (copies)
        self.way = way
        #: why it is not ``overlay``, or ``""``
        self.note = ""
        self._directory = directory
        self._empty = empty
        self._scratch_dir = scratch_dir
        self._numbers = itertools.count(1)

    @contextmanager
    def mounted(self, lowers: Sequence[Path], *, upper: Path | None, work: Path | None) -> Iterator[Path]:
        """See ``Sandbox.mounted``. Raises: SandboxError."""
        plan = mounts.plan_rootfs(lowers, upper=upper, work=work, empty=self._empty)
        target = self._directory / str(next(self._numbers))
        with ExitStack() as stack:
            try:
                path = self._enter(plan, target, stack)
            except OSError as exc:
                summary = f"cannot mount a root file system of {len(lowers)} layers: {exc.strerror}"
                raise SandboxError(summary, missing="overlayfs") from exc
            yield path

    def _enter(self, plan: mounts.BindPlan | mounts.OverlayPlan, target: Path, stack: ExitStack) -> Path:
        if isinstance(plan, mounts.BindPlan):
            return stack.enter_context(mounts.mounted(plan, target))
        if self.way == "overlay":
            try:
                return stack.enter_context(mounts.mounted(plan, target))
            except OSError as exc:
                if exc.errno not in _REFUSED:
                    raise
                self._fall_back(exc)
        if self.way == "fuse-overlayfs":
            from crossdock.engine.sandbox.fuse import fuse_mounted, fuse_program

            target.mkdir(mode=0o700)
            stack.callback(target.rmdir)
            return stack.enter_context(fuse_mounted(fuse_program(), *plan, target))
        from crossdock.engine.sandbox.native import copied, scratch_folder

        scratch = plan.work
        if scratch is None:
            scratch = stack.enter_context(scratch_folder(self._scratch_dir))
        return stack.enter_context(copied(plan.lowers, plan.upper, scratch))

    def _fall_back(self, exc: OSError) -> None:
        from crossdock.engine.sandbox.fuse import fuse_program

        self.way = "fuse-overlayfs" if fuse_program() else "native"
        self.note = f"the kernel refuses overlayfs here: {exc.strerror}"
