"""The file system a store is on: which cannot hold one, and which hold it in another form."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OVERLAYFS", "check_local", "filesystem_type", "probe_marks"]

#: ``f_type`` of statfs(2)
OVERLAYFS, _FUSE = 0x794C7630, 0x65735546
# flock and SQLite's shared memory are unreliable between hosts, and overlayfs takes no upper directory there.
_NETWORK = {
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb3",
    0x517B: "smb",
    0x01021997: "9p",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x73757245: "coda",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x19830326: "beegfs",
}
_NETWORK_FUSE = frozenset(
    f"fuse.{name}"
    for name in (
        *("sshfs", "glusterfs", "s3fs", "goofys", "gcsfuse", "rclone", "ceph-fuse", "juicefs", "moosefs"),
        *("cephfs", "davfs", "curlftpfs", "mfs", "lizardfs", "hdfs", "beegfs", "nfs-fuse", "fuse-nfs"),
    )
)
_MARK = "user.overlay.opaque"
_ELSEWHERE = "set CROSSDOCK_ROOT to a folder on ext4, xfs, btrfs or tmpfs (Linux 6.6 or newer)"


def check_local(root: Path, magic: int) -> None:
    """Check that ``root``, on a file system of type ``magic``, is on a disk of this machine. Raises: StoreError."""
    kind = _NETWORK.get(magic, "")
    if magic == _FUSE:
        kind = filesystem_type(root)
        if kind not in _NETWORK_FUSE:
            return
    if kind:
        summary = f"{root} is on a network file system ({kind}), which cannot hold a store"
        raise StoreError(summary, hint="set CROSSDOCK_ROOT to a folder on a local disk")


def filesystem_type(path: Path) -> str:
    """Return the type of the file system that holds ``path``, as ``/proc/self/mountinfo`` names it."""
    target = os.path.realpath(path)
    best, kind = "", "unknown"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            mount, _, source = line.partition(" - ")
            point = mount.split(" ")[4].replace("\\040", " ")
            inside = target == point or target.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):  # a later mount hides an earlier one
                best, kind = point, source.split(" ")[0]
    return kind


def probe_marks(folder: Path) -> None:
    """Check that overlayfs marks can be stored. Raises: StoreError."""
    problem = "keeps no extended attributes"
    try:
        os.setxattr(folder, "user.crossdock.probe", b"1")
        os.removexattr(folder, "user.crossdock.probe")
        problem = "keeps no overlayfs marks (user.overlay.*)"  # fuse-overlayfs has them for itself
        os.setxattr(folder, _MARK, b"y")
        os.getxattr(folder, _MARK)
        os.removexattr(folder, _MARK)
    except OSError as exc:
        summary = f"the file system of {folder.parent} ({filesystem_type(folder)}) {problem}"
        raise StoreError(summary, hint=_ELSEWHERE) from exc
