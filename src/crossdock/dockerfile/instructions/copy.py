"""``COPY`` and ``ADD``: files, here-documents and (ADD only) URLs into the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.expand import ExpandError
from crossdock.dockerfile.heredoc import Heredoc, parse_heredoc, strip_tabs
from crossdock.dockerfile.instructions.base import (
    InlineFile,
    Instruction,
    bool_flag,
    list_flag,
    parse_flags,
    text_flag,
)
from crossdock.dockerfile.words import split_blank

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["Add", "Copy", "FileInstruction", "parse_add", "parse_copy"]

_ADD_FLAGS: dict[str, type] = {
    "chown": str,
    "chmod": str,
    "link": bool,
    "keep-git-dir": bool,
    "checksum": str,
    "unpack": bool,
    "exclude": list,
}
_COPY_FLAGS: dict[str, type] = {
    "chown": str,
    "from": str,
    "chmod": str,
    "link": bool,
    "exclude": list,
    "parents": bool,
}


class FileInstruction(Instruction):
    """What COPY and ADD share; nothing is expanded yet."""

    sources: tuple[str, ...]
    #: here-documents among the sources
    files: tuple[InlineFile, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    #: patterns relative to each source
    exclude: tuple[str, ...] = ()


class Copy(FileInstruction):
    """``COPY``."""

    from_: str = ""
    parents: bool = False


class Add(FileInstruction):
    """``ADD``; ``None`` for flags that were not given."""

    keep_git_dir: bool | None = None
    checksum: str = ""
    unpack: bool | None = None


def parse_copy(s: Statement) -> Copy:
    """Read a COPY.

    Raises: DockerfileError.
    """
    args = _arguments(s, "COPY")
    flags = parse_flags(s, _COPY_FLAGS)
    sources, files, destination = _sources(s, args, "COPY")
    return Copy(
        **s.common(),
        sources=sources,
        files=files,
        destination=destination,
        chown=text_flag(flags, "chown"),
        chmod=text_flag(flags, "chmod"),
        link=bool_flag(flags, "link") or False,
        exclude=list_flag(flags, "exclude"),
        from_=text_flag(flags, "from"),
        parents=bool_flag(flags, "parents") or False,
    )


def parse_add(s: Statement) -> Add:
    """Read an ADD.

    Raises: DockerfileError.
    """
    args = _arguments(s, "ADD")
    flags = parse_flags(s, _ADD_FLAGS)
    sources, files, destination = _sources(s, args, "ADD")
    return Add(
        **s.common(),
        sources=sources,
        files=files,
        destination=destination,
        chown=text_flag(flags, "chown"),
        chmod=text_flag(flags, "chmod"),
        link=bool_flag(flags, "link") or False,
        exclude=list_flag(flags, "exclude"),
        keep_git_dir=bool_flag(flags, "keep-git-dir"),
        checksum=text_flag(flags, "checksum"),
        unpack=bool_flag(flags, "unpack"),
    )


def _arguments(s: Statement, name: str) -> list[str]:
    json = s.json()
    args = split_blank(s.rest) if json is None else json
    if len(args) < 2:
        message = (
            f"{name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
        raise s.error(message, hint=f"write {name} source destination")
    return args


def _mark(word: str) -> Heredoc | None:
    try:
        return parse_heredoc(word)
    except ExpandError:
        return None


def _sources(s: Statement, args: list[str], name: str) -> tuple[tuple[str, ...], tuple[InlineFile, ...], str]:
    destination = args[-1]
    if _mark(destination) is not None:
        message = f"{name} cannot accept a heredoc as a destination"
        raise s.error(message, destination)
    contents = {h.name: h.content for h in s.heredocs}
    sources: list[str] = []
    files: list[InlineFile] = []
    for word in args[:-1]:
        mark = _mark(word)
        if mark is None:
            sources.append(word)
            continue
        data = contents.get(mark.name, "")
        if mark.strip:
            data = strip_tabs(data)
        files.append(InlineFile(name=mark.name, data=data, expand=mark.expand, strip=mark.strip))
    return tuple(sources), tuple(files), destination
