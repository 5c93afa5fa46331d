"""From the flags of ``serve`` and a configuration file to the server's options; flags win.

Spec: moby/buildkit ``cmd/buildkitd/main.go`` (applyMainFlags).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.engine.store.layout import default_root
from crossdock.errors import ConfigError, UsageError
from crossdock.image.platform import parse_platforms
from crossdock.server.config import ENTITLEMENTS, NETWORKS, Config, bounded_policies, read_config
from crossdock.server.configvalues import parse_duration, parse_storage
from crossdock.server.listen import ServerTls, parse_address
from crossdock.server.options import FrontendRules, ServerOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.engine.sandbox.cdi import CdiOptions
    from crossdock.engine.store.gc import GCPolicy

__all__ = ["default_address", "logging_of", "serve_options"]

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.ERROR,
    "panic": logging.ERROR,
}


def serve_options(
    flags: Mapping[str, Any], *, debug: bool, ignored: Sequence[str], config: str
) -> ServerOptions:
    """Read everything. Raises: UsageError naming the flag; ConfigError naming file, line and key."""
    uid = os.geteuid()
    found = _config(flags["config"], config)
    root = Path(flags["root"] or found.root or default_root(uid, os.environ)).absolute()
    notes = [*found.notes, *(f"--{name} has no effect here" for name in ignored)]
    addresses = flags["addr"] or found.addresses or (default_address(uid),)
    return ServerOptions(
        addresses=tuple(parse_address(a) for a in addresses),
        root=root,
        tls=_tls(flags, found),
        uid=found.uid,
        gid=_gid(flags["group"]) if flags["group"] else found.gid,
        entitlements=_entitlements((*found.entitlements, *flags["allow_insecure_entitlement"])),
        labels={**found.labels, **_labels(flags["oci_worker_labels"])},
        platforms=parse_platforms(tuple(flags["oci_worker_platform"]) or found.platforms),
        parallelism=_parallelism(flags["oci_max_parallelism"]) or found.parallelism,
        policies=_policies(flags, found),
        max_used_space=_limit(os.environ.get("CROSSDOCK_MAX_USED_SPACE", "")),
        registries=found.registries,
        network=_network(flags["oci_worker_net"]) or found.network or "host",
        dns=found.dns,
        cgroup_parent=found.cgroup_parent,
        cdi=_cdi(flags, found),
        runtime=flags["oci_worker_binary"] or found.runtime,
        hang_deadline_s=_deadline(flags["step_deadline"]),
        platforms_age_s=found.platforms_age_s,
        frontends=FrontendRules(disabled=found.disabled_frontends, repositories=found.frontend_repositories),
        history_entries=50 if found.history_entries is None else found.history_entries,
        history_age_s=48 * 3600 if found.history_age_s is None else found.history_age_s,
        log_level="debug" if debug or found.debug else flags["log_level"] or found.log_level or "info",
        log_format=flags["log_format"] or found.log_format or "text",
        notes=tuple(notes),
    )


def _config(given: str | None, default: str) -> Config:
    path = Path(given or default)
    if not given and not path.exists():
        return Config()
    place = path.parent if path.parent.exists() else Path("/")
    return read_config(path, shutil.disk_usage(place).total)


def default_address(uid: int) -> str:
    """Return buildkitd's own default, by user."""
    if uid == 0:
        return "unix:///run/buildkit/buildkitd.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return f"unix://{runtime}/buildkit/buildkitd.sock"


