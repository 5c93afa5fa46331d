"""The ``local`` and ``tar`` exporters: the files of a result, without the image around them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.exporters.attrs import parse_files
from crossdock.engine.exporters.destination import check_output, open_output
from crossdock.errors import ExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.exporters.blobs import LayerBlobs
    from crossdock.engine.exporters.model import ExportContext, ExporterSpec, PlatformImage
    from crossdock.engine.exporters.report import Report

__all__ = ["LocalExporter", "TarExporter"]


class _FilesExporter:
    """What both have in common."""

    title = ""
    image = None
    finishes = False
    #: it writes files, not layers
    packs = None

    def __init__(self, spec: ExporterSpec, epoch_s: int | None) -> None:
        self._spec = spec
        self._options = parse_files(spec, epoch_s)

    def finish(self, context: ExportContext, *, blobs: LayerBlobs, report: Report) -> None:
        """Nothing is left to do."""

    def _roots(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        stack: ExitStack,
        report: Report,
        *,
        multi_platform: bool,
    ) -> list[tuple[str, Path]]:
        """Mount the results; pairs of folder name (empty without platform-split) and mount."""
        split = self._options.platform_split
        if split is None:
            split = multi_platform
        roots = []
        for image in images:
            name = str(image.platform.normalised()).replace("/", "_")
            if image.attestations:
                root = self._attested(
                    context, image, stack, report, suffix=name if multi_platform and not split else ""
                )
            else:
                root = stack.enter_context(context.access.mounted(image.ref, report.vertex, context.cancel))
            roots.append((name if split else "", root))
        return roots

    def _attested(
        self, context: ExportContext, image: PlatformImage, stack: ExitStack, report: Report, *, suffix: str
    ) -> Path:
        from crossdock.engine.exporters.attestation import with_statements

        options = self._options
        return with_statements(
            stack,
            lambda above: context.access.mounted(image.ref, report.vertex, context.cancel, above=above),
            image,
            scratch=context.store.root,
            prefix=options.attestation_prefix,
            suffix=suffix,
            fixed_ns=None if options.epoch_s is None else options.epoch_s * 1_000_000_000,
            cancel=context.cancel,
        )


class LocalExporter(_FilesExporter):
    """One ``-o type=local``."""

    title = "exporting to client directory"

    def __init__(self, spec: ExporterSpec, epoch_s: int | None) -> None:
        super().__init__(spec, epoch_s)
        if not self._options.dest:
            summary = "dest is required for the local exporter"
            raise UsageError(summary, hint="for example -o out, or -o type=local,dest=out")

    def check(self, *, multi_platform: bool) -> None:  # noqa: ARG002  every exporter has this signature
        """Check the destination before any work.

        Raises: ExportError.
        """
        dest = Path(self._options.dest)
        if dest.exists() and not dest.is_dir():
            summary = f"cannot export to {dest}: destination directory is a file"
            raise ExportError(summary, hint="give a directory")
        if self._options.delete and dest.resolve() == Path("/"):
            summary = "refusing to mirror into /: mode=delete would remove everything else"
            raise ExportError(summary, hint="give a directory of its own")
        there = dest
        while not there.exists():
            there = there.parent if there.parent != there else Path("/")
        if not os.access(there, os.W_OK):
            summary = f"cannot export to {dest}: Permission denied"
            raise ExportError(summary, hint="write to a directory that you own")

    def export(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        *,
        multi_platform: bool,
        blobs: LayerBlobs,  # noqa: ARG002  every exporter has this signature
        report: Report,
    ) -> dict[str, object]:
        """Copy the files out; returns nothing of note.

        Raises: ExportError, StoreFull.
        """
        from crossdock.engine.exporters.treecopy import TreeCopy, check_overlap  # only this exporter needs it

        dest = Path(self._options.dest)
        with ExitStack() as stack:
            roots = self._roots(context, images, stack, report, multi_platform=multi_platform)
            owners = [str(image.platform.normalised()) for image in images]
            if len(roots) > 1 and not roots[0][0]:
                check_overlap([root for _, root in roots], owners)
            with ExitStack() as copying:
                copy = copying.enter_context(TreeCopy(dest, self._options.epoch_s, context.cancel))
                for (folder, root), owner in zip(roots, owners, strict=True):
                    label = f"copying files {owner}" if folder else "copying files"
                    with report.transfer(label, "transferring") as progress:
                        copy.add(root, folder, progress)
                if self._options.delete:
                    copy.delete_others()
                copy.finish()
            for path in copy.skipped:
                report.note(f"warning: {path} is a device or socket; left out")
        return {}


class TarExporter(_FilesExporter):
    """One ``-o type=tar``."""

    title = "exporting to client tarball"

    def check(self, *, multi_platform: bool) -> None:  # noqa: ARG002  every exporter has this signature
        """Check the destination before any work.

        Raises: ExportError.
        """
        check_output(self._spec, self._options.dest)

    def export(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        *,
        multi_platform: bool,
        blobs: LayerBlobs,  # noqa: ARG002  every exporter has this signature
        report: Report,
    ) -> dict[str, object]:
        """Write the archive; returns nothing of note.

        Raises: ExportError, StoreFull, LayerError.
        """
        from crossdock.layers.walk import write_tree

        fixed_ns = None if self._options.epoch_s is None else self._options.epoch_s * 1_000_000_000
        with ExitStack() as stack:
            roots = self._roots(context, images, stack, report, multi_platform=multi_platform)
            if len(roots) > 1 and not roots[0][0]:
                summary = "a tarball of several platforms needs platform-split=true"
                raise UsageError(summary)
            with report.stage("sending tarball"), open_output(self._spec, self._options.dest) as out:
                skipped = write_tree(roots, out, fixed_ns=fixed_ns, cancel=context.cancel)
            for path in skipped:
                report.note(f"warning: {path} is a socket, which archives cannot hold; left out")
        return {}
