"""Steps under construction.

A step may depend on something that is known only when every stage has been read: which paths of a local context are
used. So conversion makes vertices, and :func:`finish` turns them into LLB nodes at the end. Equal nodes become one
object, also across platforms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    SKIP_OUTPUT,
    CacheOpt,
    ExecMeta,
    ExecOp,
    FileAction,
    FileActionCopy,
    FileOp,
    MergeOp,
    Mount,
    MountType,
    OpMetadata,
    SourceOp,
)
from crossdock.record import NamedTuple, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from crossdock.errors import SourceRange
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import CdiDevice, FileActionKind, NetMode, SecretEnv, SecurityMode

__all__ = [
    "ExecMount",
    "ExecVertex",
    "FileStep",
    "FileVertex",
    "GivenVertex",
    "Interned",
    "LocalVertex",
    "MergeVertex",
    "Ref",
    "SourceVertex",
    "Vertex",
    "finish",
]


class Vertex:
    """A step that will become a node."""

    __slots__ = ("output",)

    def __init__(self) -> None:
        self.output: Output | None = None

    def inputs(self) -> Iterable[Ref | None]:
        """Return what must be finished first."""
        return ()

    def make(self) -> Output:
        """Build the node; every input is finished."""
        raise TypeError


class Ref(NamedTuple):
    """One output of a vertex; scratch is ``None`` wherever a ``Ref`` may stand."""

    vertex: Vertex
    number: int = 0

    def output(self) -> Output:
        """Return the finished output."""
        made = self.vertex.output
        if made is None:
            msg = "vertex is not finished"
            raise TypeError(msg)
        return made if made.index == self.number else Output(made.node, self.number)


#: finished nodes by digest
Interned = dict[str, Node]


def finish(ref: Ref | None, interned: Interned) -> Output | None:
    """Make the nodes below ``ref``; iterative, so depth is no limit."""
    if ref is None:
        return None
    fresh: set[str] = set()
    stack: list[Vertex] = [ref.vertex]
    while stack:
        vertex = stack[-1]
        if vertex.output is not None:
            stack.pop()
            continue
        waiting = [r.vertex for r in vertex.inputs() if r is not None and r.vertex.output is None]
        if waiting:
            stack += reversed(waiting)
            continue
        stack.pop()
        vertex.output = _intern(vertex.make(), interned, fresh)
    return ref.output()


def _intern(output: Output, interned: Interned, fresh: set[str]) -> Output:
    """Return the known equal node; within one platform the later name wins, as in BuildKit."""
    node = output.node
    known = interned.setdefault(node.digest, node)
    if known is node:
        fresh.add(node.digest)
        return output
    ignore = node.metadata.ignore_cache or known.metadata.ignore_cache
    if node.digest in fresh:
        known.metadata = replace(node.metadata, ignore_cache=ignore)
    elif ignore and not known.metadata.ignore_cache:
        known.metadata = replace(known.metadata, ignore_cache=True)
    return Output(known, output.index)


def _index(inputs: list[Output], ref: Ref | None) -> int:
    """Return the input number of ``ref``, adding it when it is new; -1 for scratch."""
    if ref is None:
        return -1
    wanted = ref.output()
    for i, known in enumerate(inputs):
        if known.node is wanted.node and known.index == wanted.index:
            return i
    inputs.append(wanted)
    return len(inputs) - 1


class GivenVertex(Vertex):
    """A graph made elsewhere (an input)."""

    __slots__ = ()

    def __init__(self, output: Output) -> None:
        self.output = output


class SourceVertex(Vertex):
    """Data from outside; the platform matters only to images."""

    __slots__ = ("metadata", "op", "platform", "source")

    def __init__(
        self,
        op: SourceOp,
        metadata: OpMetadata,
        *,
        platform: Platform | None = None,
        source: SourceRange | None = None,
    ) -> None:
        super().__init__()
        self.op = op
        self.metadata = metadata
        self.platform = platform
        self.source = source

    def make(self) -> Output:
        """Build the node."""
        return Output(Node(self.op, platform=self.platform, metadata=self.metadata, source=self.source))


class LocalVertex(Vertex):
    """A local directory; which paths are wanted is asked at the end."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Output]) -> None:
        super().__init__()
        self._make = make

    def make(self) -> Output:
        """Build the node."""
        return self._make()


class FileStep(NamedTuple):
    """One action of a file step; copies have a source."""

    action: FileActionKind
    source: Ref | None = None


