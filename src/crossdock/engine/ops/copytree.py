"""Copy selected parts of a view into a file system: the work of ``COPY``.

Directories are made first, in order; then file contents are copied in two threads; then hard links; and last the
attributes of directories, deepest first, so that their times stay.

Spec: tonistiigi/fsutil ``copy/copy.go``, whose results for existing and missing destinations are kept to the letter.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.cache.checksum import not_found
from crossdock.engine.cache.localview import LocalView
from crossdock.engine.cache.parallel import for_chunks
from crossdock.engine.cache.select import expand, has_wildcard, path_filter, walk
from crossdock.engine.cache.view import split_path
from crossdock.engine.ops.upper import Owner, set_xattrs
from crossdock.errors import SolveError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Match
    from crossdock.engine.cache.view import Node, View
    from crossdock.engine.ops.pack import DeferredContents
    from crossdock.engine.ops.upper import Upper
    from crossdock.llb.ops import FileActionCopy

__all__ = ["Copier", "CopyOptions", "copy", "copy_tree"]

_DIRECTORY_MODE = 0o755
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 64
#: below this, read and write cost less than copy_file_range
_SMALL = 1 << 17
_BLOCK = 1 << 20
#: copied inside the kernel at once: a cancelled copy ends after it
_RANGE = 1 << 26
#: copy_file_range between these file systems, or in this sandbox, is not possible
_NO_RANGE = frozenset(
    {errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EIO, errno.EOPNOTSUPP, errno.EINVAL, errno.ETXTBSY}
)


class CopyOptions(NamedTuple):
    """How entries are written."""

    #: ``None`` keeps the source's owner
    owner: Owner | None = None
    #: from the source's mode to permission bits; ``None`` keeps them
    mode: Callable[[int], int] | None = None
    #: of directories made on the way
    made_mode: int = _DIRECTORY_MODE
    #: nanoseconds for every time; ``None`` keeps the source's
    time_ns: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    #: the contents of a directory rather than the directory
    contents: bool = False
    #: a source path replaces what is there, whatever it is
    replace: bool = False
    #: takes note of files whose bytes are left where they are, when those are many
    defer: DeferredContents | None = None


class _File(NamedTuple):
    node: Node
    parent: str
    name: str


class _Directory(NamedTuple):
    node: Node
    path: str
    #: whether it gets the source's attributes, or only a time
    attributes: bool


def copy(
    source: View,
    target: Upper,
    action: FileActionCopy,
    options: CopyOptions,
    *,
    unpack: Callable[[Match, str], bool] | None,
    cancel: CancelToken,
) -> None:
    """Carry one copy action out. ``unpack`` may take a match over, returning True.

    Raises: SolveError (a missing source, a directory in the way); ContextError; OSError.
    """
    destination = _clean(action.dest)
    if not action.create_dest_path:
        parent = target.resolve(destination).rpartition("/")[0]
        if parent and target.lookup(parent) is None:
            summary = f"cannot copy to {action.dest}: /{parent} does not exist"
            raise SolveError(summary)
    matches = expand(source, action.src, wildcard=action.allow_wildcard, follow=action.follow_symlink)
    if not matches:
        if action.allow_wildcard and action.allow_empty_wildcard and has_wildcard(action.src):
            return
        raise not_found(action.src, source)
    for match in matches:
        if unpack is None or not unpack(match, destination):
            _copy_match(source, target, match, destination, options, cancel)


def copy_tree(source: View, target: Upper, options: CopyOptions, cancel: CancelToken) -> None:
    """Copy everything of ``source`` to the root of ``target``."""
    Copier(source, target, options, cancel).run(source.root(), "", overwrite=True)


def _copy_match(
    source: View, target: Upper, match: Match, destination: str, options: CopyOptions, cancel: CancelToken
) -> None:
    head, _, tail = destination.rpartition("/")
    ensure = head if tail not in ("", ".") else destination
    made = target.make_directories(target.resolve(ensure), options.made_mode, options.owner, options.time_ns)
    path = target.resolve(destination)
    there = target.lookup(path)
    is_dir = match.node.is_dir
    if there is not None and ((is_dir and not options.contents) or (not is_dir and there.is_dir)):
        name = match.path.rpartition("/")[2]
        path = "/".join(filter(None, (path, name)))
    parent = path if options.contents and is_dir and there is None else path.rpartition("/")[0]
    made += target.make_directories(parent, options.made_mode, options.owner, options.time_ns)
    Copier(source, target, options, cancel).run(match.node, path, overwrite=False)
    if options.time_ns is not None:
        for directory in reversed(made):
            os.utime(target.real(directory), ns=(options.time_ns, options.time_ns))


class Copier:
    """Copies nodes of one view; one thread adds, then finishes once."""

    def __init__(self, source: View, target: Upper, options: CopyOptions, cancel: CancelToken) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._cancel = cancel
        self._local = source if isinstance(source, LocalView) else None
        self._files: list[_File] = []
        self._links: list[tuple[str, _File]] = []
        self._directories: list[_Directory] = []
        #: (device, inode) of a file with several names -> where its first name went
        self._inodes: dict[tuple[int, int], str] = {}
        self._fresh: set[str] = set()
        self._defer: DeferredContents | None = None

    def run(self, node: Node, path: str, *, overwrite: bool) -> None:
        """Copy ``node`` and what is below it to ``path``. Without ``overwrite`` an existing top directory keeps its attributes."""
        self.add(node, path, overwrite=overwrite)
        self.finish()

    def add(self, node: Node, path: str, *, overwrite: bool = True) -> None:
        """Make directories, links and devices; note files for :meth:`finish`."""
        options = self._options
        for below, entry in walk(self._source, node, path_filter(options.include, options.exclude)):
            goal = f"{path}/{below}" if path and below else path or below
            # In a directory made by this very copy nothing can be in the way.
            fresh = bool(below) and goal.rpartition("/")[0] in self._fresh
            there = None if fresh else self._target.lookup(goal)
            if options.replace and there is not None and not (there.is_dir and entry.is_dir):
                self._target.remove(goal)
                there = None
            if entry.is_dir:
                self._directory(entry, goal, there, overwrite=overwrite or bool(below))
            else:
                self._entry(entry, goal, self._target.real(goal) if fresh else self._target.make_room(goal))

    def add_directory(self, node: Node, path: str) -> None:
        """Make one directory, which is not there, without what is in it."""
        self._directory(node, path, None, overwrite=True)
        self._fresh.discard(path)

    def finish(self) -> None:
        """Copy the files, then make hard links, then give directories their attributes, deepest first."""
        self._choose_deferral()
        for_chunks(self._files, _CHUNK, self._copy_files, self._cancel)
        for first, link in self._links:
            real = self._target.real(f"{link.parent}/{link.name}" if link.parent else link.name)
            os.link(self._target.real(first), real, follow_symlinks=False)
        for directory in reversed(self._directories):
            self._finish_directory(directory)

    def _choose_deferral(self) -> None:
        """Leave the bytes of large files where they are, if allowed; then those of all that follow too.

        An inode noted for a file that was replaced since may be that of a later one, which must not get its bytes.
        """
        defer = self._options.defer
        if defer is not None:
            from crossdock.engine.ops.pack import worth_packing

            total = sum(file.node.st.st_size for file in self._files)
            if defer or worth_packing(len(self._files), total):
                self._defer = defer

    def _directory(self, node: Node, path: str, there: Node | None, *, overwrite: bool) -> None:
        if there is None:
            self._target.make_directory(path, _DIRECTORY_MODE, None, None)
            self._fresh.add(path)
            self._directories.append(_Directory(node, path, attributes=True))
            return
        if not there.is_dir:
            summary = f"cannot copy a directory to /{path}, which is not one"
            raise SolveError(summary)
        self._target.directory(path)
        self._directories.append(_Directory(node, path, attributes=overwrite))

    def _entry(self, node: Node, path: str, real: str) -> None:
        parent, _, name = path.rpartition("/")
        st = node.st
        if stat.S_ISREG(st.st_mode):
            file = _File(node, parent, name)
            if st.st_nlink > 1:
                first = self._inodes.setdefault((st.st_dev, st.st_ino), path)
                if first != path:
                    self._links.append((first, file))
                    return
            self._files.append(file)
            self._target.note_size(st.st_size)
            return
        if stat.S_ISLNK(st.st_mode):
            os.symlink(self._source.readlink(node), real)
        else:
            try:
                os.mknod(real, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev)
            except PermissionError as exc:
                summary = f"cannot copy the device /{node.path}: devices cannot be made here"
                raise SolveError(summary, hint="build as root, or exclude it") from exc
        self._attributes(real, node)

    def _attributes(self, real: str, node: Node) -> None:
        """Owner, then mode (a change of owner clears setuid), then attributes (it clears capabilities), then times."""
        options = self._options
        st = node.st
        self._target.chown(real, options.owner or Owner(node.uid, node.gid))
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(real, options.mode(st.st_mode) if options.mode else st.st_mode & 0o7777)
            set_xattrs(real, self._source.xattrs(node))
        os.utime(real, ns=self._times(node), follow_symlinks=False)

    def _times(self, node: Node) -> tuple[int, int]:
        time_ns = self._options.time_ns
        if time_ns is not None:
            return time_ns, time_ns
        return node.st.st_atime_ns, node.st.st_mtime_ns

    def _finish_directory(self, directory: _Directory) -> None:
        real = self._target.real(directory.path)
        if directory.attributes:
            self._attributes(real, directory.node)
        else:
            os.utime(real, ns=self._times(directory.node))

    def _copy_files(self, files: Sequence[_File]) -> None:
        parent, fd = None, -1
        try:
            for file in files:
                if file.parent != parent:
                    if fd >= 0:
                        os.close(fd)
                    fd = os.open(self._target.real(file.parent), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    parent = file.parent
                self._copy_file(file, fd)
        finally:
            if fd >= 0:
                os.close(fd)

    def _copy_file(self, file: _File, parent: int) -> None:
        node, options = file.node, self._options
        st = node.st
        target = os.open(file.name, _CREATE, 0o600, dir_fd=parent)
        try:
            if self._defer is None:
                self._copy_contents(node, target)
            else:
                self._defer.note(os.fstat(target).st_ino, self._source, node)
            self._target.chown(target, options.owner or Owner(node.uid, node.gid))
            os.fchmod(target, options.mode(st.st_mode) if options.mode else st.st_mode & 0o7777)
            xattrs = self._source.xattrs(node)
            if xattrs:
                set_xattrs(target, xattrs)
            os.utime(target, ns=self._times(node))
        finally:
            os.close(target)

    def _copy_contents(self, node: Node, target: int) -> None:
        source = self._source.open(node)
        try:
            _copy_data(source, target, node.st.st_size, self._cancel)
            if self._local is not None:
                self._local.unchanged(node, os.fstat(source))
        finally:
            os.close(source)


def _copy_data(source: int, target: int, size: int, cancel: CancelToken) -> None:
    if size >= _SMALL and _copy_range(source, target, size, cancel):
        return
    data = os.read(source, min(size + 1, _BLOCK))
    while data:
        written = os.write(target, data)
        while written < len(data):
            written += os.write(target, data[written:])
        if len(data) == size:
            return
        cancel.check()
        data = os.read(source, _BLOCK)


def _copy_range(source: int, target: int, size: int, cancel: CancelToken) -> bool:
    """Copy inside the kernel, sharing blocks where the file system can; False when it cannot be done at all."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(size - done, _RANGE))
        except OSError as exc:
            if done or exc.errno not in _NO_RANGE:
                raise
            return False
        if count == 0:
            # Some file systems say so for files whose size is not known beforehand.
            return done > 0
        done += count
        cancel.check()
    return True


def _clean(path: str) -> str:
    """Return a path from the root, without the slash in front; a trailing ``/`` or ``/.`` is kept."""
    cleaned = "/".join(split_path(path))
    if path.endswith("/."):
        return f"{cleaned}/." if cleaned else "."
    return cleaned + "/" if path.endswith("/") and cleaned else cleaned
