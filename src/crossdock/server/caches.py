"""The caches outside the store of one build: what clients import and export.

Spec: moby/buildkit ``control/control.go`` (Solve), ``frontend/dockerui`` (``cache-imports``, ``cache-from``).
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.solver import KeyedVertex
    from crossdock.server.jobs import Job
    from crossdock.server.results import PlatformResult

__all__ = ["JobCaches", "imports_of_attrs"]

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})


class JobCaches:
    """What one build imports and exports; nothing, most of the time. Safe from any thread."""

    def __init__(self, job: Job) -> None:
        """Read what the request asks for. Raises: UsageError, NotSupported."""
        self._job = job
        # Guards _loaded.
        self._lock = threading.Lock()
        self._loaded: list[CacheSpec] = []
        self._exports: list[CacheSpec] = []
        cache = job.request.Cache
        exports = [(e.Type, dict(e.Attrs)) for e in cache.Exports]
        if cache.ExportRefDeprecated:
            exports.append(("registry", {**cache.ExportAttrsDeprecated, "ref": cache.ExportRefDeprecated}))
        if job.request.FrontendAttrs.get("build-arg:BUILDKIT_INLINE_CACHE", "") in _TRUE:
            exports.append(("inline", {}))
        if exports:
            self._read_exports(exports)

    @property
    def wants_keys(self) -> bool:
        """Whether solves are to note their keys."""
        return bool(self._exports)

    def _read_exports(self, entries: Sequence[tuple[str, dict[str, str]]]) -> None:
        from crossdock.engine.remotecache.spec import CacheSpec, active, check_caches

        unique = {json.dumps(entry, sort_keys=True): entry for entry in entries}.values()
        # The environment is the client's to read: what it knows of it is in the attributes.
        self._exports = active([CacheSpec(kind, attrs) for kind, attrs in unique], {})
        check_caches([], self._exports)
        self._exports = self._placed(self._exports)

    def load_request(self) -> None:
        """Import what the request asks for. Raises: UsageError, NotSupported; the token's cause."""
        cache = self._job.request.Cache
        entries = [(e.Type, dict(e.Attrs)) for e in cache.Imports]
        entries += [("registry", {"ref": ref}) for ref in cache.ImportRefsDeprecated]
        self.load([*entries, *imports_of_attrs(self._job.request.FrontendAttrs)])

    def load(self, entries: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Import caches, each once. Raises: UsageError, NotSupported; the token's cause."""
        wanted = [(kind, dict(attrs)) for kind, attrs in entries]
        if not wanted:
            return
        from crossdock.engine.remotecache.spec import CacheSpec, active, check_caches

        specs = active([CacheSpec(kind, attrs) for kind, attrs in wanted], {})
        with self._lock:
            new = [spec for spec in specs if spec not in self._loaded]
            self._loaded += new
        if new:
            check_caches(new, [])
            self._job.engine.import_caches(self._placed(new), sink=self._job.log, cancel=self._job.cancel)

    def secure(self, refs: Sequence[Ref]) -> None:
        """Before outputs that cannot be begun again: have everything that imported caches promised.

        Raises: CacheError when one does not keep it, and what fetching raises.
        """
        if self._loaded:
            self._job.engine.fetch_results(refs, sink=self._job.log, cancel=self._job.cancel)

    def inline(
        self, platforms: Sequence[PlatformResult], keyed: Sequence[KeyedVertex]
    ) -> dict[str, list[KeyedVertex]] | None:
        """Return the keys of each platform's steps for an inline cache; ``None`` when none is wanted."""
        if not any(spec.type == "inline" for spec in self._exports):
            return None
        from crossdock.llb.graph import walk

        found: dict[str, list[KeyedVertex]] = {}
        for platform in platforms:
            output = platform.ref.output if platform.ref is not None else None
            nodes = {node.digest for node in walk([output])} if output is not None else set()
            own = [one for one in keyed if one.vertex.partition("!")[0] in nodes]
            found.setdefault(str(platform.platform), []).extend(own)
        return found

    def export(
        self, platforms: Sequence[PlatformResult], refs: Sequence[Ref], keyed: Sequence[KeyedVertex]
    ) -> dict[str, str]:
        """Export what was solved. Raises: CacheError, RegistryError and their kin; StoreError; the token's cause."""
        response: dict[str, str] = {}
        if self._exports:
            response = self._job.engine.export_caches(
                self._exports,
                keyed=keyed,
                results=refs,
                requests=[p.ref.output for p in platforms if p.ref is not None],
                sink=self._job.log,
                cancel=self._job.cancel,
                epoch_s=platforms[0].epoch_s if platforms else None,
            )
        if self._loaded:
            self._job.engine.settle_caches()
        return response

    def _placed(self, specs: Sequence[CacheSpec]) -> list[CacheSpec]:
        """Have directories be the client's: a path of its own is nothing here."""
        from crossdock.server.clientcache import ClientCacheBackend

        job = self._job
        # The answer names one manifest for all directories: only if it is alone can one differ from what this build has.
        alone = sum(spec.type == "local" for spec in specs) == 1

        def make(attrs: Mapping[str, str]) -> Backend:
            turns = job.sessions.turns
            return ClientCacheBackend(attrs, job.session, turns, merges=alone)

        return [spec._replace(make=make) if spec.type == "local" else spec for spec in specs]


def imports_of_attrs(attrs: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the imports that a frontend's attributes name. Raises: UsageError."""
    out: list[tuple[str, dict[str, str]]] = []
    text = attrs.get("cache-imports", "")
    if text:
        try:
            out += [
                (str(e["Type"]), {str(k): str(v) for k, v in e["Attrs"].items()}) for e in json.loads(text)
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            summary = f"failed to unmarshal cache-imports ({text!r})"
            raise UsageError(summary) from exc
    out += [("registry", {"ref": ref}) for ref in attrs.get("cache-from", "").split(",") if ref]
    return out
