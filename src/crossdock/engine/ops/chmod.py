"""Symbolic modes: ``u+x,go=rX``, as ``COPY --chmod`` takes them.

Spec: POSIX chmod, "mode" operand, with an umask of 0; ``s`` and ``t`` as BSD's setmode(3).
"""

from __future__ import annotations

import re
import stat
from functools import lru_cache
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["parse_mode"]

_CLAUSE = r"(?P<who>[ugoa]*)(?P<actions>(?:[-+=][rwxXstugo]*)+)\Z"
_ACTION = r"([-+=])([rwxXstugo]*)"
_SHIFT = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}


@lru_cache(32)
def parse_mode(text: str) -> Callable[[int], int]:
    """Return a function from a file's mode (with type bits) to its new permission bits.

    Raises: UsageError when the text is neither octal nor symbolic.
    """
    if re.fullmatch("[0-7]+", text):
        value = int(text, 8) & 0o7777
        return lambda _mode: value
    clauses = []
    for part in text.split(","):
        match = re.match(_CLAUSE, part)
        if match is None:
            summary = f"invalid mode {text!r}"
            raise UsageError(summary, hint="use octal digits, or clauses like u+x,go=rX")
        clauses.append((match["who"] or "a", re.findall(_ACTION, match["actions"])))

    def apply(mode: int) -> int:
        for who, actions in clauses:
            for operator, permissions in actions:
                mode = _apply(mode, who, operator, permissions)
        return mode & 0o7777

    return apply


def _apply(mode: int, who: str, operator: str, permissions: str) -> int:
    classes = "ugo" if "a" in who else who
    executable = stat.S_ISDIR(mode) or bool(mode & 0o111)
    bits = special = 0
    for char in permissions:
        if char in _SHIFT:
            bits |= mode >> _SHIFT[char] & 7
        elif char == "X":
            bits |= 1 if executable else 0
        elif char == "s":
            special |= (stat.S_ISUID if "u" in classes else 0) | (stat.S_ISGID if "g" in classes else 0)
        elif char == "t":
            special |= stat.S_ISVTX
        else:
            bits |= _BITS[char]
    mask = sum(7 << _SHIFT[name] for name in classes)
    value = sum(bits << _SHIFT[name] for name in classes) | special
    if operator == "+":
        return mode | value
    if operator == "-":
        return mode & ~value
    cleared = (stat.S_ISUID if "u" in classes else 0) | (stat.S_ISGID if "g" in classes else 0)
    return mode & ~mask & ~cleared | value
