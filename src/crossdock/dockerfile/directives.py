"""Parser directives: ``# syntax=``, ``# escape=``, ``# check=`` in the first lines of the file.

Spec: Dockerfile reference "Parser directives"; moby/buildkit ``frontend/dockerfile/parser`` for the ``//`` and
JSON forms of ``syntax``.
"""

from __future__ import annotations

import re

from crossdock.dockerfile.source import decode
from crossdock.dockerfile.text import SPACE
from crossdock.errors import DockerfileError, Position, SourceFile, SourceRange
from crossdock.record import Record

__all__ = ["Directive", "DirectiveReader", "detect_syntax"]

#: compiled on first use
_FORM = r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*\Z"
_KNOWN = frozenset(["syntax", "escape", "check"])


class Directive(Record):
    """One parser directive; the name is lower case."""

    name: str
    value: str
    where: SourceRange


class DirectiveReader:
    """Reads the directive zone line by line; the first line that is no known directive ends it."""

    __slots__ = ("_done", "_file", "_line", "_prefix", "_seen")

    def __init__(self, file: SourceFile, prefix: str = "#", line: int = 0) -> None:
        self._file = file
        self._prefix = prefix
        self._line = line
        self._seen: set[str] = set()
        self._done = False

    @property
    def done(self) -> bool:
        """True after the end of the zone."""
        return self._done

    def read(self, line: str) -> Directive | None:
        """Take the next line, without its line end.

        Raises: DockerfileError when a directive is repeated.
        """
        self._line += 1
        if self._done:
            return None
        found = None
        if line.startswith(self._prefix):
            found = re.match(_FORM, line[len(self._prefix) :].lstrip(SPACE))
        if found is None or found[1].lower() not in _KNOWN:
            self._done = True
            return None
        name = found[1].lower()
        where = SourceRange(self._file, Position(self._line, 0), Position(self._line, max(len(line) - 1, 0)))
        if name in self._seen:
            summary = f"only one {name} parser directive can be used"
            raise DockerfileError(summary, source=where)
        self._seen.add(name)
        return Directive(name=name, value=found[2], where=where)


def detect_syntax(data: bytes, name: str = "Dockerfile") -> Directive | None:
    """Find which frontend a build file asks for; ``value`` is the image and what follows it on the line.

    Understands ``# syntax=``, ``// syntax=`` and a JSON document with a ``syntax`` key; skips a ``#!`` line.
    """
    text = decode(data)
    file = SourceFile(name, text)
    line = 0
    if text.startswith("#!"):
        text = text.partition("\n")[2]
        line = 1
    for prefix in ("#", "//"):
        reader = DirectiveReader(file, prefix, line)
        for physical in text.split("\n"):
            try:
                directive = reader.read(physical.removesuffix("\r"))
            except DockerfileError:
                break
            if directive is not None and directive.name == "syntax":
                return directive
            if reader.done:
                break
    return _json_syntax(text, file, line)


def _json_syntax(text: str, file: SourceFile, line: int) -> Directive | None:
    if not text.lstrip(SPACE).startswith("{"):
        return None
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    syntax = value.get("syntax") if isinstance(value, dict) else None
    if not isinstance(syntax, str) or not syntax:
        return None
    here = Position(line + 1, 0)
    return Directive(name="syntax", value=syntax, where=SourceRange(file, here, here))
