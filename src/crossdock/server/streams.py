"""What a failed call into a session means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import ContextError, CrossdockError

if TYPE_CHECKING:
    from crossdock.buildkit.rpc.status import RpcError
    from crossdock.server.sessions import ClientSession

__all__ = ["session_failure"]


def session_failure(session: ClientSession, exc: RpcError, what: str) -> CrossdockError:
    """Return the error of a failed call into a session."""
    if session.closed or exc.code in ("UNAVAILABLE", "CANCELLED"):
        return session.lost(what)
    return ContextError(f"{what}: {exc.message}")
