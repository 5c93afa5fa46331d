"""``create``: make a builder, add or change one of its nodes, or remove a node."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import timeout_flag
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from crossdock.builders.create import CreateOptions
    from crossdock.builders.model import NodeGroup
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("create [OPTIONS] [CONTEXT|ENDPOINT]", args=(0, 1), builder=False)
@flag("--append", kind="bool", help="Append a node to builder instead of changing it")
@flag("--bootstrap", kind="bool", help="Boot builder after creation")
@flag("--buildkitd-config", help="BuildKit daemon config file")
@flag("--config", "config", hidden=True, help="Old name of --buildkitd-config")
@flag("--buildkitd-flags", help="BuildKit daemon flags")
@flag(
    "--driver",
    help='Driver to use (available: "embedded", "docker-container", "kubernetes", "remote")',
)
@flag("--driver-opt", kind="stringArray", help="Options for the driver")
@flag("--leave", kind="bool", help="Remove a node from builder instead of changing it")
@flag("--name", help="Builder instance name")
@flag("--node", help="Create/modify node with given name")
@flag("--platform", kind="stringArray", help="Fixed platforms for current node")
@timeout_flag()
@flag("--use", kind="bool", help="Set the current builder instance")
def command(globals_: Globals, args: tuple[str, ...], **flags: object) -> None:
    """Create a new builder instance"""
    from crossdock.builders.create import create, leave

    options = _options(args, flags)
    if flags["leave"]:
        if not options.name or not options.node:
            missing = "instance" if not options.name else "node"
            summary = f"leave requires {missing} name"
            raise UsageError(summary, hint="give --name and --node")
        leave(options.name, options.node)
        return
    group = create(options)
    if flags["bootstrap"]:
        _boot(globals_, group)
    sys.stdout.write(group.name + "\n")


def _options(args: tuple[str, ...], flags: dict[str, object]) -> CreateOptions:
    from crossdock.builders.create import CreateOptions
    from crossdock.builders.values import parse_key_values

    driver_opts = [str(v) for v in _list(flags["driver_opt"])]
    daemon_flags = flags["buildkitd_flags"]
    config = str(flags["buildkitd_config"] or flags["config"] or "")
    return CreateOptions(
        name=str(flags["name"] or ""),
        driver=str(flags["driver"] or ""),
        node=str(flags["node"] or ""),
        platforms=tuple(str(v) for v in _list(flags["platform"])),
        endpoint=args[0] if args else "",
        driver_opts=parse_key_values(driver_opts) if driver_opts else None,
        daemon_flags=_split_shell(str(daemon_flags)) if daemon_flags else None,
        daemon_config=_checked_file(config),
        append=bool(flags["append"]),
        use=bool(flags["use"]),
    )


def _list(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _split_shell(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError as exc:
        summary = f"failed to parse buildkit flags: {exc}"
        raise UsageError(summary) from exc


def _checked_file(path: str) -> str:
    if path and not os.path.isfile(path):
        summary = f"buildkitd config file {path} does not exist"
        raise BuilderError(summary)
    return path


def _boot(globals_: Globals, group: NodeGroup) -> None:
    from crossdock.cli.boot import boot

    boot(globals_, group)
