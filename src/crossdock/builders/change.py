"""What ``create`` wants of one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossdock.builders.model import Node
from crossdock.image.platform import parse_platforms

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NodeChange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """What ``create`` wants of one node; ``None`` keeps what is there."""

    name: str
    endpoint: str
    #: the endpoint was asked for, not merely the default
    endpoint_given: bool
    platforms: Sequence[str] = ()
    driver_opts: dict[str, str] | None = None
    flags: list[str] | None = None
    files: dict[str, bytes] | None = None

    def apply(self, node: Node) -> None:
        """Change an existing node."""
        if self.endpoint_given:
            node.endpoint = self.endpoint
        if self.platforms:
            node.platforms = parse_platforms(list(self.platforms))
        if self.driver_opts is not None:
            node.driver_opts = self.driver_opts
        if self.flags is not None:
            node.flags = self.flags
        if self.files:
            node.files = {**(node.files or {}), **self.files}

    def create(self, name: str) -> Node:
        """Make a new node."""
        return Node(
            name=name,
            endpoint=self.endpoint,
            platforms=parse_platforms(list(self.platforms)),
            driver_opts=self.driver_opts,
            flags=self.flags,
            files=self.files,
        )
