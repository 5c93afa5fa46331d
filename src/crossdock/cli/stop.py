"""``stop``: stop a builder's nodes; what they store stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.common import chosen_builder

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("stop [NAME]", args=(0, 1))
def command(globals_: Globals, args: tuple[str, ...]) -> None:
    """Stop builder instance"""
    from crossdock.builders.drivers.table import make_driver
    from crossdock.cancel import CancelToken

    group = chosen_builder(globals_, args[0] if args else None)
    cancel = CancelToken()
    for node in group.nodes:
        make_driver(group, node).stop(cancel)
