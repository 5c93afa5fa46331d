"""Tables and ``--format``: ``table``, ``table TEMPLATE``, ``json``, or a Go template, one row at a time.

Spec: Go ``text/tabwriter``; docker/cli ``cli/command/formatter/formatter.go``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.cli.template import Struct, Template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["align_columns", "format_rows", "is_table"]


def align_columns(rows: Sequence[Sequence[str]], *, gap: int = 1, minimum: int = 0) -> list[str]:
    """Pad every cell but the last of each row so that columns line up."""
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, minimum), len(cell) + gap)
    return [
        "".join(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1])) + (row[-1] if row else "")
        for row in rows
    ]


def is_table(form: str) -> bool:
    """Whether a ``--format`` value makes a table."""
    return form == "table" or form.startswith("table ")


def format_rows(
    form: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    default_table: str,
    headers: Mapping[str, str],
    json_rows: Sequence[Mapping[str, Any]] | None = None,
    gap: int = 3,
    minimum: int = 0,
) -> str:
    """Format rows; fields are what ``{{.Field}}`` finds, ``headers`` the titles of a table.

    ``json_rows`` replaces the rows for ``json``, where a row holds more than a table shows.

    Raises: UsageError for a malformed template or an unknown field.
    """
    if form == "json":
        objects = rows if json_rows is None else json_rows
        return "".join(json.dumps(o, separators=(",", ":"), ensure_ascii=False) + "\n" for o in objects)
    if form == "table":
        form = default_table
    table = is_table(form)
    source = form.removeprefix("table ").strip() if table else form
    source = source.replace("\\t", "\t").replace("\\n", "\n")
    template = Template(source)
    if not table:
        return "".join(template.render(Struct(row)) + "\n" for row in rows)
    lines = [template.render(Struct(headers)), *(template.render(Struct(row)) for row in rows)]
    cells = [line.split("\t") for line in lines]
    return "".join(line.rstrip() + "\n" for line in align_columns(cells, gap=gap, minimum=minimum))
