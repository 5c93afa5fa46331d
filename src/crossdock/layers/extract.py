"""Put the entries of an archive into a directory that nothing else writes to.

Names, links and whiteouts are settled here; the archive itself is read by ``crossdock.layers.unpack``.
Owner, mode, attributes and time are set in this order, since the kernel clears set-id bits and
capabilities when the owner changes.

Spec: image-spec 1.1, layer.md; overwriting as Docker's and containerd's ``Apply``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, TypeVar

from crossdock.errors import CrossdockError, LayerError, StoreError, StoreFull
from crossdock.layers.rootdir import RootDir, split_name
from crossdock.layers.walk import OPAQUE_MARK, WHITEOUT_PREFIX, capability_v2
from crossdock.record import Record
from crossdock.whiteouts import is_whiteout, make_whiteout

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.layers.reader import TarEntry, TarReader

__all__ = ["Extractor", "UnpackOptions", "unpack_error"]

_AUFS_PREFIX = b".wh..wh."
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPAQUE = "user.overlay.opaque"
_FORBIDDEN_XATTRS = ("user.overlay.", "trusted.", "security.selinux")
_MAX_ID = 0xFFFFFFFE
_MAX_TIME_NS = (1 << 40) * 1_000_000_000
_MAX_NOTES = 1000

_T = TypeVar("_T")


class UnpackOptions(Record):
    """How an archive is unpacked."""

    #: ``overlay``, ``apply`` or ``plain``: see the module
    whiteouts: str = "overlay"
    #: in a namespace with a single id nothing can be given away: files stay ours
    ignore_chown_errors: bool = False
    #: ``(uid, gid)`` for everything, instead of the archive's
    owner: tuple[int, int] | None = None
    #: permission bits for files and directories, instead of the archive's
    mode: int | None = None


def unpack_error(exc: OSError, name: str) -> CrossdockError:
    """Say what went wrong with the entry ``name``."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        summary = f"no space left on device while {name} was unpacked"
        return StoreFull(summary, hint="free some space, or run `crossdock prune`")
    if exc.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ENOTDIR):
        summary = f"cannot unpack {name[:300]}: {exc.strerror}"
        return LayerError(summary)
    summary = f"cannot unpack {name}: {exc.strerror}"
    return StoreError(summary)


