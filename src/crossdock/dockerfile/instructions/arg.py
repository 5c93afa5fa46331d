"""``ARG name[=default] …``: declares build arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction, doc_comment
from crossdock.dockerfile.words import split_words
from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["Arg", "ArgItem", "parse"]


class ArgItem(Record):
    """One argument; ``value`` is ``None`` without a default, else not yet expanded."""

    name: str
    value: str | None = None
    #: from a comment ``# name text``
    description: str = ""


class Arg(Instruction):
    """``ARG``."""

    items: tuple[ArgItem, ...]


def parse(s: Statement) -> Arg:
    """Read an ARG.

    Raises: DockerfileError.
    """
    words = split_words(s.rest, s.escape)
    if not words:
        message = "ARG requires at least one argument"
        raise s.error(message)
    return Arg(**s.common(), items=tuple(_item(s, word) for word in words))


def _item(s: Statement, word: str) -> ArgItem:
    name, equals, value = word.partition("=")
    if equals and not name:
        message = "ARG names can not be blank"
        raise s.error(message, word)
    return ArgItem(name=name, value=value if equals else None, description=doc_comment(s.line.comments, name))
