"""The text of a Dockerfile: physical lines, logical lines, and where each character came from."""

from __future__ import annotations

from bisect import bisect_right

from crossdock.dockerfile.text import SPACE
from crossdock.errors import DockerfileError, Position, SourceFile, SourceRange

__all__ = ["LogicalLine", "decode", "physical_lines", "pinpoint"]

_BOM = "\ufeff"


def decode(data: bytes) -> str:
    """Decode; bytes that are not UTF-8 become surrogates, so every file can be read and shown."""
    return data.decode("utf-8", "surrogateescape").removeprefix(_BOM)


def physical_lines(text: str) -> list[str]:
    """Split at line feeds, which stay; a carriage return is part of the line."""
    lines = text.split("\n")
    last = lines.pop()
    out = [line + "\n" for line in lines]
    if last:
        out.append(last)
    return out


def pinpoint(where: SourceRange, token: str) -> SourceRange:
    """Return the range of ``token`` inside ``where``; the whole range when it is not there verbatim."""
    if not token or "\n" in token:
        return where
    lines = where.file.text.split("\n")
    for number in range(where.start.line, min(where.end.line, len(lines)) + 1):
        at = lines[number - 1].find(token)
        if at >= 0:
            return SourceRange(where.file, Position(number, at), Position(number, at + len(token) - 1))
    return where


class LogicalLine:
    """An instruction's text after joining continued lines; knows the place of every character."""

    __slots__ = (
        "_columns",
        "_lines",
        "_offsets",
        "blank_continuation",
        "comments",
        "end_line",
        "file",
        "text",
    )

    def __init__(self, file: SourceFile, comments: tuple[str, ...]) -> None:
        self.file = file
        self.text = ""
        #: texts of the comment lines before the instruction
        self.comments = comments
        #: last physical line, here-documents included
        self.end_line = 0
        #: line number of the last blank line inside a continuation, 0 for none
        self.blank_continuation = 0
        self._offsets: list[int] = []
        self._lines: list[int] = []
        self._columns: list[int] = []

    def add(self, text: str, line: int, column: int) -> None:
        """Append a piece that starts at ``column`` of physical ``line``."""
        self._offsets.append(len(self.text))
        self._lines.append(line)
        self._columns.append(column)
        self.text += text
        self.end_line = line

    def strip(self) -> None:
        """Drop surrounding white space, keeping positions right."""
        text = self.text.lstrip(SPACE)
        cut = len(self.text) - len(text)
        if cut:
            self._offsets = [o - cut for o in self._offsets]
        self.text = text.rstrip(SPACE)

    @property
    def start_line(self) -> int:
        """First physical line."""
        return self._lines[0]

    def position(self, offset: int) -> Position:
        """Return where the character at ``offset`` stands in the file."""
        i = max(bisect_right(self._offsets, offset) - 1, 0)
        return Position(self._lines[i], max(self._columns[i] + offset - self._offsets[i], 0))

    def span(self, start: int = 0, end: int | None = None) -> SourceRange:
        """Return the range of the characters ``start`` to ``end`` (exclusive)."""
        end = len(self.text) if end is None else end
        return SourceRange(self.file, self.position(start), self.position(max(end - 1, start)))

    def find(self, token: str, after: int = 0) -> SourceRange:
        """Return the range of ``token``, or of the whole line when it is not there verbatim."""
        at = self.text.find(token, after) if token else -1
        if at < 0:
            return self.span()
        return self.span(at, at + len(token))

    def whole(self) -> SourceRange:
        """Return the range of the instruction, here-documents included."""
        span = self.span()
        if self.end_line > span.end.line:
            return span._replace(end=Position(self.end_line, 0))
        return span

    def error(
        self, message: str, where: SourceRange | None = None, *, hint: str | None = None
    ) -> DockerfileError:
        """Make an error about this instruction, worded as BuildKit words it."""
        where = where or self.whole()
        summary = f"dockerfile parse error on line {where.start.line}: {message}"
        return DockerfileError(summary, source=where, hint=hint)
