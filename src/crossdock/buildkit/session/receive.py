"""Receive a directory over the diff-copy protocol and write it below a root.

The sender is not trusted: every path is resolved below the root without following links, and anything else is refused.
Files are written under a temporary name and renamed, so that none is ever half-written.

Spec: tonistiigi/fsutil ``receive.go``, ``diskwriter.go``, ``validator.go``.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
from typing import TYPE_CHECKING, Self

from crossdock.buildkit.proto import wire_pb2
from crossdock.buildkit.session.tree import GO_TYPE_MASK, posix_mode
from crossdock.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crossdock.buildkit.proto import stat_pb2

__all__ = ["Receiver"]

_Packet = wire_pb2.Packet
_DIR, _SYMLINK = 1 << 31, 1 << 27
#: directories kept open, so that their files need not be reached from the root each
_KEPT_DIRECTORIES = 32
#: parts written at once; the system takes 1024
_MAX_PARTS = 512
_O_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Receiver:
    """Writes what one sender sends below ``root``; ``mirror`` removes what it does not send."""

    def __init__(
        self, root: str, *, mirror: bool = False, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        self._root = root
        self._mirror = mirror
        self._on_bytes = on_bytes
        #: the sender has said its last word
        self.done = False
        self._number = 0
        self._listed = self._finished = False
        self._last: list[str] = []
        self._sent: set[str] = set()
        #: directories below the root by path, opened without following links; a few of them are kept
        self._parents: dict[str, int] = {}
        #: id -> record of files asked for
        self._wanted: dict[int, stat_pb2.Stat] = {}
        #: id -> (open descriptor, temporary name, parent descriptor)
        self._open: dict[int, tuple[int, str, int]] = {}
        #: directories whose times are set at the end, deepest last
        self._dirs: list[stat_pb2.Stat] = []
        #: hard links, made once their targets are complete
        self._links: list[stat_pb2.Stat] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what is half-written, and let go of all directories."""
        for fd, temporary, parent in self._open.values():
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            os.close(parent)
        self._open.clear()
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    def take(self, messages: Sequence[bytes]) -> list[bytes]:
        """Consume packets of the sender and return ours; nothing more is to come once :attr:`done` is set.

        Raises: ExportError when a path is hostile, out of order, or cannot be written.
        """
        answers: list[bytes] = []
        for number, parts, packet in _packets(messages):
            match packet.type:
                case _Packet.PACKET_DATA:
                    self._data(number, parts)
                case _Packet.PACKET_STAT if packet.HasField("stat"):
                    if self._entry(packet.stat):
                        self._wanted[self._number] = packet.stat
                        request = _Packet(type=_Packet.PACKET_REQ, ID=self._number)
                        answers.append(request.SerializeToString())
                    self._number += 1
                case _Packet.PACKET_STAT:
                    self._listed = True
                case _Packet.PACKET_FIN if self._finished:
                    self.done = True
                case _Packet.PACKET_ERR:
                    text = packet.data.decode(errors="replace")
                    summary = f"the daemon failed while sending files: {text}"
                    raise ExportError(summary)
                case _:
                    summary = f"the daemon sent an unexpected packet of type {packet.type}"
                    raise ExportError(summary)
            if self._listed and not self._wanted and not self._finished:
                self._finished = True
                self._finish()
                answers.append(_Packet(type=_Packet.PACKET_FIN).SerializeToString())
        return answers

    # entries

    def _entry(self, record: stat_pb2.Stat) -> bool:
        """Create a directory or link; True when the file's data must be asked for."""
        path = record.path
        self._check(path)
        self._sent.add(path)
        if record.mode & _DIR:
            self._make_directory(record)
        elif record.mode & _SYMLINK:
            self._make_link(record)
        elif record.mode & GO_TYPE_MASK:
            pass  # devices and fifos are not made outside a container, as buildx does not
        elif record.linkname:
            self._links.append(record)
        else:
            return True
        return False

    def _check(self, path: str) -> None:
        clean = posixpath.normpath(path)
        if path != clean or path.startswith(("/", "../")) or path in (".", "..") or "\0" in path:
            summary = f"the daemon sent the path {path!r}, which would leave the output directory"
            raise ExportError(summary)
        # fsutil orders by segments: "a/b" comes before "a.b".
        parts = path.split("/")
        if self._last >= parts:
            summary = f"the daemon sent {path!r} after {'/'.join(self._last)!r}: out of order"
            raise ExportError(summary)
        self._last = parts

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Give the directory of ``path`` below the root, reached over no link, and the last name."""
        folder, _, name = path.rpartition("/")
        try:
            yield self._directory(folder), name
        except OSError as exc:
            summary = f"cannot write {self._root}/{path}: {exc.strerror}"
            raise ExportError(
                summary, hint="check the permissions and free space of the output directory"
            ) from exc

    def _directory(self, folder: str) -> int:
        fd = self._parents.pop(folder, None)
        if fd is not None:
            self._parents[folder] = fd  # now the last to be closed
            return fd
        if len(self._parents) >= _KEPT_DIRECTORIES:
            os.close(self._parents.pop(next(iter(self._parents))))
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folder.split("/") if folder else ():
            try:
                below = os.open(part, _O_DIR, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        self._parents[folder] = fd
        return fd

    def _make_directory(self, record: stat_pb2.Stat) -> None:
        with self._parent(record.path) as (parent, name):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not _is_directory(name, parent):
                    os.unlink(name, dir_fd=parent)
                    os.mkdir(name, 0o700, dir_fd=parent)
        self._dirs.append(record)

    def _make_link(self, record: stat_pb2.Stat) -> None:
        with self._parent(record.path) as (parent, name):
            _remove(name, parent)
            os.symlink(record.linkname, name, dir_fd=parent)

    # data

    def _data(self, number: int, parts: Sequence[memoryview]) -> None:
        record = self._wanted.get(number)
        if record is None:
            summary = f"the daemon sent data for file {number}, which was not asked for"
            raise ExportError(summary)
        if number not in self._open:
            self._open[number] = self._create(record)
        fd, _, _ = self._open[number]
        if parts:
            try:
                count = _write_all(fd, parts)
            except OSError as exc:
                summary = f"cannot write {self._root}/{record.path}: {exc.strerror}"
                raise ExportError(summary, hint="check the free space of the output directory") from exc
            if self._on_bytes is not None:
                self._on_bytes(count)
            return
        self._complete(number, record)

    def _create(self, record: stat_pb2.Stat) -> tuple[int, str, int]:
        temporary = f".crossdock-{secrets.token_hex(6)}"
        with self._parent(record.path) as (parent, _):
            keep = os.dup(parent)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(temporary, flags, 0o600, dir_fd=keep), temporary, keep
            except OSError:
                os.close(keep)
                raise

    def _complete(self, number: int, record: stat_pb2.Stat) -> None:
        fd, temporary, parent = self._open.pop(number)
        del self._wanted[number]
        name = record.path.rpartition("/")[2]
        try:
            os.fchmod(fd, posix_mode(record.mode))
            os.utime(fd, ns=(record.modTime, record.modTime))
            if _is_directory(name, parent):
                _remove(name, parent)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            summary = f"cannot write {self._root}/{record.path}: {exc.strerror}"
            raise ExportError(summary) from exc
        finally:
            os.close(fd)
            os.close(parent)

    def _finish(self) -> None:
        for record in self._links:
            self._check_target(record)
            with self._parent(record.path) as (parent, name), self._parent(record.linkname) as (source, old):
                _remove(name, parent)
                os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        if self._mirror:
            self._remove_others("")
        for record in reversed(self._dirs):
            with self._parent(record.path) as (parent, name):
                os.chmod(name, posix_mode(record.mode), dir_fd=parent)
                os.utime(name, ns=(record.modTime, record.modTime), dir_fd=parent, follow_symlinks=False)

    def _check_target(self, record: stat_pb2.Stat) -> None:
        if record.linkname not in self._sent:
            summary = f"the daemon sent a hard link from {record.path!r} to {record.linkname!r}, which it did not send"
            raise ExportError(summary)

    def _remove_others(self, prefix: str) -> None:
        with self._parent(f"{prefix}x") as (directory, _):
            names = os.listdir(directory)
            for name in names:
                path = prefix + name
                if path not in self._sent:
                    _remove(name, directory)
                elif _is_directory(name, directory):
                    self._remove_others(path + "/")


_DATA_HEAD = b"\x08%c" % _Packet.PACKET_DATA
_DATA = _Packet(type=_Packet.PACKET_DATA)


def _packets(messages: Sequence[bytes]) -> Iterator[tuple[int, Sequence[memoryview], wire_pb2.Packet]]:
    """Yield the packets; data of one file that comes in a row is one, its parts views of the messages."""
    number, parts = -1, list[memoryview]()
    for raw in messages:
        found = _data_of(raw)
        if parts and (found is None or found[0] != number or not found[1] or len(parts) == _MAX_PARTS):
            yield number, parts, _DATA
            parts = []
        if found is None:
            packet = _Packet.FromString(raw)
            yield packet.ID, [memoryview(packet.data)] if packet.data else (), packet
        elif found[1]:
            number = found[0]
            parts.append(found[1])
        else:
            yield found[0], (), _DATA
    if parts:
        yield number, parts, _DATA


def _data_of(raw: bytes) -> tuple[int, memoryview] | None:
    """Read a DATA packet in the order in which everybody writes its fields; ``None`` for anything else."""
    if raw[:2] != _DATA_HEAD:
        return None
    at, number = 2, 0
    if raw[2:3] == b"\x18":
        number, at = _varint(raw, 3)
    if at == len(raw):
        return number, memoryview(b"")
    if at > len(raw) or raw[at] != 0x22:
        return None
    size, at = _varint(raw, at + 1)
    return (number, memoryview(raw)[at:]) if at + size == len(raw) else None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; one that is cut off ends beyond the end."""
    value = shift = 0
    for byte in raw[at : at + 10]:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return value, len(raw) + 1


def _write_all(fd: int, parts: Sequence[memoryview]) -> int:
    """Write all parts; returns their bytes. Raises: OSError."""
    count = sum(map(len, parts))
    done = os.writev(fd, parts)
    if done < count:  # a full disk, or a signal
        view = memoryview(b"".join(parts))[done:]
        while view:
            view = view[os.write(fd, view) :]
    return count


def _is_directory(name: str, parent: int) -> bool:
    import stat

    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(name: str, parent: int) -> None:
    """Remove whatever is there, without following links."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        if not _is_directory(name, parent):
            raise
        directory = os.open(name, _O_DIR, dir_fd=parent)
        try:
            for child in os.listdir(directory):
                _remove(child, directory)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent)
