"""What ops hand to each other: a file-system state in the store, or a local directory read in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.engine.cache.localview import LocalView
    from crossdock.engine.store import LayerId

__all__ = ["SCRATCH", "LocalTree", "Ref"]


class Ref(NamedTuple):
    """A file-system state: layers of the store, bottom first; none is an empty file system."""

    layers: tuple[LayerId, ...] = ()


#: the empty file system
SCRATCH = Ref()


class LocalTree:
    """A local directory as a build sees it: filtered, owned by root, read where it is."""

    __slots__ = ("name", "view")

    def __init__(self, name: str, view: LocalView) -> None:
        #: as the frontend calls it: ``context``, ``dockerfile``
        self.name = name
        self.view = view
