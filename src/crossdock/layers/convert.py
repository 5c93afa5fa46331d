"""Give a layer blob another compression without unpacking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.layers.decompress import open_decompressed
from crossdock.layers.pipeline import LayerSink, OutputFailed, SinkResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cancel import CancelToken
    from crossdock.layers.compression import Compression
    from crossdock.layers.decompress import ByteSource
    from crossdock.layers.pipeline import ByteSink

__all__ = ["recompress"]

_BLOCK = 1 << 20


def recompress(
    stream: ByteSource,
    out: ByteSink,
    *,
    compression: Compression,
    cancel: CancelToken,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> SinkResult:
    """Write the plain bytes of ``stream`` to ``out`` with another compression; the diff id stays.

    ``progress`` gets the uncompressed position. Raises: LayerError when ``stream`` is corrupt; the
    token's cause; StoreError, StoreFull when ``out`` fails.
    """
    _, plain = open_decompressed(stream)
    try:
        with LayerSink(out, compression, cancel=cancel, threads=threads) as sink:
            while block := plain.read(_BLOCK):
                sink.write(block)
                if progress is not None:
                    progress(sink.position)
            return sink.finish()
    except OutputFailed as exc:
        raise exc.translated() from exc
