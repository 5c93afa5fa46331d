"""``--call=subrequests.describe``."""

from __future__ import annotations

from typing import Any

from crossdock.dockerfile.subrequests import SubResult
from crossdock.dockerfile.subrequests.shape import dump, table

__all__ = ["list_methods"]

_RESULTS = [{"name": "result.json", "description": ""}, {"name": "result.txt", "description": ""}]
_STATUS = {"name": "result.statuscode", "description": ""}


def _method(
    name: str, description: str, opts: list[dict[str, str]] | None, metadata: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "type": "rpc",
        "description": description,
        "opts": opts,
        "inputs": None,
        "metadata": metadata,
        "refs": None,
    }


_ALL = [
    _method(
        "frontend.outline",
        "List all parameters current build target supports",
        [{"name": "target", "description": "Target build stage"}],
        _RESULTS,
    ),
    _method("frontend.targets", "List all targets current build supports", [], _RESULTS),
    _method("frontend.lint", "Lint a Dockerfile", [], [*_RESULTS, _STATUS]),
    _method("frontend.subrequests.describe", "List available subrequest types", None, _RESULTS),
]


def list_methods() -> SubResult:
    """Return the methods this frontend answers."""
    rows = [("NAME", "VERSION", "DESCRIPTION")]
    rows += [(m["name"].removeprefix("frontend."), m["version"], m["description"]) for m in _ALL]
    return SubResult(version="1.0.0", json=dump(_ALL), text=table(rows, 1))
