"""When remote sources were made, for ``SOURCE_DATE_EPOCH=context`` and its like.

Spec: moby/buildkit ``frontend/dockerfile/dockerfile2llb/epoch.go``: a commit's time, a download's ``Last-Modified``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.llb.graph import Node, Output, walk
from crossdock.llb.ops import SourceOp

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import FileInfo

__all__ = ["EngineTimes"]


class EngineTimes:
    """Satisfies the frontend's ``SourceTimes`` by having the engine fetch the source."""

    def __init__(
        self, solve: Callable[[Output], Ref], read_dir: Callable[[Ref, str], list[FileInfo] | None]
    ) -> None:
        """``solve`` runs one output, ``read_dir`` lists a directory of its result."""
        self._solve = solve
        self._read_dir = read_dir

    def source_time(self, source: Output, *, log_name: str) -> int | None:
        """Return seconds since the epoch; ``None`` when the source does not tell."""
        del log_name  # the source's own step is shown
        for node in walk([source]):
            if isinstance(node.op, SourceOp) and node.op.identifier.startswith(
                ("git://", "http://", "https://")
            ):
                return self._time(node, node.op)
        return None

    def _time(self, node: Node, op: SourceOp) -> int | None:
        if op.identifier.startswith("git://"):
            op = SourceOp(op.identifier, {**op.attrs, "git.mtime": "commit"})
        ref = self._solve(Output(Node(op, metadata=node.metadata)))
        entries = self._read_dir(ref, "/") or []
        latest = max((entry.mtime_ns for entry in entries), default=0) // 10**9
        return latest or None
