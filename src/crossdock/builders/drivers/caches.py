"""``--cache-from`` and ``--cache-to`` as a daemon is asked for them; local ones are served from this machine.

Spec: docker/buildx ``util/buildflags/cache.go`` (what the client fills in); moby/buildkit ``client/solve.go``
(parseCacheOptions).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.buildkit.session.layout import LayoutStore
from crossdock.buildkit.solve import CacheEntry
from crossdock.errors import ContextError, ExportError, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CachePlan", "plan_caches"]

_OF_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "gha": {
        "token": "ACTIONS_RUNTIME_TOKEN",
        "url": "ACTIONS_CACHE_URL",
        "url_v2": "ACTIONS_RESULTS_URL",
    },
    "s3": {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    },
}


class CachePlan(NamedTuple):
    """What is asked, the layouts that are served, and those whose index gets the new cache: directory and tag."""

    imports: tuple[CacheEntry, ...]
    exports: tuple[CacheEntry, ...]
    stores: dict[str, LayoutStore]
    written: tuple[tuple[Path, str], ...]


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
        self.written: list[tuple[Path, str]] = []

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
            self.written.append((root, attrs.get("tag", "latest")))
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
    """Add what the environment holds; GitHub's cache does not exist outside its runners."""
    for key, variable in _OF_ENVIRONMENT.get(kind, {}).items():
        if key not in attrs and (value := os.environ.get(variable)):
            attrs[key] = value
    if kind == "gha" and ("token" not in attrs or not {"url", "url_v2"} & set(attrs)):
        return None
    return CacheEntry(type=kind, attrs=attrs)


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
