"""Layers: deterministic tar streams out of overlay directories, and hostile archives into them.

Names are loaded on first use, so that a cached build pays for none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.layers.compression import Compression
    from crossdock.layers.convert import recompress
    from crossdock.layers.decompress import decompressor, open_decompressed
    from crossdock.layers.pipeline import LayerSink, SinkResult
    from crossdock.layers.reader import TarEntry, TarReader
    from crossdock.layers.tarwriter import TarWriter
    from crossdock.layers.unpack import (
        UnpackOptions,
        UnpackResult,
        extract_archive,
        is_archive,
        unpack_layer,
    )
    from crossdock.layers.walk import LayerResult, write_layer, write_tree

__all__ = [
    "Compression",
    "LayerResult",
    "LayerSink",
    "SinkResult",
    "TarEntry",
    "TarReader",
    "TarWriter",
    "UnpackOptions",
    "UnpackResult",
    "decompressor",
    "extract_archive",
    "is_archive",
    "open_decompressed",
    "recompress",
    "unpack_layer",
    "write_layer",
    "write_tree",
]

_HOME = {
    "Compression": "compression",
    "LayerResult": "walk",
    "LayerSink": "pipeline",
    "SinkResult": "pipeline",
    "TarEntry": "reader",
    "TarReader": "reader",
    "TarWriter": "tarwriter",
    "UnpackOptions": "unpack",
    "UnpackResult": "unpack",
    "decompressor": "decompress",
    "extract_archive": "unpack",
    "is_archive": "unpack",
    "open_decompressed": "decompress",
    "recompress": "convert",
    "unpack_layer": "unpack",
    "write_layer": "walk",
    "write_tree": "walk",
}


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{module}"), name)
