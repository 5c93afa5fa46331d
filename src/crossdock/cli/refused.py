"""Commands that this version does not have: each ends with one clear sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from crossdock.cli.command import Command
from crossdock.cli.root import COMMANDS
from crossdock.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bake", "dap", "debug", "policy"]


def _refused(name: str, usage: str, why: str, hint: str = "") -> Command:
    def refuse(**_values: object) -> NoReturn:
        summary = f"`{name}` is not available: {why}"
        raise NotSupported(summary, hint=hint or None)

    callback: Callable[..., NoReturn] = refuse
    command = Command(
        name=name,
        callback=callback,
        params=[click.Argument(["args"], nargs=-1, type=click.UNPROCESSED)],
        help=COMMANDS[name].short,
        context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    )
    command.usage_line, command.arg_range = usage, (0, None)
    command.aliases = COMMANDS[name].aliases
    return command


bake = _refused(
    "bake",
    "bake [OPTIONS] [TARGET...]",
    "this version builds one Dockerfile at a time",
    "use `build` for each target",
)
dap = _refused("dap", "dap build [OPTIONS] PATH", "this version has no debugger")
debug = _refused("debug", "debug [OPTIONS] COMMAND", "this version has no debugger")
policy = _refused("policy", "policy COMMAND", "this version evaluates no policies")
