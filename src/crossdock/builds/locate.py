"""Say where in a Dockerfile a failed step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import Cancelled, SolveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.errors import CrossdockError
    from crossdock.llb.graph import Output
    from crossdock.progress.events import Vertex

__all__ = ["locate"]


def locate(error: CrossdockError, outputs: Sequence[Output | None], failed: Vertex | None) -> None:
    """Give ``error`` the place, name and platform of the vertex it is about; ``failed`` is the first that failed."""
    if isinstance(error, Cancelled):
        return
    from crossdock.llb.graph import walk

    wanted = (error.vertex or "").partition("!")[0] if isinstance(error, SolveError) else ""
    wanted = wanted or (failed.digest if failed is not None else "")
    for node in walk([output for output in outputs if output is not None]):
        if node.digest == wanted:
            error.source = error.source or node.source
            if isinstance(error, SolveError):
                error.vertex_name = error.vertex_name or node.name
                error.platform = error.platform or (str(node.platform) if node.platform else None)
            return
