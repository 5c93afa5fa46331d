"""``build --explain``: why steps were not cached, after the build, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["print_explanation"]


def print_explanation(steps: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Write the explanation as text, or as one line of JSON among those of ``--progress=rawjson``."""
    if as_json:
        import json

        sys.stderr.write(json.dumps({"crossdock.explain": list(steps)}) + "\n")
        return
    if not steps:
        sys.stderr.write("\nEvery step was cached.\n")
        return
    lines = ["", "Why steps were not cached:"]
    for step in steps:
        lines += ["", f"{step['step']}"]
        lines += [f"  - {reason}" for reason in step["reasons"]]
        shown = step.get("files", [])
        lines += [f"      {file['change']}: {file['path']}" for file in shown]
        more = step.get("filesChanged", 0) - len(shown)
        if more > 0:
            lines.append(f"      and {more} more")
    sys.stderr.write("\n".join(lines) + "\n")
