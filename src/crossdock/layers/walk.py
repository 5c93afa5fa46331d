"""Turn a directory into a layer: a sorted walk of an overlay upper directory, as OCI layer tar.

The directory is the diff: nothing is compared with what lies below. Order, headers and times are
those of containerd's ChangeWriter: names sorted bytewise within each directory, the root itself left
out, whole seconds, whiteouts dated 1970 in the place of what they delete. Unlike it, an opaque
directory becomes an opaque whiteout (image-spec allows both), and ``user.*`` attributes are kept.

Nothing follows a symbolic link; whatever changes while it is read is an error that names it.

Spec: image-spec 1.1, layer.md; kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import LayerError, StoreError
from crossdock.layers.compression import Compression
from crossdock.layers.header import END, XATTR_PREFIX, encode_header, padding
from crossdock.layers.pipeline import LayerSink, OutputFailed
from crossdock.record import NamedTuple
from crossdock.whiteouts import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.image.digest import DiffId, Digest
    from crossdock.layers.pipeline import ByteSink

__all__ = [
    "OPAQUE_MARK",
    "WHITEOUT_PREFIX",
    "Contents",
    "LayerResult",
    "capability_v2",
    "write_layer",
    "write_tree",
]

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARK = b".wh..wh..opq"

_GZIP = Compression()
_SECOND_NS = 1_000_000_000
_OVERLAY_XATTRS = ("user.overlay.", "trusted.overlay.")
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY


class LayerResult(NamedTuple):
    """A written layer; sizes in bytes."""

    diff_id: DiffId
    digest: Digest
    size: int
    uncompressed_size: int
    #: entries in the archive
    entries: int
    #: paths that a layer cannot hold (sockets)
    skipped: tuple[str, ...]


class Contents(Protocol):
    """Bytes of files that are empty in the directory, by inode."""

    def size(self, inode: int) -> int | None:
        """Return how many bytes the file has, ``None`` when its bytes are its own."""
        ...

    def open(self, inode: int) -> AbstractContextManager[int]:
        """Open the bytes for the length of a block, whose end checks that they did not change meanwhile."""
        ...


def write_layer(
    root: Path,
    out: ByteSink,
    *,
    compression: Compression = _GZIP,
    clamp_ns: int | None = None,
    contents: Contents | None = None,
    cancel: CancelToken,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerResult:
    """Write the overlay directory ``root`` as a layer blob to ``out``.

    One pass, each file read once; memory is bounded. ``clamp_ns``: later modification times become this
    one. ``contents``: where the bytes of files are that are not in ``root`` itself. ``progress`` gets the uncompressed position now and then. Bytes do not depend on ``threads``.
    Raises: LayerError naming what vanished, changed, or cannot be in a layer; StoreError, StoreFull
    when reading or writing fails; the token's cause.
    """
    try:
        with LayerSink(out, compression, cancel=cancel, threads=threads) as sink:
            walker = _Walker(sink, clamp_ns, cancel, progress, overlay=True, contents=contents)
            walker.run(root, b"")
            sink.write(END)
            done = sink.finish()
    except OutputFailed as exc:
        raise exc.translated() from exc
    return LayerResult(
        done.diff_id,
        done.digest,
        done.size,
        done.uncompressed_size,
        walker.entries,
        tuple(walker.skipped),
    )


def write_tree(
    roots: Sequence[tuple[str, Path]],
    out: ByteSink,
    *,
    fixed_ns: int | None = None,
    cancel: CancelToken,
) -> tuple[str, ...]:
    """Write file systems (no whiteout meaning) as one archive, each below its folder; ``""`` is the top.

    With ``fixed_ns`` everything has this modification time. Returns the paths of sockets left out.
    Raises: as :func:`write_layer`; OSError of ``out``.
    """
    skipped: list[str] = []
    try:
        with LayerSink(out, Compression("uncompressed"), cancel=cancel) as sink:
            for folder, root in roots:
                walker = _Walker(sink, None, cancel, None, overlay=False, fixed_ns=fixed_ns)
                top = os.fsencode(folder + "/") if folder else b""
                if top:
                    seconds = (fixed_ns or 0) // _SECOND_NS
                    sink.write(encode_header(top, kind=b"5", mode=0o755, mtime=seconds))
                walker.run(root, top)
                skipped += walker.skipped
            sink.write(END)
            sink.finish()
    except OutputFailed as exc:
        raise exc.error from exc
    return tuple(skipped)


def capability_v2(value: bytes) -> bytes:
    """Return ``security.capability`` without the namespace's root id.

    Version 3 carries the uid, outside the namespace, of the root it is for; an image must not.
    """
    if len(value) == 24 and value[3] == 3:
        (flags,) = struct.unpack_from("<I", value)
        return struct.pack("<I", (flags & 0x00FFFFFF) | 0x02000000) + value[4:20]
    return value


def _os_error(exc: OSError, path: bytes) -> LayerError | StoreError:
    name = os.fsdecode(path)
    if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE):
        summary = f"{name} vanished or changed its type while the layer was written"
        return LayerError(summary, hint="something still writes to this directory; build again")
    return StoreError(f"cannot read {name} for a layer: {exc.strerror}")


class _Walker:
    """One walk; holds a directory handle per level."""

    def __init__(
        self,
        sink: LayerSink,
        clamp_ns: int | None,
        cancel: CancelToken,
        progress: Callable[[int], None] | None,
        *,
        overlay: bool,
        fixed_ns: int | None = None,
        contents: Contents | None = None,
    ) -> None:
        self._sink = sink
        self._clamp_ns = clamp_ns
        self._cancel = cancel
        self._progress = progress
        self._overlay = overlay
        self._fixed_ns = fixed_ns
        self._contents = contents
        self._links: dict[tuple[int, int], bytes] = {}
        self.entries = 0
        self.skipped: list[str] = []

    def run(self, root: Path, prefix: bytes) -> None:
        try:
            handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as exc:
            raise _os_error(exc, os.fsencode(root)) from exc
        try:
            self._mark_opaque(os.listxattr(handle), handle, prefix)
            self._directory(handle, prefix)
        finally:
            os.close(handle)

    def _directory(self, handle: int, prefix: bytes) -> None:
        """Walk iteratively: a build may nest directories deeper than Python recurses."""
        stack = [(handle, prefix, iter(_sorted_entries(handle, prefix)))]
        try:
            while stack:
                handle, prefix, entries = stack[-1]
                for entry in entries:
                    child = self._entry(handle, prefix, entry)
                    if child is not None:
                        path = prefix + os.fsencode(entry.name) + b"/"
                        stack.append((child, path, iter(_sorted_entries(child, path))))
                        break
                else:
                    stack.pop()
                    if stack:
                        os.close(handle)
        finally:
            for open_handle, _, _ in stack[1:]:
                os.close(open_handle)

    def _entry(self, handle: int, prefix: bytes, entry: os.DirEntry[str]) -> int | None:
        """Write one entry; returns a handle when it is a directory to go into."""
        name = os.fsencode(entry.name)
        path = prefix + name
        try:
            status = entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            self.entries += 1
            if self.entries & 255 == 0:
                self._cancel.check()
                if self._progress is not None:
                    self._progress(self._sink.position)
            if self._overlay and name.startswith(WHITEOUT_PREFIX):
                summary = f"{os.fsdecode(path)}: names that start with .wh. mean deletion in an image layer"
                raise LayerError(summary, hint="rename the file")
            if kind == stat.S_IFREG:
                self._file(handle, entry.name, path, status)
            elif kind == stat.S_IFDIR:
                return self._subdirectory(handle, entry.name, path + b"/", status)
            elif kind == stat.S_IFLNK:
                target = os.readlink(os.fsencode(entry.name), dir_fd=handle)
                self._header(path, b"2", status, linkname=target, mode=0o777)
            else:
                self._special(path, kind, status)
        except OSError as exc:
            raise _os_error(exc, path) from exc
        return None

    def _subdirectory(self, handle: int, name: str, path: bytes, status: os.stat_result) -> int:
        child = os.open(name, _OPEN_DIRECTORY, dir_fd=handle)
        try:
            names = os.listxattr(child)
            self._header(path, b"5", status, records=self._xattrs(child, names, path))
            self._mark_opaque(names, child, path)
        except BaseException:
            os.close(child)
            raise
        return child

    def _mark_opaque(self, names: list[str], handle: int, path: bytes) -> None:
        if not names or not self._overlay:
            return
        for name in ("user.overlay.opaque", "trusted.overlay.opaque"):
            # "x" is not opaque: it says that whiteouts inside may be attributes of files.
            if name in names and os.getxattr(handle, name) == b"y":
                self._whiteout(path + OPAQUE_MARK)
                return

    def _file(self, handle: int, name: str, path: bytes, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            first = self._links.get(key)
            if first is not None:
                self._header(path, b"1", status, linkname=first)
                return
            self._links[key] = path
        fd = os.open(name, _OPEN_FILE, dir_fd=handle)
        try:
            names = os.listxattr(fd)
            if names and _is_whiteout(names):
                self._links.pop((status.st_dev, status.st_ino), None)
                if self._overlay:
                    self._whiteout(_whiteout_name(path))
                return
            records = self._xattrs(fd, names, path) if names else None
            elsewhere = None if self._contents is None else self._contents.size(status.st_ino)
            if elsewhere is not None:
                self._header(path, b"0", status, size=elsewhere, records=records)
                self._data_elsewhere(status.st_ino, elsewhere, path)
                return
            size = status.st_size
            self._header(path, b"0", status, size=size, records=records)
            if size:
                self._data(fd, size, path)
            after = os.fstat(fd)
            if after.st_size != size or after.st_mtime_ns != status.st_mtime_ns:
                _changed(path, size, after.st_size)
        finally:
            os.close(fd)

    def _data(self, fd: int, size: int, path: bytes) -> None:
        got = self._sink.read_from(fd, size)
        self._sink.write(bytes(padding(size)))
        if got != size:
            _changed(path, size, got)

    def _data_elsewhere(self, inode: int, size: int, path: bytes) -> None:
        if size and self._contents is not None:
            with self._contents.open(inode) as fd:
                self._data(fd, size, path)

    def _special(self, path: bytes, kind: int, status: os.stat_result) -> None:
        if is_whiteout(status):
            # In a tree of one layer, shown without overlayfs, a whiteout stands for nothing.
            if self._overlay:
                self._whiteout(_whiteout_name(path))
        elif kind == stat.S_IFSOCK:
            self.entries -= 1
            self.skipped.append(os.fsdecode(path))
        elif kind == stat.S_IFIFO:
            self._header(path, b"6", status)
        else:
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            self._header(path, b"3" if kind == stat.S_IFCHR else b"4", status, device=device)

    def _whiteout(self, path: bytes) -> None:
        self._sink.write(encode_header(path, kind=b"0"))

    def _header(
        self,
        path: bytes,
        kind: bytes,
        status: os.stat_result,
        *,
        size: int = 0,
        linkname: bytes = b"",
        mode: int | None = None,
        device: tuple[int, int] | None = None,
        records: dict[bytes, bytes] | None = None,
    ) -> None:
        mtime_ns = status.st_mtime_ns if self._fixed_ns is None else self._fixed_ns
        if self._clamp_ns is not None and mtime_ns > self._clamp_ns:
            mtime_ns = self._clamp_ns
        self._sink.write(
            encode_header(
                path,
                kind=kind,
                mode=status.st_mode & 0o7777 if mode is None else mode,
                uid=status.st_uid,
                gid=status.st_gid,
                size=size,
                mtime=mtime_ns // _SECOND_NS,
                linkname=linkname,
                device=device,
                records=records,
            )
        )

    def _xattrs(self, fd: int, names: list[str], path: bytes) -> dict[bytes, bytes] | None:
        records: dict[bytes, bytes] = {}
        for name in names:
            if name.startswith(_OVERLAY_XATTRS):
                if name.endswith((".redirect", ".metacopy")) and self._overlay:
                    summary = f"{os.fsdecode(path)}: a layer made with overlayfs {name} holds no whole file"
                    raise LayerError(summary, hint="turn off overlay's redirect_dir and metacopy")
            elif name == "security.capability":
                records[XATTR_PREFIX + b"security.capability"] = capability_v2(os.getxattr(fd, name))
            elif name.startswith("user."):
                records[XATTR_PREFIX + os.fsencode(name)] = os.getxattr(fd, name)
        return records or None


def _sorted_entries(handle: int, path: bytes) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(handle) as found:
            return sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as exc:
        raise _os_error(exc, path) from exc


def _whiteout_name(path: bytes) -> bytes:
    directory, slash, name = path.rpartition(b"/")
    return directory + slash + WHITEOUT_PREFIX + name


def _is_whiteout(names: list[str]) -> bool:
    return "user.overlay.whiteout" in names or "trusted.overlay.whiteout" in names


def _changed(path: bytes, before: int, after: int) -> None:
    summary = f"{os.fsdecode(path)} changed while the layer was written ({before} bytes, then {after})"
    raise LayerError(summary, hint="something still writes to this file; build again")
