"""Where the client puts what a daemon sends back."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["DirectoryTarget", "StreamTarget"]


class DirectoryTarget(Record):
    """A directory to fill; ``mirror`` removes what is not sent."""

    path: Path
    mirror: bool = False


class StreamTarget(Record):
    """A byte stream to write; ``finish(ok)`` closes it, and removes it again when not ``ok``."""

    open: Callable[[Mapping[str, str]], BinaryIO]
    finish: Callable[[BinaryIO, bool], None]
