"""gRPC statuses: codes, their errors, and how they travel in trailers.

Spec: grpc/grpc ``doc/statuscodes.md``, ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.buildkit.rpc.streams import Headers

__all__ = ["CODES", "RpcError", "decode_binary", "encode_binary", "status_trailers"]

#: names by number
CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
CANCELLED, NOT_FOUND, UNAVAILABLE, INTERNAL = "CANCELLED", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"
INVALID_ARGUMENT = "INVALID_ARGUMENT"
UNIMPLEMENTED, RESOURCE_EXHAUSTED, OUT_OF_RANGE = "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE"
FAILED_PRECONDITION, PERMISSION_DENIED = "FAILED_PRECONDITION", "PERMISSION_DENIED"
ALREADY_EXISTS, DEADLINE_EXCEEDED = "ALREADY_EXISTS", "DEADLINE_EXCEEDED"
_NUMBERS = {name: number for number, name in enumerate(CODES)}
#: of HTTP answers that are not gRPC
_OF_HTTP = {
    "400": "INTERNAL",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}
#: of HTTP/2 error codes in resets
_OF_RESET = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


class RpcError(Exception):
    """A call that ended with another status than OK."""

    def __init__(self, code: str, message: str, details: bytes = b"") -> None:
        super().__init__(f"{code}: {message}")
        #: upper-case name of the code
        self.code = code
        self.message = message
        #: a serialised ``google.rpc.Status``; empty when there are no details
        self.details = details

    @property
    def number(self) -> int:
        """The code as it travels."""
        return _NUMBERS.get(self.code, 2)

    @classmethod
    def from_reset(cls, code: int) -> RpcError:
        """Return the error of a stream that was reset."""
        return cls(_OF_RESET.get(code, "INTERNAL"), f"the stream was reset (HTTP/2 code {code})")

    @classmethod
    def from_trailers(cls, trailers: Headers) -> RpcError | None:
        """Return the error that trailers tell; ``None`` for OK."""
        fields = dict(trailers)
        status = fields.get("grpc-status")
        if status is None:
            http = fields.get(":status", "200")
            code = "INTERNAL" if http == "200" else _OF_HTTP.get(http, "UNKNOWN")
            return cls(code, f"an answer without a gRPC status (HTTP status {http})")
        if status == "0":
            return None
        known = status.isdigit() and int(status) < len(CODES)
        from urllib.parse import unquote  # only failures need it

        message = unquote(fields.get("grpc-message", ""), errors="replace")
        details = fields.get("grpc-status-details-bin")
        return cls(
            CODES[int(status)] if known else "UNKNOWN", message, decode_binary(details) if details else b""
        )


def status_trailers(error: RpcError | None) -> Headers:
    """Return the trailers that say how a call ended."""
    if error is None:
        return [("grpc-status", "0")]
    from urllib.parse import quote

    message = quote(error.message.encode(errors="replace"), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    out = [("grpc-status", str(error.number)), ("grpc-message", message)]
    if error.details:
        out.append(("grpc-status-details-bin", encode_binary(error.details)))
    return out


def encode_binary(value: bytes) -> str:
    """Return a ``-bin`` header's value, without padding as Go sends it."""
    return binascii.b2a_base64(value, newline=False).decode().rstrip("=")


def decode_binary(value: str) -> bytes:
    """Read a ``-bin`` header's value, padded or not; what is malformed reads as empty."""
    try:
        return binascii.a2b_base64(value + "=" * (-len(value) % 4))
    except (binascii.Error, ValueError):
        return b""
