"""How each registry is reached: scheme, mirrors, trust, client certificates.

Sources, strongest first: what the caller passes (the ``[registry."HOST"]`` tables of ``buildkitd.toml``),
``hosts.toml`` of containerd, docker's ``certs.d``, and rules for loopback and Docker Hub. Files are looked at when a
host is first used.

Spec: docker "Verify repository client with certificates"; containerd ``docs/hosts.md``;
BuildKit ``docs/buildkitd.toml.md``. Values here are NamedTuples: the cached build imports this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import ConfigError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Endpoint", "HostConfig", "RegistryConfig", "TlsConfig", "is_loopback", "split_host"]

_HUB_DOMAIN = "docker.io"
_HUB_HOST = "registry-1.docker.io"


class TlsConfig(NamedTuple):
    """What a TLS connection trusts and presents."""

    verify: bool = True
    #: PEM files trusted beside the system's store
    ca_files: tuple[str, ...] = ()
    #: (certificate, key) files
    client_pairs: tuple[tuple[str, str], ...] = ()
    #: where the settings came from, for error messages
    places: tuple[str, ...] = ()


class Endpoint(NamedTuple):
    """One address that serves a registry's API."""

    #: name that credentials are kept under, e.g. ``docker.io``
    domain: str
    host: str
    #: ``None`` = the scheme's own
    port: int | None
    #: tried in this order until one fits what the peer speaks
    schemes: tuple[str, ...]
    tls: TlsConfig
    #: path before ``/REPOSITORY/manifests/...``
    prefix: str = "/v2"
    mirror: bool = False

    @property
    def address(self) -> str:
        """Host and port for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


class HostConfig(NamedTuple):
    """Settings of one registry, as in a ``[registry."HOST"]`` table."""

    #: True = plain HTTP only, False = TLS only, None = by rule
    http: bool | None = None
    #: certificates are not verified, and plain HTTP is accepted where TLS is not spoken
    insecure: bool = False
    #: ``host[:port][/path]``, asked before the registry itself when pulling
    mirrors: tuple[str, ...] = ()
    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str], ...] = ()
    #: directories laid out like one host's directory in ``certs.d``
    tls_dirs: tuple[str, ...] = ()


class RegistryConfig:
    """All registries' settings. Immutable after construction, save for what it remembers of files read."""

    def __init__(
        self, *, hosts: Mapping[str, HostConfig] | None = None, cert_dirs: Sequence[Path] | None = None
    ) -> None:
        """``cert_dirs`` are ``certs.d`` directories, first match wins; default: :func:`default_cert_dirs`."""
        self._hosts = dict(hosts or {})
        self._cert_dirs = tuple(default_cert_dirs(os.environ) if cert_dirs is None else cert_dirs)
        # Only ever added to, with equal values for equal keys: no lock needed.
        self._known: dict[tuple[str, bool, bool], tuple[Endpoint, ...]] = {}
        self._folders: dict[str, list[Path]] = {}

    def endpoints(self, domain: str, *, pull: bool, insecure: bool = False) -> tuple[Endpoint, ...]:
        """Return where to ask, in order; the registry itself is last. Pushes go to it alone.

        Raises: ConfigError when a file of the host is wrong.
        """
        key = (domain, pull, insecure)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._find(domain, pull=pull, insecure=insecure)
        return found

    def tls_for(self, address: str, *, insecure: bool = False) -> TlsConfig:
        """Return the TLS settings for ``host[:port]``: token servers and redirect targets have their own."""
        host = self._hosts.get(address, HostConfig())
        places: list[str] = []
        ca_files, pairs = list(host.ca_files), list(host.client_pairs)
        if ca_files or pairs:
            places.append(f'registry."{address}"')
        for directory in (*map(Path, host.tls_dirs), *self._directories(address)):
            more_ca, more_pairs = _read_cert_dir(directory)
            if more_ca or more_pairs:
                places.append(str(directory))
                ca_files += more_ca
                pairs += more_pairs
        verify = not (insecure or host.insecure)
        return TlsConfig(verify, tuple(ca_files), tuple(pairs), tuple(places))

    def certs_path(self, address: str) -> str:
        """Return where a user would put the host's CA certificate, for hints."""
        first = self._cert_dirs[0] if self._cert_dirs else Path("/etc/docker/certs.d")
        return str(first / address / "ca.crt")

    def _find(self, domain: str, *, pull: bool, insecure: bool) -> tuple[Endpoint, ...]:
        origin = self._endpoint(domain, domain, insecure=insecure)
        mirrors = [
            self._endpoint(mirror.partition("/")[0], mirror.partition("/")[0], insecure=insecure)._replace(
                prefix=f"/v2/{path}".rstrip("/"), mirror=True
            )
            for mirror in self._hosts.get(domain, HostConfig()).mirrors
            for path in [mirror.partition("/")[2].strip("/")]
        ]
        for directory in self._directories(domain):
            file = directory / "hosts.toml"
            if file.is_file():
                from crossdock.registry.hosts_toml import read_hosts_toml  # rare

                return read_hosts_toml(file, origin, pull=pull)
        return (*mirrors, origin) if pull else (origin,)

    def _endpoint(self, domain: str, address: str, *, insecure: bool) -> Endpoint:
        settings = self._hosts.get(domain, HostConfig())
        tls = self.tls_for(address, insecure=insecure)
        host, port = split_host(_HUB_HOST if address == _HUB_DOMAIN else address)
        schemes = _schemes(settings, tls, host, port)
        return Endpoint(domain, host, port, schemes, tls)

    def _directories(self, address: str) -> list[Path]:
        found = self._folders.get(address)
        if found is None:
            found = [path for base in self._cert_dirs if (path := base / address).is_dir()]
            self._folders[address] = found
        return found


