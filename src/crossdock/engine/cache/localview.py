"""A local directory as a build sees it: patterns applied, everything owned by root, read in place.

No link of the tree is followed outside it, even while somebody changes it: files are opened with ``openat2``. A
directory is listed when it is first needed and then remembered, so one build sees one state of it. A file that
vanishes while its directory is listed leads to another listing; one that vanishes or changes later is an error that
names it, never a shorter context.

Spec: tonistiigi/fsutil ``walker.go``, ``filter.go`` and moby/buildkit's filesync (owner 0:0, no sockets).
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING

from crossdock.engine.cache.beneath import open_beneath
from crossdock.engine.cache.layerview import hash_fd, read_xattrs
from crossdock.engine.cache.view import Node, Stat
from crossdock.errors import ContextError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.listed import ListedTree
    from crossdock.engine.store.statcache import StatTable
    from crossdock.patterns.filter import PathFilter

__all__ = ["LocalView"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NONBLOCK
_LISTINGS = 5
_CHUNK = 64


class LocalView:
    """A view of ``root``. Close it when nothing uses it any more. Safe from any thread.

    Raises: ContextError when the directory cannot be opened.
    """

    __slots__ = ("_digests", "_fd", "_filter", "_lock", "_root", "_table", "checksums", "root_path")

    def __init__(
        self,
        root: Path,
        filter_: PathFilter | None,
        table: StatTable | None,
        listed: ListedTree | None = None,
    ) -> None:
        """``listed``: all that is below ``root``, where it is known already; then ``filter_`` has nothing to select from."""
        self.root_path = root
        self._filter = filter_
        self._table = table
        # Guards listing; a directory is listed once.
        self._lock = threading.RLock()
        #: path -> sha256, and whether the file has attributes worth reading
        self._digests: dict[str, tuple[bytes, bool]] = {}
        try:
            self._fd = os.open(root, _DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            summary = f"cannot read the directory {root}: {exc.strerror}"
            raise ContextError(summary) from exc
        self._root = Node("", "", os.fstat(self._fd), 0, 0, "") if listed is None else listed.root
        #: digests of parts of the tree that hold as long as the tree is this one
        self.checksums = None if listed is None else listed.checksums

    def close(self) -> None:
        """Give the directory up; idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def root(self) -> Node:
        """Return the root directory."""
        return self._root

    def child(self, node: Node, name: str) -> Node | None:
        """Return an entry of a directory."""
        return self.children(node).get(name)

    def children(self, node: Node) -> Mapping[str, Node]:
        """List a directory; the first time only."""
        kids = node.kids
        if kids is None:
            with self._lock:
                kids = node.kids
                if kids is None:
                    kids = node.kids = self._list(node)
        return kids

    def open(self, node: Node) -> int:
        """Open a regular file. Raises: ContextError when it is gone or no longer one."""
        try:
            return open_beneath(self._fd, node.path, _FILE)
        except OSError as exc:
            raise self._failure(node.path, exc) from exc

    def readlink(self, node: Node) -> str:
        """Return the target of a link. Raises: ContextError when it is gone."""
        try:
            fd = open_beneath(self._fd, node.path.rpartition("/")[0] or ".", os.O_PATH | os.O_DIRECTORY)
            try:
                return os.readlink(node.name, dir_fd=fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise self._failure(node.path, exc) from exc

    def xattrs(self, node: Node) -> Sequence[tuple[str, bytes]]:
        """Return the attributes that images keep; links and special files have none."""
        if node.is_file:
            known = self._known(node)
            if known is not None and not known[1]:
                return ()
        elif not node.is_dir:
            return ()
        try:
            fd = open_beneath(self._fd, node.path or ".", _FILE)
        except OSError as exc:
            raise self._failure(node.path, exc) from exc
        try:
            return read_xattrs(fd)
        finally:
            os.close(fd)

    def digests(self, nodes: Sequence[Node], cancel: CancelToken) -> list[bytes]:
        """Return the sha256 of regular files, reading only those not known. Raises: ContextError."""
        unknown = [node for node in nodes if self._known(node) is None]
        if unknown:
            from crossdock.engine.cache.parallel import for_chunks

            for_chunks(unknown, _CHUNK, self._read_all, cancel)
        return [self._digests[node.path][0] for node in nodes]

    def unchanged(self, node: Node, st: os.stat_result) -> None:
        """Check the stat of an open file against what the build saw before. Raises: ContextError."""
        seen = node.st
        if (st.st_mtime_ns, st.st_size, st.st_ino) != (seen.st_mtime_ns, seen.st_size, seen.st_ino):
            raise self._changed(node.path)

    def excluded(self, path: str) -> bool:
        """Whether ``path`` exists below the root and only the patterns hide it."""
        try:
            os.close(open_beneath(self._fd, path, os.O_PATH | os.O_NOFOLLOW))
        except OSError:
            return False
        return self._filter is not None and not self._filter.selects(path)

    # --- inside ---

    def _known(self, node: Node) -> tuple[bytes, bool] | None:
        known = self._digests.get(node.path)
        if known is None and self._table is not None:
            digest = self._table.get(node.path, node.st)
            if digest is not None:
                known = self._digests[node.path] = (digest, False)
        return known

    def _read_all(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            read_at = time.time_ns()
            fd = self.open(node)
            try:
                digest = hash_fd(fd, node.st.st_size)
                st = os.fstat(fd)
                has_xattrs = bool(read_xattrs(fd))
            except OSError as exc:
                raise self._failure(node.path, exc) from exc
            finally:
                os.close(fd)
            self.unchanged(node, st)
            self._digests[node.path] = (digest, has_xattrs)
            # The table keeps no attributes: what it holds has none.
            if self._table is not None and not has_xattrs:
                self._table.record(node.path, st, digest, read_at)

    def _list(self, node: Node) -> dict[str, Node]:
        for attempt in range(_LISTINGS):
            try:
                return self._list_once(node)
            except FileNotFoundError as exc:
                if attempt == _LISTINGS - 1:
                    raise self._changed(node.path) from exc
            except OSError as exc:
                raise self._failure(node.path, exc) from exc
        raise self._changed(node.path)

    def _list_once(self, node: Node) -> dict[str, Node]:
        prefix = node.path + "/" if node.path else ""
        selects = None if self._filter is None or self._filter.everything else self._filter.selects
        found: list[Node] = []
        fd = open_beneath(self._fd, node.path or ".", _DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name
                    path = prefix + name
                    wanted = selects is None or selects(path)
                    if not wanted and not entry.is_dir(follow_symlinks=False):
                        continue
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISSOCK(st.st_mode):
                        kid = Node(name, path, Stat(st), 0, 0, "")
                        if wanted or self._has_wanted(kid):
                            found.append(kid)
        finally:
            os.close(fd)
        found.sort(key=_by_name)
        return {kid.name: kid for kid in found}

    def _has_wanted(self, directory: Node) -> bool:
        """Whether something below an unselected directory is selected after all."""
        if self._filter is None or not self._filter.may_descend(directory.path):
            return False
        return bool(self.children(directory))

    def _failure(self, path: str, exc: OSError) -> ContextError:
        if isinstance(exc, FileNotFoundError | NotADirectoryError):
            return self._changed(path)
        where = self.root_path / path
        summary = f"cannot read {where}: {exc.strerror}"
        return ContextError(summary, hint="fix its permissions or exclude it in .dockerignore")

    def _changed(self, path: str) -> ContextError:
        summary = f"{self.root_path / path} changed while the build was reading it"
        return ContextError(
            summary, hint="build again, or exclude it in .dockerignore if it always changes", retryable=True
        )


def _by_name(node: Node) -> str:
    return node.name
