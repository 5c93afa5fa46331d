"""Push assembled images: blobs in parallel, then manifests, then the tag.

Nothing is sent that the registry has; a layer known in another repository of the same registry is
mounted; a base layer is fetched only when neither helps. The tag comes last, so that a push that
fails leaves the registry as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.parallel import run_parallel
from crossdock.errors import CrossdockError
from crossdock.image.mediatypes import is_layer
from crossdock.image.reference import Reference, parse_reference
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.ahead import Sending, Sent
    from crossdock.engine.exporters.blobs import LayerBlobs
    from crossdock.engine.exporters.model import BuiltImage, ExportContext
    from crossdock.engine.exporters.report import Report
    from crossdock.image.descriptor import Descriptor

__all__ = ["BlobToPush", "Pusher", "push_image", "target_of"]

_WORKERS = 4  # a push waits for the network more than for a core
#: bytes; a new blob of up to so many is sent without asking first, which would take as long
_UNASKED_BYTES = 64 << 10


class BlobToPush(NamedTuple):
    """A blob, and the repositories known to hold it."""

    descriptor: Descriptor
    repositories: Sequence[str]


def target_of(name: str, *, by_digest: bool) -> Reference:
    """Return where a name is pushed to: a tag, or a repository. Raises: UsageError."""
    parsed = parse_reference(name)
    return Reference(parsed.domain, parsed.path) if by_digest else parsed.with_default_tag()


def push_image(
    context: ExportContext,
    image: BuiltImage,
    names: Sequence[str],
    *,
    insecure: bool,
    by_digest: bool,
    dated: bool,
    blobs: LayerBlobs,
    report: Report,
) -> None:
    """Push under every name; a registry that has the image already is asked one question.

    ``dated``: the image has an epoch instead of the time it was made, so that it may be there though it was made just now.

    Raises: RegistryError and its kinds, naming what was pushed; StoreError; the token's cause.
    """
    pusher = Pusher(context, blobs, report, insecure=insecure)
    pushed: set[str] = set()
    for name in names:
        target = target_of(name, by_digest=by_digest)
        try:
            pusher.push(image, target, pushed, dated=dated)
        except CrossdockError as exc:
            exc.summary = f"failed to push {name}: {exc.summary}"
            exc.args = (exc.summary,)
            raise


class Pusher:
    """Pushes the images of one export."""

    def __init__(self, context: ExportContext, blobs: LayerBlobs, report: Report, *, insecure: bool) -> None:
        """Raises: UsageError for an engine without registries."""
        self._context = context
        self._client = context.client().scoped(insecure=insecure, cancel=context.cancel)
        self._blobs = blobs
        self._report = report

    def push(self, image: BuiltImage, target: Reference, pushed: set[str], *, dated: bool) -> None:
        """Push to one tag, or untagged; ``pushed`` has the repositories that got the blobs meanwhile.

        Raises: as :func:`push_image`.
        """
        digest = image.descriptor.digest
        final = target if target.tag else target.with_digest(digest)
        shown = f"{target}@{digest}"
        report = self._report
        sent = self._context.sent
        # What has a layer that was made just now, the registry does not have, unless times do not tell images apart.
        new = not dated and not self._context.made.isdisjoint(_layers(image))
        begun = sent is not None and sent.any(target.repository)
        if target.repository not in pushed and not (new or begun):
            asked = final.with_digest(digest) if not target.tag else final
            there = self._client.head_manifest(asked)
            if there is not None and there.digest == digest:
                with report.stage("pushing layers"), report.stage(f"pushing manifest for {shown}"):
                    return
        self._context.written()
        with report.stage("pushing layers"):
            if target.repository not in pushed:
                self._push_blobs(image, target)
        with report.stage(f"pushing manifest for {shown}"):
            if image.index is not None and target.repository not in pushed:
                self._push_manifests(image, target)
            self._client.push_manifest(final, image.descriptor, image.raw)
        pushed.add(target.repository)

    def send_ahead(self, target: Reference, blobs: Sequence[BlobToPush], sent: Sent) -> None:
        """Send blobs before there is an image that has them, and note them in ``sent``.

        Raises: as :func:`push_image`.
        """
        taken = [(blob, sent.begin(target.repository, blob.descriptor.digest)) for blob in blobs]

        def push(item: tuple[BlobToPush, Sending | None], cancel: CancelToken) -> None:
            blob, sending = item
            if sending is not None:
                self._send(blob, target, sending.moved, cancel)
                sending.end(arrived=True)

        try:
            run_parallel(push, taken, workers=_WORKERS, cancel=self._context.cancel)
        finally:
            for _, sending in taken:
                if sending is not None:
                    sending.end()

    def _push_manifests(self, image: BuiltImage, target: Reference) -> None:
        def push(one: tuple[Descriptor, bytes], cancel: CancelToken) -> None:
            by_digest = Reference(target.domain, target.path, digest=one[0].digest)
            self._client.scoped(cancel=cancel).push_manifest(by_digest, *one)

        images = {one.descriptor.digest: (one.descriptor, one.manifest.raw) for one in image.platforms}
        # Attestations after the images that they are about: a registry may look for the subject.
        about = {one.descriptor.digest: (one.descriptor, one.raw) for one in image.attestations}
        for wave in (images, about):
            run_parallel(push, wave.values(), workers=_WORKERS, cancel=self._context.cancel)

    def _push_blobs(self, image: BuiltImage, target: Reference) -> None:
        unique: dict[str, BlobToPush] = {}
        for one in image.platforms:
            for layer in one.manifest.layers:
                unique[layer.digest] = BlobToPush(layer, one.repositories.get(layer.digest, ()))
            unique[one.manifest.config.digest] = BlobToPush(one.manifest.config, ())
        for attested in image.attestations:
            unique.update({blob.digest: BlobToPush(blob, ()) for blob in attested.blobs})
        sent = self._context.sent

        def push(blob: BlobToPush, cancel: CancelToken) -> None:
            descriptor = blob.descriptor
            if not is_layer(descriptor.media_type):
                self._send(blob, target, None, cancel)
                return
            ahead = None if sent is None else sent.find(target.repository, descriptor.digest)
            with self._report.transfer(descriptor.digest, "pushing", descriptor.size) as progress:
                if ahead is None or not ahead.follow(progress, cancel):
                    self._send(blob, target, progress, cancel)

        # Large blobs first: the last worker then does not start the longest transfer.
        ordered = sorted(unique.values(), key=lambda blob: -blob.descriptor.size)
        run_parallel(push, ordered, workers=_WORKERS, cancel=self._context.cancel)
        layers = [blob.descriptor.digest for blob in ordered if is_layer(blob.descriptor.media_type)]
        self._context.store.layers.add_repositories(layers, (target.repository,))

    def _send(
        self,
        blob: BlobToPush,
        target: Reference,
        progress: Callable[[int], None] | None,
        cancel: CancelToken,
    ) -> None:
        descriptor = blob.descriptor

        def open_at(offset: int) -> BinaryIO:
            self._blobs.ensure_local(descriptor, blob.repositories, self._report, cancel)
            return self._context.store.content.open_at(descriptor.digest, offset)

        nearby = [name for name in blob.repositories if name != target.repository]
        new = (
            not blob.repositories
            and descriptor.size <= _UNASKED_BYTES
            and descriptor.digest in self._context.made
        )
        self._client.scoped(cancel=cancel).push_blob(
            target, descriptor, open_at, mount_from=nearby, ask=not new, progress=progress
        )


def _layers(image: BuiltImage) -> Iterator[str]:
    return (layer.digest for one in image.platforms for layer in one.manifest.layers)
