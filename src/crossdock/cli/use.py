"""``use``: choose the builder for later commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("use [OPTIONS] NAME", args=(0, 1))
@flag("--default", kind="bool", help="Set builder as default for current context")
@flag("--global", "global_", kind="bool", help="Builder persists context changes")
def command(globals_: Globals, args: tuple[str, ...], default: bool, global_: bool) -> None:
    """Set the current builder instance"""
    from crossdock.builders.dockerconfig import current_endpoint_key
    from crossdock.builders.select import EMBEDDED, built_in
    from crossdock.builders.store import BuilderStore

    name = args[0] if args else globals_.builder
    if not name:
        summary = "use needs the name of a builder"
        raise UsageError(summary, hint="`ls` lists the builders")
    with BuilderStore().transaction() as txn:
        key = current_endpoint_key()
        if name == EMBEDDED and not (globals_.plugin or default or global_):
            # It is what `crossdock` uses when nothing is chosen; buildx keeps its own default this way.
            txn.set_current(key, "")
            return
        if name == EMBEDDED and txn.get(name) is None:
            # Under docker its own default comes first, so the choice must be written down.
            txn.save(built_in())
        group = txn.get(name)
        if group is not None:
            txn.set_current(key, group.name, global_=global_, default=default)
        else:
            _use_context(name)
            txn.set_current(key, "")


def _use_context(name: str) -> None:
    """Refuse a docker context that is not the current one; the current one means: nothing chosen."""
    from crossdock.builders.dockerconfig import context_names, current_context

    if name == current_context():
        return
    if name == "default" or name in context_names():
        summary = f"run `docker context use {name}` to switch to context {name}"
        raise BuilderError(summary)
    summary = f"failed to find instance {name!r}"
    raise BuilderError(summary, hint="`ls` lists the builders, `create` makes one")
