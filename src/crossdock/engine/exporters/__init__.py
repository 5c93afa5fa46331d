"""Exporters: images in the store and in registries, archives, layouts, files.

``check_exporters`` before a build, ``begin_ahead`` during it, ``export`` after it.
"""

from crossdock.engine.exporters.model import (
    BuiltImage,
    ExportContext,
    ExporterSpec,
    ExportResult,
    LayerAccess,
    PlatformImage,
    PlatformManifest,
)
from crossdock.engine.exporters.run import begin_ahead, check_exporters, export

__all__ = [
    "BuiltImage",
    "ExportContext",
    "ExportResult",
    "ExporterSpec",
    "LayerAccess",
    "PlatformImage",
    "PlatformManifest",
    "begin_ahead",
    "check_exporters",
    "export",
]
