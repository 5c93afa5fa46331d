"""``buildkitd.toml``: read, checked, and put into our terms. Errors name file, line and key.

What has no meaning here (containerd workers, CNI, snapshotters, AppArmor, …) becomes a note, as buildkitd's flags of that
kind do; a wrong type or value is an error.

Spec: moby/buildkit ``cmd/buildkitd/config``, ``docs/buildkitd.toml.md``.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tomllib
from typing import TYPE_CHECKING, Any

from crossdock.engine.store.filters import parse_filters
from crossdock.engine.store.gc import GCPolicy, default_policies
from crossdock.errors import ConfigError
from crossdock.image.platform import parse_platforms
from crossdock.registry.config import HostConfig
from crossdock.server.configvalues import parse_duration, parse_size
from crossdock.server.listen import parse_address
from crossdock.server.tomlfile import TomlFile, syntax_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.engine.sandbox.etcfiles import Dns
    from crossdock.server.tomlfile import Section

__all__ = ["ENTITLEMENTS", "NETWORKS", "Config", "bounded_policies", "read_config"]

_MAX_BYTES = 1 << 20
#: what ``insecure-entitlements`` may name
ENTITLEMENTS = frozenset(["network.host", "security.insecure", "device"])
_LEVELS = frozenset(["trace", "debug", "info", "warn", "error", "fatal", "panic"])

#: values of ``networkMode`` and what they are here
NETWORKS = {
    "": "",
    "auto": "host",
    "host": "host",
    "bridge": "isolated",
    "cni": "isolated",
    "isolated": "isolated",
}

#: keys that are right and do nothing here, by section: name -> type
_NOTED: dict[str, dict[str, type]] = {
    "": {"proxyNetwork": bool, "provenanceEnvDir": str},
    "grpc": {"debugAddress": str, "securityDescriptor": str},
    "otel": {"socketPath": str},
    "worker.oci": {
        "snapshotter": str,
        "rootless": bool,
        "noProcessSandbox": bool,
        "userRemapUnsupported": str,
        "proxySnapshotterPath": str,
        "stargzSnapshotter": dict,
        "apparmor-profile": str,
        "selinux": bool,
        "cniConfigPath": str,
        "cniBinaryPath": str,
        "cniPoolSize": int,
        "bridgeName": str,
        "bridgeSubnet": str,
    },
    "system": {"maxRegistryConcurrency": int},
    "cache": {"gha": dict},
}
_CONTAINERD: dict[str, type] = {
    "address": str,
    "labels": dict,
    "platforms": list,
    "namespace": str,
    "runtime": dict,
    "max-parallelism": int,
    "defaultCgroupParent": str,
    "networkMode": str,
    "gc": bool,
    "gcpolicy": list,
    **{key: kind for key, kind in _NOTED["worker.oci"].items() if kind is not dict},
}


class Config:
    """What a file says; attributes that it does not mention keep these values."""

    def __init__(self) -> None:
        self.debug = False
        self.root = ""
        self.entitlements: tuple[str, ...] = ()
        self.log_format = ""
        self.log_level = ""
        self.addresses: tuple[str, ...] = ()
        self.uid: int | None = None
        self.gid: int | None = None
        self.tls: dict[str, str] = {}
        self.history_age_s: float | None = None
        self.history_entries: int | None = None
        self.labels: dict[str, str] = {}
        self.platforms: tuple[str, ...] = ()
        self.parallelism = 0
        #: ``None`` = the default rules; empty = never collect
        self.policies: tuple[GCPolicy, ...] | None = None
        self.registries: dict[str, HostConfig] = {}
        #: what steps get that ask for no network: ``host``, ``isolated``, ``""`` for the default
        self.network = ""
        self.dns: Dns | None = None
        #: name or path of the OCI runtime
        self.runtime = ""
        self.cgroup_parent = ""
        self.cdi_disabled = False
        #: where devices are described; empty = where they usually are
        self.cdi_directories: tuple[str, ...] = ()
        #: devices and kinds that need no permission
        self.cdi_auto_allowed: tuple[str, ...] = ()
        #: seconds after which the machine is looked at again; ``None`` never
        self.platforms_age_s: float | None = None
        #: frontends that clients may not use
        self.disabled_frontends: tuple[str, ...] = ()
        #: repositories that frontends in images may come from; empty = any
        self.frontend_repositories: tuple[str, ...] = ()
        self.notes: list[str] = []


def read_config(path: Path, disk_total: int) -> Config:
    """Read a file; ``disk_total`` is what percentages of sizes are of.

    Raises: ConfigError naming file, line and key.
    """
    try:
        raw = path.read_bytes()[: _MAX_BYTES + 1]
    except OSError as exc:
        summary = f"cannot read {path}: {exc.strerror}"
        raise ConfigError(summary) from exc
    if len(raw) > _MAX_BYTES:
        summary = f"{path} is larger than 1 MiB: not a configuration"
        raise ConfigError(summary)
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        line = raw[: exc.start].count(b"\n") + 1
        summary = f"{path}:{line}: this is not UTF-8 text"
        raise ConfigError(summary) from exc
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise syntax_error(path, text, str(exc)) from exc
    return _Reader(TomlFile(path, text), disk_total).read(data)


class _Reader:
    def __init__(self, file: TomlFile, disk_total: int) -> None:
        self._file = file
        self._disk = disk_total
        self.config = Config()

    def read(self, data: Mapping[str, Any]) -> Config:
        config = self.config
        top = self._file.section("", data)
        config.debug = top.get("debug", bool, False) | top.get("trace", bool, False)
        config.root = top.get("root", str, "")
        config.entitlements = top.texts("insecure-entitlements")
        for name in config.entitlements:
            if name not in ENTITLEMENTS:
                known = ", ".join(sorted(ENTITLEMENTS))
                top.fail("insecure-entitlements", f"invalid entitlement {name!r}: there are {known}")
        self._log(top.section("log"))
        self._grpc(top.section("grpc"))
        self._history(top.section("history"))
        self._worker(top.section("worker"))
        registries = top.section("registry")
        for host in top.get("registry", dict, {}):
            config.registries[host] = self._registry(registries.section(host))
        self._frontend(top.section("frontend"))
        self._dns(top.section("dns"))
        self._system(top.section("system"))
        self._cdi(top.section("cdi"))
        for name in ("otel", "cache"):
            top.section(name).done(_NOTED[name])
        top.done(_NOTED[""])
        config.notes = self._file.notes
        return config

    def _dns(self, section: Section) -> None:
        values = [section.texts(key) for key in ("nameservers", "options", "searchDomains")]
        section.checked("nameservers", lambda _: [ipaddress.ip_address(server) for server in values[0]])
        if any(values):
            from crossdock.engine.sandbox.etcfiles import Dns

            self.config.dns = Dns(*values)
        section.done()

    def _cdi(self, section: Section) -> None:
        self.config.cdi_disabled = section.get("disabled", bool, False)
        self.config.cdi_directories = section.texts("specDirs")
        self.config.cdi_auto_allowed = section.texts("autoAllowed")
        section.done()

    def _system(self, section: Section) -> None:
        if section.has("platformsCacheMaxAge"):
            self.config.platforms_age_s = section.checked("platformsCacheMaxAge", parse_duration)
        section.done(_NOTED["system"])

    def _log(self, section: Section) -> None:
        self.config.log_format = section.get("format", str, "")
        if self.config.log_format not in ("", "text", "json"):
            section.fail("format", f"expected text or json, not {self.config.log_format!r}")
        self.config.log_level = section.get("level", str, "")
        if self.config.log_level and self.config.log_level not in _LEVELS:
            section.fail("level", f"unknown level {self.config.log_level!r}")
        section.done()

    def _grpc(self, section: Section) -> None:
        self.config.addresses = section.texts("address")
        section.checked("address", lambda _: [parse_address(address) for address in self.config.addresses])
        if section.has("uid"):
            self.config.uid = section.get("uid", int, 0)
        if section.has("gid"):
            self.config.gid = section.get("gid", int, 0)
        tls = section.section("tls")
        self.config.tls = {key: tls.get(key, str, "") for key in ("cert", "key", "ca") if tls.has(key)}
        tls.done()
        section.done(_NOTED["grpc"])

    def _history(self, section: Section) -> None:
        if section.has("maxAge"):
            self.config.history_age_s = section.checked("maxAge", parse_duration)
        if section.has("maxEntries"):
            self.config.history_entries = section.get("maxEntries", int, 50)
            if self.config.history_entries < 0:
                section.fail("maxEntries", "expected 0 or more")
        section.done()

    def _frontend(self, section: Section) -> None:
        for name in ("dockerfile.v0", "gateway.v0"):
            one = section.section(name)
            if not one.get("enabled", bool, True):
                self.config.disabled_frontends += (name,)
            if name == "gateway.v0":
                self.config.frontend_repositories = one.texts("allowedRepositories")
            one.done()
        section.done()

    def _registry(self, section: Section) -> HostConfig:
        pairs = []
        for number, item in enumerate(section.get("keypair", list, [])):
            pair = self._file.section(section.path("keypair"), item if isinstance(item, dict) else {}, number)
            if not pair.has("key") or not pair.has("cert"):
                section.fail("keypair", "expected a table with key and cert")
            pairs.append((pair.get("cert", str, ""), pair.get("key", str, "")))
        http = section.get("http", bool, False) if section.has("http") else None
        out = HostConfig(
            http=True if http else None,
            insecure=section.get("insecure", bool, False),
            mirrors=section.texts("mirrors"),
            ca_files=section.texts("ca"),
            client_pairs=tuple(pairs),
            tls_dirs=section.texts("tlsconfigdir"),
        )
        for key, files in (("ca", out.ca_files), ("tlsconfigdir", out.tls_dirs)):
            self._look_for(section, key, files)
        for cert, key in pairs:
            self._look_for(section, "keypair", (cert, key))
        section.done()
        return out

    def _look_for(self, section: Section, key: str, files: Sequence[str]) -> None:
        """Note what is not there; it may come before it is needed."""
        for file in files:
            if not os.path.exists(file):
                section.note(key, f"names {file}, which is not there")

    def _worker(self, section: Section) -> None:
        oci = section.section("oci")
        config = self.config
        if not _is_on(oci, "enabled", default=True):
            oci.note("enabled", "has no effect here: there is only this worker")
        labels = oci.get("labels", dict, {})
        if not all(isinstance(value, str) for value in labels.values()):
            oci.fail("labels", "expected strings")
        config.labels = dict(labels)
        config.platforms = oci.texts("platforms")
        if config.platforms:
            oci.checked("platforms", lambda values: parse_platforms(tuple(values)))
        config.parallelism = oci.get("max-parallelism", int, 0)
        if config.parallelism < 0:
            oci.fail("max-parallelism", "expected 0 or more")
        config.runtime = oci.get("binary", str, "")
        if config.runtime and shutil.which(config.runtime) is None:
            oci.note("binary", f"names {config.runtime}, which is no program here: steps cannot run")
        config.cgroup_parent = oci.get("defaultCgroupParent", str, "")
        mode = oci.get("networkMode", str, "")
        if mode not in NETWORKS:
            oci.fail("networkMode", f"expected {', '.join(filter(None, NETWORKS))}, not {mode!r}")
        config.network = NETWORKS[mode]
        self._collection(oci)
        oci.done(_NOTED["worker.oci"])
        self._containerd(section.section("containerd"))
        section.done()

    def _containerd(self, section: Section) -> None:
        if _is_on(section, "enabled", default=False):
            section.note("enabled", "has no effect here: the engine is its own worker")
        for key in ("gckeepstorage", *_NEW_BOUNDS):
            section.raw(key)
        section.done(_CONTAINERD)

    def _collection(self, oci: Section) -> None:
        collect = _is_on(oci, "gc", default=True)
        listed = oci.get("gcpolicy", list, [])
        bounds = self._bounds(oci, "gckeepstorage")
        if not collect:
            self.config.policies = ()
        elif listed:
            self.config.policies = tuple(
                self._policy(oci, item, number) for number, item in enumerate(listed)
            )
        elif bounds:
            self.config.policies = bounded_policies(bounds)

    def _bounds(self, section: Section, old: str) -> dict[str, int]:
        """Return the sizes of a section; the old name counts where no new one is given."""
        found = {
            key: section.checked(key, lambda v: parse_size(v, self._disk))
            for key in (old, *_NEW_BOUNDS)
            if section.has(key)
        }
        new = {_NEW_BOUNDS[key]: size for key, size in found.items() if key in _NEW_BOUNDS}
        if old == "gckeepstorage" and new:
            return new
        return {"reserved_space": found[old], **new} if old in found else new

    def _policy(self, oci: Section, item: Any, number: int) -> GCPolicy:
        if not isinstance(item, dict):
            oci.fail("gcpolicy", f"expected a table, not {item!r}")
        one = self._file.section(oci.path("gcpolicy"), item, number)
        duration = one.checked("keepDuration", parse_duration) if one.has("keepDuration") else 0.0
        filters = one.texts("filters")
        one.checked("filters", lambda _: parse_filters(filters))
        policy = GCPolicy(
            all=one.get("all", bool, False),
            filters=filters,
            keep_duration_s=duration,
            **self._bounds(one, "keepBytes"),
        )
        one.done()
        return policy


def _is_on(section: Section, key: str, *, default: bool) -> bool:
    """Read a switch; buildkitd also takes ``auto`` and switches in quotes."""
    value = section.raw(key)
    if value in (None, "auto"):
        return default
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    section.fail(key, f"expected true or false, not {value!r}")


def bounded_policies(bounds: Mapping[str, int]) -> tuple[GCPolicy, ...]:
    """Return buildkitd's default rules with these bounds alone in those that have any."""
    from crossdock.record import replace

    given = {"reserved_space": 0, "max_used_space": 0, "min_free_space": 0, **bounds}
    return tuple(replace(p, **given) if not p.filters else p for p in default_policies(0))


#: key -> field
_NEW_BOUNDS = {
    "reservedSpace": "reserved_space",
    "maxUsedSpace": "max_used_space",
    "minFreeSpace": "min_free_space",
}
