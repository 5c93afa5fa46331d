"""Match paths against ordered patterns; the last one that matches decides.

A pattern that matches a directory matches what is below it. ``*`` and ``?`` stay within a path segment, ``**`` spans
any number of them, ``!`` re-includes. Paths are relative, slash-separated and clean.

All patterns of one sign that follow each other become one regular expression, so that a path costs one match however
many patterns there are.

Spec: moby/patternmatcher ``patternmatcher.go``, ``ignorefile/ignorefile.go``; Go ``path/filepath.Match`` for syntax.
"""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Pattern", "PatternMatcher", "clean", "compile_patterns", "read_ignore_file"]

_ESCAPED = frozenset(".+()|{}$")
_BOM = b"\xef\xbb\xbf"


class Pattern(Record, kw_only=False):
    """One cleaned pattern; ``regex`` is its source, unanchored."""

    text: str
    negated: bool
    regex: str


class PatternMatcher:
    """Decides paths by an ordered list of patterns. Immutable; safe from any thread."""

    __slots__ = ("_groups", "has_negated", "patterns")

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.patterns = tuple(patterns)
        self.has_negated = any(p.negated for p in self.patterns)
        groups: list[tuple[bool, list[str]]] = []
        for pattern in self.patterns:
            if not groups or groups[-1][0] != pattern.negated:
                groups.append((pattern.negated, []))
            groups[-1][1].append(pattern.regex)
        # Last group first: the last pattern that matches decides.
        self._groups = tuple(
            (not negated, re.compile(f"(?:{'|'.join(regexes)})(?:/.*)?", re.DOTALL).fullmatch)
            for negated, regexes in reversed(groups)
        )

    def matches(self, path: str) -> bool:
        """Whether the path, or a directory above it, is selected."""
        for selected, fullmatch in self._groups:
            if fullmatch(path):
                return selected
        return False

    def __bool__(self) -> bool:
        return bool(self.patterns)


def clean(path: str) -> str:
    """Return the shortest equivalent path, as Go's ``path.Clean``."""
    cleaned = posixpath.normpath(path) if path else "."
    # POSIX lets exactly two leading slashes stand; Go does not.
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def compile_patterns(patterns: Iterable[str]) -> PatternMatcher:
    """Compile patterns; blank ones are skipped.

    Raises: UsageError naming the pattern that is malformed.
    """
    return _compile(tuple(patterns))


@lru_cache(64)
def _compile(patterns: tuple[str, ...]) -> PatternMatcher:
    return PatternMatcher(_pattern(stripped) for p in patterns if (stripped := p.strip()))


def _pattern(text: str) -> Pattern:
    cleaned = clean(text)
    negated = cleaned.startswith("!")
    if negated:
        cleaned = cleaned[1:]
        if not cleaned:
            summary = 'illegal exclusion pattern: "!"'
            raise UsageError(summary, hint="write what to re-include after the !")
    return Pattern(cleaned, negated, _to_regex(cleaned))


def _to_regex(pattern: str) -> str:
    if pattern.startswith("**") and not any(c in pattern[2:] for c in "*?[]\\"):
        # moby compares such a pattern as a suffix, so that **foo also matches barfoo.
        suffix = pattern[2:]
        return f"(?:.*/)?{re.escape(suffix[1:])}" if suffix.startswith("/") else f".*{re.escape(suffix)}"
    out: list[str] = []
    at, end = 0, len(pattern)
    while at < end:
        ch = pattern[at]
        at += 1
        if ch == "*":
            if pattern.startswith("*", at):
                at += 1
                if pattern.startswith("/", at):
                    at += 1
                out.append(".*" if at == end else "(?:.*/)?")
            else:
                out.append("[^/]*")
        elif ch == "?":
            out.append("[^/]")
        elif ch == "[":
            regex, at = _character_class(pattern, at)
            out.append(regex)
        elif ch == "\\":
            if at == end:
                raise _bad(pattern)
            out.append(re.escape(pattern[at]))
            at += 1
        elif ch in _ESCAPED:
            out.append("\\" + ch)
        else:
            out.append(re.escape(ch))
    return "".join(out)


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    """Translate the class that starts after ``[``; returns the regex and the position after ``]``."""
    out = ["["]
    if pattern.startswith("^", at):
        out.append("^")
        at += 1
    first = True
    while True:
        if at >= len(pattern) or (pattern[at] == "]" and first):
            raise _bad(pattern)
        if pattern[at] == "]":
            return "".join((*out, "]")), at + 1
        low, at = _class_member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_member(pattern, at + 1)
        # A range that runs backwards matches nothing in Go; Python would refuse it.
        if low <= high:
            out.append(re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}")
        elif first:
            out.append("\\0")
        first = False


def _class_member(pattern: str, at: int) -> tuple[str, int]:
    if at < len(pattern) and pattern[at] == "\\":
        at += 1
    elif at < len(pattern) and pattern[at] in "-]":
        raise _bad(pattern)
    if at >= len(pattern):
        raise _bad(pattern)
    return pattern[at], at + 1


def _bad(pattern: str) -> UsageError:
    summary = f"syntax error in pattern {pattern!r}"
    return UsageError(
        summary, hint=r"close every [ with ], and write \ before a character to take it literally"
    )


def read_ignore_file(data: bytes) -> tuple[str, ...]:
    """Return the patterns of an ignore file: comments and blank lines dropped, paths cleaned, leading / dropped."""
    out: list[str] = []
    for line in data.removeprefix(_BOM).decode("utf-8", "surrogateescape").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        negated = pattern.startswith("!")
        if negated:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        out.append("!" + pattern if negated else pattern)
    return tuple(out)
