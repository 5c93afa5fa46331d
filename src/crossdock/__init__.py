"""Crossdock: build container images for every platform, from one machine, without a daemon.

The public names are loaded on first use, so ``import crossdock`` costs nothing.
"""

from __future__ import annotations

from crossdock._version import __version__

TYPE_CHECKING = False  # `typing` costs 8 ms, more than the rest of a plugin handshake

if TYPE_CHECKING:
    from crossdock.api import Builder, build, list_builders
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult, BuiltImage, BuiltIndex
    from crossdock.cancel import CancelToken
    from crossdock.errors import (
        AuthError,
        BuilderError,
        CacheError,
        Cancelled,
        ConfigError,
        ContextError,
        CrossdockError,
        DigestMismatch,
        DockerfileError,
        EmulationError,
        ExportError,
        InternalError,
        LayerError,
        NotFoundError,
        NotSupported,
        PlatformNotFound,
        PlatformNotOffered,
        RegistryError,
        RemoteError,
        SandboxError,
        SolveError,
        StepFailed,
        StoreError,
        StoreFull,
        UsageError,
    )
    from crossdock.image.platform import Platform
    from crossdock.progress.events import Event, Vertex, VertexLog, VertexStatus, VertexWarning
    from crossdock.secret import Secret

__all__ = [
    "AuthError",
    "BuildRequest",
    "BuildResult",
    "Builder",
    "BuilderError",
    "BuiltImage",
    "BuiltIndex",
    "CacheError",
    "CancelToken",
    "Cancelled",
    "ConfigError",
    "ContextError",
    "CrossdockError",
    "DigestMismatch",
    "DockerfileError",
    "EmulationError",
    "Event",
    "ExportError",
    "InternalError",
    "LayerError",
    "NotFoundError",
    "NotSupported",
    "Platform",
    "PlatformNotFound",
    "PlatformNotOffered",
    "RegistryError",
    "RemoteError",
    "SandboxError",
    "Secret",
    "SolveError",
    "StepFailed",
    "StoreError",
    "StoreFull",
    "UsageError",
    "Vertex",
    "VertexLog",
    "VertexStatus",
    "VertexWarning",
    "__version__",
    "build",
    "list_builders",
]

_HOMES = {
    "Builder": "crossdock.api",
    "build": "crossdock.api",
    "list_builders": "crossdock.api",
    "BuildRequest": "crossdock.builders.request",
    "BuildResult": "crossdock.builders.result",
    "BuiltImage": "crossdock.builders.result",
    "BuiltIndex": "crossdock.builders.result",
    "CancelToken": "crossdock.cancel",
    "Platform": "crossdock.image.platform",
    "Event": "crossdock.progress.events",
    "Vertex": "crossdock.progress.events",
    "VertexLog": "crossdock.progress.events",
    "VertexStatus": "crossdock.progress.events",
    "VertexWarning": "crossdock.progress.events",
    "Secret": "crossdock.secret",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value: object = getattr(import_module(_HOMES.get(name, "crossdock.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
