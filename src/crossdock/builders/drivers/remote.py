"""Driver ``remote``: a BuildKit daemon that somebody else runs, reached by address.

Spec: features "remote" driver; docker/buildx ``driver/remote``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
from crossdock.buildkit.client import Client
from crossdock.buildkit.transport import TlsOptions
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.model import Node, NodeGroup

__all__ = ["make"]

_OPTIONS = ("servername", "cacert", "cert", "key", "default-load")


def make(group: NodeGroup, node: Node) -> BuildKitDriver:
    """Make the driver of one address.

    Raises: UsageError for an unknown or malformed driver option.
    """
    options = node.driver_opts or {}
    for name in options:
        if name not in _OPTIONS:
            summary = f"builder {group.name!r}: unknown driver option {name!r} for the remote driver"
            raise UsageError(summary, hint=f"options: {', '.join(_OPTIONS)}")
    tls = _tls(options)
    return BuildKitDriver(
        lambda: Client(node.endpoint, tls=tls), name=node.endpoint, path=node_path(group, node)
    )


def _tls(options: Mapping[str, str]) -> TlsOptions | None:
    given = {k: v for k, v in options.items() if k in ("servername", "cacert", "cert", "key") and v}
    if not given:
        return None
    for key in ("cacert", "cert", "key"):
        if key in given and not Path(given[key]).is_absolute():
            summary = f"driver option {key}={given[key]}: the path must be absolute"
            raise UsageError(summary)
    if "cacert" not in given:
        summary = "driver option cacert is needed when any TLS option is used"
        raise UsageError(summary)
    if ("cert" in given) != ("key" in given):
        summary = "driver options cert and key must be given together"
        raise UsageError(summary)
    return TlsOptions(
        ca_cert=Path(given["cacert"]),
        cert=Path(given["cert"]) if "cert" in given else None,
        key=Path(given["key"]) if "key" in given else None,
        server_name=given.get("servername", ""),
    )
