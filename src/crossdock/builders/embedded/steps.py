"""Steps that are not vertices of the graph; shared with the server, see :mod:`crossdock.builds.steps`."""

from crossdock.builds.steps import EventKeeper, ShownStep, shown

__all__ = ["EventKeeper", "ShownStep", "shown"]
