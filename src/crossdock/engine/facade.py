"""The engine as its callers see it, in the shape of BuildKit's API: solve, read, export, usage.

One engine per process, opened inside the worker namespace. Everything it touches is held by a lease until it is closed.
Heavy parts (registry client, sandbox, exporters) are loaded when something needs them: a build that is entirely cached
mounts nothing and runs nothing.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.refs import SCRATCH, LocalTree, Ref
from crossdock.engine.cache.view import resolve
from crossdock.engine.facade_parts import Access, FileInfo, LazyClient, file_info
from crossdock.engine.solver import OpContext, Scheduler
from crossdock.engine.store import Store
from crossdock.errors import CacheError, CrossdockError, SolveError, UsageError, translate
from crossdock.image.platform import local_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.view import View
    from crossdock.engine.exporters.model import ExportContext, ExporterSpec, ExportResult, PlatformImage
    from crossdock.engine.facade_caches import EngineCaches
    from crossdock.engine.facade_container import Container, ContainerSpec
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.engine.fresh import FreshRun
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.remotecache.importer import ImportedCaches
    from crossdock.engine.remotecache.mounts import MountUse
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.worker import WorkerInfo
    from crossdock.engine.solver import KeyedVertex, Result
    from crossdock.engine.sources.blobsources import BlobSources
    from crossdock.engine.sources.image import ImageSource, ResolvedImage
    from crossdock.engine.sources.local import FetchLocal, LocalSources
    from crossdock.engine.sources.pull import LayerPuller
    from crossdock.engine.store import LayerId, Lease
    from crossdock.engine.store.gc import GCPolicy
    from crossdock.engine.store.usage import UsageRecord
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient
    from crossdock.secret import Secret

__all__ = ["Engine", "EngineInfo", "EngineOptions", "FileInfo", "SolveInputs"]


#: a cancelled step ends within a second or so
_SETTLE_S = 15.0


class EngineOptions(NamedTuple):
    """How an engine works."""

    #: folder of the store
    root: Path
    #: steps at work at once; 0 chooses by the machine
    parallelism: int = 0
    #: makes the client for registries, when one is needed
    registry: Callable[[CancelToken], RegistryClient] | None = None
    #: bytes the store may hold, enforced while building; 0 for no limit
    max_used_space: int = 0
    #: seconds without a sign of life after which an emulated step is ended; ``None`` never
    hang_deadline_s: float | None = None
    #: what steps get that ask for no network in particular: ``host``, or ``isolated``
    network: str = "host"


class SolveInputs(NamedTuple):
    """What a solve may use besides its definition."""

    #: local directories by name
    locals: Mapping[str, Path] = {}
    #: return ``None`` for an unknown id
    secrets: Callable[[str], Secret | None] = lambda _id: None
    #: sockets of agents by id
    ssh: Callable[[str], Path | None] = lambda _id: None
    #: entitlements granted
    allow: frozenset[str] = frozenset()
    #: gives the directories that ``locals`` does not name, when a step first needs one
    fetch_local: FetchLocal | None = None
    #: OCI layouts by name: functions that open a blob for one pass
    layouts: Mapping[str, Callable[[Digest], BinaryIO]] = {}


class EngineInfo(NamedTuple):
    """What the engine found on this machine."""

    platform: Platform
    worker: WorkerInfo | None
    #: name and version of the OCI runtime
    runtime: str
    store: Path


class Engine:
    """An open engine. Safe from any thread; make it with :meth:`open`, end it with :meth:`close`."""

    def __init__(self, options: EngineOptions, store: Store, stack: ExitStack, shared: _Shared) -> None:
        self._options = options
        self.store = store
        self._stack = stack
        self._shared = shared
        self.platform = local_platform()
        # Guards what is made on first use.
        self._lock = threading.RLock()
        self._images: ImageSource | None = None
        self._puller: LayerPuller | None = None
        self._client: RegistryClient | None = None
        #: once something is imported or exported
        self._caches: EngineCaches | None = None

    # --- life ---

    @classmethod
    def open(cls, options: EngineOptions) -> Engine:
        """Open the store. Raises: StoreError, StoreFull."""
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(options.root))
            shared = _Shared(options, store)
            stack.callback(shared.close)
            return cls(options, store, stack.pop_all(), shared)

    def scope(self, registry: Callable[[CancelToken], RegistryClient]) -> Engine:
        """Return this engine for one of several callers: store, solver and sandbox are shared.

        The scope has its own access to registries and asks anew what tags mean. Close it before the engine.
        """
        return Engine(self._options._replace(registry=registry), self.store, ExitStack(), self._shared)

    def forget(self) -> None:
        """Let go of what past solves touched, so that it can be collected; does nothing while one is at work.

        A caller who goes on with the results of a past solve must not call this.
        Raises: StoreError, StoreFull.
        """
        self._shared.renew_lease()

    @property
    def lease(self) -> Lease:
        """What protects everything in use."""
        return self._shared.lease

    def close(self) -> None:
        """Stop what runs, give up the lease; idempotent. Raises: InternalError when a step does not stop."""
        stack, self._stack = self._stack, ExitStack()
        with stack, self._lock:
            if self._caches is not None:
                self._caches.close()
            if self._client is not None:
                self._client.close()
                self._client = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- building ---

    def solve(
        self,
        requests: Sequence[Output | None],
        *,
        inputs: SolveInputs = SolveInputs(),  # noqa: B008 -- immutable
        sink: EventSink,
        cancel: CancelToken,
        keyed: list[KeyedVertex] | None = None,
        recorder: SolveRecorder | None = None,
    ) -> list[Ref]:
        """Solve outputs together, sharing what they have in common; ``None`` is the empty file system.

        The keys of what was solved go into ``keyed``, for :meth:`export_caches`; what steps are made of into ``recorder``,
        which explains afterwards why some ran.
        Raises: SolveError and its kin with the vertex; ContextError; RegistryError; SandboxError; StoreFull;
        NotSupported; the token's cause.
        """
        from crossdock.engine.sources.local import LocalSources

        locals_ = LocalSources(inputs.locals, self.store, inputs.fetch_local)
        self._shared.begin()
        try:
            wanted = [request for request in requests if request is not None]
            refs = iter(self._solve_again(wanted, self._env(inputs), locals_, sink, cancel, keyed, recorder))
        finally:
            self._shared.retire(locals_)
        return [SCRATCH if request is None else next(refs) for request in requests]

    def _solve_again(
        self,
        wanted: Sequence[Output],
        env: OpEnv,
        locals_: LocalSources,
        sink: EventSink,
        cancel: CancelToken,
        keyed: list[KeyedVertex] | None,
        recorder: SolveRecorder | None,
    ) -> list[Ref]:
        """Solve, once more without each imported cache that turns out to lack what it lists."""
        while True:
            try:
                return self._solve(wanted, env, locals_, sink, cancel, keyed, recorder)
            except CacheError:
                if not self.drop_failed_caches(sink):
                    raise

    def _solve(
        self,
        wanted: Sequence[Output],
        env: OpEnv,
        locals_: LocalSources,
        sink: EventSink,
        cancel: CancelToken,
        keyed: list[KeyedVertex] | None,
        recorder: SolveRecorder | None,
    ) -> list[Ref]:
        from crossdock.engine.facade_solve import ProgressWatcher, display_name, load_graph, record_type

        graph = load_graph(
            wanted, env=env, locals_=locals_, images=self._image_source, nonce=self._shared.fresh_nonce
        )
        for vertex, node in graph.nodes.items():
            self._shared.keys.steps[vertex.partition("!")[0]] = (record_type(node), display_name(node))
        watcher = ProgressWatcher(graph, sink)
        watcher.announce()
        keys: list[KeyedVertex] = []
        try:
            with translate({OSError: _os_error}):
                results = self._shared.scheduler.solve(
                    graph.specs, graph.outputs, watcher=watcher, cancel=cancel, keyed=keys
                )
        except BaseException:
            watcher.cancelled()
            raise
        if keyed is not None:
            keyed.extend(keys)
        if recorder is not None and (watcher.ran or recorder.wanted):
            from crossdock.engine.facade_solve import local_reads

            reads = local_reads(graph, OpContext(cancel, sink))
            recorder.take(graph.nodes, keys, watcher.ran, reads, cancel)
        return [
            _final(result, env, vertex, OpContext(cancel, sink))
            for result, (vertex, _) in zip(results, graph.outputs, strict=True)
        ]

    def resolve_image_config(
        self, ref: str, *, platform: Platform, mode: str = "default", sink: EventSink, cancel: CancelToken
    ) -> ResolvedImage:
        """Find an image's digest and config. Raises: RegistryError and its kin, PlatformNotFound, LayerError."""
        del sink  # the caller shows the vertex; nothing is transferred but documents
        from crossdock.image.reference import parse_reference

        return self._image_source().resolve(
            parse_reference(ref), platform=platform, mode=mode, lease=self.lease, cancel=cancel
        )

    def resolve_layout_config(
        self,
        ref: str,
        *,
        open_blob: Callable[[Digest], BinaryIO],
        platform: Platform,
        cancel: CancelToken,
    ) -> ResolvedImage:
        """Find an image of an OCI layout by its digest. Raises: ContextError, PlatformNotFound, LayerError."""
        from crossdock.engine.sources.ocilayout import resolve_layout
        from crossdock.image.reference import parse_reference

        return resolve_layout(
            parse_reference(ref),
            open_blob,
            platform=platform,
            store=self.store,
            lease=self.lease,
            cancel=cancel,
        )

    # --- looking into results ---

    def read_file(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> bytes | None:
        """Return a file of a result, links followed; ``None`` when there is none. Raises: SolveError for a directory."""
        view = self._view(ref, cancel, sink)
        node = resolve(view, path, follow=True)
        if node is None:
            return None
        if not node.is_file:
            summary = f"{path} is not a regular file"
            raise SolveError(summary)
        with os.fdopen(view.open(node), "rb") as file:
            return file.read()

    def read_dir(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> list[FileInfo] | None:
        """Return the entries of a directory of a result, in order of name; ``None`` when there is none."""
        view = self._view(ref, cancel, sink)
        node = resolve(view, path, follow=True)
        if node is None or not node.is_dir:
            return None
        return [file_info(view, kid) for kid in view.children(node).values()]

    def stat(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> FileInfo | None:
        """Return what is at a path of a result, a link not followed; ``None`` when there is nothing."""
        view = self._view(ref, cancel, sink)
        node = resolve(view, path, follow=False)
        return None if node is None else file_info(view, node)

    # --- containers ---

    def container(
        self, spec: ContainerSpec, *, inputs: SolveInputs, sink: EventSink, cancel: CancelToken
    ) -> Container:
        """Open a container over results; close it. Raises: as :class:`Container`."""
        from crossdock.engine.facade_container import Container

        return Container(spec, self._env(inputs), sink, cancel)

    # --- results out ---

    def export(
        self,
        images: Sequence[PlatformImage],
        exporters: Sequence[ExporterSpec],
        *,
        sink: EventSink,
        cancel: CancelToken,
        epoch_s: int | None = None,
        multi_platform: bool | None = None,
        inline: Mapping[str, Sequence[KeyedVertex]] | None = None,
    ) -> ExportResult:
        """Write results out. ``inline`` are the keys by platform that become inline caches of images.

        Raises: UsageError, ExportError, RegistryError, StoreError, LayerError and their kin; CacheError when an imported
        cache lacks what it lists: see :meth:`drop_failed_caches`.
        """
        from crossdock.engine.exporters import export

        context = self._export_context(sink, cancel, epoch_s)
        if inline is not None:
            from crossdock.engine.remotecache.inlineexport import InlineCaches

            context.inline = InlineCaches(self.store, self._shared.keys.lookup, inline, epoch_s=epoch_s)
        return export(images, exporters, context=context, multi_platform=multi_platform)

    def _export_context(self, sink: EventSink, cancel: CancelToken, epoch_s: int | None) -> ExportContext:
        from crossdock.engine.exporters import ExportContext

        return ExportContext(
            store=self.store,
            lease=self.lease,
            access=Access(self, sink),
            client=lambda: self._registry(cancel),
            sink=sink,
            cancel=cancel,
            epoch_s=epoch_s,
        )

    # --- caches outside the store ---

    def import_caches(self, specs: Sequence[CacheSpec], *, sink: EventSink, cancel: CancelToken) -> None:
        """Let solves find what caches hold; one that cannot be used costs a warning.

        Raises: NotSupported when an extra package is missing; UsageError; the token's cause.
        """
        self._cached().load(specs, sink=sink, cancel=cancel)

    def export_caches(
        self,
        specs: Sequence[CacheSpec],
        *,
        keyed: Sequence[KeyedVertex],
        results: Sequence[Ref],
        requests: Sequence[Output | None] = (),
        sink: EventSink,
        cancel: CancelToken,
        epoch_s: int | None = None,
    ) -> dict[str, str]:
        """Export the cache of a solve; returns what the response of a build says of it.

        ``requests`` are what was solved: with ``mounts=true`` the cache mounts of its steps are exported too.
        Raises: CacheError, RegistryError and their kin; StoreError, StoreFull; the token's cause.
        """
        from crossdock.engine.remotecache.exporter import Solved

        uses: Sequence[MountUse] = ()
        if any("mounts" in spec.attrs for spec in specs):
            from crossdock.engine.remotecache.mounts import mounts_of

            uses = mounts_of([request for request in requests if request is not None])
        solved = Solved(keyed, [ref.layers for ref in results], self._shared.keys.lookup, uses)
        return self._cached().export(specs, solved, self._export_context(sink, cancel, epoch_s))

    def drop_failed_caches(self, sink: EventSink) -> bool:
        """Give up imported caches that lack what they list; false when there is none. Solve again after that."""
        return self._caches is not None and self._caches.drop_failed(sink)

    def _fill_mount(
        self, name: str, base: tuple[str, int], directory: Path, vertex: str, ctx: OpContext
    ) -> bool:
        """Fill a new cache mount from an imported cache; false when none has it, or what it has is damaged."""
        from crossdock.engine.facade_caches import fill_mount
        from crossdock.engine.remotecache.mounts import MountUse

        found = self._shared.imported().find_mount(MountUse(name, *base).key)
        return found is not None and fill_mount(
            *found, directory, name, vertex, ctx, lenient_owner=self._single_id()
        )

    def fetch_results(self, refs: Sequence[Ref], *, sink: EventSink, cancel: CancelToken) -> None:
        """Have the bytes of all layers of results. Raises: CacheError, RegistryError, StoreError and their kin."""
        from crossdock.engine.sources.pull import PullContext

        layers = dict.fromkeys(layer for ref in refs for layer in ref.layers)
        missing = [layer for layer in layers if self.store.layers.directory(layer) is None]
        self._layer_puller().ensure(missing, PullContext(self.lease, sink, "", cancel))

    def settle_caches(self) -> None:
        """Make the store's own what was imported and has arrived. Raises: StoreError, StoreFull."""
        if self._caches is not None:
            self._caches.settle()

    def _cached(self) -> EngineCaches:
        with self._lock:
            if self._caches is None:
                from crossdock.engine.facade_caches import EngineCaches

                self._caches = EngineCaches(self.store, self._shared.imported(), self._registry)
            return self._caches

    # --- the machine and the store ---

    def info(self) -> EngineInfo:
        """Look at the machine. Raises: SandboxError when there is no runtime."""
        from crossdock.engine.sandbox.worker import current_worker

        return EngineInfo(self.platform, current_worker(), self.sandbox().runtime.name, self.store.root)

    def disk_usage(self, filters: Sequence[str] = ()) -> list[UsageRecord]:
        """List what the store holds, largest last use first. Raises: UsageError for a filter; StoreError."""
        return self.store.disk_usage(filters)

    def prune(
        self, policy: GCPolicy, *, on_record: Callable[[UsageRecord], None], cancel: CancelToken
    ) -> int:
        """Remove what ``policy`` says and nobody uses; returns the bytes freed. Raises: UsageError; StoreError."""
        return self.store.prune(policy, sink=on_record, cancel=cancel)

    def sandbox(self) -> Sandbox:
        """Return the sandbox. Raises: SandboxError outside a worker, or without a runtime."""
        return self._shared.sandbox()

    def mounted(
        self,
        layers: Sequence[LayerId],
        *,
        above: Sequence[Path] = (),
        sink: EventSink,
        cancel: CancelToken,
    ) -> AbstractContextManager[Path]:
        """Show layers, and directories above them, as one read-only file system, for the length of a block."""
        directories = self.directories(layers, "", sink, cancel)
        return self.sandbox().mounted([*directories, *above], upper=None, work=None)

    # --- what attestations tell ---

    def pin(self, vertex: str) -> str:
        """Return what a source vertex turned out to be: the digest of an image or file, a commit; ``""`` if unknown."""
        return self._shared.pins.get(vertex, "")

    def outputs_of(self, keyed: Sequence[KeyedVertex]) -> dict[str, list[tuple[LayerId, ...]]]:
        """Return the layers of each output of vertices that were solved, by digest of the vertex, as far as known."""
        found: dict[str, list[tuple[LayerId, ...]]] = {}
        for vertex in keyed:
            record = self._shared.keys.lookup(vertex.canonical)
            if record is not None and record.results is not None:
                results = [r.layers if isinstance(r, Ref) else () for r in record.results]
                found[vertex.vertex.partition("!")[0]] = results
        return found

    def directories(
        self, layers: Sequence[LayerId], vertex: str, sink: EventSink, cancel: CancelToken
    ) -> Sequence[Path]:
        """Return the directories of layers, bottom first, fetching and unpacking those that are remote."""
        known = [self.store.layers.directory(layer) for layer in layers]
        ready = [path for path in known if path is not None]
        if len(ready) == len(known):
            return ready
        from crossdock.engine.sources.pull import PullContext

        context = PullContext(self.lease, sink, vertex, cancel)
        return self._layer_puller().directories(layers, context)

    def fetch(
        self,
        blob: Descriptor,
        repositories: Sequence[str],
        vertex: str,
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        """Have a blob in the store, from one of the repositories when it is not there."""
        from crossdock.engine.sources.pull import PullContext

        context = PullContext(self.lease, sink, vertex, cancel)
        self._layer_puller().blobs(((blob, repositories),), context)

    # --- inside ---

    def _env(self, inputs: SolveInputs) -> OpEnv:
        from crossdock.engine.ops.env import OpEnv

        return OpEnv(
            store=self.store,
            lease=self.lease,
            sandbox=self.sandbox,
            directories=self.directories,
            platform=self.platform,
            secrets=inputs.secrets,
            ssh=inputs.ssh,
            allow=inputs.allow,
            lenient_owner=self._single_id(),
            fill_mount=None if self._shared.blob_sources() is None else self._fill_mount,
            hang_deadline_s=self._options.hang_deadline_s,
            layouts=inputs.layouts,
            pins=self._shared.pins,
        )

    @staticmethod
    def _single_id() -> bool:
        from crossdock.engine.sandbox.worker import current_worker

        worker = current_worker()
        return worker is not None and worker.ids == "single"

    def _view(self, ref: Ref, cancel: CancelToken, sink: EventSink | None) -> View:
        from crossdock.progress.events import NullSink

        return LayerView(self.directories(ref.layers, "", sink or NullSink(), cancel))

    def _registry(self, cancel: CancelToken) -> RegistryClient:
        with self._lock:
            if self._client is None:
                if self._options.registry is None:
                    summary = "this engine was opened without access to registries"
                    raise UsageError(summary)
                self._client = self._options.registry(cancel)
            return self._client.scoped(cancel=cancel)

    def _image_source(self) -> ImageSource:
        with self._lock:
            if self._images is None:
                from crossdock.engine.sources.image import ImageSource

                self._images = ImageSource(self.store, LazyClient(self._registry))
            return self._images

    def _layer_puller(self) -> LayerPuller:
        with self._lock:
            if self._puller is None:
                from crossdock.engine.sources.pull import LayerPuller
                from crossdock.layers import UnpackOptions

                options = UnpackOptions(ignore_chown_errors=self._single_id())
                client = LazyClient(self._registry)
                self._puller = LayerPuller(
                    self.store, client, unpack_options=options, caches=self._shared.blob_sources
                )
            return self._puller


class _Shared:
    """What all scopes of one engine have in common."""

    def __init__(self, options: EngineOptions, store: Store) -> None:
        from crossdock.engine.facade_solve import StoreKeyCache

        self._store = store
        self._network = options.network
        self._leases = ExitStack()
        self.lease: Lease = self._leases.enter_context(store.lease())
        self.keys = StoreKeyCache(store, self.lease, max_bytes=options.max_used_space)
        self.scheduler = Scheduler(self.keys, parallelism=options.parallelism or max(8, 4 * _cpus()))
        # Guards what follows.
        self._lock = threading.RLock()
        self._sandbox: Sandbox | None = None
        self._imported: ImportedCaches | None = None
        self._solving = 0
        #: source vertex -> what it turned out to be; single dict operations only
        self.pins: dict[str, str] = {}
        #: directories of solves that are over, which a step shared with another solve may still read
        self._retired: list[LocalSources] = []
        self._fresh: list[FreshRun] = []

    def begin(self) -> None:
        """Note that a solve starts."""
        with self._lock:
            self._solving += 1

    def retire(self, locals_: LocalSources) -> None:
        """End a solve: its directories are given up as soon as nothing can read them."""
        locals_.save()
        with self._lock:
            self._retired.append(locals_)
            self._solving -= 1
            last = not self._solving
            if last:
                self._end_fresh()
        if last and self.scheduler.settle(_SETTLE_S):
            self._close_retired()

    def fresh_nonce(self) -> str:
        """Return the nonce of a solve that ignores the cache; other processes may join until the last solve is over."""
        from crossdock.engine.fresh import FreshRun

        run = FreshRun(self._store.layout.locks)
        with self._lock:
            self._fresh.append(run)
        return run.nonce()

    def renew_lease(self) -> None:
        """Give up everything leased, when no solve is at work."""
        with self._lock:
            if self._solving or not self.scheduler.settle(1.0):
                return
            old, self._leases = self._leases, ExitStack()
            self.lease = self._leases.enter_context(self._store.lease())
            self.pins.clear()
            self.keys.use_lease(self.lease)
            if self._imported is not None:
                self._imported.use_lease(self.lease)
        old.close()

    def sandbox(self) -> Sandbox:
        """Return the one sandbox; made at the first use."""
        with self._lock:
            if self._sandbox is None:
                from crossdock.engine.sandbox.sandbox import Sandbox

                cache = self._store.root / "sandbox"
                cache.mkdir(mode=0o700, exist_ok=True)
                self._sandbox = Sandbox(_worker(), cache_dir=cache, network=self._network)
            return self._sandbox

    def imported(self) -> ImportedCaches:
        """Return the caches imported, for solves to find; made at the first use."""
        with self._lock:
            if self._imported is None:
                from crossdock.engine.remotecache.importer import ImportedCaches

                self._imported = self.keys.imported = ImportedCaches(self._store, self.lease)
            return self._imported

    def blob_sources(self) -> BlobSources | None:
        """Return where the bytes of imported layers are, once something was imported."""
        return None if self._imported is None else self._imported.sources

    def close(self) -> None:
        """Stop what runs and end the lease."""
        with self._leases:
            self.scheduler.close()
            self._close_retired()

    def _end_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        for run in fresh:
            run.close()

    def _close_retired(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
        for locals_ in retired:
            locals_.close()


def _worker() -> WorkerInfo:
    from crossdock.engine.sandbox.worker import current_worker
    from crossdock.errors import SandboxError

    worker = current_worker()
    if worker is None:
        summary = "steps can only run inside a worker namespace"
        raise SandboxError(summary, missing="worker namespace")
    return worker


def _final(result: Result, env: OpEnv, vertex: str, ctx: OpContext) -> Ref:
    """Return a result as layers: a local directory that is itself asked for is packed into one."""
    if isinstance(result, LocalTree):
        return env.packed(result, vertex, ctx)
    if isinstance(result, Ref):
        return result
    summary = "a solve gave no file system"
    raise SolveError(summary, vertex=vertex)


def _os_error(exc: BaseException) -> CrossdockError:
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        from crossdock.engine.store.rim import explain

        return explain(exc, "write a part of the build")
    return SolveError(f"the system refused a part of the build: {exc}")


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
