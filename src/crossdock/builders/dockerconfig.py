"""The docker CLI's configuration: its directory, contexts, and the endpoint in use.

Only what choosing a builder needs; credentials belong to ``crossdock.registry``.

Spec: docker/cli ``cli/config``, ``cli/context/store`` (``contexts/meta/<sha256 of name>/meta.json``).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from crossdock.errors import BuilderError, ConfigError
from crossdock.hashing import sha256
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_HOST",
    "DockerEndpoint",
    "config_dir",
    "context_names",
    "current_context",
    "current_endpoint_key",
    "endpoint_of",
    "load_config",
    "proxy_build_args",
]

DEFAULT_HOST = "unix:///var/run/docker.sock"


class DockerEndpoint(NamedTuple):
    """How an engine is reached."""

    context: str
    #: ``unix://``, ``tcp://`` or ``ssh://`` URL
    host: str
    #: directory with ca.pem, cert.pem, key.pem; ``""`` without TLS
    tls_dir: str = ""
    tls_verify: bool = True


def config_dir() -> str:
    """``$DOCKER_CONFIG``, else ``~/.docker``."""
    return os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")


def load_config() -> dict[str, Any]:
    """Read ``config.json``; empty when there is none.

    Raises: ConfigError when it is not a JSON object.
    """
    path = os.path.join(config_dir(), "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        summary = f"cannot read {path}: {exc}"
        raise ConfigError(summary) from exc
    if not isinstance(data, dict):
        summary = f"{path}: not a JSON object"
        raise ConfigError(summary)
    return data


def current_context() -> str:
    """Name of the docker context in use: ``DOCKER_HOST`` means ``default``, then ``DOCKER_CONTEXT``, then the config."""
    if os.environ.get("DOCKER_HOST"):
        return "default"
    return os.environ.get("DOCKER_CONTEXT") or str(load_config().get("currentContext") or "default")


def context_names() -> list[str]:
    """Names of all docker contexts, ``default`` included, sorted."""
    return sorted({"default", *_metas()})


def _metas() -> dict[str, dict[str, Any]]:
    root = os.path.join(config_dir(), "contexts", "meta")
    found: dict[str, dict[str, Any]] = {}
    try:
        entries = sorted(os.listdir(root))
    except FileNotFoundError:
        return found
    for entry in entries:
        meta = _read_meta(os.path.join(root, entry, "meta.json"))
        if meta is not None:
            found[str(meta.get("Name") or "")] = meta
    found.pop("", None)
    return found


def _read_meta(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:
        summary = f"cannot read docker context {path}: {exc}"
        raise ConfigError(summary) from exc
    return data if isinstance(data, dict) else None


def endpoint_of(context: str) -> DockerEndpoint:
    """Say how the engine of a docker context is reached.

    Raises: BuilderError for an unknown context or one without a docker endpoint.
    """
    if context == "default":
        host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        tls = bool(os.environ.get("DOCKER_TLS_VERIFY") or os.environ.get("DOCKER_TLS"))
        tls_dir = (os.environ.get("DOCKER_CERT_PATH") or config_dir()) if tls else ""
        return DockerEndpoint(context, host, tls_dir, bool(os.environ.get("DOCKER_TLS_VERIFY")))
    digest = sha256(context.encode()).hexdigest()
    meta = _read_meta(os.path.join(config_dir(), "contexts", "meta", digest, "meta.json"))
    if meta is None:
        summary = f"docker context {context!r} does not exist"
        raise BuilderError(summary, hint="`docker context ls` lists them")
    docker = (meta.get("Endpoints") or {}).get("docker") or {}
    endpoint_host = docker.get("Host")
    if not endpoint_host:
        summary = f"docker context {context!r} has no docker endpoint"
        raise BuilderError(summary)
    tls_dir = os.path.join(config_dir(), "contexts", "tls", digest, "docker")
    verify = not docker.get("SkipTLSVerify")
    return DockerEndpoint(context, str(endpoint_host), tls_dir if os.path.isdir(tls_dir) else "", verify)


_PROXIES = (
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("noProxy", "NO_PROXY"),
)


def proxy_build_args(given: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies that docker's config sets for builds, as build arguments, save those given in any case.

    Spec: docker/buildx ``store/storeutil`` (GetProxyConfig), ``build/opt.go``.
    """
    proxies = load_config().get("proxies")
    if not isinstance(proxies, dict):
        return {}
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    chosen = proxies.get(host) or proxies.get("default") or {}
    taken = {name.upper() for name in given}
    return {arg: str(chosen[key]) for key, arg in _PROXIES if chosen.get(key) and arg not in taken}


def current_endpoint_key() -> str:
    """Return buildx's key of the current endpoint: the host for ``default``, else the context's name."""
    context = current_context()
    return endpoint_of(context).host if context == "default" else context
