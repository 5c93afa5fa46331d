"""The caches of a build: ``--cache-from`` before its steps, ``--cache-to`` and inline caches after them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.request import BuildRequest
    from crossdock.cancel import CancelToken
    from crossdock.dockerfile.convert.options import PlatformResult
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import Engine
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.solver import KeyedVertex
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink

__all__ = ["BuildCaches"]

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
#: outputs that cannot be begun again
_STREAMED = frozenset({"oci", "docker", "tar"})


class BuildCaches:
    """What one build imports and exports; nothing, most of the time."""

    def __init__(self, engine: Engine, request: BuildRequest, sink: EventSink, cancel: CancelToken) -> None:
        self._engine = engine
        self._sink = sink
        self._cancel = cancel
        self._imports: list[CacheSpec] = []
        self._exports: list[CacheSpec] = []
        #: of the steps of the last solve; ``None``: nobody needs them
        self.keyed: list[KeyedVertex] | None = None
        inline = request.build_args.get("BUILDKIT_INLINE_CACHE", "") in _TRUE
        if request.cache_from or request.cache_to or inline:
            self._read(request, inline=inline)

    def _read(self, request: BuildRequest, *, inline: bool) -> None:
        from crossdock.engine.remotecache.spec import INLINE, CacheSpec, active, check_caches

        def specs(entries: Sequence[Mapping[str, str]]) -> list[CacheSpec]:
            found = [CacheSpec(e["type"], {k: v for k, v in e.items() if k != "type"}) for e in entries]
            return active(found, os.environ)

        self._imports, self._exports = specs(request.cache_from), specs(request.cache_to)
        if inline and not any(spec.type == INLINE for spec in self._exports):
            self._exports.append(CacheSpec(INLINE, {}))
        check_caches(self._imports, self._exports)

    def load(self) -> None:
        """Import. Raises: UsageError, NotSupported; the token's cause."""
        if self._imports:
            self._engine.import_caches(self._imports, sink=self._sink, cancel=self._cancel)

    def begin(self) -> list[KeyedVertex] | None:
        """Return what a solve is to put its keys in."""
        self.keyed = [] if self._exports else None
        return self.keyed

    def secure(self, refs: Sequence[Ref], types: Sequence[str]) -> None:
        """Before an output that cannot be begun again: have everything that imported caches promised.

        Raises: CacheError when one does not keep it, and what fetching raises.
        """
        if self._imports and _STREAMED.intersection(types):
            self._engine.fetch_results(refs, sink=self._sink, cancel=self._cancel)

    def inline(self, results: Sequence[PlatformResult]) -> dict[str, list[KeyedVertex]] | None:
        """Return the keys of each platform's steps for an inline cache, ``None`` when none is wanted."""
        if self.keyed is None or not any(spec.type == "inline" for spec in self._exports):
            return None
        from crossdock.llb.graph import walk

        found: dict[str, list[KeyedVertex]] = {}
        for result in results:
            nodes = {node.digest for node in walk([result.output])} if result.output is not None else set()
            own = [keyed for keyed in self.keyed if keyed.vertex.partition("!")[0] in nodes]
            found.setdefault(str(result.platform), []).extend(own)
        return found

    def export(
        self, refs: Sequence[Ref], requests: Sequence[Output | None], epoch_s: int | None
    ) -> dict[str, str]:
        """Export what was solved. Raises: CacheError, RegistryError and their kin; StoreError; the token's cause."""
        response: dict[str, str] = {}
        if self._exports and self.keyed is not None:
            response = self._engine.export_caches(
                self._exports,
                keyed=self.keyed,
                results=refs,
                requests=requests,
                sink=self._sink,
                cancel=self._cancel,
                epoch_s=epoch_s,
            )
        if self._imports:
            self._engine.settle_caches()
        return response

    def retry(self) -> bool:
        """Whether the build can go on, without an imported cache that failed it."""
        return self._engine.drop_failed_caches(self._sink)
