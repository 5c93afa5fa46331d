"""``help [COMMAND]``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from crossdock.cli.command import Group
from crossdock.cli.command import command as make_command

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("help [COMMAND]", args=(0, None), builder=False)
def command(globals_: Globals, args: tuple[str, ...]) -> None:
    """Help about any command"""
    from crossdock.cli.root import make_root

    current: click.Command = make_root()
    ctx = click.Context(current, info_name=globals_.program, obj=globals_)
    for word in args:
        if not isinstance(current, Group):
            break
        _, found, _ = current.resolve_command(ctx, [word])
        if found is None:
            break
        ctx = click.Context(found, info_name=found.name, parent=ctx)
        current = found
    sys.stdout.write(ctx.get_help() + "\n")
