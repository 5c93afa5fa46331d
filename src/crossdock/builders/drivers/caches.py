"""``--cache-from`` and ``--cache-to`` as a daemon is asked for them; local ones are served from this machine.

Spec: docker/buildx ``util/buildflags/cache.go`` (what the client fills in); moby/buildkit ``client/solve.go``
(parseCacheOptions).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.builders.values import is_true
from crossdock.buildkit.session.layout import LayoutStore
from crossdock.buildkit.solve import CacheEntry
from crossdock.errors import ContextError, ExportError, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crossdock.engine.remotecache.adopt import AdoptedCache

__all__ = ["CachePlan", "plan_caches"]

_AWS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


class CachePlan(NamedTuple):
    """What is asked, the layouts that are served, and those whose index gets the new cache."""

    imports: tuple[CacheEntry, ...]
    exports: tuple[CacheEntry, ...]
    stores: dict[str, LayoutStore]
    written: tuple[AdoptedCache, ...]


def plan_caches(imports: Iterable[Mapping[str, str]], exports: Iterable[Mapping[str, str]]) -> CachePlan:
    """Plan the caches of a build.

    Raises: UsageError for a local cache without a directory; ContextError, ExportError for one that cannot be used.
    """
    plan = _Plan()
    return CachePlan(
        tuple(filter(None, map(plan.importing, imports))),
        tuple(filter(None, map(plan.exporting, exports))),
        plan.stores,
        tuple(plan.written),
    )


class _Plan:
    def __init__(self) -> None:
        self.stores: dict[str, LayoutStore] = {}
        self.written: list[AdoptedCache] = []

    def importing(self, spec: Mapping[str, str]) -> CacheEntry | None:
        kind, attrs = _split(spec)
        if kind == "local":
            root = _directory(attrs, "src")
            if not root.exists():
                return None  # the first of many runs has nothing to import
            tag = attrs.pop("tag", "latest")
            attrs.setdefault("digest", _digest(root, tag))
            attrs["src"] = str(root)
            self.stores.setdefault(f"local:{root}", LayoutStore(root))
        return _filled(kind, attrs)

    def exporting(self, spec: Mapping[str, str]) -> CacheEntry | None:
        kind, attrs = _split(spec)
        if kind == "local":
            root = _directory(attrs, "dest")
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                summary = f"local cache: cannot create {root}: {exc.strerror}"
                raise ExportError(summary) from exc
            attrs["dest"] = str(root)
            self.stores[f"local:{root}"] = LayoutStore(root, writable=True)
            from crossdock.engine.remotecache.adopt import AdoptedCache

            self.written.append(AdoptedCache(attrs))
        return _filled(kind, attrs)


def _split(spec: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    attrs = dict(spec)
    return attrs.pop("type", "registry"), attrs


def _directory(attrs: dict[str, str], key: str) -> Path:
    path = attrs.pop(key, "")
    if not path:
        summary = f"local cache needs {key}=DIRECTORY"
        raise UsageError(summary)
    return Path(path).absolute()


def _filled(kind: str, attrs: dict[str, str]) -> CacheEntry | None:
    """Add what this machine knows; GitHub's cache does not exist outside its runners."""
    if kind == "s3":
        _add_aws(attrs)
    if kind == "gha":
        _add_github(attrs, os.environ)
        if not attrs.get("token") or not (attrs.get("url") or attrs.get("url_v2")):
            return None
    return CacheEntry(type=kind, attrs=attrs)


def _add_github(attrs: dict[str, str], environ: Mapping[str, str]) -> None:
    version = attrs.get("version") or ("2" if is_true(environ.get("ACTIONS_CACHE_SERVICE_V2", "")) else "")
    results = environ.get("ACTIONS_RESULTS_URL", "")
    found = {
        "token": environ.get("ACTIONS_RUNTIME_TOKEN", ""),
        "url_v2": results if version == "2" else "",
        "url": environ.get("ACTIONS_CACHE_URL", "") or results,
    }
    for key, value in found.items():
        if value:
            attrs.setdefault(key, value)


def _add_aws(attrs: dict[str, str]) -> None:
    """Add the credentials of the environment, else of the profile in AWS's file, unless a pair was given."""
    if "access_key_id" in attrs and "secret_access_key" in attrs:
        return
    found = {key: os.environ.get(variable, "") for key, variable in _AWS.items()}
    if not (found["access_key_id"] and found["secret_access_key"]):
        found = _aws_profile()
    for key, value in found.items():
        if value:
            attrs.setdefault(key, value)


def _aws_profile() -> dict[str, str]:
    import configparser

    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path)
        section = parser[os.environ.get("AWS_PROFILE") or "default"]
    except (KeyError, configparser.Error, OSError, UnicodeDecodeError):
        return {}  # the daemon has, or wants, other ways
    return {key: section.get(f"aws_{key}", "") for key in _AWS}


def _digest(root: Path, tag: str) -> str:
    import json

    try:
        index = json.loads((root / "index.json").read_bytes())
    except (OSError, ValueError) as exc:
        summary = f"local cache {root}: cannot read index.json: {exc}"
        hint = "export a cache there first with --cache-to type=local,dest=…"
        raise ContextError(summary, hint=hint) from exc
    for item in index.get("manifests") or []:
        if (item.get("annotations") or {}).get("org.opencontainers.image.ref.name", "latest") == tag:
            return str(item.get("digest"))
    summary = f"local cache {root} has no tag {tag!r}"
    raise ContextError(summary)
