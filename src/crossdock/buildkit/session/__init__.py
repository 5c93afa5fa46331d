"""Session: the services a client offers back to the daemon during one build."""

from crossdock.buildkit.session.server import Attachable, Session

__all__ = ["Attachable", "Session"]
