"""``prune``: remove build cache.

Spec: docker/buildx ``commands/prune.go``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import confirm, embedded_aware_builder, timeout_flag
from crossdock.cli.table import format_rows
from crossdock.cli.values import human_size

if TYPE_CHECKING:
    from crossdock.builders.usage import UsageRecord
    from crossdock.cli.command import Globals

__all__ = ["command"]

_WARNING = "WARNING! This will remove all dangling build cache. Are you sure you want to continue?"
_WARNING_ALL = "WARNING! This will remove all build cache. Are you sure you want to continue?"


@make_command("prune [OPTIONS]")
@flag("-a", "--all", "all_", kind="bool", help="Include internal/frontend images")
@flag("--filter", kind="filter", help="Provide filter values")
@flag("-f", "--force", kind="bool", help="Do not prompt for confirmation")
@flag("--keep-storage", kind="bytes", hidden=True, help="Amount of disk space to keep for cache")
@flag("--max-used-space", kind="bytes", help="Maximum amount of disk space allowed to keep for cache")
@flag("--min-free-space", kind="bytes", help="Target amount of free disk space after pruning")
@flag("--reserved-space", kind="bytes", help="Amount of disk space always allowed to keep for cache")
@timeout_flag()
@flag("--verbose", kind="bool", help="Provide a more verbose output")
def command(globals_: Globals, **flags: Any) -> None:
    """Remove build cache"""
    from crossdock.builders.usage import PruneRequest
    from crossdock.engine.store.filters import parse_cli_filters

    if flags["keep_storage"]:
        sys.stderr.write(
            "Flag --keep-storage has been deprecated, keep-storage flag has been changed to reserved-space\n"
        )
    wanted = parse_cli_filters([*flags["filter"], *_configured_filters()])
    if not flags["force"] and not confirm(_WARNING_ALL if flags["all_"] else _WARNING):
        return
    request = PruneRequest(
        all=flags["all_"],
        filters=wanted.filters,
        keep_duration_s=wanted.keep_duration_s,
        reserved_space=flags["reserved_space"] or flags["keep_storage"],
        max_used_space=flags["max_used_space"],
        min_free_space=flags["min_free_space"],
    )
    removed = embedded_aware_builder(globals_).prune(request)
    sys.stdout.write(_listing(removed, verbose=flags["verbose"]))
    sys.stdout.write(f"Total:\t{human_size(sum(r.size_bytes for r in removed))}\n")


def _configured_filters() -> list[str]:
    """Filters of docker's config; those on labels concern images and containers, not build cache."""
    from crossdock.builders.dockerconfig import load_config

    filters = [str(f) for f in load_config().get("pruneFilters") or ()]
    return [f for f in filters if not f.startswith(("label=", "label!="))]


def _listing(records: list[UsageRecord], *, verbose: bool) -> str:
    from crossdock.cli.du import PRETTY, usage_row

    if not records:
        return ""
    rows = [{**usage_row(r, table=not verbose), "Kept": ""} for r in records]
    headers = {"ID": "ID", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "LastUsedAt": "LAST ACCESSED"}
    table = "table {{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}"
    return format_rows(PRETTY if verbose else "table", rows, default_table=table, headers=headers)
