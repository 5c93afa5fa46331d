"""Root file systems through fuse-overlayfs, for kernels or file systems that refuse overlayfs to a user.

Its own marks in the upper directory are turned into overlayfs's afterwards, so that a layer looks the same however it
was made.
"""

from __future__ import annotations

import os
import select
import shutil
import stat
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from crossdock import linux
from crossdock.errors import SandboxError
from crossdock.whiteouts import make_whiteout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["fuse_mounted", "fuse_program", "normalise_marks"]

_OPAQUE = "user.overlay.opaque"
_FUSE_OPAQUE = "user.fuseoverlayfs.opaque"
_FUSE_PREFIX = "user.fuseoverlayfs."
_WHITEOUT = ".wh."
_OPAQUE_FILES = (".wh..wh..opq", ".wh..opq")
_MOUNT_TIMEOUT_S = 10


def fuse_program() -> str:
    """Return the path of fuse-overlayfs where it can be used, or ``""``."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return ""
    return shutil.which("fuse-overlayfs") or ""


@contextmanager
def fuse_mounted(
    program: str, lowers: Sequence[Path], upper: Path | None, work: Path | None, target: Path
) -> Iterator[Path]:
    """Hold a fuse-overlayfs mounted at ``target``, which exists. Raises: SandboxError."""
    with ExitStack() as stack:
        links = target.with_name(f"{target.name}.layers")
        links.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, links)
        # Short names without ':' and ',': the option string has its own escapes and limits.
        names = [_link(links / str(number), path) for number, path in enumerate(reversed(lowers))]
        options = f"lowerdir={':'.join(names)}"
        if upper is not None and work is not None:
            options += f",upperdir={_link(links / 'u', upper)},workdir={_link(links / 'w', work)}"
        server = subprocess.Popen(
            [program, "-f", "-o", options, str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        stack.callback(_reap, server)
        _wait_mounted(server, target)
        stack.callback(linux.umount, target, linux.MNT_DETACH)
        yield target
    if upper is not None:
        normalise_marks(upper)


def _link(link: Path, path: Path) -> str:
    link.symlink_to(path.resolve())
    return str(link)


def _wait_mounted(server: subprocess.Popen[bytes], target: Path) -> None:
    device = os.lstat(target.parent).st_dev
    poll = select.poll()
    pidfd = os.pidfd_open(server.pid)
    try:
        poll.register(pidfd, select.POLLIN)
        for _ in range(_MOUNT_TIMEOUT_S * 200):
            if os.lstat(target).st_dev != device:
                return
            if poll.poll(5):
                break
    finally:
        os.close(pidfd)
    server.kill()
    said = server.stderr.read().decode(errors="replace").strip() if server.stderr is not None else ""
    summary = f"fuse-overlayfs did not mount: {said or 'it gave no reason'}"
    raise SandboxError(summary, missing="fuse-overlayfs")


def _reap(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait(timeout=_MOUNT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stderr is not None:
        server.stderr.close()


def normalise_marks(upper: Path) -> None:
    """Turn fuse-overlayfs's whiteouts and opaque marks below ``upper`` into overlayfs's."""
    for folder, directories, files in os.walk(upper):
        names = set(files)
        marked = _take_xattrs(folder)
        for name in names.intersection(_OPAQUE_FILES):
            os.unlink(f"{folder}/{name}")
            names.discard(name)
            marked = True
        if marked and folder != str(upper):
            os.setxattr(folder, _OPAQUE, b"y")
        for name in names:
            path = f"{folder}/{name}"
            if name.startswith(_WHITEOUT):
                os.unlink(path)
                make_whiteout(f"{folder}/{name.removeprefix(_WHITEOUT)}")
            elif not os.path.islink(path) and stat.S_ISREG(os.lstat(path).st_mode):
                _take_xattrs(path)
        directories[:] = [name for name in directories if not os.path.islink(f"{folder}/{name}")]


def _take_xattrs(path: str) -> bool:
    """Remove fuse-overlayfs's attributes; whether they said that the directory is opaque."""
    names = [name for name in os.listxattr(path) if name.startswith(_FUSE_PREFIX)]
    opaque = _FUSE_OPAQUE in names and os.getxattr(path, _FUSE_OPAQUE) == b"y"
    for name in names:
        os.removexattr(path, name)
    return opaque
