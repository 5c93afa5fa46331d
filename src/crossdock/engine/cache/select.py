"""Which parts of a file system an operation reads: wildcards, include and exclude patterns, links.

Checksums and copies select with the same functions, so that a key covers what is copied, no more and no less.

Spec: tonistiigi/fsutil ``copy/copy.go`` (ResolveWildcards, include, exclude); Go ``path/filepath.Match``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.view import resolve, split_path
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.engine.cache.view import Node, View
    from crossdock.patterns.filter import PathFilter

__all__ = ["Match", "Selector", "expand", "has_wildcard", "path_filter", "walk"]


class Selector(NamedTuple):
    """What an op reads of an input; paths are taken from its root."""

    path: str = "/"
    wildcard: bool = False
    #: whether a link at the very path (or wildcard match) is followed
    follow: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    #: path prefixes of which something must exist
    required: tuple[str, ...] = ()


class Match(NamedTuple):
    """One selected path, as it was named (not as links resolved), and what is there."""

    path: str
    node: Node


def has_wildcard(path: str) -> bool:
    """Whether a path holds an unescaped ``*``, ``?`` or ``[``."""
    escaped = False
    for char in path:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "*?[":
            return True
    return False


def split_wildcards(path: str) -> tuple[list[str], list[str]]:
    """Return the components before the first one with a wildcard, and the rest."""
    parts = split_path(path)
    for index, part in enumerate(parts):
        if has_wildcard(part):
            return parts[:index], parts[index:]
    return parts, []


def expand(view: View, path: str, *, wildcard: bool, follow: bool) -> list[Match]:
    """Return what ``path`` names, in order; nothing when it is not there."""
    fixed, rest = split_wildcards(path) if wildcard else (split_path(path), [])
    start = "/".join(fixed)
    node = resolve(view, start, follow=follow)
    if node is None:
        return []
    if not rest:
        return [Match(start, node)]
    level = [Match(start, node)]
    for part in rest:
        level = [found for match in level for found in _children_matching(view, match, part)]
    if not follow:
        return level
    followed = []
    for match in level:
        target = resolve(view, match.path, follow=True) if match.node.is_link else match.node
        followed.append(Match(match.path, target if target is not None else match.node))
    return followed


def _children_matching(view: View, match: Match, pattern: str) -> Iterator[Match]:
    if not match.node.is_dir:
        return
    from crossdock.patterns.matcher import compile_patterns

    # Go gives "!" and blanks at the ends no meaning here.
    if pattern[0] in "! \t" or pattern[-1:] in " \t":
        pattern = "".join("[" + c + "]" if c in "! \t" else c for c in pattern)
    matches = compile_patterns((pattern,)).matches
    for name, node in view.children(match.node).items():
        if matches(name):
            yield Match(f"{match.path}/{name}" if match.path else name, node)


def path_filter(include: tuple[str, ...], exclude: tuple[str, ...]) -> PathFilter | None:
    """Return the filter for include and exclude patterns, ``None`` when there are none."""
    if not include and not exclude:
        return None
    from crossdock.patterns.filter import PathFilter

    return PathFilter(include=include, exclude=exclude)


def walk(view: View, node: Node, filter_: PathFilter | None) -> Iterator[tuple[str, Node]]:
    """Yield ``(path below node, node)``, directories before what is in them, the node itself as ``""``.

    With a filter, directories that are not selected come only with something selected below them.
    """
    if not node.is_dir:
        yield "", node
        return
    yield "", node
    #: directories not selected themselves, waiting for something below them
    waiting: list[tuple[str, Node]] = []
    stack = [("", iter([(kid.name, kid) for kid in view.children(node).values()]))]
    while stack:
        directory, level = stack[-1]
        item = next(level, None)
        if item is None:
            stack.pop()
            if waiting and waiting[-1][0] == directory:
                waiting.pop()
            continue
        path, kid = item
        wanted = filter_ is None or filter_.selects(path)
        if wanted:
            yield from waiting
            waiting.clear()
            yield item
        elif not kid.is_dir or (filter_ is not None and not filter_.may_descend(path)):
            continue
        if kid.is_dir:
            if not wanted:
                waiting.append(item)
            prefix = path + "/"
            stack.append(
                (path, iter([(prefix + below.name, below) for below in view.children(kid).values()]))
            )
