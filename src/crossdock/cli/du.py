"""``du``: what the build cache holds.

Spec: docker/buildx ``commands/diskusage.go``.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import embedded_aware_builder, timeout_flag
from crossdock.cli.table import align_columns, format_rows, is_table
from crossdock.cli.values import human_duration, human_size
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.usage import UsageRecord
    from crossdock.cli.command import Globals

__all__ = ["command", "usage_row"]

_HEADERS = {
    "ID": "ID",
    "Parents": "PARENTS",
    "CreatedAt": "CREATED AT",
    "Mutable": "MUTABLE",
    "Reclaimable": "RECLAIMABLE",
    "Shared": "SHARED",
    "Size": "SIZE",
    "Description": "DESCRIPTION",
    "UsageCount": "USAGE COUNT",
    "LastUsedAt": "LAST ACCESSED",
    "Type": "TYPE",
}
_TABLE = "table {{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}"
PRETTY = """ID:           {{.ID}}
{{- if .Parents }}
Parents:
{{- range .Parents }}
 - {{.}}
{{- end }}
{{- end }}
Created at:   {{.CreatedAt}}
Mutable:      {{.Mutable}}
Reclaimable:  {{.Reclaimable}}
Shared:       {{.Shared}}
Size:         {{.Size}}
{{- if .Description}}
Description:  {{ .Description }}
{{- end }}
Usage count:  {{.UsageCount}}
{{- if .LastUsedAt}}
Last used:    {{ .LastUsedAt }}
{{- end }}
{{- if .Type}}
Type:         {{ .Type }}
{{- end }}
{{- if .Kept}}
Kept because: {{ .Kept }}
{{- end }}
"""


@make_command("du [OPTIONS]")
@flag("--filter", kind="filter", help="Provide filter values")
@flag("--format", help="Format the output")
@timeout_flag()
@flag("--verbose", kind="bool", help='Shorthand for "--format=pretty"')
def command(
    globals_: Globals, filter: tuple[str, ...], format: str | None, timeout: float, verbose: bool
) -> None:
    """Disk usage"""
    from crossdock.engine.store.filters import parse_cli_filters

    del timeout  # reading the embedded store waits for nobody
    if format and verbose:
        summary = "--format and --verbose cannot be used together"
        raise UsageError(summary)
    wanted = parse_cli_filters(filter)
    builder = embedded_aware_builder(globals_)
    records = builder.disk_usage(wanted.filters)
    if wanted.keep_duration_s:
        newest = time.time_ns() / 1e9 - wanted.keep_duration_s
        records = [r for r in records if (r.last_used_at or r.created_at) <= newest]
    form = format or ("pretty" if verbose else "table")
    table = is_table(form)
    if form == "pretty":
        rows = [{**usage_row(r, table=False), "Kept": r.kept} for r in records]
    else:
        rows = [usage_row(r, table=table) for r in records]
    text = PRETTY if form == "pretty" else form
    sys.stdout.write(format_rows(text, rows, default_table=_TABLE, headers=_HEADERS))
    if form in ("table", "pretty") and not filter:
        sys.stdout.write(_summary(records))


def usage_row(record: UsageRecord, *, table: bool) -> dict[str, Any]:
    """Return a record's fields as templates see them; ``*`` marks mutable ids and shared sizes in tables."""
    now = time.time_ns() / 1e9
    used = "" if record.last_used_at is None else f"{human_duration(now - record.last_used_at)} ago"
    return {
        "ID": record.id + ("*" if table and record.mutable else ""),
        "Parents": list(record.parents),
        "CreatedAt": _stamp(record.created_at),
        "Mutable": record.mutable,
        "Reclaimable": not record.in_use,
        "Shared": record.shared,
        "Size": human_size(record.size_bytes) + ("*" if table and record.shared else ""),
        "Description": record.description,
        "UsageCount": record.usage_count,
        "LastUsedAt": used,
        "Type": record.record_type,
    }


def _stamp(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def _summary(records: Sequence[UsageRecord]) -> str:
    total = sum(r.size_bytes for r in records)
    shared = sum(r.size_bytes for r in records if r.shared)
    reclaimable = sum(r.size_bytes for r in records if not r.in_use)
    rows = [("Shared:", human_size(shared)), ("Private:", human_size(total - shared))] if shared else []
    rows += [("Reclaimable:", human_size(reclaimable)), ("Total:", human_size(total))]
    return "".join(line + "\n" for line in align_columns(rows, gap=1, minimum=16))
