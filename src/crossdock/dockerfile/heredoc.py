"""Here-documents: ``<<EOF``, ``<<-EOF``, quoted delimiters, several on a line.

Spec: Dockerfile reference "Here-documents".
"""

from __future__ import annotations

import re

from crossdock.dockerfile.expand import ExpandError, expand_words
from crossdock.record import Record

__all__ = ["Heredoc", "heredocs_in", "parse_heredoc", "strip_tabs"]

#: compiled on first use
_MARK = r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)\Z"
_NO_ENV: dict[str, str] = {}


class Heredoc(Record):
    """One here-document of an instruction."""

    #: the delimiter, without its quotes
    name: str
    #: whether variables in the body are expanded (the delimiter was not quoted)
    expand: bool = True
    #: ``<<-``: leading tabs are removed
    strip: bool = False
    #: number before ``<<``, 0 when absent
    fd: int = 0
    #: the body, line ends as written, tabs not yet removed
    content: str = ""


def parse_heredoc(word: str) -> Heredoc | None:
    """Read a word as a here-document mark; ``None`` when it is not one.

    Raises: ExpandError when the delimiter's quotes do not match.
    """
    if "<<" not in word:
        return None
    found = re.match(_MARK, word)
    if found is None or not found[3]:
        return None
    words = expand_words(found[3], _NO_ENV, keep_unset=True)
    if len(words) != 1:
        return None
    raw = expand_words(found[3], _NO_ENV, keep_unset=True, keep_quotes=True)
    name = words[0]
    quoted = len(raw) != 1 or _quotes(raw[0]) != _quotes(name)
    return Heredoc(name=name, expand=not quoted, strip=found[2] == "-", fd=int(found[1][:9] or 0))


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


def heredocs_in(line: str) -> list[Heredoc]:
    """Find the here-document marks of a logical line, in order.

    Raises: ExpandError for a malformed delimiter.
    """
    if "<<" not in line:
        return []
    try:
        words = expand_words(line, _NO_ENV, keep_quotes=True, keep_escapes=True, keep_unset=True)
    except ExpandError:
        return []  # a shell line we cannot split: the shell will judge it
    return [h for h in map(parse_heredoc, words) if h is not None]


def strip_tabs(body: str) -> str:
    """Remove the leading tabs of every line."""
    return re.sub(r"(?m)^\t+", "", body)