def default_cert_dirs(env: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the ``certs.d`` directories of docker, podman and containerd, the user's own first."""
    dirs = [Path(env["DOCKER_CONFIG"]) / "certs.d"] if env.get("DOCKER_CONFIG") else []
    if home := env.get("HOME"):
        base = Path(home)
        dirs += [
            base / ".docker/certs.d",
            base / ".config/docker/certs.d",
            base / ".config/containers/certs.d",
        ]
    dirs += [
        Path(f"/etc/{program}/certs.d") for program in ("docker", "containers", "containerd", "buildkit")
    ]
    return tuple(dirs)


def split_host(address: str) -> tuple[str, int | None]:
    """Split ``host[:port]``; IPv6 addresses are in brackets, which are dropped.

    Raises: ConfigError when the port is no number.
    """
    host, colon, port = address.rpartition(":")
    if not colon or port.endswith("]"):
        return address.strip("[]"), None
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        summary = f"invalid registry address {address!r}"
        raise ConfigError(summary, hint="write it as host or host:port")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name: ``localhost``, 127.0.0.0/8, ``::1``."""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def _schemes(settings: HostConfig, tls: TlsConfig, host: str, port: int | None) -> tuple[str, ...]:
    if settings.http is not None:
        return ("http",) if settings.http else ("https",)
    if is_loopback(host):
        tls_first = port == 443 or bool(tls.ca_files or tls.client_pairs)
        return ("https", "http") if tls_first else ("http", "https")
    return ("https",) if tls.verify else ("https", "http")


def _read_cert_dir(directory: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Read one host's directory: ``*.crt`` are authorities, ``*.cert`` and ``*.key`` client pairs."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as exc:
        summary = f"cannot read {directory}: {exc.strerror}"
        raise ConfigError(summary) from exc
    authorities = [str(directory / name) for name in names if name.endswith(".crt")]
    pairs = []
    for name in names:
        stem, dot, kind = name.rpartition(".")
        if not dot or kind not in ("cert", "key"):
            continue
        other = f"{stem}.{'key' if kind == 'cert' else 'cert'}"
        if other not in names:
            summary = f"{directory / name} has no {other} beside it"
            raise ConfigError(summary, hint="a client certificate is a pair NAME.cert and NAME.key")
        if kind == "cert":
            pairs.append((str(directory / name), str(directory / other)))
    return authorities, pairs
