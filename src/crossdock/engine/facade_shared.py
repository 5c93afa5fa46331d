"""What all scopes of one engine share: lease, scheduler, sandbox, imported caches."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.engine.facade_keys import StoreKeyCache
from crossdock.engine.solver import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.engine.facade_parts import EngineOptions
    from crossdock.engine.fresh import FreshRun
    from crossdock.engine.remotecache.importer import ImportedCaches
    from crossdock.engine.sandbox.cdi import DeviceRegistry
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.worker import WorkerInfo
    from crossdock.engine.solver import OpContext
    from crossdock.engine.sources.blobsources import BlobSources
    from crossdock.engine.sources.local import LocalSources
    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.engine.store.watch import SpaceWatch

__all__ = ["Shared", "single_id"]

#: a cancelled step ends within a second or so
_SETTLE_S = 15.0


class Shared:
    """What all scopes of one engine have in common."""

    def __init__(self, options: EngineOptions, store: Store, elder: Shared | None = None) -> None:
        """``elder`` is whose sandbox and devices are used; it is closed later."""
        self._elder = elder
        self._store = store
        self._options = options
        self._leases = ExitStack()
        self.lease: Lease = self._leases.enter_context(store.lease())
        self.keys = StoreKeyCache(store, self.lease, max_bytes=options.max_used_space)
        self._space = _watch(store, options.max_used_space)
        self.scheduler = Scheduler(
            self.keys,
            parallelism=options.parallelism or max(8, 4 * _cpus()),
            watching=nullcontext if self._space is None else self._space.writing,
        )
        # Guards what follows.
        self._lock = threading.RLock()
        self._sandbox: Sandbox | None = None
        self._devices: DeviceRegistry | None = None
        self._imported: ImportedCaches | None = None
        self._solving = 0
        #: source vertex -> what it turned out to be; single dict operations only
        self.pins: dict[str, str] = {}
        #: directories of solves that are over, which a step shared with another solve may still read
        self._retired: list[LocalSources] = []
        self._fresh: list[FreshRun] = []

    @contextmanager
    def writing(self, cancel: CancelToken) -> Iterator[CancelToken]:
        """Yield the token of something that writes to the store: cancelled also when the store reaches its limit."""
        if self._space is None:
            yield cancel
            return
        token = CancelToken(cancel)
        try:
            with self._space.writing(token):
                yield token
        finally:
            token.close()

    @contextmanager
    def solving(self, locals_: LocalSources) -> Iterator[None]:
        """Note that a solve is at work during the block; its directories are then given up when nothing reads them."""
        with self._lock:
            self._solving += 1
        try:
            yield
        finally:
            self._retire(locals_)

    def _retire(self, locals_: LocalSources) -> None:
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

    def successor(self) -> Shared:
        """Return the same with a lease, a scheduler and imported caches of its own."""
        return Shared(self._options, self._store, self if self._elder is None else self._elder)

    def sandbox(self) -> Sandbox:
        """Return the one sandbox; made at the first use."""
        if self._elder is not None:
            return self._elder.sandbox()
        with self._lock:
            if self._sandbox is None:
                from crossdock.engine.sandbox.runtime import find_runtime
                from crossdock.engine.sandbox.sandbox import Sandbox

                cache = self._store.root / "sandbox"
                cache.mkdir(mode=0o700, exist_ok=True)
                self._sandbox = Sandbox(
                    _worker(),
                    runtime=find_runtime(self._options.runtime) if self._options.runtime else None,
                    cache_dir=cache,
                    root_mounts="native" if self._store.layout.unmountable.exists() else "overlay",
                    network=self._options.network,
                    dns=self._options.dns,
                    cgroup_parent=self._options.cgroup_parent,
                )
            return self._sandbox

    def devices(self) -> DeviceRegistry:
        """Return the devices that are described for steps; read at the first use, and again when a file changed."""
        if self._elder is not None:
            return self._elder.devices()
        with self._lock:
            if self._devices is None:
                from crossdock.engine.sandbox.cdi import CdiOptions, DeviceRegistry

                self._devices = DeviceRegistry(self._options.cdi or CdiOptions())
            return self._devices

    def directory(self, layer: LayerId) -> Path | None:
        """Return a layer's directory, ``None`` when it has none here."""
        return self._store.layers.directory(layer) if self._store.layers.exists(layer) else None

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

    def mount_filler(self) -> Callable[[str, tuple[str, int], Path, str, OpContext], bool] | None:
        """Return what fills new cache mounts from imported caches, once something was imported."""
        return None if self._imported is None else self._fill_mount

    def _fill_mount(
        self, name: str, base: tuple[str, int], directory: Path, vertex: str, ctx: OpContext
    ) -> bool:
        """Fill a new cache mount; false when no cache has it, or what it has is damaged."""
        from crossdock.engine.facade_caches import fill_mount
        from crossdock.engine.remotecache.mounts import MountUse

        found = self.imported().find_mount(MountUse(name, *base).key)
        return found is not None and fill_mount(
            *found, directory, name, vertex, ctx, lenient_owner=single_id()
        )

    def close(self) -> None:
        """Stop what runs and end the lease."""
        with self._leases:
            self.scheduler.close()
            self._close_retired()
            if self._space is not None:
                self._space.close()

    def _end_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        for run in fresh:
            run.close()

    def _close_retired(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
        for locals_ in retired:
            locals_.close()


def _watch(store: Store, max_bytes: int) -> SpaceWatch | None:
    if not max_bytes:
        return None
    from crossdock.engine.store.watch import SpaceWatch

    return SpaceWatch(store, max_bytes)


def _worker() -> WorkerInfo:
    from crossdock.engine.sandbox.worker import current_worker
    from crossdock.errors import SandboxError

    found = current_worker()
    if found is None:
        summary = "steps can only run inside a worker namespace"
        raise SandboxError(summary, missing="worker namespace")
    return found


def single_id() -> bool:
    """Tell whether the worker has no ids but its own, so that files cannot be given to others."""
    from crossdock.engine.sandbox.worker import current_worker

    worker = current_worker()
    return worker is not None and worker.ids == "single"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
