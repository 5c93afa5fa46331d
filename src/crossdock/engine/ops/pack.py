"""Pack a layer of large files while it is made: their bytes go from where they are straight into the blob.

Where nothing but an image is made of a copy's result, its files need not be written to a directory, read again and
packed. Directories, links and every file's attributes are made as always; the files stay empty and are noted here by
inode, and the layer is written from both. The layer then has a blob and no directory, like one that was pulled; whoever
does need its files has the blob unpacked. The bytes are those that a directory would have given.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.cache.localview import LocalView
from crossdock.engine.store.layers import PACKED_ANNOTATION
from crossdock.image.descriptor import Descriptor
from crossdock.image.mediatypes import layer_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.view import Node, View
    from crossdock.engine.store import LayerId, NewLayer, Store
    from crossdock.layers.compression import Compression

__all__ = ["LEAST_BYTES", "DeferredContents", "pack", "worth_packing"]

#: below this a directory is worth more, for what is built upon it later, than the writing it costs
LEAST_BYTES = 64 << 20
#: of files smaller than this on the average, making them is what costs, which packing does not save
_LEAST_AVERAGE = 128 << 10


def worth_packing(files: int, total_bytes: int) -> bool:
    """Whether so many files of so many bytes are better packed from where they are."""
    return total_bytes >= LEAST_BYTES and total_bytes >= min(_LEAST_AVERAGE, LEAST_BYTES) * files


class DeferredContents:
    """Where the bytes of files are that were made empty. Filled by several threads, then read by one."""

    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: dict[int, tuple[View, Node]] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def note(self, inode: int, view: View, node: Node) -> None:
        """Note a file; of an inode that was used before, what counts is the last."""
        self._files[inode] = (view, node)

    def size(self, inode: int) -> int | None:
        """Return how many bytes the file has; ``None`` for one that was not noted."""
        found = self._files.get(inode)
        return None if found is None else found[1].st.st_size

    @contextmanager
    def open(self, inode: int) -> Iterator[int]:
        """Open the bytes. Raises: ContextError when a local file changes meanwhile, whatever became of the block."""
        view, node = self._files[inode]
        fd = view.open(node)
        try:
            try:
                yield fd
            finally:
                if isinstance(view, LocalView):
                    view.unchanged(node, os.fstat(fd))
        finally:
            os.close(fd)


def pack(
    store: Store, layer: NewLayer, contents: DeferredContents, compression: Compression, cancel: CancelToken
) -> LayerId:
    """Write a new layer as a blob and commit it without its directory.

    Raises: ContextError, LayerError, StoreError, StoreFull; the token's cause.
    """
    from crossdock.layers.walk import write_layer

    with store.content.writer(layer.lease, hashing=False) as out:
        done = write_layer(layer.fs, out, compression=compression, contents=contents, cancel=cancel)
        media_type = layer_type(compression.type, oci=True)
        blob = Descriptor(media_type, done.digest, done.size, {PACKED_ANNOTATION: compression.label})
        out.commit(blob)
    return layer.commit_packed(done.diff_id, blob)
