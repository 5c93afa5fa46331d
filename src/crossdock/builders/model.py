"""Builders and their nodes as the builder store keeps them.

Field names in JSON are buildx's. Fields that a newer buildx writes and this version does not know are kept.

Spec: docker/buildx ``store/nodegroup.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import BuilderError
from crossdock.image.platform import Platform
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.change import NodeChange

__all__ = ["Node", "NodeGroup", "validate_name"]

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*\Z")
_GROUP_FIELDS = ("Name", "Driver", "Nodes", "Dynamic")
_NODE_FIELDS = ("Name", "Endpoint", "Platforms", "DriverOpts", "Flags", "Files")


def validate_name(name: str) -> str:
    """Check a builder or node name; returns it in lower case.

    Raises: BuilderError.
    """
    if not _NAME.match(name):
        summary = (
            f"invalid name {name}, name needs to start with a letter and may not contain symbols, except ._-"
        )
        raise BuilderError(summary)
    return name.lower()


class Node(Record, frozen=False):
    """One place that builds."""

    name: str
    endpoint: str = ""
    #: fixed by the user; empty = whatever the node can do
    platforms: tuple[Platform, ...] = ()
    driver_opts: dict[str, str] | None = None
    flags: list[str] | None = None
    files: dict[str, bytes] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return buildx's object; Go writes nil slices and maps as ``null``."""
        return {
            "Name": self.name,
            "Endpoint": self.endpoint,
            "Platforms": [p.to_json() for p in self.platforms] or None,
            "DriverOpts": self.driver_opts,
            "Flags": self.flags,
            "Files": None
            if self.files is None
            else {k: _b64encode(v) for k, v in sorted(self.files.items())},
            **self.extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Node:
        """Read buildx's object."""
        files = data.get("Files")
        return cls(
            name=str(data.get("Name") or ""),
            endpoint=str(data.get("Endpoint") or ""),
            platforms=tuple(Platform.from_json(p).normalised() for p in data.get("Platforms") or ()),
            driver_opts=_str_map(data.get("DriverOpts")),
            flags=None if data.get("Flags") is None else [str(f) for f in data["Flags"]],
            files=None if files is None else {str(k): _b64decode(v or "") for k, v in files.items()},
            extra={k: v for k, v in data.items() if k not in _NODE_FIELDS},
        )


def _b64encode(data: bytes) -> str:
    import binascii

    return binascii.b2a_base64(data, newline=False).decode()


def _b64decode(text: str) -> bytes:
    import binascii

    return binascii.a2b_base64(text, strict_mode=True)


def _str_map(value: Mapping[str, Any] | None) -> dict[str, str] | None:
    return None if value is None else {str(k): str(v) for k, v in value.items()}


class NodeGroup(Record, frozen=False):
    """A builder: a driver and its nodes."""

    name: str
    driver: str = ""
    nodes: list[Node] = field(default_factory=list)
    dynamic: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    #: stands for a docker context rather than a stored builder
    docker_context: bool = False
    #: the builder ``embedded`` that always exists
    built_in: bool = False
    #: seconds since the epoch; ``None`` = never used
    last_activity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return buildx's object."""
        return {
            "Name": self.name,
            "Driver": self.driver,
            "Nodes": [n.to_json() for n in self.nodes] or None,
            "Dynamic": self.dynamic,
            **self.extra,
        }

    @classmethod
    def from_json(cls, data: object, where: str) -> NodeGroup:
        """Read buildx's object.

        Raises: BuilderError naming ``where``.
        """
        if not isinstance(data, dict):
            summary = f"{where}: not a builder definition"
            raise BuilderError(summary)
        try:
            nodes = [Node.from_json(n) for n in data.get("Nodes") or ()]
        except (TypeError, AttributeError, ValueError) as exc:
            summary = f"{where}: builder definition is malformed: {exc}"
            raise BuilderError(summary, hint="remove the file, or the builder with `rm`") from exc
        return cls(
            name=str(data.get("Name") or ""),
            driver=str(data.get("Driver") or ""),
            nodes=nodes,
            dynamic=bool(data.get("Dynamic")),
            extra={k: v for k, v in data.items() if k not in _GROUP_FIELDS},
        )

    def leave(self, node: str) -> None:
        """Remove a node.

        Raises: BuilderError when it is unknown, the last one, or the group is dynamic.
        """
        self._refuse_dynamic("leaving")
        at = self._find(node)
        if at is None:
            summary = f"node {node!r} not found for {self.name}"
            raise BuilderError(summary)
        if len(self.nodes) == 1:
            summary = "cannot leave the last node"
            raise BuilderError(summary, hint=f"remove the builder itself with `rm {self.name}`")
        del self.nodes[at]

    def update(self, change: NodeChange, *, append: bool) -> None:
        """Add a node or change the named one.

        Raises: BuilderError for an unknown node without ``append``, or an endpoint that another node has.
        """
        self._refuse_dynamic("changing")
        at = self._find(change.name)
        if at is None and not append and self.nodes:
            summary = f"node {change.name} not found"
            raise BuilderError(summary, hint="add --append to create it")
        if at is not None:
            change.apply(self.nodes[at])
        else:
            name = validate_name(change.name or self._next_node_name())
            self.nodes.append(change.create(name))
            at = len(self.nodes) - 1
        self._check_endpoints(at)

    def _check_endpoints(self, at: int) -> None:
        node = self.nodes[at]
        if sum(n.endpoint == node.endpoint for n in self.nodes) > 1:
            summary = f"invalid duplicate endpoint {node.endpoint}"
            raise BuilderError(summary)
        for other in self.nodes:
            if other is not node:
                other.platforms = tuple(p for p in other.platforms if p not in node.platforms)

    def _find(self, name: str) -> int | None:
        return next((i for i, n in enumerate(self.nodes) if n.name == name), None)

    def _next_node_name(self) -> str:
        taken = {n.name for n in self.nodes}
        number = 0
        while f"{self.name}{number}" in taken:
            number += 1
        return f"{self.name}{number}"

    def _refuse_dynamic(self, what: str) -> None:
        if self.dynamic:
            summary = f"builder {self.name} is dynamic: {what} its nodes is not supported"
            raise BuilderError(summary)
