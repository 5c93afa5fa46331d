"""Receive a client's directory over the diff-copy protocol, keeping what has not changed since the last time.

The root belongs to this receiver alone while it works, and every parent was made or checked by it: plain relative
paths below the root's handle therefore meet no links. The client is not trusted: order, parents and names are checked.

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
from crossdock.errors import ContextError, StoreFull, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.buildkit.proto import stat_pb2

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
    ) -> None:
        """``compare`` off asks for every file anew; ``wants_data`` says whose bytes are wanted, default all.

        Without ``owners`` everything belongs to us, as where there is a single id.
        """
        self._owners = owners
        self._root_path = root
        self._compare = compare
        self._wants_data = wants_data
        self._on_bytes = on_bytes
        self._root = -1
        #: of the next entry, and whether the list is complete
        self._number = 0
        self._listed = False
        self._last: list[str] = []
        #: directory -> names sent in it; every directory sent has an entry
        self._kids: dict[str, set[str]] = {"": set()}
        self._files: set[str] = set()
        self._dirs: list[tuple[str, stat_pb2.Stat]] = []
        self._links: list[tuple[str, str]] = []
        #: id -> record of files asked for
        self._wanted: dict[int, stat_pb2.Stat] = {}
        #: id -> open descriptor
        self._open: dict[int, int] = {}
        #: bytes of file data, and entries seen
        self.received = 0
        self.entries = 0

    def run(self, batches: Iterator[list[bytes]]) -> Iterator[bytes]:
        """Consume the sender's packets, as encoded messages that came together; yield ours, framed for sending.

        Ends when both have said FIN.
        Raises: ContextError for a hostile or broken sender, or what cannot be written; StoreFull.
        """
        with translate({OSError: self._unwritable}):
            self._root = os.open(self._root_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from self._run(batches)
            finally:
                self._discard()

    def _run(self, batches: Iterator[list[bytes]]) -> Iterator[bytes]:
        for batch in batches:
            requests: list[bytes] = []
            for message in batch:
                self._packet(parsed(wire_pb2.Packet, message), requests)
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

    def _packet(self, packet: wire_pb2.Packet, requests: list[bytes]) -> None:
        """Take one packet; what must be asked for is added to ``requests``."""
        kind = packet.type
        if kind == _DATA:
            self._data(packet.ID, packet.data)
        elif kind == _STAT and packet.HasField("stat"):
            if self._listed:
                summary = "the client sent an entry after the end of its list"
                raise ContextError(summary)
            if self._entry(packet.stat):
                self._wanted[self._number] = packet.stat
                requests.append(prefixed(wire_pb2.Packet(type=_REQ, ID=self._number).SerializeToString()))
            self._number += 1
        elif kind == _STAT:
            self._listed = True
        elif kind == _ERR:
            summary = f"error from sender: {packet.data.decode(errors='replace')}"
            raise ContextError(summary)
        else:
            summary = f"the client sent an unexpected packet of type {kind}"
            raise ContextError(summary)

    # --- entries ---

    def _entry(self, record: stat_pb2.Stat) -> bool:
        """Take one entry; True when its data must be asked for."""
        path = record.path
        self._check(path)
        self.entries += 1
        mode = record.mode
        if mode & _DIR:
            self._directory(record)
            return False
        if mode & _SYMLINK:
            self._symlink(record)
            return False
        if mode & GO_TYPE_MASK == _FIFO:
            self._clear(path)
            os.mkfifo(path, posix_mode(mode), dir_fd=self._root)
            return False
        if mode & GO_TYPE_MASK:
            summary = f"{path} is a device, which a build context cannot hold"
            raise ContextError(summary, hint="exclude it in .dockerignore")
        if record.linkname:
            if record.linkname not in self._files:
                summary = (
                    f"the client sent a hard link from {path!r} to {record.linkname!r}, which it did not send"
                )
                raise ContextError(summary)
            self._links.append((record.linkname, path))
            return False
        self._files.add(path)
        if self._wants_data is not None and not self._wants_data(path):
            return False
        return not (self._compare and self._unchanged(record))

    def _check(self, path: str) -> None:
        parts = path.split("/")
        if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
            summary = f"the client sent the path {path!r}, which is not one below the directory"
            raise ContextError(summary)
        # fsutil orders by segments: "a/b" comes before "a.b".
        if self._last and self._last >= parts:
            summary = f"the client sent {path!r} out of order"
            raise ContextError(summary)
        parent, _, name = path.rpartition("/")
        kids = self._kids.get(parent)
        if kids is None:
            summary = f"the client sent {path!r} without its directory"
            raise ContextError(summary)
        kids.add(name)
        self._last = parts

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _unchanged(self, record: stat_pb2.Stat) -> bool:
        st = self._stat(record.path)
        if st is None:
            return False
        return (
            stat.S_ISREG(st.st_mode)
            and st.st_size == record.size
            and st.st_mtime_ns == record.modTime
            and stat.S_IMODE(st.st_mode) == posix_mode(record.mode)
            and st.st_nlink == 1
            and self._is_owned(st, record)
            and not record.xattrs
        )

    def _directory(self, record: stat_pb2.Stat) -> None:
        path = record.path
        st = self._stat(path)
        if st is None or not stat.S_ISDIR(st.st_mode):
            if st is not None:
                os.unlink(path, dir_fd=self._root)
            os.mkdir(path, 0o700, dir_fd=self._root)
        elif stat.S_IMODE(st.st_mode) & 0o700 != 0o700:
            os.chmod(path, 0o700, dir_fd=self._root)
        self._kids[path] = set()
        self._dirs.append((path, record))

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
        record = self._wanted.get(number)
        if record is None:
            summary = f"the client sent data for file {number}, which was not asked for"
            raise ContextError(summary)
        fd = self._open.get(number)
        if fd is None:
            fd = self._open[number] = self._create(record.path)
        if not data:
            self._complete(number, fd, record)
            return
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        self.received += len(data)
        self._on_bytes(len(data))

    def _complete(self, number: int, fd: int, record: stat_pb2.Stat) -> None:
        for name, value in record.xattrs.items():
            # What cannot be kept here cannot be kept in an image either: labels of security modules.
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, value)
        self._own(record.path, record)
        os.fchmod(fd, posix_mode(record.mode))
        os.utime(fd, ns=(record.modTime, record.modTime))
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
        for target, path in self._links:
            self._clear(path)
            os.link(target, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        for directory, kids in self._kids.items():
            for name in set(os.listdir(self._handle(directory))) - kids:
                self._clear(f"{directory}/{name}" if directory else name)
        for path, record in reversed(self._dirs):
            mode, mtime_ns = posix_mode(record.mode), record.modTime
            self._own(path, record)
            st = self._stat(path)
            if st is None or stat.S_IMODE(st.st_mode) != mode:
                os.chmod(path, mode, dir_fd=self._root)
            if st is None or st.st_mtime_ns != mtime_ns:
                os.utime(path, ns=(mtime_ns, mtime_ns), dir_fd=self._root, follow_symlinks=False)

    def _handle(self, directory: str) -> str:
        # By way of our own descriptor: the path below it was checked entry by entry.
        return f"/proc/self/fd/{self._root}/{directory}"

    def _discard(self) -> None:
        for number, fd in self._open.items():
            with contextlib.suppress(OSError):
                os.unlink(self._wanted[number].path, dir_fd=self._root)
            os.close(fd)
        self._open.clear()
        if self._root >= 0:
            os.close(self._root)

    def _unwritable(self, exc: BaseException) -> ContextError | StoreFull:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        return ContextError(f"cannot store the build context: {reason}")
