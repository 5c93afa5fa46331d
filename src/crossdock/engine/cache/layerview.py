"""The merged view of layer directories, as overlayfs would show them, without a mount.

Layers do not change, so paths into them may be used as they are: a component is only ever joined after lstat has shown
it to be a real directory of that layer.

Spec: kernel ``filesystems/overlayfs.rst``, "whiteouts and opaque directories", with the ``user.overlay.`` prefix.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.cache.view import Node
from crossdock.errors import StoreError
from crossdock.hashing import sha256, sha256_stream
from crossdock.whiteouts import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["OPAQUE_XATTR", "LayerView", "is_opaque", "kept_xattrs", "read_xattrs"]

OPAQUE_XATTR = "user.overlay.opaque"
_BLOCK = 1 << 20
_CHUNK = 64
#: files whose digests are remembered at most, some megabytes
_KNOWN_FILES = 20_000


def is_opaque(path: str) -> bool:
    """Whether a layer's directory hides what lies below it."""
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


def kept_xattrs(names: Sequence[str]) -> list[str]:
    """Return the attributes that identify and accompany a file, sorted.

    Spec: moby/buildkit ``cache/contenthash/tarsum.go``: of ``security.`` only capabilities, nothing of ``system.``.
    """
    return sorted(
        name
        for name in names
        if name == "security.capability"
        or not name.startswith(("security.", "system.", "user.overlay.", "trusted."))
    )


def read_xattrs(target: str | int) -> list[tuple[str, bytes]]:
    """Return the kept attributes of a path (never following a link) or an open file."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return []  # a file system without attributes
    if not names:
        return []
    return [(name, os.getxattr(target, name, follow_symlinks=follow)) for name in kept_xattrs(names)]


class LayerView:
    """``directories`` are layers, bottom first. Each call looks anew: nothing is remembered."""

    __slots__ = ("_root",)

    def __init__(self, directories: Sequence[Path | str]) -> None:
        where = tuple(os.fspath(directory) for directory in reversed(directories))
        self._root = where

    def root(self) -> Node:
        """Return the root; of an empty view an empty directory."""
        if not self._root:
            return Node("", "", _EMPTY, 0, 0, ())
        st = os.lstat(self._root[0])
        return Node("", "", st, st.st_uid, st.st_gid, self._root)

    def child(self, node: Node, name: str) -> Node | None:
        """Look ``name`` up in every layer, topmost first."""
        first: os.stat_result | None = None
        where: list[str] = []
        for directory in node.where:
            path = f"{directory}/{name}"
            try:
                st = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if is_whiteout(st):
                break
            if not stat.S_ISDIR(st.st_mode):
                if first is None:
                    return _node(node, name, st, path)
                break
            first = first or st
            where.append(path)
            if is_opaque(path):
                break
        return _node(node, name, first, tuple(where)) if first is not None else None

    def children(self, node: Node) -> Mapping[str, Node]:
        """Merge the entries of every layer."""
        found: dict[str, Node] = {}
        # Per name: directories still open for merging; None when decided.
        hidden: set[str] = set()
        for directory in node.where:
            with os.scandir(directory) as entries:
                level = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
            for name, st in level:
                if name in hidden:
                    continue
                path = f"{directory}/{name}"
                known = found.get(name)
                if not stat.S_ISDIR(st.st_mode):
                    hidden.add(name)
                    if known is None and not is_whiteout(st):
                        found[name] = _node(node, name, st, path)
                    continue
                if known is None:
                    found[name] = _node(node, name, st, (path,))
                elif isinstance(known.where, tuple):
                    known.where = (*known.where, path)
                if len(node.where) > 1 and is_opaque(path):
                    hidden.add(name)
        return dict(sorted(found.items()))

    def open(self, node: Node) -> int:
        """Open a regular file."""
        return os.open(_real(node), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)

    def readlink(self, node: Node) -> str:
        """Return the target of a link."""
        return os.readlink(_real(node))

    def xattrs(self, node: Node) -> Sequence[tuple[str, bytes]]:
        """Return the kept attributes; a merged directory has those of the topmost layer."""
        where = node.where if isinstance(node.where, str) else next(iter(node.where), None)
        return read_xattrs(where) if where is not None else ()

    def digests(self, nodes: Sequence[Node], cancel: CancelToken) -> list[bytes]:
        """Read and hash files."""
        from crossdock.engine.cache.parallel import for_chunks

        found: dict[str, bytes] = {}
        unknown: list[Node] = []
        for node in nodes:
            known = _known.get(_identity(node))
            if known is None:
                unknown.append(node)
            else:
                found[node.path] = known

        def work(part: Sequence[Node]) -> None:
            for node in part:
                fd = self.open(node)
                try:
                    digest = found[node.path] = hash_fd(fd, node.st.st_size)
                finally:
                    os.close(fd)
                if len(_known) < _KNOWN_FILES:
                    _known[_identity(node)] = digest

        for_chunks(unknown, _CHUNK, work, cancel)
        return [found[node.path] for node in nodes]


#: digests of this process's files of layers, so that what keys are made of need not be read again to explain them;
#: single dict operations only
_known: dict[tuple[str, int, int, int], bytes] = {}


def _identity(node: Node) -> tuple[str, int, int, int]:
    st = node.st
    return (_real(node), st.st_ino, st.st_size, st.st_ctime_ns)


def hash_fd(fd: int, size: int) -> bytes:
    """Return the sha256 of an open file from its current position; ``size`` is what it is likely to hold."""
    block = min(size + 1, _BLOCK)
    data = os.read(fd, block)
    if size <= len(data) < block:
        return sha256(data).digest()
    hasher = sha256_stream()
    while data:
        hasher.update(data)
        data = os.read(fd, _BLOCK)
    return hasher.digest()


def _node(parent: Node, name: str, st: os.stat_result, where: str | tuple[str, ...]) -> Node:
    path = f"{parent.path}/{name}" if parent.path else name
    return Node(name, path, st, st.st_uid, st.st_gid, where)


def _real(node: Node) -> str:
    if isinstance(node.where, str):
        return node.where
    summary = f"{node.path} is a directory"
    raise StoreError(summary)


#: what an empty file system's root looks like
_EMPTY = os.stat_result(
    (stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    {"st_mtime_ns": 0, "st_atime_ns": 0, "st_ctime_ns": 0, "st_rdev": 0},
)
