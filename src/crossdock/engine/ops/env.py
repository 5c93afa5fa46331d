"""What ops work with: the store, the sandbox, and what one solve brings along (secrets, agents, permissions).

The sandbox and layer contents are asked for through functions, so that a build that runs nothing loads nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.refs import LocalTree, Ref
from crossdock.engine.solver.keys import KeyHasher
from crossdock.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.view import View
    from crossdock.engine.sandbox.cdi import DeviceRegistry
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.layers.compression import Compression
    from crossdock.progress.events import EventSink
    from crossdock.secret import Secret

__all__ = ["FillMount", "OpEnv", "Upload"]


class FillMount(Protocol):
    """Fills new cache mounts."""

    def __call__(
        self, name: str, base: tuple[str, int], directory: Path, vertex: str, ctx: OpContext, /
    ) -> bool:
        """Fill ``directory``; ``base`` is the vertex and output that the mount starts from, or ``("", 0)``.

        False when there is nothing to fill it with. Raises: StoreFull; the token's cause.
        """
        ...


class Upload(Protocol):
    """Receives what the caller of a solve uploads."""

    def __call__(
        self, path: str, store: Callable[[Iterable[bytes]], Digest], cancel: CancelToken, /
    ) -> Digest:
        """Have ``store`` take in what comes under a path, once per build; returns what it returned.

        Raises: ContextError with the caller's words; the token's cause.
        """
        ...


class OpEnv:
    """Given to every op of one solve. Safe from any thread."""

    def __init__(
        self,
        *,
        store: Store,
        lease: Lease,
        sandbox: Callable[[], Sandbox],
        directories: Callable[[Sequence[LayerId], str, EventSink, CancelToken], Sequence[Path]],
        platform: Platform,
        secrets: Callable[[str], Secret | None],
        ssh: Callable[[str], Path | None],
        allow: frozenset[str] = frozenset(),
        lenient_owner: bool = False,
        fill_mount: FillMount | None = None,
        hang_deadline_s: float | None = None,
        layouts: Mapping[str, Callable[[Digest], BinaryIO]] | None = None,
        pins: MutableMapping[str, str] | None = None,
        pack: Compression | None = None,
        devices: Callable[[], DeviceRegistry] | None = None,
        uploads: Upload | None = None,
    ) -> None:
        self.store = store
        self.lease = lease
        self.sandbox = sandbox
        self._directories = directories
        #: the machine's own
        self.platform = platform
        #: return ``None`` for an unknown id
        self.secrets = secrets
        self.ssh = ssh
        #: entitlements granted: ``network.host``, ``security.insecure``, ``device`` and ``device=NAME``
        self.allow = allow
        #: gives the devices that the machine's administrator described
        self.devices = devices
        #: a single id: nothing can be given away
        self.lenient_owner = lenient_owner
        #: gives a new cache mount its first content, where an imported cache has it
        self.fill_mount = fill_mount
        self.hang_deadline_s = hang_deadline_s
        #: OCI layouts by name: functions that open a blob
        self.layouts = layouts or {}
        #: source vertex -> what it turned out to be: the digest of an image or file, a commit
        self.pins = pins if pins is not None else {}
        #: receives what the caller uploads
        self.uploads = uploads
        #: how results are packed, where only images are made of them
        self.pack = pack
        #: vertices whose results no other vertex uses; set before ops run
        self.only_packed: frozenset[str] = frozenset()
        # Guards _packed; one local tree is packed once.
        self._lock = threading.Lock()
        self._packed: dict[LocalTree, Ref] = {}

    def directories(self, ref: Ref, vertex: str, ctx: OpContext) -> list[Path]:
        """Return the directories of a state's layers, bottom first, fetching what is remote."""
        if not ref.layers:
            return []
        return list(self._directories(ref.layers, vertex, ctx.sink, ctx.cancel))

    def view(self, result: Result, vertex: str, ctx: OpContext) -> View:
        """Return a view of an input, to read from."""
        if isinstance(result, LocalTree):
            return result.view
        return LayerView(self.directories(as_ref(result), vertex, ctx))

    def packed(self, result: Result, vertex: str, ctx: OpContext) -> Ref:
        """Return an input as layers; a local tree is copied into one, once per content."""
        if not isinstance(result, LocalTree):
            return as_ref(result)
        with self._lock:
            ref = self._packed.get(result)
            if ref is None:
                ref = self._packed[result] = self._pack(result, vertex, ctx)
        return ref

    def _pack(self, tree: LocalTree, vertex: str, ctx: OpContext) -> Ref:
        from crossdock.engine.cache.checksum import content_digest
        from crossdock.engine.cache.select import Selector
        from crossdock.engine.ops.copytree import CopyOptions, copy_tree
        from crossdock.engine.ops.upper import Upper

        digest = content_digest(tree.view, [Selector()], ctx.cancel)
        key = KeyHasher("local-layer").text("content", digest).finish()
        known = self.store.records.result(key, self.lease)
        if known is not None and len(known.outputs) == 1:
            return Ref(known.outputs[0])
        description = f"local directory {tree.name}"
        with self.store.layers.new(self.lease, kind="source", description=description) as layer:
            upper = Upper([], layer.fs, lenient_owner=self.lenient_owner)
            copy_tree(tree.view, upper, CopyOptions(), ctx.cancel)
            ref = Ref((layer.commit(),))
        self.store.records.save(
            key,
            [ref.layers],
            lease=self.lease,
            vertex=vertex,
            description=description,
            record_type="source.local",
        )
        return ref


def as_ref(result: Result) -> Ref:
    """Return a result that must be a file-system state."""
    if isinstance(result, Ref):
        return result
    msg = f"an op was given {type(result).__name__} where a file-system state belongs"
    raise InternalError(msg)
