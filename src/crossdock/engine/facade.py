"""The engine as its callers see it, in the shape of BuildKit's API: solve, read, export, usage.

One engine per process, opened inside the worker namespace. Everything it touches is held by a lease until it is closed.
Heavy parts (registry client, sandbox, exporters) are loaded when something needs them: a build that is entirely cached
mounts nothing and runs nothing.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.refs import SCRATCH
from crossdock.engine.facade_fetch import Reach
from crossdock.engine.facade_parts import Access, EngineInfo, EngineOptions, FileInfo, SolveInputs
from crossdock.engine.facade_shared import Shared, single_id
from crossdock.engine.facade_solve import Solving
from crossdock.engine.store import Store
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.cache.view import View
    from crossdock.engine.exporters.ahead import Ahead
    from crossdock.engine.exporters.model import ExportContext, ExporterSpec, ExportResult, PlatformImage
    from crossdock.engine.facade_caches import EngineCaches
    from crossdock.engine.facade_container import Container, ContainerSpec
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.engine.facade_sources import SourceFacts
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.sandbox.cdi import DeviceRegistry
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.engine.store import LayerId, Lease
    from crossdock.engine.store.gc import GCPolicy
    from crossdock.engine.store.usage import UsageRecord
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["Engine", "EngineInfo", "EngineOptions", "FileInfo", "SolveInputs"]


class Engine:
    """An open engine. Safe from any thread; make it with :meth:`open`, end it with :meth:`close`."""

    def __init__(
        self, options: EngineOptions, store: Store, stack: ExitStack, shared: Shared, caller: str = ""
    ) -> None:
        self._options = options
        #: tells this caller's exports from those of others
        self._caller = caller
        self.store = store
        self._stack = stack
        self._shared = shared
        self._reach = Reach(store, shared, options.registry)
        self.platform = local_platform()
        # Guards what is made on first use.
        self._lock = threading.RLock()
        #: once something is imported or exported
        self._caches: EngineCaches | None = None

    # --- life ---

    @classmethod
    def open(cls, options: EngineOptions) -> Engine:
        """Open the store. Raises: StoreError, StoreFull."""
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(options.root))
            shared = Shared(options, store)
            stack.callback(shared.close)
            return cls(options, store, stack.pop_all(), shared)

    def scope(self, registry: Callable[[CancelToken], RegistryClient]) -> Engine:
        """Return this engine for one of several callers: store, solver and sandbox are shared.

        The scope has its own access to registries and asks anew what tags mean. Close it before the engine.
        """
        options = self._options._replace(registry=registry)
        return Engine(options, self.store, ExitStack(), self._shared, os.urandom(8).hex())

    def successor(self) -> Engine:
        """Return an engine on the same store and sandbox which protects only what is touched through it.

        For callers that are never without a solve at work: see :meth:`forget`. Close it before this one.
        Raises: StoreError, StoreFull.
        """
        shared = self._shared.successor()
        stack = ExitStack()
        stack.callback(shared.close)
        return Engine(self._options, self.store, stack, shared)

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
            self._reach.close()

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
        early: Callable[[int, Ref], None] | None = None,
    ) -> list[Ref]:
        """Solve outputs together, sharing what they have in common; ``None`` is the empty file system.

        ``early`` is told results, with their numbers, that are there while others are still made: for
        :meth:`exporting_ahead`. It is called by the solver's thread: it must not block or raise.

        The keys of what was solved go into ``keyed``, for :meth:`export_caches`; what steps are made of into ``recorder``,
        which explains afterwards why some ran.
        Raises: SolveError and its kin with the vertex; ContextError; RegistryError; SandboxError; StoreFull;
        NotSupported; the token's cause.
        """
        from crossdock.engine.sources.local import LocalSources

        locals_ = LocalSources(inputs.locals, self.store, inputs.fetch_local)
        wanted = [request for request in requests if request is not None]
        if len(wanted) < len(requests):
            early = None  # nobody has a use for it where some results are empty
        with self._shared.solving(locals_):
            solving = Solving(
                self._shared, self._env(inputs), locals_, self._reach.images, sink, cancel, inputs.rewrite
            )
            refs = iter(
                solving.run(
                    wanted,
                    keyed=keyed,
                    recorder=recorder,
                    drop_failed=self.drop_failed_caches,
                    early=early,
                )
            )
        return [SCRATCH if request is None else next(refs) for request in requests]

    def resolve_image_config(
        self, ref: str, *, platform: Platform, mode: str = "default", sink: EventSink, cancel: CancelToken
    ) -> ResolvedImage:
        """Find an image's digest and config. Raises: RegistryError and its kin, PlatformNotFound, LayerError."""
        del sink  # the caller shows the vertex; nothing is transferred but documents
        from crossdock.image.reference import parse_reference

        return self._reach.images().resolve(
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

    def sources(self, *, inputs: SolveInputs, sink: EventSink, cancel: CancelToken) -> SourceFacts:
        """Return what tells what sources are before anything is built."""
        from crossdock.engine.facade_sources import SourceFacts

        return SourceFacts(self._env(inputs), self._reach.registry, sink, cancel)

    # --- looking into results ---

    def read_file(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> bytes | None:
        """Return a file of a result, links followed; ``None`` when there is none. Raises: SolveError for a directory."""
        from crossdock.engine.facade_look import read_file

        return read_file(self._view(ref, cancel, sink), path)

    def read_dir(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> list[FileInfo] | None:
        """Return the entries of a directory of a result, in order of name; ``None`` when there is none."""
        from crossdock.engine.facade_look import read_dir

        return read_dir(self._view(ref, cancel, sink), path)

    def stat(
        self, ref: Ref, path: str, *, cancel: CancelToken, sink: EventSink | None = None
    ) -> FileInfo | None:
        """Return what is at a path of a result, a link not followed; ``None`` when there is nothing."""
        from crossdock.engine.facade_look import stat

        return stat(self._view(ref, cancel, sink), path)

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
        ahead: Ahead | None = None,
    ) -> ExportResult:
        """Write results out. ``inline`` are the keys by platform that become inline caches of images.
        ``ahead`` is what :meth:`exporting_ahead` gave.

        Raises: UsageError, ExportError, RegistryError, StoreError, LayerError and their kin; CacheError when an imported
        cache lacks what it lists: see :meth:`drop_failed_caches`.
        """
        from crossdock.engine.exporters import export
        from crossdock.engine.store.upkeep import BackgroundSync

        with self._shared.writing(cancel) as token, BackgroundSync(self.store) as sync:
            context = self._export_context(sink, token, epoch_s)
            context.written = sync.begin
            if inline is not None:
                from crossdock.engine.remotecache.inlineexport import InlineCaches

                context.inline = InlineCaches(self.store, self._shared.keys.lookup, inline, epoch_s=epoch_s)
            return export(images, exporters, context=context, multi_platform=multi_platform, ahead=ahead)

    def exporting_ahead(
        self,
        exporters: Sequence[ExporterSpec],
        *,
        multi_platform: bool,
        epoch_s: int | None,
        cancel: CancelToken,
    ) -> Ahead:
        """Return what packs, and where it is asked for sends, what is built before other platforms are; a context manager.

        Raises: as :meth:`export` for what is wrong with outputs.
        """
        from crossdock.engine.exporters import begin_ahead
        from crossdock.progress.events import NullSink

        context = self._export_context(NullSink(), cancel, epoch_s)
        return begin_ahead(
            exporters, context=context, multi_platform=multi_platform, writing=self._shared.writing
        )

    def _export_context(self, sink: EventSink, cancel: CancelToken, epoch_s: int | None) -> ExportContext:
        from crossdock.engine.exporters import ExportContext

        return ExportContext(
            store=self.store,
            lease=self.lease,
            access=Access(self, sink),
            client=lambda: self._reach.registry(cancel),
            sink=sink,
            cancel=cancel,
            epoch_s=epoch_s,
            caller=self._caller,
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
        from crossdock.engine.facade_caches import solved

        build = solved(specs, keyed, results, requests, self._shared.keys.lookup)
        with self._shared.writing(cancel) as token:
            return self._cached().export(specs, build, self._export_context(sink, token, epoch_s))

    def drop_failed_caches(self, sink: EventSink) -> bool:
        """Give up imported caches that lack what they list; false when there is none. Solve again after that."""
        return self._caches is not None and self._caches.drop_failed(sink)

    def fetch_results(self, refs: Sequence[Ref], *, sink: EventSink, cancel: CancelToken) -> None:
        """Have the bytes of all layers of results. Raises: CacheError, RegistryError, StoreError and their kin."""
        self._reach.ensure(list(dict.fromkeys(layer for ref in refs for layer in ref.layers)), sink, cancel)

    def settle_caches(self) -> None:
        """Make the store's own what was imported and has arrived. Raises: StoreError, StoreFull."""
        if self._caches is not None:
            self._caches.settle()

    def _cached(self) -> EngineCaches:
        with self._lock:
            if self._caches is None:
                from crossdock.engine.facade_caches import EngineCaches

                self._caches = EngineCaches(self.store, self._shared.imported(), self._reach.registry)
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

    def devices(self) -> DeviceRegistry:
        """Return the devices that are described for steps."""
        return self._shared.devices()

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
        return self._shared.keys.outputs_of(keyed)

    def directories(
        self, layers: Sequence[LayerId], vertex: str, sink: EventSink, cancel: CancelToken
    ) -> Sequence[Path]:
        """Return the directories of layers, bottom first, fetching and unpacking those that are remote."""
        return self._reach.directories(layers, vertex, sink, cancel)

    def fetch(
        self,
        blob: Descriptor,
        repositories: Sequence[str],
        vertex: str,
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        """Have a blob in the store, from one of the repositories when it is not there."""
        self._reach.fetch(blob, repositories, vertex, sink, cancel)

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
            lenient_owner=single_id(),
            fill_mount=self._shared.mount_filler(),
            hang_deadline_s=self._options.hang_deadline_s,
            layouts=inputs.layouts,
            pins=self._shared.pins,
            devices=self._shared.devices,
            pack=inputs.pack,
            uploads=inputs.uploads,
        )

    def _view(self, ref: Ref, cancel: CancelToken, sink: EventSink | None) -> View:
        from crossdock.progress.events import NullSink

        return LayerView(self.directories(ref.layers, "", sink or NullSink(), cancel))
