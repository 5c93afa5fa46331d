"""Hide secrets in a step's output, and keep its last lines for the error message."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crossdock.secret import Secret

__all__ = ["LogTail", "Masker"]

#: shorter values (or lines of values) are not hidden: they would take ordinary text with them
_MIN_BYTES = 4
_MASK = b"***"


class Masker:
    """Replaces secret values in streams of bytes; a value cut by a chunk border is found too. One thread."""

    __slots__ = ("_held", "_out", "_pattern", "_starts")

    def __init__(self, secrets: Iterable[Secret], out: Callable[[int, bytes], None]) -> None:
        values: set[bytes] = set()
        for secret in secrets:
            value = secret.reveal()
            values.update(
                part for part in (value, value.strip(), *value.splitlines()) if len(part) >= _MIN_BYTES
            )
        ordered = sorted(values, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, ordered))) if ordered else None
        #: every proper beginning of a value, longest first
        starts = {value[:size] for value in ordered for size in range(1, len(value))}
        self._starts = tuple(sorted(starts, key=len, reverse=True))
        self._out = out
        #: per stream what may be the start of a secret
        self._held: dict[int, bytes] = {}

    def write(self, stream: int, data: bytes) -> None:
        """Take some output."""
        if self._pattern is None:
            self._out(stream, data)
            return
        text = self._held.pop(stream, b"") + data
        # What may grow into a (longer) secret waits, and so does a secret that reaches into it.
        cut = len(text) - next((len(start) for start in self._starts if text.endswith(start)), 0)
        for match in self._pattern.finditer(text):
            if match.start() < cut < match.end():
                cut = match.start()
                break
        if cut < len(text):
            self._held[stream] = text[cut:]
        if cut:
            self._out(stream, self._pattern.sub(_MASK, text[:cut]))

    def close(self) -> None:
        """Give out what was held back."""
        for stream, text in self._held.items():
            self._out(stream, text if self._pattern is None else self._pattern.sub(_MASK, text))
        self._held.clear()


class LogTail:
    """The last lines of some output, as text."""

    __slots__ = ("_lines", "_part")

    def __init__(self, lines: int = 100) -> None:
        self._lines: deque[bytes] = deque(maxlen=lines)
        self._part = b""

    def write(self, data: bytes) -> None:
        """Take some output."""
        *whole, self._part = (self._part + data).split(b"\n")
        self._lines.extend(whole)
        # A program that prints no newline must not fill the memory.
        self._part = self._part[-65536:]

    def lines(self) -> tuple[str, ...]:
        """Return the last lines."""
        rest = [self._part] if self._part else []
        return tuple(line.rstrip(b"\r").decode("utf-8", "replace") for line in (*self._lines, *rest))
