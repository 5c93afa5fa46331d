"""Small parts of the façade: its options and values, what exporters may ask for, a client made on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import View
    from crossdock.engine.facade import Engine
    from crossdock.engine.ops.env import Upload
    from crossdock.engine.sandbox.cdi import CdiOptions
    from crossdock.engine.sandbox.etcfiles import Dns
    from crossdock.engine.sandbox.worker import WorkerInfo
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.sources.local import FetchLocal
    from crossdock.engine.store import LayerId
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.layers.compression import Compression
    from crossdock.llb.graph import Node as LlbNode
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient
    from crossdock.secret import Secret

__all__ = [
    "Access",
    "EngineInfo",
    "EngineOptions",
    "FileInfo",
    "LazyClient",
    "SolveInputs",
    "SolveRecorder",
]


class EngineOptions(NamedTuple):
    """How an engine works."""

    #: folder of the store
    root: Path
    #: steps at work at once; 0 chooses by the machine
    parallelism: int = 0
    #: makes the client for registries, when one is needed
    registry: Callable[[CancelToken], RegistryClient] | None = None
    #: bytes the store may hold, enforced while building; 0 for no limit
    max_used_space: int = 0
    #: seconds without a sign of life after which an emulated step is ended; ``None`` never
    hang_deadline_s: float | None = None
    #: what steps get that ask for no network in particular: ``host``, or ``isolated``
    network: str = "host"
    #: name or path of the OCI runtime; ``""`` finds one
    runtime: str = ""
    #: resolver of steps in place of the machine's
    dns: Dns | None = None
    #: control group of steps that ask for none
    cgroup_parent: str = ""
    #: where devices for steps are described; ``None`` is where they usually are
    cdi: CdiOptions | None = None


class SolveInputs(NamedTuple):
    """What a solve may use besides its definition."""

    #: local directories by name
    locals: Mapping[str, Path] = {}
    #: return ``None`` for an unknown id
    secrets: Callable[[str], Secret | None] = lambda _id: None
    #: sockets of agents by id
    ssh: Callable[[str], Path | None] = lambda _id: None
    #: entitlements granted
    allow: frozenset[str] = frozenset()
    #: gives the directories that ``locals`` does not name, when a step first needs one
    fetch_local: FetchLocal | None = None
    #: OCI layouts by name: functions that open a blob for one pass
    layouts: Mapping[str, Callable[[Digest], BinaryIO]] = {}
    #: how the layers of results are packed, when they all become layers of images as they are
    pack: Compression | None = None
    #: receives what the caller uploads under the path of ``http://buildkit-session/…``; ``None``: nothing is uploaded
    uploads: Upload | None = None
    #: given definitions that a build itself made, which it may change or refuse
    rewrite: Callable[[Output], Output | None] = lambda output: output


class EngineInfo(NamedTuple):
    """What the engine found on this machine."""

    platform: Platform
    worker: WorkerInfo | None
    #: name and version of the OCI runtime
    runtime: str
    store: Path


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
        stage_reads: Mapping[str, tuple[View, Sequence[Selector], str]],
        cancel: CancelToken,
    ) -> None:
        """Take a solve down: nodes by vertex, keys, what ran, and what vertices read of local directories and others.

        ``stage_reads`` are of vertices that ran: the files, which of them, and the name of the step that made them.
        """
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
