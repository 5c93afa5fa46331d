"""``store``: look after the embedded engine's store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from crossdock.cli.command import Group, SubCommand, flag
from crossdock.cli.command import command as make_command
from crossdock.errors import StoreError, UsageError

if TYPE_CHECKING:
    from crossdock.builders.drivers.embedded import EmbeddedDriver
    from crossdock.cli.command import Globals

__all__ = ["check", "command"]

command = Group(
    "store",
    help="Look after the local store",
    table={
        "check": SubCommand("crossdock.cli.store:check", "Look for damage in the local store, and repair it")
    },
)


@make_command("check [OPTIONS]")
@flag("--no-contents", kind="bool", help="Compare sizes only, without reading every blob")
@flag("--repair", kind="bool", help="Drop what is damaged, so that builds make or fetch it again")
def check(globals_: Globals, no_contents: bool, repair: bool) -> int:
    """Look for damage in the local store, and repair it"""
    from crossdock.builders.drivers.table import make_driver
    from crossdock.cli.common import chosen_builder, enter_worker
    from crossdock.cli.interrupt import interruptible

    group = chosen_builder(globals_)
    if group.driver != "embedded":
        summary = f"builder {group.name!r} keeps its store elsewhere"
        raise UsageError(summary, hint="name an embedded builder with --builder")
    driver = cast("EmbeddedDriver", make_driver(group, group.nodes[0]))
    enter_worker()
    with interruptible(plugin=globals_.plugin) as cancel:
        problems = driver.check_store(cancel, repair=repair, contents=not no_contents)
    for problem in problems:
        state = " (repaired)" if problem.repaired else ""
        sys.stdout.write(f"{problem.kind} {problem.subject}: {problem.text}{state}\n")
    left = sum(not p.repaired for p in problems)
    if left:
        summary = f"the store has {left} problem{'s' if left > 1 else ''}"
        raise StoreError(summary, hint="--repair drops what is damaged; builds make or fetch it again")
    sys.stdout.write(f"{driver.root}: {'repaired' if problems else 'no problems found'}\n")
    return 0
