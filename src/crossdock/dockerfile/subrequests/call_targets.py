"""``--call=targets``: the stages of a file."""

from __future__ import annotations

from typing import Any

from crossdock.dockerfile.parser import parse
from crossdock.dockerfile.subrequests import SubResult
from crossdock.dockerfile.subrequests.shape import base64_text, dump, location, table

__all__ = ["list_targets"]


def list_targets(data: bytes, name: str) -> SubResult:
    """Return every stage; the last is the default.

    Raises: DockerfileError.
    """
    dockerfile = parse(data, name)
    last = len(dockerfile.stages) - 1
    found: list[dict[str, Any]] = []
    rows = [("TARGET", "DESCRIPTION")]
    for i, stage in enumerate(dockerfile.stages):
        head = stage.head
        values = {
            "name": head.name,
            "default": i == last,
            "description": head.description,
            "base": head.base,
            "platform": head.platform,
            "location": location(head.where),
        }
        found.append({k: v for k, v in values.items() if v})
        shown = head.name
        if i == last:
            shown = f"{head.name} (default)" if head.name else "(default)"
        rows.append((shown, head.description))
    answer = {"targets": found, "sources": [base64_text(dockerfile.file.text)]}
    return SubResult(version="1.0.0", json=dump(answer), text=table(rows, 1))
