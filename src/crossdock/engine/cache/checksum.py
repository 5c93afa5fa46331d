"""Digests of what an op reads of an input: names, modes, owners, links, attributes and bytes; never times.

What counts is what BuildKit counts; the bytes that are hashed are our own.

Spec: moby/buildkit ``cache/contenthash`` (checksum.go, tarsum.go).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.cache.select import expand, path_filter, walk
from crossdock.errors import SolveError
from crossdock.hashing import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import Node, View
    from crossdock.hashing import Hash

__all__ = ["content_digest", "not_found"]

_PERMISSIONS = 0o7777


def content_digest(view: View, selectors: Sequence[Selector], cancel: CancelToken) -> str:
    """Return ``sha256:…`` of everything ``selectors`` select.

    Raises: SolveError when a path without wildcards does not exist; ContextError when a local tree changes meanwhile.
    """
    known: dict[tuple[Selector, ...], str] | None = getattr(view, "checksums", None)
    wanted = tuple(selectors)
    if known is not None and wanted in known:
        return known[wanted]
    hasher = sha256(b"crossdock-content-1\n")
    for selector in selectors:
        records = _select(view, selector)
        hasher.update(b"%d\n" % len(records))
        _hash_records(hasher, view, records, cancel)
    digest = "sha256:" + hasher.hexdigest()
    if known is not None:
        known[wanted] = digest
    return digest


def not_found(path: str, view: View) -> SolveError:
    """Return the error for a selected path that is not there."""
    shown = "/" + path.strip("/")
    summary = f'"{shown}": not found'
    excluded = getattr(view, "excluded", None)
    if excluded is not None and excluded(shown[1:]):
        return SolveError(summary, hint=f"{shown[1:]} is excluded by .dockerignore")
    root = getattr(view, "root_path", None)
    return SolveError(summary, hint=f"there is no such path in the build context {root}" if root else None)


def _select(view: View, selector: Selector) -> list[tuple[str, Node]]:
    matches = expand(view, selector.path, wildcard=selector.wildcard, follow=selector.follow)
    if not matches and not selector.wildcard:
        raise not_found(selector.path, view)
    filter_ = path_filter(selector.include, selector.exclude)
    # A single path is known by the op under its own name; several are told apart by theirs.
    named = selector.wildcard
    records: list[tuple[str, Node]] = []
    seen = {"/" + path.strip("/") for path in selector.required}
    for match in matches:
        base = match.path if named else ""
        for path, node in walk(view, match.node, filter_):
            records.append((f"{base}/{path}", node))
            if seen:
                full = "/" + "/".join(filter(None, (match.path, path)))
                seen = {wanted for wanted in seen if not full.startswith(wanted)}
    if seen:
        raise not_found(min(seen), view)
    return records


def _hash_records(hasher: Hash, view: View, records: Sequence[tuple[str, Node]], cancel: CancelToken) -> None:
    files = [node for _, node in records if stat.S_ISREG(node.st.st_mode)]
    digests = iter(view.digests(files, cancel))
    out: list[bytes] = []
    for path, node in records:
        st = node.st
        mode = st.st_mode
        name = os.fsencode(path)
        if stat.S_ISREG(mode):
            kind, extra = b"f", next(digests)
        elif stat.S_ISDIR(mode):
            kind, extra = b"d", b""
        elif stat.S_ISLNK(mode):
            kind, extra, mode = b"l", os.fsencode(view.readlink(node)), 0o777
        else:
            kind, extra = b"s", b"%d %d" % (stat.S_IFMT(mode), st.st_rdev)
        xattrs = view.xattrs(node)
        out.append(
            b"%d:%b%b%o,%d,%d,%d:%b%d;"
            % (len(name), name, kind, mode & _PERMISSIONS, node.uid, node.gid, len(extra), extra, len(xattrs))
        )
        for key, value in xattrs:
            out.append(b"%d:%b%d:%b" % (len(key), os.fsencode(key), len(value), value))
    hasher.update(b"".join(out))
