"""BuildKit's client side in Python: Control, gateway, sessions and history, over any way to a daemon.

::

    from crossdock.buildkit import Client, FileSync, LocalDir, SolveOptions

    with Client("unix:///run/buildkit/buildkitd.sock") as client:
        files = FileSync({"context": LocalDir(path=here), "dockerfile": LocalDir(path=here)})
        client.solve(SolveOptions(frontend="dockerfile.v0"), attachables=[files], sink=sink, cancel=CancelToken())

Nothing is imported before it is used. How the parts fit together: ``docs/reference/buildkit-client.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdock.buildkit.client import (
        Client,
        GcPolicy,
        UsageRecord,
        VersionInfo,
        WorkerInfo,
    )
    from crossdock.buildkit.engine import EngineDialer, unix_dialer
    from crossdock.buildkit.gateway import FileStat, Gateway, GatewayResult, ResolvedImage, SourceMeta
    from crossdock.buildkit.gatewayrun import GatewayContainer
    from crossdock.buildkit.history import (
        HistoryRecord,
        delete_record,
        finalize_record,
        has_blob,
        pin_record,
        read_blob,
        record_events,
    )
    from crossdock.buildkit.session.auth import Auth
    from crossdock.buildkit.session.content import ContentStores
    from crossdock.buildkit.session.filesend import FileSend
    from crossdock.buildkit.session.filesync import FileSync, LocalDir
    from crossdock.buildkit.session.layout import LayoutStore
    from crossdock.buildkit.session.secrets import Secrets
    from crossdock.buildkit.session.server import Attachable, Session
    from crossdock.buildkit.session.ssh import SshForward
    from crossdock.buildkit.session.targets import DirectoryTarget, StreamTarget
    from crossdock.buildkit.session.upload import Upload
    from crossdock.buildkit.solve import CacheEntry, Export, SolveOptions
    from crossdock.buildkit.transport import ByteStream, TlsOptions

_HOMES = {
    "client": ("Client", "GcPolicy", "UsageRecord", "VersionInfo", "WorkerInfo"),
    "engine": ("EngineDialer", "unix_dialer"),
    "gateway": ("FileStat", "Gateway", "GatewayResult", "ResolvedImage", "SourceMeta"),
    "gatewayrun": ("GatewayContainer",),
    "history": (
        *("HistoryRecord", "delete_record", "finalize_record", "has_blob", "pin_record"),
        *("read_blob", "record_events"),
    ),
    "session.auth": ("Auth",),
    "session.content": ("ContentStores",),
    "session.filesend": ("FileSend",),
    "session.filesync": ("FileSync", "LocalDir"),
    "session.layout": ("LayoutStore",),
    "session.secrets": ("Secrets",),
    "session.server": ("Attachable", "Session"),
    "session.ssh": ("SshForward",),
    "session.targets": ("DirectoryTarget", "StreamTarget"),
    "session.upload": ("Upload",),
    "solve": ("CacheEntry", "Export", "SolveOptions"),
    "transport": ("ByteStream", "TlsOptions"),
}

__all__ = [
    "Attachable",
    "Auth",
    "ByteStream",
    "CacheEntry",
    "Client",
    "ContentStores",
    "DirectoryTarget",
    "EngineDialer",
    "Export",
    "FileSend",
    "FileStat",
    "FileSync",
    "Gateway",
    "GatewayContainer",
    "GatewayResult",
    "GcPolicy",
    "HistoryRecord",
    "LayoutStore",
    "LocalDir",
    "ResolvedImage",
    "Secrets",
    "Session",
    "SolveOptions",
    "SourceMeta",
    "SshForward",
    "StreamTarget",
    "TlsOptions",
    "Upload",
    "UsageRecord",
    "VersionInfo",
    "WorkerInfo",
    "delete_record",
    "finalize_record",
    "has_blob",
    "pin_record",
    "read_blob",
    "record_events",
    "unix_dialer",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"crossdock.buildkit.{home}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
