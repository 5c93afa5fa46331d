"""Walk a local directory as fsutil does: sorted, filtered, as ``Stat`` records.

An entry that vanishes between being listed and being read is an error that names it, never a shorter tree: fsutil
itself skips the rest of the directory then, and the build silently lacks files.

Spec: tonistiigi/fsutil ``fs.go``, ``stat.go``; Go ``io/fs.FileMode`` for mode bits.
"""

from __future__ import annotations

import os
import stat as st
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import stat_pb2
from crossdock.errors import ContextError
from crossdock.patterns.filter import PathFilter
from crossdock.patterns.follow import follow_links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["GO_TYPE_MASK", "go_mode", "posix_mode", "walk_tree"]

_GO_TYPES = {
    st.S_IFDIR: 1 << 31,
    st.S_IFLNK: 1 << 27,
    st.S_IFBLK: 1 << 26,
    st.S_IFCHR: 1 << 26 | 1 << 21,
    st.S_IFIFO: 1 << 25,
    # fsutil clears the socket bit: a socket travels as an empty file
    st.S_IFSOCK: 0,
}
_GO_BITS = ((st.S_ISUID, 1 << 23), (st.S_ISGID, 1 << 22), (st.S_ISVTX, 1 << 20))
#: type bits of a Go FileMode; zero means a regular file
GO_TYPE_MASK = 1 << 31 | 1 << 27 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19


def go_mode(mode: int) -> int:
    """Turn ``st_mode`` into Go's FileMode bits."""
    out = (mode & 0o777) | _GO_TYPES.get(st.S_IFMT(mode), 0)
    for bit, go_bit in _GO_BITS:
        if mode & bit:
            out |= go_bit
    return out


def posix_mode(mode: int) -> int:
    """Return the permission bits, set-id and sticky included, of a Go FileMode."""
    out = mode & 0o777
    for bit, go_bit in _GO_BITS:
        if mode & go_bit:
            out |= bit
    return out


def walk_tree(
    root: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    keep_owner: bool = False,
) -> Iterator[stat_pb2.Stat]:
    """Yield the wanted entries below ``root``, parents first, names in byte order.

    Owners become 0:0 unless ``keep_owner``, as buildx sends contexts.
    Raises: ContextError naming what cannot be read or vanished.
    """
    patterns = (*include, *(follow_links(root, follow) if follow else ()))
    chosen = PathFilter(include=patterns, exclude=tuple(exclude))
    yield from _Walker(root, chosen, keep_owner=keep_owner).run()


class _Walker:
    def __init__(self, root: str, chosen: PathFilter, *, keep_owner: bool) -> None:
        self._root = root
        self._filter = None if chosen.everything else chosen
        self._keep_owner = keep_owner
        #: (device, inode) of files with several links -> first path, for hard links
        self._links: dict[tuple[int, int], str] = {}
        #: directories on the way down that were not selected and not yet emitted, with their depths
        self._pending: list[tuple[int, stat_pb2.Stat]] = []

    def run(self) -> Iterator[stat_pb2.Stat]:
        #: directories being read: entries not yet taken (last first), and the path before their names
        stack = [(_listing(self._root), "")]
        while stack:
            names, prefix = stack[-1]
            if not names:
                stack.pop()
                while self._pending and self._pending[-1][0] >= len(stack):
                    self._pending.pop()
                continue
            entry = names.pop()
            path = prefix + entry.name
            is_dir = entry.is_dir(follow_symlinks=False)
            selected = self._filter is None or self._filter.selects(path)
            descend = is_dir and (selected or self._filter is None or self._filter.may_descend(path))
            if not selected and not descend:
                continue
            try:
                record = self._record(entry, path)
            except OSError as exc:
                raise _unreadable(entry.path, exc) from exc
            if selected:
                if self._pending:
                    for _, parent in self._pending:
                        yield parent
                    self._pending.clear()
                yield record
            else:
                self._pending.append((len(stack), record))
            if descend:
                stack.append((_listing(entry.path), path + "/"))

    def _record(self, entry: os.DirEntry[str], path: str) -> stat_pb2.Stat:
        info = entry.stat(follow_symlinks=False)
        mode = info.st_mode
        try:
            record = stat_pb2.Stat(path=path, mode=go_mode(mode), modTime=info.st_mtime_ns)
        except UnicodeEncodeError as exc:
            summary = (
                f"{os.fsencode(entry.path)!r}: the name is not UTF-8, which BuildKit's protocol cannot carry"
            )
            raise ContextError(summary, hint="rename it, or exclude it in .dockerignore") from exc
        if self._keep_owner:
            record.uid, record.gid = info.st_uid, info.st_gid
        if st.S_ISREG(mode):
            record.size = info.st_size
            if info.st_nlink > 1:
                first = self._links.setdefault((info.st_dev, info.st_ino), path)
                record.linkname = "" if first == path else first
        elif st.S_ISLNK(mode):
            try:
                record.linkname = os.readlink(entry.path)
            except UnicodeEncodeError as exc:
                summary = f"{entry.path}: the target of the link is not UTF-8, which BuildKit's protocol cannot carry"
                raise ContextError(summary, hint="remove the link, or exclude it in .dockerignore") from exc
            record.size = info.st_size
        elif st.S_ISBLK(mode) or st.S_ISCHR(mode):
            record.devmajor, record.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        for name in os.listxattr(entry.path, follow_symlinks=False):
            record.xattrs[name] = os.getxattr(entry.path, name, follow_symlinks=False)
        return record


def _listing(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            # Byte order is what the receiver checks for; the last is taken first.
            return sorted(entries, key=_name, reverse=True)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _name(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def _unreadable(path: str, exc: OSError) -> ContextError:
    if isinstance(exc, FileNotFoundError):
        summary = f"{path} vanished while the directory was read"
        return ContextError(summary, hint="build again when nothing changes the directory")
    summary = f"cannot read {path}: {exc.strerror}"
    return ContextError(summary, hint="make it readable, or exclude it in .dockerignore")