class Extractor:
    """Unpacks entries one by one; holds what must wait for the end."""

    def __init__(self, root: int, options: UnpackOptions) -> None:
        self._root = root
        self._options = options
        self._overlay = options.whiteouts == "overlay"
        self._apply = options.whiteouts == "apply"
        self._dirs = RootDir(root, self._make_missing)
        #: modification times of directories, set when nothing is created in them any more
        self._times: dict[bytes, int] = {}
        #: what this archive put in place, for ``apply``
        self._mine: set[bytes] = set()
        self.implied: set[bytes] = set()
        self.entries = 0
        self.skipped: list[str] = []

    def close(self) -> None:
        """Close all handles."""
        self._dirs.close()

    def add(self, entry: TarEntry, reader: TarReader) -> None:
        """Put one entry in place; its content comes from ``reader``.

        Raises: LayerError when it is hostile; StoreError; OSError.
        """
        self.entries += 1
        self._dirs.sweep()
        directory, name = split_name(entry.name)
        if name.startswith(WHITEOUT_PREFIX) and (self._overlay or self._apply):
            self._whiteout(directory, name)
            return
        path = directory + b"/" + name if directory else name
        if not name:
            self._root_entry(entry)
            return
        parent = self._dirs.get(directory)
        kind = entry.kind
        if kind == b"0":
            self._file(parent, name, path, entry, reader)
        elif kind == b"5":
            self._directory(parent, name, path, entry)
        elif kind == b"2":
            if not entry.linkname:
                summary = f"{os.fsdecode(path)}: a symbolic link without a target"
                raise LayerError(summary)
            self._replacing(parent, name, path, lambda: os.symlink(entry.linkname, name, dir_fd=parent))
            self._finish_special(parent, name, entry, link=True)
        elif kind == b"1":
            self._hard_link(parent, name, path, entry)
        elif kind == b"6":
            self._replacing(parent, name, path, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
            self._finish_special(parent, name, entry, link=False)
        else:
            self._note(path, "device nodes cannot be made in a user namespace")
            return
        if self._apply:
            self._mine.add(path)

    def finish(self) -> None:
        """Set the times of directories, deepest first."""
        for path in sorted(self._times, reverse=True):
            times = (self._times[path], self._times[path])
            self._dirs.sweep()
            try:
                os.utime(b".", ns=times, dir_fd=self._dirs.get(path, make=False))
            except (FileNotFoundError, NotADirectoryError):
                continue  # reached through a link that the archive replaced later
            except OSError as exc:
                raise unpack_error(exc, os.fsdecode(path)) from exc

    # entries

    def _file(self, parent: int, name: bytes, path: bytes, entry: TarEntry, reader: TarReader) -> None:
        fd = self._replacing(parent, name, path, lambda: os.open(name, _CREATE, 0o600, dir_fd=parent))
        try:
            for offset, part in reader.pieces(entry):
                done = os.pwrite(fd, part, offset)
                while done < len(part):
                    done += os.pwrite(fd, part[done:], offset + done)
            if entry.segments is not None:
                os.ftruncate(fd, entry.size)
            self._chown(entry, lambda uid, gid: os.fchown(fd, uid, gid))
            os.fchmod(fd, self._mode(entry))
            if entry.xattrs:
                self._xattrs(fd, entry)
            mtime_ns = _clamped(entry.mtime_ns)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, parent: int, name: bytes, path: bytes, entry: TarEntry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                self._make_missing(parent, name, path, status)
        self.implied.discard(path)
        self._directory_metadata(parent, name, entry)
        self._times[path] = _clamped(entry.mtime_ns)

    def _root_entry(self, entry: TarEntry) -> None:
        if entry.kind != b"5":
            summary = f"hostile archive: {os.fsdecode(entry.name)!r} would replace the directory itself"
            raise LayerError(summary)
        self._chown(entry, lambda uid, gid: os.fchown(self._root, uid, gid))
        os.fchmod(self._root, self._mode(entry))
        if entry.xattrs:
            self._xattrs(self._root, entry)
        self._times[b""] = _clamped(entry.mtime_ns)

    def _directory_metadata(self, parent: int, name: bytes, entry: TarEntry) -> None:
        fd = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            self._chown(entry, lambda uid, gid: os.fchown(fd, uid, gid))
            os.fchmod(fd, self._mode(entry))
            if entry.xattrs:
                self._xattrs(fd, entry)
        finally:
            os.close(fd)

    def _hard_link(self, parent: int, name: bytes, path: bytes, entry: TarEntry) -> None:
        directory, target = split_name(entry.linkname)
        try:
            source = self._dirs.get(directory, make=False)
            status = os.stat(target, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or (self._overlay and is_whiteout(status)):
                raise FileNotFoundError
        except (FileNotFoundError, NotADirectoryError):
            summary = (
                f"invalid archive: {os.fsdecode(entry.name)!r} is a hard link to "
                f"{os.fsdecode(entry.linkname)!r}, which is no file of this archive"
            )
            raise LayerError(summary) from None
        if self._is_same(parent, name, status):
            return

        def link() -> None:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

        self._replacing(parent, name, path, link)

    def _is_same(self, parent: int, name: bytes, status: os.stat_result) -> bool:
        """Whether the link is there already: replacing a file by itself would lose it."""
        try:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)

    def _finish_special(self, parent: int, name: bytes, entry: TarEntry, *, link: bool) -> None:
        self._chown(entry, lambda uid, gid: os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False))
        if not link:
            os.chmod(name, self._mode(entry), dir_fd=parent)
        mtime_ns = _clamped(entry.mtime_ns)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
        for key in entry.xattrs or ():
            self._note(entry.name, f"attribute {key} cannot be set on this type of file")

    # whiteouts

    def _whiteout(self, directory: bytes, name: bytes) -> None:
        if name == OPAQUE_MARK:
            self._opaque(directory)
            return
        if name.startswith(_AUFS_PREFIX):
            return  # bookkeeping of aufs, meaningless elsewhere
        target = name[len(WHITEOUT_PREFIX) :]
        path = directory + b"/" + target if directory else target
        if target in (b"", b".", b".."):
            summary = f"hostile archive: whiteout {os.fsdecode(name)!r}"
            raise LayerError(summary)
        parent = self._dirs.get(directory)
        if self._apply:
            if path not in self._mine:
                self._remove(parent, target, path)
            return
        try:
            make_whiteout(target, dir_fd=parent)
        except FileExistsError:
            # Whiteouts mean lower layers only. What this layer has of that name stays; a directory
            # must not be merged with what is below.
            if stat.S_ISDIR(os.stat(target, dir_fd=parent, follow_symlinks=False).st_mode):
                self._set_opaque(parent, target)

    def _opaque(self, directory: bytes) -> None:
        handle = self._dirs.get(directory)
        if self._overlay:
            self._set_opaque(handle, b".")
            return
        prefix = directory + b"/" if directory else b""
        listing = os.open(b".", _OPEN | os.O_DIRECTORY, dir_fd=handle)
        try:
            names = [os.fsencode(name) for name in os.listdir(listing)]
        finally:
            os.close(listing)
        for name in names:
            below = prefix + name + b"/"
            if prefix + name not in self._mine and not any(p.startswith(below) for p in self._mine):
                self._remove(handle, name, prefix + name)

    def _set_opaque(self, parent: int, name: bytes) -> None:
        fd = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
        try:
            os.setxattr(fd, _OPAQUE, b"y")
        except OSError as exc:
            summary = f"cannot mark a directory as opaque: {exc.strerror}"
            hint = "keep the store on a file system with user extended attributes, for example ext4 or xfs"
            raise StoreError(summary, hint=hint) from exc
        finally:
            os.close(fd)

    # parts

    def _make_missing(
        self, parent: int, name: bytes, path: bytes, status: os.stat_result | None = None
    ) -> bool:
        """Make a directory that is missing, or where something else is that the archive replaces."""
        opaque = False
        if status is None:
            try:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if not (self._overlay and is_whiteout(status)):
                    return False
        if status is not None:
            opaque = self._overlay and is_whiteout(status)
            self._remove(parent, name, path)
        os.mkdir(name, 0o755, dir_fd=parent)
        os.chmod(name, 0o755, dir_fd=parent)  # noqa: S103  as an archive's directories are, whatever the umask
        if opaque:
            self._set_opaque(parent, name)
        self.implied.add(path)
        return True

    def _replacing(self, parent: int, name: bytes, path: bytes, make: Callable[[], _T]) -> _T:
        try:
            return make()
        except FileExistsError:
            self._remove(parent, name, path)
            return make()

    def _remove(self, parent: int, name: bytes, path: bytes) -> None:
        """Remove what is there, if anything; a directory with all it holds."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            import shutil

            shutil.rmtree(os.fsdecode(name), dir_fd=parent)
            below = path + b"/"
            gone = [key for key in self._times if key == path or key.startswith(below)]
            for key in gone:
                del self._times[key]
            self.implied = {key for key in self.implied if key != path and not key.startswith(below)}
        else:
            os.unlink(name, dir_fd=parent)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            self._dirs.forget()

    def _mode(self, entry: TarEntry) -> int:
        return entry.mode if self._options.mode is None else self._options.mode

    def _chown(self, entry: TarEntry, chown: Callable[[int, int], None]) -> None:
        uid, gid = self._options.owner or (entry.uid, entry.gid)
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            summary = f"invalid archive: {os.fsdecode(entry.name)!r} belongs to {uid}:{gid}"
            raise LayerError(summary)
        try:
            chown(uid, gid)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EINVAL):
                raise
            if not self._options.ignore_chown_errors:
                name = os.fsdecode(entry.name)
                summary = f"cannot unpack {name}: owner {uid}:{gid} does not exist in this user namespace"
                hint = "give this user a larger range of ids in /etc/subuid and /etc/subgid"
                raise StoreError(summary, hint=hint) from exc

    def _xattrs(self, fd: int, entry: TarEntry) -> None:
        for key, value in (entry.xattrs or {}).items():
            if key.startswith(_FORBIDDEN_XATTRS):
                continue
            data = capability_v2(value) if key == "security.capability" else value
            try:
                os.setxattr(fd, key, data)
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ERANGE):
                    raise
                self._note(entry.name, f"attribute {key} cannot be set: {exc.strerror}")

    def _note(self, path: bytes, why: str) -> None:
        if len(self.skipped) < _MAX_NOTES:
            self.skipped.append(f"{os.fsdecode(path)}: {why}")


def _clamped(mtime_ns: int) -> int:
    return max(-_MAX_TIME_NS, min(mtime_ns, _MAX_TIME_NS))
