"""``version``: one line, ``package version revision``, as buildx prints it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.cli.command import command as make_command

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("version", builder=False)
def command(_globals: Globals) -> None:
    """Show version information"""
    sys.stdout.write(f"crossdock v{__version__} {_revision()}\n")


def _revision() -> str:
    """Return the commit this was built from when it is known, else ``release``."""
    import os

    marker = os.path.join(os.path.dirname(__file__), "..", "_revision")
    try:
        with open(marker, encoding="ascii") as file:
            return file.read().strip() or "release"
    except FileNotFoundError:
        return "release"
