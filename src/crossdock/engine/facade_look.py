"""Looking into a file system: a result's, or a container's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.cache.view import resolve
from crossdock.engine.facade_parts import FileInfo
from crossdock.errors import SolveError

if TYPE_CHECKING:
    from crossdock.engine.cache.view import Node, View

__all__ = ["read_dir", "read_file", "stat"]


def read_file(view: View, path: str) -> bytes | None:
    """Return a file, links followed; ``None`` when there is none. Raises: SolveError for what is no regular file."""
    node = resolve(view, path, follow=True)
    if node is None:
        return None
    if not node.is_file:
        summary = f"{path} is not a regular file"
        raise SolveError(summary)
    with os.fdopen(view.open(node), "rb") as file:
        return file.read()


def read_dir(view: View, path: str) -> list[FileInfo] | None:
    """Return the entries of a directory in order of name; ``None`` when there is none."""
    node = resolve(view, path, follow=True)
    if node is None or not node.is_dir:
        return None
    return [_file_info(view, kid) for kid in view.children(node).values()]


def stat(view: View, path: str) -> FileInfo | None:
    """Return what is at a path, a link not followed; ``None`` when there is nothing."""
    node = resolve(view, path, follow=False)
    return None if node is None else _file_info(view, node)


def _file_info(view: View, node: Node) -> FileInfo:
    """Describe a node of a view."""
    st = node.st
    target = view.readlink(node) if node.is_link else ""
    return FileInfo(node.name, st.st_mode, node.uid, node.gid, st.st_size, st.st_mtime_ns, target)
