"""Local directories as build sources, read in place.

Spec: moby/buildkit ``source/local``; attributes ``local.includepattern`` and ``local.excludepatterns``. The others say how to
transfer files between machines or name sessions, which is not done here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Protocol

from crossdock.engine.cache.refs import LocalTree
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.errors import ContextError, SolveError, StoreFull
from crossdock.llb.ops import SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from crossdock.engine.cache.listed import ListedTree
    from crossdock.engine.cache.localview import LocalView
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.store import Store
    from crossdock.engine.store.statcache import StatTable
    from crossdock.llb.graph import Node
    from crossdock.patterns.filter import PathFilter

__all__ = ["FetchLocal", "Fetched", "LocalSolverOp", "LocalSources"]

_SCHEME = "local://"


class Fetched(NamedTuple):
    """A directory that was brought here."""

    path: Path
    #: all that is in it, where that was seen on the way
    listed: ListedTree | None = None


class FetchLocal(Protocol):
    """Brings a directory from elsewhere: a client of the server."""

    def __call__(self, name: str, attrs: Mapping[str, str], vertex: str, ctx: OpContext, /) -> Fetched:
        """Return a directory with what ``attrs`` select and nothing else; it stays as it is until the solve's caller ends.

        Raises: ContextError; the token's cause.
        """
        ...


class LocalSources:
    """The directories of one solve, by name (``context``, ``dockerfile``, ...). Safe from any thread.

    Another solve looks at the same directories anew; what both do with equal content is still done once.
    """

    def __init__(
        self, directories: Mapping[str, Path], store: Store, fetch: FetchLocal | None = None
    ) -> None:
        """``fetch`` is asked for directories that are not among ``directories``."""
        self._directories = dict(directories)
        self._store = store
        self._fetch = fetch
        #: tells these directories from those of other solves
        self.identity = os.urandom(16).hex()
        # Guards _views.
        self._lock = threading.Lock()
        self._views: dict[tuple[str, tuple[str, ...], tuple[str, ...]], LocalView] = {}
        #: by real path: the same folder may be "context" and "dockerfile"
        self._tables: dict[str, StatTable] = {}

    def view(self, name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> LocalView:
        """Return a view of a directory; the same one for the same patterns.

        Raises: ContextError when there is no such directory; UsageError for a malformed pattern.
        """
        from crossdock.engine.cache.select import path_filter

        root = self._directories.get(name)
        if root is None:
            summary = f"the build has no local directory named {name}"
            raise ContextError(summary)
        return self._view((name, include, exclude), root, lambda: path_filter(include, exclude))

    def fetched(self, name: str, attrs: Mapping[str, str], vertex: str, ctx: OpContext) -> LocalView | None:
        """Return a view of a directory brought from elsewhere; ``None`` when it is a local one.

        Raises: what the fetcher raises.
        """
        if self._fetch is None or name in self._directories:
            return None
        root, listed = self._fetch(name, attrs, vertex, ctx)
        return self._view((str(root), (), ()), root, lambda: None, listed)

    def _view(
        self,
        key: tuple[str, tuple[str, ...], tuple[str, ...]],
        root: Path,
        filter_: Callable[[], PathFilter | None],
        listed: ListedTree | None = None,
    ) -> LocalView:
        from crossdock.engine.cache.localview import LocalView

        with self._lock:
            view = self._views.get(key)
            if view is None:
                real = os.path.realpath(root)
                table = self._tables.get(real)
                if table is None:
                    table = self._tables[real] = self._store.stats.load(real)
                view = self._views[key] = LocalView(root, filter_(), table, listed)
        return view

    def save(self) -> None:
        """Remember which files were unchanged, for the next solve; a full store loses time, not the build."""
        with self._lock, contextlib.suppress(StoreFull):
            for table in self._tables.values():
                table.save()

    def close(self) -> None:
        """Give the directories up, when no op uses them any more; idempotent."""
        with self._lock:
            for view in self._views.values():
                view.close()


class LocalSolverOp(BaseOp):
    """A ``local://`` source: never cached, keyed by content wherever it is used."""

    __slots__ = ("_attrs", "_exclude", "_include", "_name", "_sources")

    def __init__(self, node: Node, env: OpEnv, sources: LocalSources) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, SourceOp) or not node.op.identifier.startswith(_SCHEME):
            summary = "invalid local source"
            raise SolveError(summary, vertex=self.vertex)
        self._sources = sources
        self._name = node.op.identifier.removeprefix(_SCHEME)
        attrs = self._attrs = node.op.attrs
        self._include = _patterns(attrs, "local.includepattern")
        self._exclude = _patterns(attrs, "local.excludepatterns")

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: the directory and the patterns; it holds for this process only."""
        hasher = KeyHasher("local").text("sources", self._sources.identity).text("name", self._name)
        hasher.texts("include", self._include).texts("exclude", self._exclude)
        # Which files are brought from elsewhere depends on more of the attributes.
        hasher.texts("attrs", [part for item in sorted(self._attrs.items()) for part in item])
        return CacheMap(hasher.finish(), volatile=True)

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Open the directory; nothing is read yet, unless it must be brought from elsewhere."""
        view = self._sources.fetched(self._name, self._attrs, self.vertex, ctx)
        if view is not None:
            return [LocalTree(self._name, view)]
        return [LocalTree(self._name, self._sources.view(self._name, self._include, self._exclude))]


def _patterns(attrs: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = attrs.get(name, "")
    if not text:
        return ()
    import json

    try:
        value = json.loads(text)
    except ValueError as exc:
        summary = f"{name} is not a JSON list: {text!r}"
        raise SolveError(summary) from exc
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        summary = f"{name} is not a JSON list of strings: {text!r}"
        raise SolveError(summary)
    return tuple(value)
