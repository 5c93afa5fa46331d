"""The LLB graph: vertices joined by their outputs, and its encoded form.

A :class:`Node` is an op with its inputs, platform and constraints; its digest is the sha256 of its encoded
``pb.Op``, so equal definitions are one vertex, here and in BuildKit. Metadata and source positions accompany a
node without being part of the digest.

Spec: moby/buildkit ``solver/pb/ops.proto`` (Definition, Op), ``client/llb/marshal.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.image.digest import Digest, sha256_digest
from crossdock.llb.ops import OpMetadata
from crossdock.record import NamedTuple, Record, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.errors import SourceRange
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import Op

__all__ = ["Definition", "Graph", "Node", "Output", "walk"]

_NO_METADATA = OpMetadata()


class Output(Record, kw_only=False):
    """One output of a node."""

    node: Node
    index: int = 0


class Node:
    """A vertex of the graph: immutable once made; equality is digest equality."""

    __slots__ = ("_digest", "_encoded", "constraints", "inputs", "metadata", "op", "platform", "source")

    def __init__(
        self,
        op: Op,
        inputs: Sequence[Output] = (),
        *,
        platform: Platform | None = None,
        constraints: tuple[str, ...] = (),
        metadata: OpMetadata = _NO_METADATA,
        source: SourceRange | None = None,
        encoded: bytes | None = None,
    ) -> None:
        self.op = op
        self.inputs: tuple[Output, ...] = tuple(inputs)
        self.platform = platform
        self.constraints = constraints
        self.metadata = metadata
        #: where in the Dockerfile the vertex comes from
        self.source = source
        self._encoded = encoded
        self._digest: Digest | None = None
        # Digests are taken from the inputs up as the graph is made, so that no depth needs recursion.
        for i in self.inputs:
            _ = i.node.digest

    def replaced(self, op: Op, inputs: Sequence[Output]) -> Node:
        """Return a node with another op or other inputs, and all else of this one."""
        return Node(
            op,
            inputs,
            platform=self.platform,
            constraints=self.constraints,
            metadata=self.metadata,
            source=self.source,
        )

    @property
    def encoded(self) -> bytes:
        """The deterministic ``pb.Op`` bytes."""
        if self._encoded is None:
            from crossdock.llb.codec import encode_op

            self._encoded = encode_op(self)
        return self._encoded

    @property
    def digest(self) -> Digest:
        """sha256 of :attr:`encoded`."""
        if self._digest is None:
            self._digest = sha256_digest(self.encoded)
        return self._digest

    @property
    def name(self) -> str:
        """The display name given by the frontend, or ``""``."""
        return self.metadata.description.get("llb.customname", "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Node({type(self.op).__name__} {self.name or self.digest[:19]})"


class Graph(NamedTuple):
    """A decoded definition: its result (``None`` = scratch) and every node, inputs before users."""

    result: Output | None
    nodes: tuple[Node, ...]


class Definition(Record):
    """The encoded form (``pb.Definition``): ops in order, inputs first, the last naming the result."""

    ops: tuple[bytes, ...] = ()
    metadata: Mapping[Digest, OpMetadata] = field(default_factory=dict, hash=False)
    sources: Mapping[Digest, SourceRange] = field(default_factory=dict, hash=False)


def walk(outputs: Sequence[Output]) -> Iterator[Node]:
    """Yield every node reachable from ``outputs`` once, inputs before users; iterative, so depth is no limit."""
    seen: set[Digest] = set()
    for output in outputs:
        stack: list[tuple[Node, int]] = [(output.node, 0)]
        while stack:
            node, at = stack.pop()
            if at == 0 and node.digest in seen:
                continue
            if at < len(node.inputs):
                stack.append((node, at + 1))
                child = node.inputs[at].node
                if child.digest not in seen:
                    stack.append((child, 0))
            elif node.digest not in seen:
                seen.add(node.digest)
                yield node
