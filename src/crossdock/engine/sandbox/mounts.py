"""Root file systems from layer directories: planned as values, then mounted.

Overlay mounts carry ``userxattr`` (the store's opaque marks are ``user.overlay.*``) and go through fsopen(2), where
every path is given as ``/proc/self/fd/N``: nothing is escaped and a path may be of any length. Older kernels get the
option string with the same short names.

Spec: kernel ``filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from crossdock import linux
from crossdock.engine.sandbox.paths import remove_folder
from crossdock.errors import SandboxError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["BindPlan", "OverlayPlan", "bind", "mounted", "plan_rootfs"]

#: layers the kernel stacks at most (fs/overlayfs, OVL_MAX_STACK)
MAX_LOWERS = 500
_PAGE = 4096
#: errnos of a kernel or file system that cannot do what newer ones can
_OLD_KERNEL = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})


class BindPlan(NamedTuple):
    """One directory is the whole file system."""

    source: Path
    readonly: bool


class OverlayPlan(NamedTuple):
    """Lowers, bottom first; without ``upper`` read-only."""

    lowers: tuple[Path, ...]
    upper: Path | None
    work: Path | None


def plan_rootfs(
    lowers: Sequence[Path], *, upper: Path | None, work: Path | None, empty: Path
) -> BindPlan | OverlayPlan:
    """Choose how to show ``lowers`` (bottom first) under ``upper``; ``empty`` stands for no layer at all.

    Raises: SandboxError for more layers than the kernel stacks.
    """
    if not lowers:
        return BindPlan(empty, readonly=True) if upper is None else BindPlan(upper, readonly=False)
    if upper is None and len(lowers) == 1:
        return BindPlan(lowers[0], readonly=True)
    if len(lowers) > MAX_LOWERS:
        summary = f"{len(lowers)} layers are more than the {MAX_LOWERS} the kernel stacks"
        raise SandboxError(summary, missing="overlayfs", hint="merge layers before mounting them")
    if upper is not None and work is None:
        summary = "an overlay with an upper directory needs a work directory"
        raise SandboxError(summary, missing="work directory")
    return OverlayPlan(tuple(lowers), upper, work)


@contextmanager
def mounted(plan: BindPlan | OverlayPlan, target: Path) -> Iterator[Path]:
    """Hold the planned file system mounted at ``target``, which is made and removed.

    Raises: OSError when the kernel refuses it.
    """
    target.mkdir(mode=0o700)
    try:
        if isinstance(plan, BindPlan):
            bind(plan.source, target, readonly=plan.readonly)
        else:
            _mount_overlay(plan, target)
        try:
            yield target
        finally:
            _unmount(target)
    finally:
        target.rmdir()
    if isinstance(plan, OverlayPlan) and plan.work is not None:
        _forget_volatile(plan.work)


def _unmount(target: Path) -> None:
    try:
        linux.umount(target)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        linux.umount(target, linux.MNT_DETACH)


def bind(source: Path, target: Path, *, readonly: bool) -> None:
    """Bind ``source`` and what is mounted below it to ``target``."""
    linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC)
    if not readonly:
        return
    try:
        linux.mount_setattr_readonly(target, recursive=True)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        kept = _kept_flags(target)
        linux.mount(None, target, None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | kept)


def _kept_flags(target: Path) -> int:
    """Flags that a user namespace must not clear when it remounts."""
    flags = os.statvfs(target).f_flag
    pairs = ((os.ST_NOSUID, linux.MS_NOSUID), (os.ST_NODEV, linux.MS_NODEV), (os.ST_NOEXEC, linux.MS_NOEXEC))
    return sum(mount_flag for stat_flag, mount_flag in pairs if flags & stat_flag)


def _mount_overlay(plan: OverlayPlan, target: Path) -> None:
    with ExitStack() as stack:

        def short(path: Path) -> str:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        lowers = [short(path) for path in reversed(plan.lowers)]
        upper = short(plan.upper) if plan.upper is not None else ""
        work = short(plan.work) if plan.work is not None else ""
        try:
            _overlay_by_fsopen(lowers, upper, work, target)
        except OSError as exc:
            if exc.errno not in _OLD_KERNEL:
                raise
            _overlay_by_options(lowers, upper, work, target)


def _overlay_by_fsopen(lowers: list[str], upper: str, work: str, target: Path) -> None:
    fd = linux.fsopen("overlay")
    try:
        linux.fsconfig_flag(fd, "userxattr")
        for lower in lowers:
            linux.fsconfig_string(fd, "lowerdir+", lower)
        if upper:
            linux.fsconfig_string(fd, "upperdir", upper)
            linux.fsconfig_string(fd, "workdir", work)
            # No sync of the upper directory at unmount: the store decides what it makes durable.
            linux.fsconfig_flag(fd, "volatile")
        linux.fsconfig_create(fd)
        mount_fd = linux.fsmount(fd)
    finally:
        os.close(fd)
    try:
        linux.move_mount(mount_fd, target)
    finally:
        os.close(mount_fd)


def _overlay_by_options(lowers: list[str], upper: str, work: str, target: Path) -> None:
    """Mount through mount(2); Linux < 6.7 has no ``lowerdir+``, < 5.10 no ``volatile``, < 5.11 no ``userxattr``."""
    base = "lowerdir=" + ":".join(lowers)
    if upper:
        base += f",upperdir={upper},workdir={work}"
    if len(base) > _PAGE - 32:
        summary = f"{len(lowers)} layers are more than this kernel's overlayfs takes in one mount"
        raise SandboxError(summary, missing="Linux 6.7", hint="merge layers, or use a newer kernel")
    extras = [",userxattr,volatile", ",userxattr"] if upper else [",userxattr"]
    for last, extra in enumerate(extras, start=1 - len(extras)):
        try:
            linux.mount("overlay", target, "overlay", 0, base + extra)
        except OSError as exc:
            if last == 0 or exc.errno != errno.EINVAL:
                raise
        else:
            return


def _forget_volatile(work: Path) -> None:
    """Remove the mark that makes the kernel refuse to use this work directory again."""
    mark = work / "work" / "incompat"
    if mark.exists():
        remove_folder(mark)
