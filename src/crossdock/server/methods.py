"""Handlers of methods that answer one request with a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import INTERNAL, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.buildkit.rpc.channel import Message
    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["one_request"]

R = TypeVar("R", bound="Message")


def one_request(request: type[R], function: Callable[[R, ServerCall], None]) -> Handler:
    """Make a handler of a function that sends its answers by itself."""

    def handle(call: ServerCall) -> None:
        raw = next(call.messages(), None)
        if raw is None:
            raise RpcError(INTERNAL, "no request")
        function(parsed(request, raw), call)

    return handle
