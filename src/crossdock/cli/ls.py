"""``ls``: all builders and their nodes, in buildx's layout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import timeout_flag
from crossdock.cli.platforms import platform_words, shorten
from crossdock.cli.table import format_rows, is_table

if TYPE_CHECKING:
    from crossdock.builders.model import NodeGroup
    from crossdock.builders.status import BuilderStatus, NodeStatus
    from crossdock.cli.command import Globals

__all__ = ["command"]

_HEADERS = {
    "Name": "NAME/NODE",
    "DriverEndpoint": "DRIVER/ENDPOINT",
    "LastActivity": "LAST ACTIVITY",
    "Status": "STATUS",
    "Buildkit": "BUILDKIT",
    "Platforms": "PLATFORMS",
    "Error": "ERROR",
}
_DEFAULT = "table {{.Name}}\t{{.DriverEndpoint}}\t{{.Status}}\t{{.Buildkit}}\t{{.Platforms}}"
_INDENT = " \\_ "


@make_command("ls [OPTIONS]", builder=False)
@flag("--format", default="table", help="Format the output")
@flag("--no-trunc", kind="bool", help="Don't truncate output")
@timeout_flag()
def command(globals_: Globals, format: str, no_trunc: bool, timeout: float) -> None:
    """List builder instances"""
    from crossdock.builders.status import load_status
    from crossdock.cancel import CancelToken

    groups, current = _groups(globals_)
    statuses = load_status(groups, timeout_s=timeout, cancel=CancelToken())
    statuses = [s for s in statuses if not _unreachable_default(s, current)]
    statuses.sort(key=lambda s: s.error is not None)
    table = is_table(format)
    rows: list[dict[str, Any]] = []
    for status in statuses:
        rows.append(_builder_row(status, current, table=table))
        rows += [_node_row(node, table=table, no_trunc=no_trunc) for node in status.nodes]
    objects = [builder_json(s, current) for s in statuses]
    sys.stdout.write(format_rows(format, rows, default_table=_DEFAULT, headers=_HEADERS, json_rows=objects))
    if table:
        _write_errors(statuses)


def _groups(globals_: Globals) -> tuple[list[NodeGroup], str]:
    from crossdock.builders.select import built_in, current_builder, list_all
    from crossdock.builders.store import BuilderStore

    store = BuilderStore()
    current = current_builder(plugin=globals_.plugin, store=store)
    if not store.exists() and not globals_.plugin:
        return [built_in()], current.name
    with store.transaction() as txn:
        return list_all(txn), current.name


def _unreachable_default(status: BuilderStatus, current: str) -> bool:
    """Leave out docker's default builder where there is no docker: it is news to nobody."""
    group = status.group
    if not (group.docker_context and group.name == "default") or group.name == current:
        return False
    if not status.inactive:
        return False
    from crossdock.builders.dockerconfig import endpoint_of
    from crossdock.builders.dockerengine import ping

    return ping(endpoint_of(group.name)) is None


def _builder_row(status: BuilderStatus, current: str, *, table: bool) -> dict[str, Any]:
    group = status.group
    mark = "*" if table and group.name == current else ""
    return {
        "Name": group.name + mark,
        "DriverEndpoint": group.driver,
        "LastActivity": _stamp(group.last_activity),
        "Status": "error" if status.error is not None else "",
        "Buildkit": "",
        "Platforms": "",
        "Error": status.error.summary if status.error is not None else "",
        "Builder": builder_json(status, current),
    }


def _node_row(status: NodeStatus, *, table: bool, no_trunc: bool) -> dict[str, Any]:
    prefix = _INDENT if table else ""
    words = platform_words(status.node.platforms, status.info.platforms if status.info else ())
    return {
        "Name": prefix + status.node.name,
        "DriverEndpoint": prefix + status.node.endpoint,
        "LastActivity": "",
        "Status": status.status,
        "Buildkit": status.info.version if status.info else "",
        "Platforms": shorten(words) if table and not no_trunc else ", ".join(words),
        "Error": status.error.summary if status.error is not None else "",
        "Builder": {},
    }


def _stamp(seconds: float | None) -> str:
    if seconds is None:
        return ""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def builder_json(status: BuilderStatus, current: str) -> dict[str, Any]:
    """Return a builder as ``ls --format json`` prints it."""
    group = status.group
    out: dict[str, Any] = {
        "Current": group.name == current,
        "Driver": group.driver,
        "Dynamic": group.dynamic,
        "LastActivity": _stamp(group.last_activity) or "0001-01-01T00:00:00Z",
        "Name": group.name,
        "Nodes": [_node_json(n) for n in status.nodes],
    }
    if status.error is not None:
        out["Err"] = status.error.summary
    return out


def _node_json(status: NodeStatus) -> dict[str, Any]:
    node, info = status.node, status.info
    optional = {
        "Flags": node.flags,
        "DriverOpts": node.driver_opts,
        "Status": info.status if info else "",
        "Version": info.version if info else "",
        "Err": status.error.summary if status.error is not None else "",
        "Platforms": [w.rstrip("*") for w in platform_words(node.platforms, info.platforms if info else ())],
        "Labels": dict(info.labels) if info else {},
    }
    return {"Name": node.name, "Endpoint": node.endpoint, **{k: v for k, v in optional.items() if v}}


def _write_errors(statuses: list[BuilderStatus]) -> None:
    lines = []
    for status in statuses:
        if status.error is not None:
            lines.append(f"Cannot load builder {status.group.name}: {status.error.summary}")
        lines += [
            f"Failed to get status for {status.group.name} ({n.node.name}): {n.error.summary}"
            for n in status.nodes
            if n.error is not None
        ]
    if lines:
        sys.stderr.write("\n" + "".join(line + "\n" for line in lines))
