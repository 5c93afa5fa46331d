"""Cache mounts in build caches: packed as a layer that no step's key leads to, restored where the mount is new.

A mount is known by its id and, when it starts from a file system (``from=``, ``uid=``, ``mode=``), by the vertex that makes that. Its
record has the digest of both and one layer; BuildKit, which has nothing of the kind, never asks for it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from crossdock.engine.remotecache.backend import LayerToWrite
from crossdock.engine.remotecache.chain import KnownKey
from crossdock.engine.remotecache.config import CREATED, UNCOMPRESSED, CacheResult
from crossdock.engine.remotecache.times import today, write_time
from crossdock.engine.store.mounts import mount_id
from crossdock.image.descriptor import Descriptor
from crossdock.image.mediatypes import layer_type
from crossdock.llb.graph import walk
from crossdock.llb.ops import ExecOp, MountType
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.model import ExportContext
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.spec import ExportOptions
    from crossdock.engine.store import LayerId
    from crossdock.llb.graph import Output

__all__ = ["MountUse", "PackedMount", "mounts_of", "pack_mounts", "unpack_mount"]


class MountUse(NamedTuple):
    """A cache mount that a build has."""

    name: str
    #: digest of the vertex it starts from, ``""`` for nothing, and which of its outputs
    base: str = ""
    output: int = 0

    @property
    def key(self) -> str:
        """Digest of the mount's record."""
        text = "\0".join(("crossdock.cachemount", self.name, self.base, str(self.output)))
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class PackedMount(NamedTuple):
    """A mount ready to be exported."""

    known: KnownKey
    layer: LayerToWrite


def mounts_of(outputs: Iterable[Output]) -> list[MountUse]:
    """Return the cache mounts of a graph, each once."""
    found: dict[MountUse, None] = {}
    for node in walk(list(outputs)):
        if not isinstance(node.op, ExecOp):
            continue
        for mount in node.op.mounts:
            if mount.mount_type is not MountType.CACHE or mount.cache_opt is None:
                continue
            name = mount.cache_opt.id or mount.dest
            base = node.inputs[mount.input] if mount.input >= 0 else None
            found[MountUse(name) if base is None else MountUse(name, base.node.digest, base.index)] = None
    return list(found)


def pack_mounts(
    uses: Sequence[MountUse],
    base_of: Callable[[MountUse], Sequence[LayerId] | None],
    context: ExportContext,
    options: ExportOptions,
    report: Report,
) -> list[PackedMount]:
    """Pack those mounts that exist, are not in use, and are within the limit; the log says which are not.

    Raises: StoreFull, StoreError, LayerError; the token's cause.
    """
    packed: list[PackedMount] = []
    mounts = context.store.mounts
    there = set(mounts.ids())
    for use in uses:
        base = base_of(use)
        if base is None:
            continue
        local = mount_id(use.name, "", ",".join(base))
        if local not in there:
            continue
        if mounts.in_use(local):
            report.note(f"cache mount {use.name} is left out: another build uses it")
            continue
        with (
            report.stage(f"packing cache mount {use.name}"),
            mounts.use(
                context.lease, name=use.name, sharing="locked", base=",".join(base), cancel=context.cancel
            ) as directory,
        ):
            layer = _pack(use, directory, context, options, report)
        if layer is not None:
            result = CacheResult((layer.descriptor.digest,), layer.descriptor.annotations[CREATED], today())
            packed.append(PackedMount(KnownKey(use.key, (), (result,)), layer))
    return packed


def _pack(
    use: MountUse, directory: Path, context: ExportContext, options: ExportOptions, report: Report
) -> LayerToWrite | None:
    from crossdock.engine.store.removal import tree_size
    from crossdock.layers.walk import write_layer

    size = tree_size(directory)
    if options.mounts_max_size and size > options.mounts_max_size:
        report.note(
            f"cache mount {use.name} is left out: its {size} bytes are more than {options.mounts_max_size}"
        )
        return None
    with context.store.content.writer(context.lease, hashing=False) as out:
        result = write_layer(directory, out, compression=options.compression, cancel=context.cancel)
        media_type = layer_type(options.compression.type, oci=True)
        blob = Descriptor(media_type, result.digest, result.size)
        out.commit(blob)
    newest = directory.stat().st_mtime_ns
    annotations = {UNCOMPRESSED: str(result.diff_id), CREATED: write_time(newest)}
    described = Descriptor(media_type, blob.digest, blob.size, annotations)

    def open_at(offset: int) -> BinaryIO:
        return context.store.content.open_at(blob.digest, offset)

    return LayerToWrite(described, open_at)


def unpack_mount(
    backend: Backend, blob: Descriptor, directory: Path, *, lenient_owner: bool, cancel: CancelToken
) -> None:
    """Fill a new mount's directory. Raises: what transports and archives raise; then it holds who knows what."""
    from crossdock.layers.unpack import UnpackOptions, unpack_layer

    options = UnpackOptions(ignore_chown_errors=lenient_owner)
    with backend.open_blob(blob, cancel) as stream:
        unpack_layer(stream, directory, options=options, cancel=cancel)
        while stream.read(1 << 18):
            pass  # what follows the archive counts for the digest
