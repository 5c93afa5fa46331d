"""``ENV name=value …`` and ``LABEL name=value …``, and their legacy form without ``=``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction
from crossdock.dockerfile.text import quote
from crossdock.dockerfile.words import split_pair, split_words
from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["Env", "KeyValue", "Label", "parse_env", "parse_label"]


class KeyValue(Record):
    """One assignment, not yet expanded."""

    key: str
    value: str
    #: written ``key value``
    legacy: bool = False


class Env(Instruction):
    """``ENV``."""

    pairs: tuple[KeyValue, ...]


class Label(Instruction):
    """``LABEL``."""

    pairs: tuple[KeyValue, ...]


def parse_env(s: Statement) -> Env:
    """Read an ENV.

    Raises: DockerfileError.
    """
    s.no_flags()
    return Env(**s.common(), pairs=_pairs(s, "ENV"))


def parse_label(s: Statement) -> Label:
    """Read a LABEL.

    Raises: DockerfileError.
    """
    s.no_flags()
    return Label(**s.common(), pairs=_pairs(s, "LABEL"))


def _pairs(s: Statement, name: str) -> tuple[KeyValue, ...]:
    words = split_words(s.rest, s.escape)
    if not words:
        message = f"{name} requires at least one argument"
        raise s.error(message)
    if "=" not in words[0]:
        parts = split_pair(s.rest)
        if len(parts) < 2:
            message = f"{name} must have two arguments"
            raise s.error(message, hint=f"write {name} name=value")
        return (KeyValue(key=parts[0], value=parts[1], legacy=True),)
    pairs: list[KeyValue] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            message = f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value"
            raise s.error(message, word, hint='quote a value that has spaces: name="some value"')
        if not key:
            message = f"{name} names can not be blank"
            raise s.error(message, word)
        pairs.append(KeyValue(key=key, value=value))
    return tuple(pairs)
