"""The ``image`` and ``registry`` exporters: an image in the store, under a name, and in registries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.assemble import assemble
from crossdock.engine.exporters.attrs import parse_image
from crossdock.engine.exporters.push import push_image
from crossdock.engine.exporters.response import image_response
from crossdock.image.platform import local_platform, match_order
from crossdock.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.exporters.blobs import LayerBlobs
    from crossdock.engine.exporters.model import BuiltImage, ExportContext, ExporterSpec, PlatformImage
    from crossdock.engine.exporters.report import Report

__all__ = ["ImageExporter"]


class ImageExporter:
    """One ``-o type=image`` or ``type=registry``."""

    title = "exporting to image"

    def __init__(self, spec: ExporterSpec, epoch_s: int | None) -> None:
        #: how its layers are packed, and where they go
        self.packs = self._options = parse_image(spec, epoch_s)
        self._names: list[str] = []
        self.image: BuiltImage | None = None

    def check(self, *, multi_platform: bool) -> None:
        """Nothing to check: what can be wrong was found in the attributes."""

    def export(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        *,
        multi_platform: bool,
        blobs: LayerBlobs,
        report: Report,
    ) -> dict[str, object]:
        """Assemble and name the image; returns the response.

        Raises: UsageError, StoreError, LayerError.
        """
        options = self._options
        image = assemble(context, images, options, multi_platform=multi_platform, blobs=blobs, report=report)
        self.image = image
        digest = image.descriptor.digest
        self._names = list(options.names)
        canonical = options.name_canonical
        if options.dangling_prefix and not (options.dangling_empty_only and self._names):
            canonical = canonical and bool(self._names)
            self._names.append(f"{options.dangling_prefix}@{digest}")
        if options.store:
            for name in self._names:
                self._name(context, name, image, canonical=canonical, report=report)
        if options.unpack:
            self._unpack(context, image, report)
        return image_response(image, self._names)

    def finish(self, context: ExportContext, *, blobs: LayerBlobs, report: Report) -> None:
        """Push, once every exporter has done its part.

        Raises: RegistryError.
        """
        if self._options.push and self.image is not None:
            push_image(
                context,
                self.image,
                self._names,
                insecure=self._options.insecure,
                by_digest=self._options.push_by_digest,
                dated=self._options.epoch_s is not None,
                blobs=blobs,
                report=report,
            )

    @property
    def finishes(self) -> bool:
        """Whether :meth:`finish` does anything."""
        return self._options.push

    def _name(
        self, context: ExportContext, name: str, image: BuiltImage, *, canonical: bool, report: Report
    ) -> None:
        ref = parse_reference(name)
        full = str(ref.with_default_tag())
        names = [full]
        if canonical and ref.digest is None:
            names.append(f"{full}@{image.descriptor.digest}")
        with report.stage(f"naming to {full}"):
            for one in names:
                context.store.images.put(one, image.descriptor, context.lease)

    def _unpack(self, context: ExportContext, image: BuiltImage, report: Report) -> None:
        """Have the directories of this machine's platform ready."""
        for wanted in match_order(local_platform()):
            for one in image.platforms:
                if one.platform == wanted:
                    with report.stage(f"unpacking {wanted}"):
                        for layer in one.layer_ids:
                            context.access.directory(layer, report.vertex, context.cancel)
                    return
