"""Draw errors: source excerpt, ``ERROR:`` line, detail, hint.

Spec: moby/buildkit ``solver/errdefs/source.go`` for the excerpt's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.errors import CrossdockError, SourceRange

__all__ = ["render_error", "source_excerpt"]

_CONTEXT_LINES = 2
_RULE = "--------------------"


def source_excerpt(source: SourceRange) -> str:
    """Show the lines of a range, marked, with two lines around them."""
    lines = source.file.text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    first, last = max(source.start.line, 1), max(source.end.line, source.start.line, 1)
    if not lines or first > len(lines):
        return ""
    shown = range(max(first - _CONTEXT_LINES, 1), min(last + _CONTEXT_LINES, len(lines)) + 1)
    body = [
        f" {number:>3} | {'>>>' if first <= number <= last else '   '} {lines[number - 1].rstrip()}".rstrip()
        for number in shown
    ]
    return "\n".join([f"{source.file.name}:{first}", _RULE, *body, _RULE]) + "\n"


def _step_line(error: CrossdockError) -> str:
    """Name the step and its platform, for errors that have them and do not say so themselves."""
    name, platform = getattr(error, "vertex_name", None), getattr(error, "platform", None)
    if not name or not platform or name in error.summary:
        return ""
    return f"in step {name}\n" if platform in name else f"in step {name} (for {platform})\n"


def render_error(error: CrossdockError, *, debug: bool = False) -> str:
    """Return the whole text shown for an error, newline included."""
    out = source_excerpt(error.source) if error.source is not None else ""
    if debug:
        import traceback

        out += "".join(traceback.format_exception(error))
    out += f"ERROR: {error.summary}\n"
    out += _step_line(error)
    if error.detail:
        out += error.detail.rstrip("\n") + "\n"
    if error.hint:
        out += f"hint: {error.hint}\n"
    # A Dockerfile's further problems were found in the same pass.
    for other in getattr(error, "others", ()):
        out += "\n" + render_error(other)
    return out
