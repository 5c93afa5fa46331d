"""containerd's ``hosts.toml``: mirrors and trust of one registry.

Spec: containerd ``docs/hosts.md``. ``header`` and ``dial_timeout`` are refused rather than ignored.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crossdock.errors import ConfigError
from crossdock.registry.config import Endpoint, TlsConfig, split_host

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_hosts_toml"]

_HOST_KEYS = frozenset({"capabilities", "ca", "client", "skip_verify", "override_path"})


def read_hosts_toml(file: Path, origin: Endpoint, *, pull: bool) -> tuple[Endpoint, ...]:
    """Return the endpoints that ``file`` gives for ``origin``'s domain; the server itself is last.

    Raises: ConfigError naming the file and the key.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        summary = f"{file}: {exc}"
        raise ConfigError(summary) from exc
    hosts = data.pop("host", {})
    server = data.pop("server", None)
    default = _endpoint(file, server, data, origin) if server or data else origin
    wanted = {"pull", "resolve"} if pull else {"push"}
    endpoints = []
    for url, table in hosts.items():
        capabilities = set(table.get("capabilities", ("pull", "resolve", "push")))
        if wanted <= capabilities:
            endpoints.append(_endpoint(file, url, table, origin)._replace(mirror=True))
    # With a pushing host the server is not pushed to as well: containerd takes the first.
    return (
        (*endpoints, default) if pull else (endpoints[0]._replace(mirror=False),) if endpoints else (default,)
    )


def _endpoint(file: Path, url: str | None, table: dict[str, Any], origin: Endpoint) -> Endpoint:
    unknown = sorted(set(table) - _HOST_KEYS)
    if unknown:
        summary = f"{file}: {unknown[0]!r} is not supported"
        raise ConfigError(summary, hint=f"supported keys: {', '.join(sorted(_HOST_KEYS))}")
    tls = _tls(file, table, origin.tls)
    if url is None:
        return origin._replace(tls=tls)
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        summary = f"{file}: invalid host {url!r}"
        raise ConfigError(summary, hint="write it as https://host[:port]")
    host, port = split_host(parts.netloc)
    path = parts.path.rstrip("/")
    prefix = path if table.get("override_path") or path.endswith("/v2") else f"{path}/v2"
    domain = origin.domain if (host, port) == (origin.host, origin.port) else parts.netloc
    return Endpoint(domain, host, port, (parts.scheme,), tls, prefix)


def _tls(file: Path, table: dict[str, Any], base: TlsConfig) -> TlsConfig:
    authorities = _strings(table.get("ca"))
    pairs: list[tuple[str, str]] = []
    client = table.get("client")
    for item in [client] if isinstance(client, str) else client or ():
        pair = _strings(item)
        if len(pair) not in (1, 2):
            summary = f"{file}: 'client' is not a file or a list of [certificate, key] pairs"
            raise ConfigError(summary)
        pairs.append((str(file.parent / pair[0]), str(file.parent / pair[-1])))
    return TlsConfig(
        base.verify and not table.get("skip_verify"),
        base.ca_files + tuple(str(file.parent / name) for name in authorities),
        base.client_pairs + tuple(pairs),
        (*base.places, str(file)),
    )


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]
