"""Where the client puts what a daemon sends back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = ["DirectoryTarget", "Sink", "StreamTarget"]


class DirectoryTarget(Record):
    """A directory to fill; ``mirror`` removes what is not sent."""

    path: Path
    mirror: bool = False


class Sink(Protocol):
    """What takes the bytes of a stream: a binary file, for one."""

    def writelines(self, parts: Iterable[bytes], /) -> None:
        """Take some bytes."""


class StreamTarget(Record):
    """A byte stream to write; ``finish(stream, ok)`` closes it, and removes it again when not ``ok``."""

    open: Callable[[Mapping[str, str]], Sink]
    finish: Callable[[Any, bool], None]
