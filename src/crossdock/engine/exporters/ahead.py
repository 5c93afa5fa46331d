"""Exports begun before the build is over: while one platform still builds, the layers of those that are done are packed and sent.

What comes of it is used by the export itself, which asks for every blob anyway: what is packed is found in the store, what
is on its way to a registry is waited for. An attempt that fails is made again there, and only then reported. No manifest
and no name is published ahead.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.errors import CrossdockError
from crossdock.progress.events import VertexLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crossdock.engine.exporters.attrs import ImageOptions
    from crossdock.engine.exporters.blobs import LayerPart
    from crossdock.engine.exporters.model import ExportContext, PlatformImage
    from crossdock.engine.exporters.push import Pusher
    from crossdock.engine.exporters.report import Report
    from crossdock.progress.events import Event

__all__ = ["Ahead", "Sending", "Sent"]


class Sending:
    """A blob on its way to a repository."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._arrived = False
        #: how far it is; and who wants to know
        self._position = 0
        self._progress: Callable[[int], None] | None = None

    def moved(self, position: int) -> None:
        """Note how many bytes were sent."""
        self._position = position
        if self._progress is not None:
            self._progress(position)

    def end(self, *, arrived: bool = False) -> None:
        """Note that nothing more will be sent, and whether the repository has the blob; what was noted first holds."""
        self._arrived = self._arrived or arrived
        self._ended.set()

    def follow(self, progress: Callable[[int], None], cancel: CancelToken) -> bool:
        """Wait for the end; true when the repository has the blob. Raises: the token's cause."""
        self._progress = progress
        if self._position and not self._ended.is_set():
            progress(self._position)
        with cancel.waking(self._ended.set):
            self._ended.wait()
        cancel.check()
        return self._arrived


class Sent:
    """The blobs that were sent ahead, by repository and digest. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[tuple[str, str], Sending] = {}

    def begin(self, repository: str, digest: str) -> Sending | None:
        """Take on the sending of a blob; None when somebody has."""
        with self._lock:
            if (repository, digest) in self._blobs:
                return None
            sending = self._blobs[repository, digest] = Sending()
            return sending

    def any(self, repository: str) -> bool:
        """Whether something was sent to a repository."""
        with self._lock:
            return any(name == repository for name, _ in self._blobs)

    def find(self, repository: str, digest: str) -> Sending | None:
        """Return a blob that somebody sends, or has sent."""
        with self._lock:
            return self._blobs.get((repository, digest))


class Ahead:
    """What is done for an export before it begins. A context manager: leaving it ends what is still at work."""

    def __init__(
        self,
        context: ExportContext,
        images: Sequence[ImageOptions],
        writing: Callable[[CancelToken], AbstractContextManager[CancelToken]] = nullcontext,
    ) -> None:
        """``images``: what the outputs want that hold layers.

        What ``writing`` gives is held in the threads at work, which go by the token it yields.
        """
        self._cancel = CancelToken(context.cancel)
        self._context = context
        self._writing = writing
        self._images = images
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._packing: list[threading.Event] = []
        self._notes = _Notes()
        self.sent = Sent()
        self.made = context.made

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel.cancel()
        for thread in self._threads:
            thread.join()
        self._cancel.close()

    def add(self, image: PlatformImage) -> None:
        """Begin with a platform that is built. Does not wait."""
        packed = threading.Event()
        thread = threading.Thread(
            target=copy_context().run, args=(self._work, image, packed), name="export-ahead", daemon=True
        )
        with self._lock:
            self._packing.append(packed)
            self._threads.append(thread)
        thread.start()

    def settle(self, report: Report) -> None:
        """Wait until all that was begun is packed, and say what there was to say about it. Raises: the token's cause."""
        for packed in self._packing:
            with self._cancel.waking(packed.set):
                packed.wait()
        self._context.cancel.check()
        for text in self._notes.taken():
            report.note(text)

    def _work(self, image: PlatformImage, packed: threading.Event) -> None:
        try:
            with self._writing(self._cancel) as token:
                self._export(self._context.with_cancel(token), image, packed)
        except (CrossdockError, OSError) as exc:
            # The export comes to the same point, and tells.
            from logging import getLogger

            getLogger(__name__).debug("export ahead of time: %s", exc)
        finally:
            packed.set()

    def _export(self, context: ExportContext, image: PlatformImage, packed: threading.Event) -> None:
        from crossdock.engine.exporters.assemble import layer_parts
        from crossdock.engine.exporters.blobs import LayerBlobs
        from crossdock.engine.exporters.push import Pusher
        from crossdock.engine.exporters.report import Report

        report = Report(self._notes, "")
        blobs = LayerBlobs(context)
        parts = [layer_parts(context, [image], each, blobs, report)[0] for each in self._images]
        packed.set()
        for options, layers in zip(self._images, parts, strict=True):
            if options.push:
                self._send(Pusher(context, blobs, report, insecure=options.insecure), options, layers)

    def _send(self, pusher: Pusher, options: ImageOptions, layers: Sequence[LayerPart]) -> None:
        from crossdock.engine.exporters.push import BlobToPush, target_of

        wanted = [BlobToPush(part.descriptor, part.repositories) for part in layers]
        for name in options.names:
            pusher.send_ahead(target_of(name, by_digest=options.push_by_digest), wanted, self.sent)


class _Notes:
    """Keeps the lines that packing has to say for the export's own step; progress is not shown before that begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []

    def emit(self, event: Event, /) -> None:
        if isinstance(event, VertexLog):
            with self._lock:
                self._lines.append(event.data.decode(errors="replace").rstrip("\n"))

    def taken(self) -> list[str]:
        with self._lock:
            lines, self._lines = self._lines, []
            return lines
