"""``_worker FD``: the process behind the Python API's embedded builds; not for users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("_worker FD", args=(1, 1), builder=False, hidden=True)
def command(_globals: Globals, args: tuple[str, ...]) -> int:
    """Run one build for a Python program"""
    from crossdock.builders.embedded.child import serve

    if not args[0].isdigit():
        summary = f"not a file descriptor: {args[0]}"
        raise UsageError(summary)
    return serve(int(args[0]))
