"""Resolve the links among wanted paths, so that a link and what it points to are both selected.

Spec: tonistiigi/fsutil ``followlinks.go``.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.patterns.matcher import clean, compile_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["follow_links"]

_WILDCARD = re.compile(r"(?<!\\)[*?\[]")
#: more steps than any sane tree needs; a loop of links ends by itself because a path is resolved once
_MAX_PATHS = 100_000


def follow_links(root: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Return sorted include patterns covering ``paths`` and every link met on the way, all below ``root``.

    Links never lead outside: absolute targets and ``..`` are taken relative to the root. An empty result means the
    whole tree. Paths that do not exist are kept, for whoever uses them to complain.
    """
    resolver = _Resolver(root)
    for path in paths:
        resolver.add(path)
    return _dedupe(sorted(resolver.resolved))


class _Resolver:
    def __init__(self, root: str) -> None:
        self._root = root
        self.resolved: set[str] = set()
        self._todo: list[str] = []

    def add(self, path: str) -> None:
        """Resolve one path, which may hold wildcards in any segment."""
        self._todo.append(path)
        while self._todo:
            if len(self.resolved) > _MAX_PATHS:
                summary = f"too many paths while following links below {self._root}"
                raise UsageError(summary)
            self._resolve(_rooted(self._todo.pop()))

    def _resolve(self, path: str) -> None:
        parts = path.split("/")
        for at in range(len(parts)):
            current = "/".join(parts[: at + 1])
            rest = "/".join(parts[at + 1 :])
            targets = self._targets(current)
            if not targets and rest:
                continue
            if current in self.resolved:
                return
            self.resolved.add(current)
            self._todo.extend(f"{target}/{rest}" if rest else target for target in targets)
            if targets:
                return

    def _targets(self, path: str) -> list[str]:
        parent, base = posixpath.split(path)
        if not _WILDCARD.search(base):
            return self._link(path)
        try:
            names = os.listdir(os.path.join(self._root, parent))
        except OSError:
            return []
        matcher = compile_patterns([base])
        found = (posixpath.join(parent, n) for n in names if matcher.matches(n))
        return [target for path in found for target in self._link(path)]

    def _link(self, path: str) -> list[str]:
        try:
            target = os.readlink(os.path.join(self._root, path))
        except OSError:
            return []
        return [target if target.startswith("/") else posixpath.join("/", posixpath.dirname(path), target)]


def _rooted(path: str) -> str:
    """Clean a path against the root, so that ``..`` cannot leave it; relative form, ``.`` for the root."""
    return clean(posixpath.join("/", path)).lstrip("/") or "."


def _dedupe(paths: list[str]) -> tuple[str, ...]:
    out: list[str] = []
    for path in paths:
        if path == ".":
            return ()
        if out and path.startswith(out[-1] + "/"):
            continue
        out.append(path)
    return tuple(out)
