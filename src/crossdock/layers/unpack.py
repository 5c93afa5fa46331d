"""Unpack archives, each taken for hostile, into a directory that nothing else writes to.

A layer becomes an overlay directory: an OCI whiteout turns into a 0/0 character device, an opaque mark
into ``user.overlay.opaque``, on a directory that begins empty. ``apply`` carries whiteouts out on
what is there, and ``plain`` gives their names no meaning, as ``ADD`` of an archive needs.

What a user namespace cannot make (device nodes, some attributes) is left out and reported.

Spec: image-spec 1.1, layer.md; overwriting as Docker's and containerd's ``Apply``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import LayerError
from crossdock.layers.decompress import open_decompressed
from crossdock.layers.extract import Extractor, UnpackOptions, unpack_error
from crossdock.layers.feed import BlockFeed
from crossdock.layers.reader import TarReader
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.image.digest import DiffId
    from crossdock.layers.decompress import ByteSource

__all__ = ["UnpackOptions", "UnpackResult", "extract_archive", "is_archive", "unpack_layer"]

_DEFAULTS = UnpackOptions()


class UnpackResult(NamedTuple):
    """What was unpacked."""

    diff_id: DiffId
    #: bytes of the uncompressed archive
    size: int
    entries: int
    #: ``path: why`` of everything left out
    skipped: tuple[str, ...]
    #: directories that the archive uses but does not contain
    implied: tuple[str, ...]


def unpack_layer(
    stream: ByteSource,
    dest: Path,
    *,
    options: UnpackOptions = _DEFAULTS,
    cancel: CancelToken,
    progress: Callable[[int], None] | None = None,
) -> UnpackResult:
    """Unpack a layer blob (compressed or not) into ``dest``, made when missing.

    ``progress`` gets the uncompressed position now and then. Nothing is synced; on an error ``dest``
    holds a part. The diff id covers every byte of the archive.
    Raises: LayerError when the archive is malformed or hostile; StoreError, StoreFull; the token's cause.
    """
    try:
        os.makedirs(dest, exist_ok=True)
        root = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise unpack_error(exc, os.fspath(dest)) from exc
    try:
        _, plain = open_decompressed(stream)
        with BlockFeed(plain, cancel=cancel) as feed:
            extractor = Extractor(root, options)
            try:
                _unpack_all(extractor, feed, cancel, progress)
            finally:
                extractor.close()
            diff_id = feed.drain()
            notes = tuple(extractor.skipped)
            implied = tuple(sorted(map(os.fsdecode, extractor.implied)))
            return UnpackResult(diff_id, feed.size, extractor.entries, notes, implied)
    finally:
        os.close(root)


def extract_archive(
    stream: ByteSource,
    dest: Path,
    *,
    owner: tuple[int, int] | None = None,
    mode: int | None = None,
    ignore_chown_errors: bool = False,
    cancel: CancelToken,
) -> UnpackResult:
    """Unpack an archive over an existing directory, as ``ADD archive.tar dir/`` does.

    Directories are merged, anything else is replaced; links in ``dest`` are resolved with ``dest`` as root.
    ``dest`` may be ``/proc/self/fd/N`` of a directory that was opened safely.
    Raises: as :func:`unpack_layer`.
    """
    options = UnpackOptions(
        whiteouts="plain", owner=owner, mode=mode, ignore_chown_errors=ignore_chown_errors
    )
    return unpack_layer(stream, dest, options=options, cancel=cancel)


def is_archive(stream: ByteSource) -> bool:
    """Whether ``stream`` starts with a tar entry, compressed or not; reads some of it."""
    blocks: list[bytes] = []
    try:
        _, plain = open_decompressed(stream)

        def block() -> bytes:
            blocks.append(plain.read(1 << 16) or b"")
            return blocks[-1]

        return TarReader(block).next() is not None
    except LayerError:
        return False


def _unpack_all(
    extractor: Extractor, feed: BlockFeed, cancel: CancelToken, progress: Callable[[int], None] | None
) -> None:
    reader = TarReader(feed.next)
    while (entry := reader.next()) is not None:
        try:
            extractor.add(entry, reader)
        except OSError as exc:
            raise unpack_error(exc, os.fsdecode(entry.name)) from exc
        if extractor.entries & 63 == 0:
            cancel.check()
            if progress is not None:
                progress(feed.size)
    extractor.finish()
