"""Decide which paths of a tree are wanted, and which directories need not be entered.

A directory that is not itself selected but has selected paths below it is emitted before them, so that the result is a
tree.

Spec: tonistiigi/fsutil ``filter.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.patterns.matcher import compile_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crossdock.patterns.matcher import Pattern

__all__ = ["PathFilter"]

_SPECIAL = re.compile(r"[*\[\]?^\\]")


class PathFilter:
    """Include and exclude patterns together. Immutable; safe from any thread."""

    __slots__ = ("_exclude", "_include", "_include_prefixes", "_reinclude_prefixes")

    def __init__(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = compile_patterns(include) if include else None
        self._exclude = compile_patterns(exclude) if exclude else None
        self._include_prefixes = (
            _prefixes(p for p in self._include.patterns if not p.negated) if self._include else None
        )
        self._reinclude_prefixes = (
            _prefixes(p for p in self._exclude.patterns if p.negated) if self._exclude else None
        )

    @property
    def everything(self) -> bool:
        """Whether no pattern was given."""
        return self._include is None and self._exclude is None

    def selects(self, path: str) -> bool:
        """Whether the path itself is wanted."""
        if self._include is not None and not self._include.matches(path):
            return False
        return self._exclude is None or not self._exclude.matches(path)

    def may_descend(self, directory: str) -> bool:
        """Whether something below an unselected directory may be wanted."""
        below = directory + "/"
        includes, again = self._include_prefixes, self._reinclude_prefixes
        if self._include is not None and includes is not None:
            wanted = self._include.matches(directory) or any(p.startswith(below) for p in includes)
            if not wanted:
                return False
        if self._exclude is not None and again is not None and self._exclude.matches(directory):
            return any(p.startswith(below) for p in again)
        return True


def _prefixes(patterns: Iterable[Pattern]) -> tuple[str, ...] | None:
    """Return literal ``path/`` prefixes, or ``None`` when a pattern has wildcards before its end."""
    out = []
    for pattern in patterns:
        text = pattern.text.removesuffix("/**").removesuffix("/*")
        if _SPECIAL.search(text):
            return None
        out.append(text + "/")
    return tuple(out)
