"""The root command: which commands exist, and where."""

from __future__ import annotations

from crossdock.cli.command import Group, SubCommand

__all__ = ["COMMANDS", "make_root"]

#: every command with the text help shows, so that help imports none of them
COMMANDS: dict[str, SubCommand] = {
    "bake": SubCommand("crossdock.cli.refused:bake", "Build from a file", aliases=("f",)),
    "binfmt": SubCommand("crossdock.cli.binfmt", "Manage host-wide QEMU handlers", group=True),
    "build": SubCommand("crossdock.cli.build", "Start a build", aliases=("b",)),
    "create": SubCommand("crossdock.cli.create", "Create a new builder instance"),
    "dap": SubCommand("crossdock.cli.refused:dap", "Start debug adapter protocol compatible debugger"),
    "debug": SubCommand("crossdock.cli.refused:debug", "Start debugger (EXPERIMENTAL)", experimental=True),
    "dial-stdio": SubCommand("crossdock.cli.dialstdio", "Proxy current stdio streams to builder instance"),
    "doctor": SubCommand("crossdock.cli.doctor", "Check what this machine can build and run"),
    "du": SubCommand("crossdock.cli.du", "Disk usage"),
    "help": SubCommand("crossdock.cli.helpcmd", "Help about any command", hidden=True),
    "history": SubCommand("crossdock.cli.history", "Commands to work on build records", group=True),
    "imagetools": SubCommand(
        "crossdock.cli.imagetools", "Commands to work on images in registry", group=True
    ),
    "inspect": SubCommand("crossdock.cli.inspect", "Inspect current builder instance"),
    "install": SubCommand("crossdock.cli.install:install", "Set docker build to use buildx", hidden=True),
    "ls": SubCommand("crossdock.cli.ls", "List builder instances"),
    "plugin": SubCommand(
        "crossdock.cli.plugin", "Install Crossdock as the docker CLI's buildx plugin", group=True
    ),
    "policy": SubCommand(
        "crossdock.cli.refused:policy", "Commands for working with build policies", group=True
    ),
    "prune": SubCommand("crossdock.cli.prune", "Remove build cache"),
    "rm": SubCommand("crossdock.cli.rm", "Remove one or more builder instances"),
    "serve": SubCommand("crossdock.cli.serve", "Serve the embedded engine over BuildKit's API"),
    "stop": SubCommand("crossdock.cli.stop", "Stop builder instance"),
    "store": SubCommand("crossdock.cli.store", "Look after the local store", group=True),
    "uninstall": SubCommand("crossdock.cli.install:uninstall", "Uninstall the buildx alias", hidden=True),
    "use": SubCommand("crossdock.cli.use", "Set the current builder instance"),
    "version": SubCommand("crossdock.cli.version", "Show version information"),
    "_worker": SubCommand("crossdock.cli.worker", "Run one build for a Python program", hidden=True),
}

_FOOTER = "Experimental commands and flags are hidden. Set BUILDX_EXPERIMENTAL=1 to show them."


def make_root() -> Group:
    """Return the root group."""
    return Group(
        "crossdock",
        help="Extended build capabilities, for every platform, without a daemon",
        table=COMMANDS,
        footer=_FOOTER,
    )
