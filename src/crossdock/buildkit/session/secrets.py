"""Session service ``Secrets``: build secrets by id.

Spec: moby/buildkit ``session/secrets/secrets.proto``; at most 500 KiB each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import secrets_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import NOT_FOUND, RpcError
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.secret import Secret

__all__ = ["MAX_SECRET_BYTES", "Secrets"]

MAX_SECRET_BYTES = 500 * 1024


class Secrets:
    """Serves the given secrets, read at the time of construction."""

    def __init__(self, values: Mapping[str, Secret]) -> None:
        for name, value in values.items():
            if len(value.reveal()) > MAX_SECRET_BYTES:
                summary = f"secret {name!r} is larger than {MAX_SECRET_BYTES // 1024} KiB"
                raise UsageError(summary)
        self._values = dict(values)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's method."""
        return {"/moby.buildkit.secrets.v1.Secrets/GetSecret": unary(secrets_pb2.GetSecretRequest, self._get)}

    def _get(self, request: secrets_pb2.GetSecretRequest, call: ServerCall) -> secrets_pb2.GetSecretResponse:
        # NOT_FOUND is what optional mounts accept.
        del call
        value = self._values.get(request.ID)
        if value is None:
            raise RpcError(NOT_FOUND, f"secret {request.ID}: not found")
        return secrets_pb2.GetSecretResponse(data=value.reveal())
