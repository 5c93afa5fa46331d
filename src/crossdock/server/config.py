"""``buildkitd.toml``: read, checked, and put into our terms. Errors name file, line and key.

What has no meaning here (containerd workers, CNI, snapshotters, AppArmor, …) becomes a note, as buildkitd's flags of that
kind do; a wrong type or value is an error.

Spec: moby/buildkit ``cmd/buildkitd/config``, ``docs/buildkitd.toml.md``.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from crossdock.engine.store.gc import GCPolicy
from crossdock.errors import ConfigError, UsageError
from crossdock.image.platform import parse_platforms
from crossdock.registry.config import HostConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Config", "parse_duration", "parse_size", "read_config"]

_T = TypeVar("_T")
_MAX_BYTES = 1 << 20
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)(b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_LEVELS = frozenset(["trace", "debug", "info", "warn", "error", "fatal", "panic"])

#: keys that are right and do nothing here, by section
_NOTED = {
    "": {"trace", "proxyNetwork", "provenanceEnvDir"},
    "grpc": {"debugAddress", "securityDescriptor", "uid"},
    "otel": {"socketPath"},
    "cdi": {"specDirs", "autoAllowed"},
    "dns": {"nameservers", "options", "searchDomains"},
    "worker.oci": {
        "snapshotter",
        "rootless",
        "noProcessSandbox",
        "userRemapUnsupported",
        "binary",
        "proxySnapshotterPath",
        "defaultCgroupParent",
        "stargzSnapshotter",
        "apparmor-profile",
        "selinux",
        "networkMode",
        "cniConfigPath",
        "cniBinaryPath",
        "cniPoolSize",
        "bridgeName",
        "bridgeSubnet",
    },
    "system": {"platformsCacheMaxAge", "maxRegistryConcurrency"},
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
        data = tomllib.loads(text)
    except UnicodeDecodeError as exc:
        summary = f"{path} is not UTF-8 text"
        raise ConfigError(summary) from exc
    except tomllib.TOMLDecodeError as exc:
        summary = f"{path}: {exc}"
        raise ConfigError(summary) from exc
    return _Reader(path, text, disk_total).read(data)


class _Section:
    """One table of the file, with what is needed to name its keys."""

    def __init__(self, reader: _Reader, name: str, data: Mapping[str, Any]) -> None:
        self.reader = reader
        self.name = name
        self._data = data
        self._seen: set[str] = set()

    def get(self, key: str, kind: type[_T], default: _T) -> _T:
        """Return a value of one type."""
        self._seen.add(key)
        value = self._data.get(key, default)
        if type(value) is not kind:
            self.fail(key, f"expected {_KINDS[kind]}, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            self.fail(key, f"expected a list of strings, not {values!r}")
        return tuple(values)

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return key in self._data

    def raw(self, key: str) -> Any:
        """Return a value of any type; ``None`` when it is not there."""
        self._seen.add(key)
        return self._data.get(key)

    def section(self, key: str) -> _Section:
        """Return a table below; empty when it is not there."""
        return self.reader.section(self.path(key), self.get(key, dict, {}))

    def checked(self, key: str, convert: Callable[[Any], _T]) -> _T:
        """Return a value that ``convert`` accepts."""
        try:
            return convert(self.raw(key))
        except (ValueError, UsageError) as exc:
            self.fail(key, str(exc))

    def path(self, key: str) -> str:
        """Return the full name of a key."""
        return f"{self.name}.{key}" if self.name else key

    def fail(self, key: str, why: str) -> NoReturn:
        """Raise the error about a key."""
        line = self.reader.line_of(self.name, key)
        summary = f"{self.reader.path}:{line}: {self.path(key)}: {why}"
        raise ConfigError(summary)

    def done(self, noted: frozenset[str] | set[str] = frozenset()) -> None:
        """Note what was not asked for."""
        for key in self._data:
            if key in self._seen:
                continue
            why = "has no effect here" if key in noted else "is not known"
            line = self.reader.line_of(self.name, key)
            self.reader.config.notes.append(f"{self.reader.path}:{line}: {self.path(key)} {why}")


_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "a number",
    list: "a list",
    dict: "a table",
}


class _Reader:
    def __init__(self, path: Path, text: str, disk_total: int) -> None:
        self.path = path
        self._lines = text.splitlines()
        self._disk = disk_total
        self.config = Config()

    def section(self, name: str, data: Mapping[str, Any]) -> _Section:
        return _Section(self, name, data)

    def line_of(self, section: str, key: str) -> int:
        """Return the line a key is on, as well as can be told without a parser that keeps lines."""
        current = ""
        found = 0
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            if header:
                current = header[1].replace('"', "").replace("'", "")
                if current.rpartition(".")[2] == key or current == f"{section}.{key}".lstrip("."):
                    found = found or number
                continue
            if re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[.=]""", line) and (
                current == section or section.startswith(current)
            ):
                return number
        return found or 1

    def read(self, data: Mapping[str, Any]) -> Config:
        config = self.config
        top = self.section("", data)
        config.debug = top.get("debug", bool, False)
        config.root = top.get("root", str, "")
        config.entitlements = top.texts("insecure-entitlements")
        self._log(top.section("log"))
        self._grpc(top.section("grpc"))
        self._history(top.section("history"))
        self._worker(top.section("worker"))
        for host in top.get("registry", dict, {}):
            section = self.section(f"registry.{host}", top.section("registry").raw(host))
            config.registries[host] = self._registry(section)
        self._frontend(top.section("frontend"))
        for name in ("otel", "cdi", "dns", "system", "cache"):
            self._plain(top, name)
        top.done(_NOTED[""])
        return config

    def _plain(self, top: _Section, name: str) -> None:
        section = top.section(name)
        if name == "cdi":
            section.get("disabled", bool, True)
        section.done(_NOTED.get(name, frozenset(["gha"])))

    def _log(self, section: _Section) -> None:
        self.config.log_format = section.get("format", str, "")
        if self.config.log_format not in ("", "text", "json"):
            section.fail("format", f"expected text or json, not {self.config.log_format!r}")
        self.config.log_level = section.get("level", str, "")
        if self.config.log_level and self.config.log_level not in _LEVELS:
            section.fail("level", f"unknown level {self.config.log_level!r}")
        section.done()

    def _grpc(self, section: _Section) -> None:
        self.config.addresses = section.texts("address")
        if section.has("gid"):
            self.config.gid = section.get("gid", int, 0)
        tls = section.section("tls")
        self.config.tls = {key: tls.get(key, str, "") for key in ("cert", "key", "ca") if tls.has(key)}
        tls.done()
        section.done(_NOTED["grpc"])

    def _history(self, section: _Section) -> None:
        if section.has("maxAge"):
            self.config.history_age_s = section.checked("maxAge", parse_duration)
        if section.has("maxEntries"):
            self.config.history_entries = section.get("maxEntries", int, 50)
        section.done()

    def _frontend(self, section: _Section) -> None:
        for name in ("dockerfile.v0", "gateway.v0"):
            one = section.section(name)
            if not one.get("enabled", bool, True):
                self.config.notes.append(f"{self.path}: frontend {name} cannot be switched off here")
            if name == "gateway.v0":
                one.texts("allowedRepositories")
            one.done()
        section.done()

    def _registry(self, section: _Section) -> HostConfig:
        pairs = []
        for item in section.get("keypair", list, []):
            pair = self.section(section.path("keypair"), item if isinstance(item, dict) else {})
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
        section.done()
        return out

    def _worker(self, section: _Section) -> None:
        oci = section.section("oci")
        config = self.config
        enabled = oci.raw("enabled")
        if enabled not in (None, True, "auto", "true"):
            config.notes.append(f"{self.path}: worker.oci.enabled: there is only this worker")
        labels = oci.get("labels", dict, {})
        if not all(isinstance(value, str) for value in labels.values()):
            oci.fail("labels", "expected strings")
        config.labels = dict(labels)
        config.platforms = oci.texts("platforms")
        if config.platforms:
            oci.checked("platforms", lambda values: parse_platforms(tuple(values)))
        config.parallelism = oci.get("max-parallelism", int, 0)
        self._collection(oci)
        oci.done(_NOTED["worker.oci"])
        containerd = section.raw("containerd")
        if isinstance(containerd, dict) and containerd.get("enabled") not in (None, False, "auto"):
            config.notes.append(
                f"{self.path}: worker.containerd has no effect here: the engine is its own worker"
            )
        section.done()

    def _collection(self, oci: _Section) -> None:
        collect = oci.raw("gc")
        listed = oci.get("gcpolicy", list, [])
        bounds = {
            field: oci.checked(key, lambda v: parse_size(v, self._disk))
            for key, field in _BOUNDS.items()
            if oci.has(key)
        }
        if collect in (False, "false"):
            self.config.policies = ()
        elif listed:
            self.config.policies = tuple(self._policy(oci, item) for item in listed)
        elif bounds:
            from crossdock.engine.store.gc import default_policies
            from crossdock.record import replace

            self.config.policies = tuple(
                replace(p, **bounds) if not p.filters else p for p in default_policies(self._disk)
            )

    def _policy(self, oci: _Section, item: Any) -> GCPolicy:
        name = oci.path("gcpolicy")
        one = self.section(name, item if isinstance(item, dict) else {})
        sizes = {
            field: one.checked(key, lambda v: parse_size(v, self._disk))
            for key, field in _BOUNDS.items()
            if one.has(key)
        }
        duration = one.checked("keepDuration", parse_duration) if one.has("keepDuration") else 0.0
        policy = GCPolicy(
            all=one.get("all", bool, False),
            filters=one.texts("filters"),
            keep_duration_s=duration,
            **sizes,
        )
        one.done()
        return policy


#: key -> field; the old names first, so that the new ones win
_BOUNDS = {
    "gckeepstorage": "max_used_space",
    "keepBytes": "max_used_space",
    "reservedSpace": "reserved_space",
    "maxUsedSpace": "max_used_space",
    "minFreeSpace": "min_free_space",
}


def parse_duration(value: object) -> float:
    """Read seconds, as a number or as Go writes durations (``48h30m``). Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    text = str(value)
    if text and "".join(m[0] for m in _DURATION.finditer(text)) == text:
        return sum(float(m[1]) * _SECONDS[m[2]] for m in _DURATION.finditer(text))
    msg = f"invalid duration {value!r}: write it as 48h or 30m"
    raise ValueError(msg)


def parse_size(value: object, disk_total: int) -> int:
    """Read bytes, as a number, with a unit (``10GB``, ``512MiB``), or as a part of the disk (``20%``). Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if text.endswith("%") and text[:-1].strip().isdecimal():
        return disk_total * int(text[:-1]) // 100
    match = _SIZE.fullmatch(text)
    if match is None:
        msg = f"invalid size {value!r}: write it as 10GB, 512MiB or 20%"
        raise ValueError(msg)
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** _POWERS[match[2].lower()])
