"""Small parts of the façade: what exporters may ask for, a client made on first use, entries of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import Node, View
    from crossdock.engine.facade import Engine
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.store import LayerId
    from crossdock.image.descriptor import Descriptor
    from crossdock.llb.graph import Node as LlbNode
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["Access", "FileInfo", "LazyClient", "SolveRecorder", "file_info"]


class FileInfo(NamedTuple):
    """One entry of a result's file system."""

    name: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    #: of a symbolic link
    target: str = ""


class SolveRecorder(Protocol):
    """Takes down what the steps of a solve are made of."""

    #: whether also a solve in which nothing ran is to be taken down
    wanted: bool

    def take(
        self,
        nodes: Mapping[str, LlbNode],
        keyed: Sequence[KeyedVertex],
        ran: Collection[str],
        reads: Mapping[str, tuple[View, Sequence[Selector]]],
        cancel: CancelToken,
    ) -> None:
        """Take a solve down: nodes by vertex, keys, what ran, and what vertices read of local directories."""
        ...


class LazyClient:
    """A registry client that is made when it is first used."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[CancelToken], RegistryClient]) -> None:
        self._make = make

    def scoped(self, *, insecure: bool | None = None, cancel: CancelToken) -> RegistryClient:
        """Return a view of the client, as ``RegistryClient.scoped``."""
        return self._make(cancel).scoped(insecure=insecure, cancel=cancel)


class Access:
    """What exporters may ask for."""

    __slots__ = ("_engine", "_sink")

    def __init__(self, engine: Engine, sink: EventSink) -> None:
        self._engine = engine
        self._sink = sink

    def directory(self, layer: LayerId, vertex: str, cancel: CancelToken) -> Path:
        """Return a layer's directory, fetched and unpacked when it is remote."""
        return self._engine.directories((layer,), vertex, self._sink, cancel)[0]

    def mounted(
        self, ref: Sequence[LayerId], vertex: str, cancel: CancelToken, *, above: Sequence[Path] = ()
    ) -> AbstractContextManager[Path]:
        """Show layers, and directories above them, as one read-only file system, for the length of a block."""
        directories = self._engine.directories(ref, vertex, self._sink, cancel)
        return self._engine.sandbox().mounted([*directories, *above], upper=None, work=None)

    def fetch(self, blob: Descriptor, repositories: Sequence[str], vertex: str, cancel: CancelToken) -> None:
        """Have a blob in the content store."""
        self._engine.fetch(blob, repositories, vertex, self._sink, cancel)


def file_info(view: View, node: Node) -> FileInfo:
    """Describe a node of a view."""
    st = node.st
    target = view.readlink(node) if node.is_link else ""
    return FileInfo(node.name, st.st_mode, node.uid, node.gid, st.st_size, st.st_mtime_ns, target)
