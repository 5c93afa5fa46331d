"""Session service ``Secrets``: build secrets by id.

Spec: moby/buildkit ``session/secrets/secrets.proto``; at most 500 KiB each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from crossdock.buildkit.proto import secrets_pb2, secrets_pb2_grpc
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.secret import Secret

__all__ = ["MAX_SECRET_BYTES", "Secrets"]

MAX_SECRET_BYTES = 500 * 1024


class Secrets(secrets_pb2_grpc.SecretsServicer):
    """Serves the given secrets, read at the time of construction."""

    methods = ("/moby.buildkit.secrets.v1.Secrets/GetSecret",)

    def __init__(self, values: Mapping[str, Secret]) -> None:
        for name, value in values.items():
            if len(value.reveal()) > MAX_SECRET_BYTES:
                summary = f"secret {name!r} is larger than {MAX_SECRET_BYTES // 1024} KiB"
                raise UsageError(summary)
        self._values = dict(values)

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers."""
        secrets_pb2_grpc.add_SecretsServicer_to_server(self, server)

    def GetSecret(  # noqa: N802 - the protocol's name
        self, request: secrets_pb2.GetSecretRequest, context: grpc.ServicerContext
    ) -> secrets_pb2.GetSecretResponse:
        """Return a secret; NOT_FOUND when it was not given, which optional mounts accept."""
        value = self._values.get(request.ID)
        if value is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"secret {request.ID}: not found")
        return secrets_pb2.GetSecretResponse(data=value.reveal())