class FileVertex(Vertex):
    """A file operation: actions one after the other on ``base``."""

    __slots__ = ("base", "metadata", "source", "steps")

    def __init__(
        self,
        base: Ref | None,
        steps: Sequence[FileStep],
        metadata: OpMetadata,
        source: SourceRange | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.steps = steps
        self.metadata = metadata
        self.source = source

    def inputs(self) -> Iterable[Ref | None]:
        """Return base and copy sources."""
        return (self.base, *(step.source for step in self.steps))

    def make(self) -> Output:
        """Build the node."""
        inputs: list[Output] = []
        base = _index(inputs, self.base)
        secondary = [
            _index(inputs, step.source) if isinstance(step.action, FileActionCopy) else -1
            for step in self.steps
        ]
        actions: list[FileAction] = []
        last = len(self.steps) - 1
        for i, step in enumerate(self.steps):
            actions.append(
                FileAction(
                    action=step.action,
                    input=base if i == 0 else len(inputs) + i - 1,
                    secondary_input=secondary[i],
                    output=0 if i == last else SKIP_OUTPUT,
                )
            )
        op = FileOp(tuple(actions))
        return Output(Node(op, inputs, metadata=self.metadata, source=self.source))


class ExecMount(NamedTuple):
    """A mount of a RUN, before inputs have numbers."""

    dest: str
    source: Ref | None = None
    selector: str = ""
    readonly: bool = False
    no_output: bool = False
    cache: CacheOpt | None = None
    #: bytes; ``None`` when not a tmpfs
    tmpfs_size: int | None = None


class ExecVertex(Vertex):
    """A RUN; output 0 is its root file system."""

    __slots__ = (
        "devices",
        "extra_mounts",
        "meta",
        "metadata",
        "mounts",
        "network",
        "platform",
        "secret_env",
        "security",
        "source",
    )

    def __init__(
        self,
        meta: ExecMeta,
        mounts: Sequence[ExecMount],
        metadata: OpMetadata,
        *,
        platform: Platform,
        network: NetMode,
        security: SecurityMode,
        secret_env: Sequence[SecretEnv],
        extra_mounts: Sequence[Mount],
        devices: Sequence[CdiDevice],
        source: SourceRange,
    ) -> None:
        super().__init__()
        self.meta = meta
        self.mounts = sorted(mounts, key=lambda m: m.dest)
        self.metadata = metadata
        self.platform = platform
        self.network = network
        self.security = security
        self.secret_env = secret_env
        #: secret and ssh mounts, which have no inputs
        self.extra_mounts = extra_mounts
        self.devices = devices
        self.source = source

    def inputs(self) -> Iterable[Ref | None]:
        """Return the mounts' sources."""
        return [m.source for m in self.mounts]

    @property
    def root(self) -> Ref:
        """The root file system after the step."""
        index = 0
        for mount in self.mounts:
            if mount.dest == "/":
                break
            index += self._writes(mount)
        return Ref(self, index)

    @staticmethod
    def _writes(mount: ExecMount) -> bool:
        return not (mount.readonly or mount.no_output or mount.cache or mount.tmpfs_size is not None)

    def make(self) -> Output:
        """Build the node."""
        inputs: list[Output] = []
        mounts: list[Mount] = []
        outputs = 0
        for m in self.mounts:
            number = SKIP_OUTPUT
            if self._writes(m):
                number = outputs
                outputs += 1
            kind = MountType.BIND
            if m.cache is not None:
                kind = MountType.CACHE
            elif m.tmpfs_size is not None:
                kind = MountType.TMPFS
            mounts.append(
                Mount(
                    dest=m.dest,
                    input=_index(inputs, m.source),
                    selector=m.selector,
                    output=number,
                    readonly=m.readonly,
                    mount_type=kind,
                    cache_opt=m.cache,
                    tmpfs_size=m.tmpfs_size,
                )
            )
        op = ExecOp(
            meta=self.meta,
            mounts=(*mounts, *self.extra_mounts),
            network=self.network,
            security=self.security,
            secret_env=tuple(self.secret_env),
            cdi_devices=tuple(self.devices),
        )
        node = Node(op, inputs, platform=self.platform, metadata=self.metadata, source=self.source)
        return Output(node)


class MergeVertex(Vertex):
    """Layers on top of each other."""

    __slots__ = ("layers", "metadata", "source")

    def __init__(self, layers: Sequence[Ref], metadata: OpMetadata, source: SourceRange | None) -> None:
        super().__init__()
        self.layers = layers
        self.metadata = metadata
        self.source = source

    def inputs(self) -> Iterable[Ref | None]:
        """Return the layers."""
        return self.layers

    def make(self) -> Output:
        """Build the node."""
        inputs = [ref.output() for ref in self.layers]
        op = MergeOp(tuple(range(len(inputs))))
        return Output(Node(op, inputs, metadata=self.metadata, source=self.source))
