"""Instructions that only set a field of the image: MAINTAINER, EXPOSE, USER, VOLUME, WORKDIR, STOPSIGNAL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction
from crossdock.dockerfile.text import SPACE
from crossdock.dockerfile.words import split_blank

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = [
    "Expose",
    "Maintainer",
    "StopSignal",
    "User",
    "Volume",
    "Workdir",
    "parse_expose",
    "parse_maintainer",
    "parse_stopsignal",
    "parse_user",
    "parse_volume",
    "parse_workdir",
]


class Maintainer(Instruction):
    """``MAINTAINER``, deprecated: the image's author."""

    author: str


class Expose(Instruction):
    """``EXPOSE``; sorted, not yet expanded."""

    ports: tuple[str, ...]


class User(Instruction):
    """``USER name-or-id[:group]``."""

    user: str


class Volume(Instruction):
    """``VOLUME``: mount points."""

    paths: tuple[str, ...]


class Workdir(Instruction):
    """``WORKDIR``."""

    path: str


class StopSignal(Instruction):
    """``STOPSIGNAL`` name or number."""

    signal: str


def parse_maintainer(s: Statement) -> Maintainer:
    """Read a MAINTAINER."""
    author = s.one_argument("MAINTAINER")
    s.no_flags()
    return Maintainer(**s.common(), author=author)


def parse_expose(s: Statement) -> Expose:
    """Read an EXPOSE."""
    ports = split_blank(s.rest)
    if not ports:
        message = "EXPOSE requires at least one argument"
        raise s.error(message)
    s.no_flags()
    return Expose(**s.common(), ports=tuple(sorted(ports)))


def parse_user(s: Statement) -> User:
    """Read a USER."""
    user = s.one_argument("USER")
    s.no_flags()
    return User(**s.common(), user=user)


def parse_volume(s: Statement) -> Volume:
    """Read a VOLUME."""
    args = s.json()
    paths = split_blank(s.rest) if args is None else args
    if not paths:
        message = "VOLUME requires at least one argument"
        raise s.error(message)
    s.no_flags()
    cleaned = tuple(p.strip(SPACE) for p in paths)
    if "" in cleaned:
        message = "VOLUME specified can not be an empty string"
        raise s.error(message)
    return Volume(**s.common(), paths=cleaned)


def parse_workdir(s: Statement) -> Workdir:
    """Read a WORKDIR."""
    path = s.one_argument("WORKDIR")
    s.no_flags()
    return Workdir(**s.common(), path=path)


def parse_stopsignal(s: Statement) -> StopSignal:
    """Read a STOPSIGNAL."""
    return StopSignal(**s.common(), signal=s.one_argument("STOPSIGNAL"))
