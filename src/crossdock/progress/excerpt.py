"""The lines of a source file around a problem, drawn as BuildKit draws them.

Spec: moby/buildkit ``solver/errdefs/source.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.errors import SourceRange

__all__ = ["render_source", "render_sources"]

_RULE = "--------------------"
#: control characters that would move the cursor or change colours
_CONTROL = dict.fromkeys((*range(9), *range(10, 32), 127, *range(128, 160)), "�")


def render_source(where: SourceRange, *, columns: bool = False) -> str:
    """Draw the lines of ``where`` and a few around them, ending in a line feed.

    With ``columns`` a line of carets marks the exact place when it is within one line.
    Returns "" when the range is outside the file.
    """
    return render_sources([where], columns=columns)


def render_sources(ranges: Sequence[SourceRange], *, columns: bool = False) -> str:
    """Draw several ranges of one file as one excerpt."""
    if not ranges:
        return ""
    file = ranges[0].file
    lines = file.text.split("\n")
    spans = [(r.start.line, max(r.start.line, r.end.line)) for r in ranges]
    start, end = min(s for s, _ in spans), max(e for _, e in spans)
    if start < 1 or start > len(lines):
        return ""
    end = min(end, len(lines))
    first, last = _padded(start, end, len(lines))
    out = [f"{file.name}:{start}", _RULE]
    for number in range(first, last + 1):
        marked = any(s <= number <= e for s, e in spans)
        out.append(f" {number:3d} | {'>>>' if marked else '   '} {_plain(lines[number - 1])}")
        if columns and marked and len(ranges) == 1:
            out += _carets(ranges[0], number, lines[number - 1])
    out += [_RULE, ""]
    return "\n".join(out)


def _padded(start: int, end: int, count: int) -> tuple[int, int]:
    """Widen a range: by more lines when it is a single one."""
    wanted = 4 if start == end else 2
    added = 0
    while added < wanted:
        if start > 1:
            start -= 1
            added += 1
        if end != count:
            end += 1
            added += 1
        added += 1
    return start, end


def _plain(line: str) -> str:
    return line.rstrip("\r").translate(_CONTROL).encode("utf-8", "replace").decode()


def _carets(where: SourceRange, number: int, line: str) -> list[str]:
    if where.start.line != where.end.line or where.start.line != number:
        return []
    width = where.end.column - where.start.column + 1
    if width >= len(line.strip()):
        return []
    indent = "".join("\t" if ch == "\t" else " " for ch in line[: where.start.column])
    return [f"     |     {indent}{'^' * max(width, 1)}"]
