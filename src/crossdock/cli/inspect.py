"""``inspect``: one builder in detail."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import chosen_builder, timeout_flag
from crossdock.cli.platforms import platform_words
from crossdock.cli.table import align_columns
from crossdock.cli.values import binary_size

if TYPE_CHECKING:
    from crossdock.builders.drivers.base import NodeInfo
    from crossdock.builders.status import BuilderStatus, NodeStatus
    from crossdock.cli.command import Globals

__all__ = ["command"]


@make_command("inspect [NAME]", args=(0, 1))
@flag("--bootstrap", kind="bool", help="Ensure builder has booted before inspecting")
@timeout_flag()
def command(globals_: Globals, args: tuple[str, ...], bootstrap: bool, timeout: float) -> None:
    """Inspect current builder instance"""
    from crossdock.builders.status import load_status
    from crossdock.cancel import CancelToken

    group = chosen_builder(globals_, args[0] if args else None)
    if bootstrap:
        from crossdock.cli.boot import boot

        boot(globals_, group)
    (status,) = load_status([group], timeout_s=timeout, cancel=CancelToken())
    rows = _builder_rows(status)
    for number, node in enumerate(status.nodes):
        rows += [()] if number else [(), ("Nodes:",)]
        rows += _node_rows(node, debug=globals_.debug)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in _aligned(rows)))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Align as Go's tabwriter does: a column ends at the first row that lacks it."""
    out: list[str] = []
    block: list[tuple[str, ...]] = []
    for row in [*rows, ()]:
        if len(row) >= 2:
            block.append(row)
            continue
        out += align_columns(block)
        block = []
        out.append(row[0] if row else "")
    return out[:-1]


def _builder_rows(status: BuilderStatus) -> list[tuple[str, ...]]:
    group = status.group
    rows: list[tuple[str, ...]] = [("Name:", group.name), ("Driver:", group.driver)]
    if group.last_activity is not None:
        from datetime import UTC, datetime

        stamp = datetime.fromtimestamp(group.last_activity, UTC)
        rows.append(("Last Activity:", stamp.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")))
    if status.error is not None:
        rows.append(("Error:", status.error.summary))
    return rows


def _node_rows(status: NodeStatus, *, debug: bool) -> list[tuple[str, ...]]:
    node, info = status.node, status.info
    rows: list[tuple[str, ...]] = [("Name:", node.name), ("Endpoint:", node.endpoint)]
    if node.driver_opts:
        rows.append(("Driver Options:", " ".join(f'{k}="{v}"' for k, v in sorted(node.driver_opts.items()))))
    if status.error is not None or info is None:
        rows.append(("Error:", status.error.summary if status.error is not None else "unknown"))
        return rows
    rows.append(("Status:", info.status))
    if node.flags:
        rows.append(("BuildKit daemon flags:", " ".join(node.flags)))
    if info.version:
        rows.append(("BuildKit version:", info.version))
    words = platform_words(node.platforms, info.platforms)
    if words:
        rows.append(("Platforms:", ", ".join(words)))
    return rows + _detail_rows(info, debug=debug) + _file_rows(node.files)


def _detail_rows(info: NodeInfo, *, debug: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if info.notes:
        rows.append(("Execution:",))
        rows += [(f" {name}:", how.strip()) for name, _, how in (n.partition(":") for n in info.notes)]
    if debug and info.features:
        rows.append(("Features:",))
        rows += [(f" {name}:", str(on).lower()) for name, on in sorted(info.features.items())]
    if info.labels:
        rows.append(("Labels:",))
        rows += [(f" {name}:", value) for name, value in sorted(info.labels.items())]
    return rows + _device_rows(info) + _policy_rows(info)


def _device_rows(info: NodeInfo) -> list[tuple[str, ...]]:
    return [("Devices:",), *((" Name:", name) for name in info.devices)] if info.devices else []


def _policy_rows(info: NodeInfo) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, policy in enumerate(info.gc_policies):
        rows += [(f"GC Policy rule#{number}:",), (" All:", str(policy.all).lower())]
        if policy.filters:
            rows.append((" Filters:", " ".join(policy.filters)))
        if policy.keep_duration_s:
            rows.append((" Keep Duration:", _go_duration(policy.keep_duration_s)))
        sizes = (
            (" Reserved Space:", policy.reserved_space),
            (" Max Used Space:", policy.max_used_space),
            (" Min Free Space:", policy.min_free_space),
        )
        rows += [(name, binary_size(size)) for name, size in sizes if size]
    return rows


def _go_duration(seconds: float) -> str:
    """Format as Go does: ``48h0m0s``."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes}m{rest:g}s"
    return f"{minutes}m{rest:g}s" if minutes else f"{rest:g}s"


def _file_rows(files: dict[str, bytes] | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, data in sorted((files or {}).items()):
        rows.append((f"File#{name}:",))
        rows += [(f" > {line}",) for line in data.decode("utf-8", "replace").splitlines()]
    return rows
