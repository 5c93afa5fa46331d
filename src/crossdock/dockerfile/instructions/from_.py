"""``FROM [--platform=P] image [AS name]``: begins a stage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction, doc_comment, parse_flags, text_flag
from crossdock.dockerfile.words import split_blank

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["From", "parse"]

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*\Z")


class From(Instruction):
    """The head of a stage; the base and platform are not yet expanded."""

    base: str
    #: lower case, empty for an unnamed stage
    name: str = ""
    platform: str = ""
    #: the name as written
    written_name: str = ""
    #: the word ``AS`` as written
    as_word: str = ""
    #: description from a comment ``# name text``
    description: str = ""


def parse(s: Statement) -> From:
    """Read a FROM.

    Raises: DockerfileError.
    """
    args = split_blank(s.rest)
    name = written = as_word = ""
    if len(args) == 3 and args[1].lower() == "as":
        as_word, written = args[1:]
        name = written.lower()
        if not _STAGE_NAME.match(name):
            message = f'invalid name for build stage: "{written}", name can\'t start with a number or contain symbols'
            raise s.error(message, written)
    elif len(args) != 1:
        message = "FROM requires either one or three arguments"
        raise s.error(message, hint="write FROM image, or FROM image AS name")
    flags = parse_flags(s, {"platform": str})
    return From(
        **s.common(),
        base=args[0],
        name=name,
        platform=text_flag(flags, "platform"),
        written_name=written,
        as_word=as_word,
        description=doc_comment(s.line.comments, name),
    )
