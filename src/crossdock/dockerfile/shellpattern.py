"""Shell patterns in ``${v#p}``, ``${v%p}`` and ``${v/p/r}``: ``*``, ``?`` and escapes, no bracket expressions."""

from __future__ import annotations

import re

__all__ = ["PatternError", "replace_matches", "strip_prefix", "strip_suffix"]


class PatternError(ValueError):
    """The pattern is malformed."""


def strip_prefix(pattern: str, text: str, *, greedy: bool) -> str:
    """Remove the shortest (or, greedy, the longest) match at the beginning.

    Raises: PatternError.
    """
    found = _regex(pattern, greedy=greedy).match(text)
    return text[found.end() :] if found else text


def strip_suffix(pattern: str, text: str, *, greedy: bool) -> str:
    """Remove the shortest (or, greedy, the longest) match at the end.

    Raises: PatternError.
    """
    return strip_prefix(_reverse_pattern(pattern), text[::-1], greedy=greedy)[::-1]


def replace_matches(pattern: str, text: str, new: str, *, every: bool) -> str:
    """Replace the first match, or every one, longest matches first.

    Raises: PatternError.
    """
    return _substitute(text, _regex(pattern, greedy=True), new, every=every)


def _regex(pattern: str, *, greedy: bool) -> re.Pattern[str]:
    """Translate a shell pattern (``*``, ``?``, backslash escapes; no bracket expressions)."""
    out: list[str] = []
    chars = iter(range(len(pattern)))
    for i in chars:
        ch = pattern[i]
        if ch == "*":
            out.append(".*" if greedy else ".*?")
        elif ch == "?":
            out.append(".")
        elif ch == "\\":
            following = pattern[i + 1 : i + 2]
            if following and following in "}/":
                continue
            if not following or following not in "*?\\":
                msg = f"invalid pattern ({pattern}) in substitution: invalid escape '\\{following}'"
                raise PatternError(msg)
            next(chars)
            out.append("\\" + following)
        else:
            out.append(re.escape(ch))
    return re.compile("".join(out))


def _substitute(text: str, pattern: re.Pattern[str], new: str, *, every: bool) -> str:
    out: list[str] = []
    done = 0
    last_end = -1
    for found in pattern.finditer(text):
        if found.start() == found.end() == last_end:
            continue  # an empty match right after a match does not count
        out += (text[done : found.start()], new)
        done = last_end = found.end()
        if not every:
            break
    out.append(text[done:])
    return "".join(out)


def _reverse_pattern(pattern: str) -> str:
    """Reverse a pattern, keeping each escape before its character."""
    units: list[str] = []
    i = 0
    while i < len(pattern):
        step = 2 if pattern[i] == "\\" and i + 1 < len(pattern) else 1
        units.append(pattern[i : i + step])
        i += step
    return "".join(reversed(units))
