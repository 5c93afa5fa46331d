"""``history import`` and ``history open``: build records in Docker Desktop.

Spec: docker/buildx ``commands/history/import.go``, ``open.go``.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import chosen_builder
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from typing import BinaryIO

    from crossdock.cli.command import Globals

__all__ = ["import_", "open_"]


@make_command("open [OPTIONS] [REF]", args=(0, 1))
def open_(globals_: Globals, args: tuple[str, ...]) -> None:
    """Open a build record in Docker Desktop"""
    from crossdock.builders.desktop import build_url, open_url
    from crossdock.builders.records import find_one

    found = find_one(chosen_builder(globals_), args[0] if args else "")
    open_url(build_url(found.ref))


@make_command("import [OPTIONS] -", args=(0, 1))
@flag("-f", "--file", "file", kind="stringArray", help="Import from a file path")
def import_(_globals: Globals, args: tuple[str, ...], file: tuple[str, ...]) -> None:
    """Import build records into Docker Desktop"""
    from crossdock.builders.desktop import import_bundle, open_url

    if args not in ((), ("-",)) or (args and file):
        summary = f"history import takes no argument {args[0]!r}"
        raise UsageError(summary, hint="name a bundle with -f, or give it on standard input")
    urls: list[str] = []
    with contextlib.ExitStack() as stack:
        for bundle in [_opened(name, stack) for name in file or ("-",)]:
            urls += import_bundle(bundle)
    if not urls:
        summary = "no build records found in the bundle"
        raise BuilderError(summary)
    sys.stderr.write("".join(f"{url}\n" for url in urls))
    open_url(urls[0])


def _opened(name: str, stack: contextlib.ExitStack) -> BinaryIO:
    if name == "-":
        if sys.stdin.isatty():
            summary = "a bundle is read from standard input, which is the terminal"
            raise UsageError(summary, hint="name it with -f FILE")
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(name, "rb"))
    except OSError as exc:
        summary = f"cannot open the bundle {name}: {exc.strerror}"
        raise UsageError(summary) from exc
