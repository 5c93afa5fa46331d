"""Receive a client's directory over the diff-copy protocol, keeping what has not changed since the last time.

The root belongs to this receiver alone while it works, and every parent was made or checked by it: plain relative
paths below the root's handle therefore meet no links. The client is not trusted: order, parents and names are checked.

Each entry is looked at once: what the kernel says of it is compared with what the client sends, and kept for whoever
reads the directory afterwards. Where the last transfer's nodes are known, an entry whose packet and whose file are both
as they were takes two look-ups and one ``stat``.

Spec: tonistiigi/fsutil ``receive.go``, ``diff.go``, ``validator.go``, ``hardlinks.go``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import wire_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.session.tree import GO_TYPE_MASK, posix_mode
from crossdock.engine.cache.view import Stat, untouched
from crossdock.errors import ContextError, StoreFull, translate
from crossdock.server.listing import Listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.buildkit.proto import stat_pb2
    from crossdock.engine.cache.view import Node
    from crossdock.server.lefttree import LeftTree
    from crossdock.server.listing import Directory

__all__ = ["ContextReceiver"]

_DIR, _SYMLINK, _FIFO = 1 << 31, 1 << 27, 1 << 25
_STAT, _REQ, _DATA, _FIN, _ERR = (
    wire_pb2.Packet.PACKET_STAT,
    wire_pb2.Packet.PACKET_REQ,
    wire_pb2.Packet.PACKET_DATA,
    wire_pb2.Packet.PACKET_FIN,
    wire_pb2.Packet.PACKET_ERR,
)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: what is known of a file before it is here, and of another name of one
_COMING = Stat(os.stat_result((stat.S_IFREG, *(0,) * 9)))
_OTHER_NAME = Stat(os.stat_result((0,) * 10))


class ContextReceiver:
    """Makes ``root`` equal to what one sender sends.

    Files are written where they belong: a file cut short has another time than the sender's, and is asked for again. Only
    whole files get their time.
    """

    def __init__(
        self,
        root: Path,
        *,
        compare: bool = True,
        wants_data: Callable[[str], bool] | None = None,
        on_bytes: Callable[[int], None] = lambda _count: None,
        owners: bool = True,
        left: LeftTree | None = None,
    ) -> None:
        """``compare`` off asks for every file anew; ``wants_data`` says whose bytes are wanted, default all.

        Without ``owners`` everything belongs to us, as where there is a single id. ``left`` is what the last transfer into
        this directory left, by the same rules; where it is not known everything is compared.
        """
        self._owners = owners
        self._root_path = root
        self._compare = compare
        self._wants_data = wants_data
        self._on_bytes = on_bytes
        self._root = -1
        self._last_left = left if compare and wants_data is None else None
        #: of the next entry, and whether the list is complete
        self._number = 0
        self._listed = False
        self._links: list[tuple[str, str]] = []
        #: id -> record of files asked for, and where they are listed
        self._wanted: dict[int, tuple[stat_pb2.Stat, Node]] = {}
        #: id -> open descriptor
        self._open: dict[int, int] = {}
        #: bytes of file data
        self.received = 0
        #: what is here after :meth:`run`; ``None`` when only some of the bytes were wanted
        self.left: LeftTree | None = None

    def run(self, batches: Iterator[list[bytes]]) -> Iterator[bytes]:
        """Consume the sender's packets, as encoded messages that came together; yield ours, framed for sending.

        Ends when both have said FIN.
        Raises: ContextError for a hostile or broken sender, or what cannot be written; StoreFull.
        """
        with translate({OSError: self._unwritable}):
            self._root = os.open(self._root_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._listing = Listing(os.fstat(self._root), self._last_left)
                yield from self._run(batches)
            finally:
                self._discard()

    def _run(self, batches: Iterator[list[bytes]]) -> Iterator[bytes]:
        known = self._listing.known
        for batch in batches:
            requests: list[bytes] = []
            for message in batch:
                node = known.get(message)
                if node is None or node.kids is not None or self._listed:
                    self._packet(message, requests)
                else:
                    self._known_file(node, message, requests)
            if requests:
                yield b"".join(requests)
            if self._listed and not self._wanted:
                break
        else:
            summary = "the connection ended before all files were received"
            raise ContextError(summary, retryable=True)
        self._finish()
        yield prefixed(wire_pb2.Packet(type=_FIN).SerializeToString())
        for _ in batches:
            pass  # the sender's FIN, and the end of the stream

    def _packet(self, message: bytes, requests: list[bytes]) -> None:
        """Take one packet; what must be asked for is added to ``requests``."""
        packet = parsed(wire_pb2.Packet, message)
        kind = packet.type
        if kind == _DATA:
            self._data(packet.ID, packet.data)
        elif kind == _STAT and packet.HasField("stat"):
            if self._listed:
                summary = "the client sent an entry after the end of its list"
                raise ContextError(summary)
            _check(packet.stat.path)
            self._entry(packet.stat, message, self._listing.place(packet.stat.path), requests)
        elif kind == _STAT:
            self._listed = True
        elif kind == _ERR:
            summary = f"error from sender: {packet.data.decode(errors='replace')}"
            raise ContextError(summary)
        else:
            summary = f"the client sent an unexpected packet of type {kind}"
            raise ContextError(summary)

    # --- entries ---

    def _known_file(self, node: Node, message: bytes, requests: list[bytes]) -> None:
        """Take an entry that the client sent last time, word by word."""
        kids = self._listing.place(node.path)
        st = self._stat(node.path)
        if st is not None and untouched(node.st, st):
            self._listing.keep(kids, node, message)
            self._number += 1
            return
        # Somebody else was here: size and time would not be enough to believe what they left.
        self._entry(parsed(wire_pb2.Packet, message).stat, message, kids, requests, is_suspect=True)

    def _entry(
        self,
        record: stat_pb2.Stat,
        message: bytes,
        kids: dict[str, Node],
        requests: list[bytes],
        *,
        is_suspect: bool = False,
    ) -> None:
        """Take one entry; ask for its data where they are missing. ``is_suspect``: what is here is not to be believed."""
        number, path, mode = self._number, record.path, record.mode
        self._number += 1
        if mode & _DIR:
            self._listing.add_directory(kids, path, Stat(self._directory(path)), message, record)
            return
        if mode & GO_TYPE_MASK:
            self._special(record)
            self._see(self._listing.add(kids, path, _COMING, message))
            return
        if record.linkname:
            self._check_link(record)
            self._links.append((record.linkname, path))
            self._listing.add(kids, path, _OTHER_NAME, message)
            return
        node = self._listing.add(kids, path, _COMING, message)
        if self._wants_data is not None and not self._wants_data(path):
            return
        st = self._stat(path) if self._compare and not is_suspect else None
        if st is not None and self._is_unchanged(st, record):
            self._listing.seen(node, st)
            return
        self._wanted[number] = record, node
        requests.append(prefixed(wire_pb2.Packet(type=_REQ, ID=number).SerializeToString()))

    def _special(self, record: stat_pb2.Stat) -> None:
        """Make a symbolic link or a pipe. Raises: ContextError for what a context cannot hold."""
        path, mode = record.path, record.mode
        if mode & _SYMLINK:
            self._symlink(record)
        elif mode & GO_TYPE_MASK == _FIFO:
            self._clear(path)
            os.mkfifo(path, 0o600, dir_fd=self._root)
            self._fix(path, record)
        else:
            summary = f"{path} is a device, which a build context cannot hold"
            raise ContextError(summary, hint="exclude it in .dockerignore")

    def _check_link(self, record: stat_pb2.Stat) -> None:
        """Check that another name of a file names one that was sent. Raises: ContextError."""
        target = self._listing.file_at(record.linkname)
        if target is None or not target.is_file:
            summary = f"the client sent a hard link from {record.path!r} to {record.linkname!r}, which it did not send"
            raise ContextError(summary)

    def _see(self, node: Node) -> None:
        """Note what the kernel says of an entry that is complete."""
        self._listing.seen(node, os.stat(node.path, dir_fd=self._root, follow_symlinks=False))

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _is_unchanged(self, st: os.stat_result, record: stat_pb2.Stat) -> bool:
        return (
            stat.S_ISREG(st.st_mode)
            and st.st_size == record.size
            and st.st_mtime_ns == record.modTime
            and stat.S_IMODE(st.st_mode) == posix_mode(record.mode)
            and st.st_nlink == 1
            and self._is_owned(st, record)
            and not record.xattrs
        )

    def _directory(self, path: str) -> os.stat_result:
        """Have a directory that we can work in; returns what it is for now."""
        st = self._stat(path)
        if st is None or not stat.S_ISDIR(st.st_mode):
            if st is not None:
                os.unlink(path, dir_fd=self._root)
            os.mkdir(path, 0o700, dir_fd=self._root)
        elif stat.S_IMODE(st.st_mode) & 0o700 != 0o700:
            os.chmod(path, 0o700, dir_fd=self._root)
        else:
            return st
        return os.stat(path, dir_fd=self._root, follow_symlinks=False)

    def _symlink(self, record: stat_pb2.Stat) -> None:
        path = record.path
        st = self._stat(path)
        if st is not None and stat.S_ISLNK(st.st_mode) and st.st_mtime_ns == record.modTime:
            with contextlib.suppress(OSError):
                if os.readlink(path, dir_fd=self._root) == record.linkname and self._is_owned(st, record):
                    return
        self._clear(path, st)
        os.symlink(record.linkname, path, dir_fd=self._root)
        self._own(path, record)
        os.utime(path, ns=(record.modTime, record.modTime), dir_fd=self._root, follow_symlinks=False)

    def _is_owned(self, st: os.stat_result, record: stat_pb2.Stat) -> bool:
        return not self._owners or (st.st_uid, st.st_gid) == (record.uid, record.gid)

    def _own(self, path: str, record: stat_pb2.Stat) -> None:
        """Give an entry to whom it belongs. Raises: ContextError for an id that does not exist here."""
        if not self._owners:
            return
        st = self._stat(path)
        if st is None or self._is_owned(st, record):
            return
        try:
            os.chown(path, record.uid, record.gid, dir_fd=self._root, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EPERM):
                raise
            summary = f"the owner {record.uid}:{record.gid} of {path!r} does not exist where the server works"
            raise ContextError(summary, hint="have the client send 0:0, as buildx does") from exc

    def _clear(self, path: str, st: os.stat_result | None = None) -> None:
        """Remove what is at a path, whatever it is."""
        st = st or self._stat(path)
        if st is None:
            return
        if stat.S_ISDIR(st.st_mode):
            shutil.rmtree(path, dir_fd=self._root)
        else:
            os.unlink(path, dir_fd=self._root)

    # --- data ---

    def _data(self, number: int, data: bytes) -> None:
        found = self._wanted.get(number)
        if found is None:
            summary = f"the client sent data for file {number}, which was not asked for"
            raise ContextError(summary)
        record, node = found
        fd = self._open.get(number)
        if fd is None:
            fd = self._open[number] = self._create(record.path)
        if not data:
            self._complete(number, fd, record, node)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        self.received += len(data)
        self._on_bytes(len(data))

    def _complete(self, number: int, fd: int, record: stat_pb2.Stat, node: Node) -> None:
        for name, value in record.xattrs.items():
            # What cannot be kept here cannot be kept in an image either: labels of security modules.
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, value)
        self._own(record.path, record)
        os.fchmod(fd, posix_mode(record.mode))
        os.utime(fd, ns=(record.modTime, record.modTime))
        self._listing.seen(node, os.fstat(fd))
        del self._open[number], self._wanted[number]
        os.close(fd)

    def _create(self, path: str) -> int:
        try:
            return os.open(path, _CREATE, 0o600, dir_fd=self._root)
        except FileExistsError:
            # Never written over: it may have other names.
            self._clear(path)
            return os.open(path, _CREATE, 0o600, dir_fd=self._root)

    # --- end ---

    def _finish(self) -> None:
        listing = self._listing
        for target, path in self._links:
            self._clear(path)
            os.link(target, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        for target, path in self._links:
            self._see_names(target, path)
        changed = [directory for directory in listing.directories.values() if not self._is_as_left(directory)]
        # What is below a directory changes nothing of those above it once all names are right.
        for directory in reversed(changed):
            if directory.record is not None:
                self._fix(directory.node.path, directory.record)
            listing.seen(directory.node, self._stat_directory(directory.node.path))
        if self._wants_data is None:
            self.left = listing.finish(has_links=bool(self._links))

    def _see_names(self, *paths: str) -> None:
        for path in paths:
            node = self._listing.file_at(path)
            if node is not None:
                self._see(node)

    def _is_as_left(self, directory: Directory) -> bool:
        """Have the right names in a directory; False when it needs more than that."""
        path = directory.node.path
        as_left = directory.is_as_left(self._stat_directory(path))
        if not (as_left and self._listing.is_settled):
            extra = set(os.listdir(self._handle(path))) - directory.kids.keys()
            for name in extra:
                self._clear(f"{path}/{name}" if path else name)
            if extra or not as_left:
                return False
        self._listing.keep_directory(directory)
        return True

    def _fix(self, path: str, record: stat_pb2.Stat) -> None:
        """Give a directory or pipe the owner, mode and time that it shall have."""
        mode, mtime_ns = posix_mode(record.mode), record.modTime
        self._own(path, record)
        st = self._stat(path)
        if st is None or stat.S_IMODE(st.st_mode) != mode:
            os.chmod(path, mode, dir_fd=self._root)
        if st is None or st.st_mtime_ns != mtime_ns:
            os.utime(path, ns=(mtime_ns, mtime_ns), dir_fd=self._root, follow_symlinks=False)

    def _stat_directory(self, path: str) -> os.stat_result:
        return os.stat(path, dir_fd=self._root, follow_symlinks=False) if path else os.fstat(self._root)

    def _handle(self, directory: str) -> str:
        # By way of our own descriptor: the path below it was checked entry by entry.
        return f"/proc/self/fd/{self._root}/{directory}"

    def _discard(self) -> None:
        for number, fd in self._open.items():
            with contextlib.suppress(OSError):
                os.unlink(self._wanted[number][0].path, dir_fd=self._root)
            os.close(fd)
        self._open.clear()
        if self._root >= 0:
            os.close(self._root)

    def _unwritable(self, exc: BaseException) -> ContextError | StoreFull:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        return ContextError(f"cannot store the build context: {reason}")


def _check(path: str) -> None:
    """Raises: ContextError for a name that leads elsewhere."""
    framed = f"/{path}/"
    if "\0" in path or "//" in framed or "/./" in framed or "/../" in framed:
        summary = f"the client sent the path {path!r}, which is not one below the directory"
        raise ContextError(summary)
