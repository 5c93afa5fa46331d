"""LLB definitions as the protobuf messages that Control and the gateway carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import ops_pb2
from crossdock.llb.codec import encode_definition

if TYPE_CHECKING:
    from crossdock.llb import Definition

__all__ = ["definition_message"]


def definition_message(definition: Definition) -> ops_pb2.Definition:
    """Return a definition as a message."""
    return ops_pb2.Definition.FromString(encode_definition(definition))
