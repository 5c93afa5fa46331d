"""Run the exporters of a build: all write, then all push, so that nothing is published by half."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

from crossdock.engine.exporters.blobs import LayerBlobs
from crossdock.engine.exporters.model import ExportResult
from crossdock.engine.exporters.parallel import run_parallel
from crossdock.engine.exporters.report import reported
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.ahead import Ahead
    from crossdock.engine.exporters.attrs import ImageOptions
    from crossdock.engine.exporters.model import BuiltImage, ExportContext, ExporterSpec, PlatformImage
    from crossdock.engine.exporters.report import Report

__all__ = ["begin_ahead", "check_exporters", "export"]

#: type -> module and class; loaded on use. ``cacheonly`` leaves the result in the cache: nothing to do.
_EXPORTERS = {
    "image": ("image", "ImageExporter"),
    "registry": ("image", "ImageExporter"),
    "oci": ("archive", "ArchiveExporter"),
    "docker": ("archive", "ArchiveExporter"),
    "local": ("files", "LocalExporter"),
    "tar": ("files", "TarExporter"),
    "cacheonly": None,
}


class _Exporter(Protocol):
    title: str
    image: BuiltImage | None

    @property
    def finishes(self) -> bool: ...
    @property
    def packs(self) -> ImageOptions | None: ...
    def check(self, *, multi_platform: bool) -> None: ...
    def export(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        *,
        multi_platform: bool,
        blobs: LayerBlobs,
        report: Report,
    ) -> dict[str, object]: ...
    def finish(self, context: ExportContext, *, blobs: LayerBlobs, report: Report) -> None: ...


def check_exporters(
    specs: Sequence[ExporterSpec],
    *,
    multi_platform: bool,
    epoch_s: int | None = None,
    attested: bool | None = None,
) -> None:
    """Find what is wrong with outputs before anything is built.

    ``attested``: there will be attestations; true when some of them are not only for inline use.
    Raises: UsageError for an unknown type, attribute or value; ExportError for a destination that
    cannot be written; NotSupported.
    """
    _make(specs, multi_platform=multi_platform, epoch_s=epoch_s)
    if attested is not None:
        from crossdock.engine.exporters.attestation import check_attested

        for spec in specs:
            check_attested(spec.type, spec.attrs, inline_only=not attested)


def export(
    images: Sequence[PlatformImage],
    specs: Sequence[ExporterSpec],
    *,
    context: ExportContext,
    multi_platform: bool | None = None,
    ahead: Ahead | None = None,
) -> ExportResult:
    """Export results with every exporter.

    ``ahead``: what was begun before all results were there.

    ``multi_platform``: make an index even of one image (BUILDKIT_MULTI_PLATFORM); default: when there
    are several. Layers are written once for all exporters. Pushes come after all other exporters have
    succeeded. What is there already is not written again.
    Raises: UsageError, ExportError, NotSupported; RegistryError; StoreError, StoreFull, LayerError,
    DigestMismatch; the token's cause.
    """
    multi = len(images) > 1 if multi_platform is None else multi_platform
    exporters = _make(specs, multi_platform=multi, epoch_s=context.epoch_s)
    blobs = LayerBlobs(context)
    if ahead is not None:
        context.sent, context.made = ahead.sent, ahead.made

    def run(item: tuple[int, _Exporter | None], cancel: CancelToken) -> Mapping[str, object]:
        number, exporter = item
        if exporter is None:
            return {}
        own = context.with_cancel(cancel)
        with reported(context.sink, exporter.title, f"{context.caller}{number}") as report:
            if ahead is not None:
                ahead.settle(report)
            response = exporter.export(own, images, multi_platform=multi, blobs=blobs, report=report)
            if exporter.finishes and len(exporters) == 1:
                exporter.finish(own, blobs=blobs, report=report)
            return response

    responses = run_parallel(run, enumerate(exporters), workers=len(exporters), cancel=context.cancel)
    if len(exporters) > 1:
        for number, exporter in enumerate(exporters):
            if exporter is not None and exporter.finishes:
                with reported(context.sink, exporter.title, f"{context.caller}{number}") as report:
                    exporter.finish(context, blobs=blobs, report=report)
    return ExportResult(responses, [e.image if e is not None else None for e in exporters])


def begin_ahead(
    specs: Sequence[ExporterSpec],
    *,
    context: ExportContext,
    multi_platform: bool,
    writing: Callable[[CancelToken], AbstractContextManager[CancelToken]] = nullcontext,
) -> Ahead:
    """Return what packs and sends layers of platforms that are built before the others; a context manager.

    What ``writing`` gives is held while the store is written to.
    Raises: as :func:`check_exporters`.
    """
    from crossdock.engine.exporters.ahead import Ahead

    exporters = _make(specs, multi_platform=multi_platform, epoch_s=context.epoch_s)
    packed = [each.packs for each in exporters if each is not None and each.packs is not None]
    return Ahead(context, packed, writing)


def _make(
    specs: Sequence[ExporterSpec], *, multi_platform: bool, epoch_s: int | None
) -> list[_Exporter | None]:
    from importlib import import_module

    exporters: list[_Exporter | None] = []
    for spec in specs:
        if spec.type not in _EXPORTERS:
            summary = f"unsupported exporter type {spec.type!r}"
            raise UsageError(summary, hint=f"use one of {', '.join(sorted(_EXPORTERS))}")
        home = _EXPORTERS[spec.type]
        if home is None:
            exporters.append(None)
            continue
        module = import_module(f"crossdock.engine.exporters.{home[0]}")
        exporter: _Exporter = getattr(module, home[1])(spec, epoch_s)
        exporter.check(multi_platform=multi_platform)
        exporters.append(exporter)
    return exporters
