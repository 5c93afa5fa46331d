"""Boot a builder's nodes, shown as build steps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.builders.model import NodeGroup
    from crossdock.cli.command import Globals

__all__ = ["boot"]


def boot(globals_: Globals, group: NodeGroup) -> None:
    """Start every node that is not running.

    An embedded builder is booted in a process of its own: booting needs a worker namespace, and the caller goes on
    outside it.

    Raises: what the driver raises.
    """
    from crossdock.builders.drivers.table import make_driver
    from crossdock.cli.interrupt import interruptible
    from crossdock.progress.display import Display, choose_mode, make_printer

    mode = choose_mode(None)
    with (
        interruptible(plugin=globals_.plugin) as cancel,
        Display(
            make_printer(mode, sys.stderr, short=f"{group.driver}:{group.name}", phase="Booting")
        ) as display,
    ):
        for node in group.nodes:
            driver = make_driver(group, node)
            if driver.info(cancel).status != "running":
                driver.bootstrap(display, cancel)