def _tls(flags: Mapping[str, Any], found: Config) -> ServerTls | None:
    cert = flags["tlscert"] or found.tls.get("cert", "")
    key = flags["tlskey"] or found.tls.get("key", "")
    ca = flags["tlscacert"] or found.tls.get("ca", "")
    if not cert and not key and not ca:
        return None
    if not cert or not key:
        summary = "TLS needs both a certificate and a key"
        raise UsageError(summary, hint="give --tlscert and --tlskey")
    for path in filter(None, (cert, key, ca)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            summary = f"cannot read TLS file {path}: {exc.strerror}"
            hint = "give --tlscert, --tlskey and --tlscacert, or correct [grpc.tls] of the configuration"
            raise ConfigError(summary, hint=hint) from exc
    return ServerTls(
        cert=Path(cert).absolute(), key=Path(key).absolute(), ca=Path(ca).absolute() if ca else None
    )


def _gid(text: str) -> int:
    import grp

    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        summary = f"--group: there is no group {text!r}"
        raise UsageError(summary) from None


def _entitlements(names: Sequence[str]) -> frozenset[str]:
    names = [name for text in names for name in text.split(",")]
    for name in names:
        if name not in ENTITLEMENTS:
            summary = f"invalid entitlement {name!r}"
            raise UsageError(summary, hint=f"entitlements: {', '.join(sorted(ENTITLEMENTS))}")
    return frozenset(names)


def _labels(texts: Sequence[str]) -> dict[str, str]:
    out = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            summary = f"invalid worker label {text!r}"
            raise UsageError(summary, hint="write it as key=value")
        out[key] = value
    return out


def _parallelism(text: str | None) -> int:
    if not text or text == "num-cpu":
        return 0
    if not text.isdecimal():
        summary = f"--oci-max-parallelism: {text!r} is not a number"
        raise UsageError(summary)
    return int(text)


def _policies(flags: Mapping[str, Any], found: Config) -> tuple[GCPolicy, ...] | None:
    if not flags["oci_worker_gc"]:
        return ()
    if found.policies == ():
        return ()
    keep = flags["oci_worker_gc_keepstorage"]
    if not keep:
        return found.policies
    try:
        return bounded_policies(parse_storage(keep))
    except ValueError as exc:
        summary = f"--oci-worker-gc-keepstorage: {exc}"
        raise UsageError(summary) from exc


def _cdi(flags: Mapping[str, Any], found: Config) -> CdiOptions | None:
    directories = tuple(flags["cdi_spec_dir"]) or found.cdi_directories
    disabled = flags["cdi_disabled"] or found.cdi_disabled
    if not directories and not disabled and not found.cdi_auto_allowed:
        return None
    from crossdock.engine.sandbox.cdi import CdiOptions

    usual = CdiOptions()
    return CdiOptions(directories or usual.directories, found.cdi_auto_allowed, disabled)


def _network(text: str | None) -> str:
    """Return what a network of buildkitd's is here; ``""`` when none is named. Raises: UsageError."""
    text = text or os.environ.get("CROSSDOCK_NETWORK", "")
    if text not in NETWORKS:
        summary = f"invalid network {text!r}"
        raise UsageError(summary, hint=f"networks: {', '.join(filter(None, NETWORKS))}")
    return NETWORKS[text]


def _deadline(text: str | None) -> float | None:
    """Return the seconds of --step-deadline; ``None`` for none. Raises: UsageError."""
    text = text or os.environ.get("CROSSDOCK_STEP_DEADLINE", "")
    try:
        return (parse_duration(text) or None) if text else None
    except ValueError as exc:
        summary = f"--step-deadline: {exc}"
        raise UsageError(summary) from exc


def _limit(text: str) -> int:
    from crossdock.builders.values import parse_bytes

    return max(parse_bytes(text), 0) if text else 0


def logging_of(options: ServerOptions) -> None:
    """Write the server's log to standard error. Raises: UsageError for an unknown level or format."""
    if options.log_level not in _LEVELS or options.log_format not in ("text", "json"):
        summary = f"unknown log level {options.log_level!r} or format {options.log_format!r}"
        raise UsageError(summary)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if options.log_format == "json" else _Text())
    logger = logging.getLogger("crossdock")
    logger.setLevel(_LEVELS[options.log_level])
    logger.addHandler(handler)
    logger.propagate = False


class _Text(logging.Formatter):
    """One line as buildkitd writes it."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = f'time="{when}" level={_name(record)} msg={json.dumps(record.getMessage())}'
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _Json(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        out = {"level": _name(record), "msg": record.getMessage(), "time": when}
        if record.exc_info:
            out["error"] = self.formatException(record.exc_info)
        return json.dumps(out)


def _name(record: logging.LogRecord) -> str:
    return record.levelname.lower()
