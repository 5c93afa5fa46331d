"""JSON and table forms shared by the sub-requests, byte for byte as Go writes them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.errors import SourceRange

__all__ = ["base64_text", "dump", "location", "ranges", "table"]


def dump(value: Any) -> str:
    """Write JSON as Go's ``MarshalIndent`` with two spaces, HTML characters escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    for ch in "<>&\u2028\u2029":
        if ch in text:
            text = text.replace(ch, f"\\u{ord(ch):04x}")
    return text.encode("utf-8", "replace").decode()


def base64_text(text: str) -> str:
    """Encode a source file, as ``[]byte`` is in Go's JSON."""
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def ranges(where: SourceRange) -> list[dict[str, Any]]:
    """Return one range per line, as BuildKit's parser makes them."""
    return [
        {"start": {"line": line}, "end": {"line": line}}
        for line in range(where.start.line, max(where.start.line, where.end.line) + 1)
    ]


def location(where: SourceRange | None) -> dict[str, Any]:
    """Return a ``pb.Location`` in the first source."""
    return {"ranges": ranges(where)} if where is not None else {}


def table(rows: Sequence[Sequence[str]], padding: int) -> str:
    """Align columns as Go's tabwriter with spaces; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) + padding for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("".join(cells) + row[-1])
    return "\n".join(lines) + "\n"
