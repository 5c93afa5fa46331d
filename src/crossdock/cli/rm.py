"""``rm``: remove builders."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import confirm, timeout_flag
from crossdock.errors import BuilderError, CrossdockError, NotSupported, UsageError

if TYPE_CHECKING:
    from crossdock.builders.model import NodeGroup
    from crossdock.cli.command import Globals

__all__ = ["command"]

_WARNING = (
    "WARNING! This will remove all builders that are not in running state. Are you sure you want to continue?"
)


@make_command("rm [OPTIONS] [NAME...]", args=(0, None))
@flag("--all-inactive", kind="bool", help="Remove all inactive builders")
@flag("-f", "--force", kind="bool", help="Do not prompt for confirmation")
@flag("--keep-daemon", kind="bool", help="Keep the BuildKit daemon running")
@flag("--keep-state", kind="bool", help="Keep BuildKit state")
@timeout_flag()
def command(
    globals_: Globals,
    args: tuple[str, ...],
    all_inactive: bool,
    force: bool,
    keep_daemon: bool,
    keep_state: bool,
    timeout: float,
) -> None:
    """Remove one or more builder instances"""
    if all_inactive:
        if args:
            summary = "cannot specify builder name when --all-inactive is set"
            raise UsageError(summary)
        if force or confirm(_WARNING):
            _remove_inactive(timeout, keep_daemon=keep_daemon, keep_state=keep_state)
        return
    names = args or ((globals_.builder,) if globals_.builder else (_current_name(),))
    failed = False
    for name in names:
        try:
            _remove_named(name, keep_daemon=keep_daemon, keep_state=keep_state)
        except CrossdockError as exc:
            sys.stderr.write(f"failed to remove {name}: {exc.summary}\n")
            failed = True
        else:
            sys.stderr.write(f"{name} removed\n")
    if failed:
        summary = "failed to remove one or more builders"
        raise BuilderError(summary)


def _current_name() -> str:
    from crossdock.builders.select import current_builder

    return current_builder().name


def _remove_named(name: str, *, keep_daemon: bool, keep_state: bool) -> None:
    from crossdock.builders.select import EMBEDDED, find_builder
    from crossdock.builders.store import BuilderStore

    store = BuilderStore()
    if name == EMBEDDED and store.exists():
        with store.transaction() as txn:
            if txn.get(name) is not None:  # written down by `use`; without it the built-in one is back
                txn.remove(name)
                return
    group = find_builder(name, store)
    if group.built_in:
        summary = "the built-in builder cannot be removed"
        raise BuilderError(summary)
    if group.docker_context:
        summary = f"context builder cannot be removed, run `docker context rm {name}` to remove this context"
        raise BuilderError(summary)
    _remove(group, store, keep_daemon=keep_daemon, keep_state=keep_state)


def _remove(group: NodeGroup, store: object, *, keep_daemon: bool, keep_state: bool) -> None:
    from crossdock.builders.drivers.table import make_driver
    from crossdock.builders.store import BuilderStore
    from crossdock.cancel import CancelToken

    failure: CrossdockError | None = None
    if not keep_daemon:
        for node in group.nodes:
            try:
                driver = make_driver(group, node)
                driver.stop(CancelToken())
                driver.rm(CancelToken(), keep_state=keep_state, keep_daemon=keep_daemon)
            except NotSupported:
                # Nothing of ours runs there; the entry goes, what runs elsewhere is its owner's.
                sys.stderr.write(
                    f"NOTICE: node {node.name} was not stopped: this version cannot use the driver {group.driver}\n"
                )
            except CrossdockError as exc:
                failure = failure or exc
    with (store if isinstance(store, BuilderStore) else BuilderStore()).transaction() as txn:
        txn.remove(group.name)
    if failure is not None:
        raise failure


def _remove_inactive(timeout_s: float, *, keep_daemon: bool, keep_state: bool) -> None:
    from crossdock.builders.status import load_status
    from crossdock.builders.store import BuilderStore
    from crossdock.cancel import CancelToken

    store = BuilderStore()
    with store.transaction() as txn:
        groups = txn.list()
    for status in load_status(groups, timeout_s=timeout_s, cancel=CancelToken()):
        if status.error is None and status.inactive and not status.group.dynamic:
            _remove(status.group, store, keep_daemon=keep_daemon, keep_state=keep_state)
            sys.stderr.write(f"{status.group.name} removed\n")
