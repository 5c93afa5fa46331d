"""Texts of help and usage errors, in the layout of the docker CLI.

Spec: spf13/pflag ``FlagUsagesWrapped``; docker/cli ``cli/required.go``.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FlagLine", "format_flags", "format_usage_error"]

_MIN_TEXT_WIDTH = 24


class FlagLine(NamedTuple):
    """One flag as help shows it; ``kind`` is empty for a switch."""

    short: str
    long: str
    kind: str
    text: str


def format_flags(lines: Sequence[FlagLine]) -> str:
    """Align flags in two columns, the second wrapped at the terminal's width (80 when there is none)."""
    lefts = [_left(line) for line in lines]
    column = max(map(len, lefts), default=0) + 3
    width = max(shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80, 40) - 1
    out: list[str] = []
    for left, line in zip(lefts, lines, strict=True):
        room = width - column
        if room < _MIN_TEXT_WIDTH:
            wrapped = textwrap.wrap(line.text, width - 16, break_on_hyphens=False)
            out += [left, *(" " * 16 + part for part in wrapped)]
            continue
        first, *more = textwrap.wrap(line.text, room, break_on_hyphens=False) or [""]
        out.append(f"{left:<{column}}{first}".rstrip())
        out += [" " * column + part for part in more]
    return "\n".join(out) + "\n" if out else ""


def _left(line: FlagLine) -> str:
    short = f"  {line.short}, " if line.short else "      "
    return f"{short}{line.long} {line.kind}".rstrip()


def format_usage_error(path: str, usage: str, low: int, high: int | None) -> UsageError:
    """Make the error for a wrong number of arguments."""
    if high == 0:
        wants = "accepts no arguments"
    elif low == high:
        wants = f"requires {low} argument{'s' if low != 1 else ''}"
    elif high is None:
        wants = f"requires at least {low} argument{'s' if low != 1 else ''}"
    elif low == 0:
        wants = f"requires at most {high} argument{'s' if high != 1 else ''}"
    else:
        wants = f"requires at least {low} and at most {high} arguments"
    summary = f"'{path}' {wants}"
    return UsageError(summary, detail=f"Usage:  {usage}", hint=f"run '{path} --help' for more information")
