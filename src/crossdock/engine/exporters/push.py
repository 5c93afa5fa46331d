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
    from collections.abc import Sequence
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.blobs import LayerBlobs
    from crossdock.engine.exporters.model import BuiltImage, ExportContext
    from crossdock.engine.exporters.report import Report
    from crossdock.image.descriptor import Descriptor
    from crossdock.registry.client import RegistryClient

__all__ = ["push_image"]

_WORKERS = 4  # a push waits for the network more than for a core


class _Blob(NamedTuple):
    descriptor: Descriptor
    repositories: Sequence[str]


def push_image(
    context: ExportContext,
    image: BuiltImage,
    names: Sequence[str],
    *,
    insecure: bool,
    by_digest: bool,
    blobs: LayerBlobs,
    report: Report,
) -> None:
    """Push under every name; a registry that has the image already is asked one question.

    Raises: RegistryError and its kinds, naming what was pushed; StoreError; the token's cause.
    """
    client = context.client().scoped(insecure=insecure, cancel=context.cancel)
    pushed: set[str] = set()
    for name in names:
        parsed = parse_reference(name)
        target = Reference(parsed.domain, parsed.path) if by_digest else parsed.with_default_tag()
        try:
            _push_one(context, client, image, target, pushed, blobs, report)
        except CrossdockError as exc:
            exc.summary = f"failed to push {name}: {exc.summary}"
            exc.args = (exc.summary,)
            raise


def _push_one(
    context: ExportContext,
    client: RegistryClient,
    image: BuiltImage,
    target: Reference,
    pushed: set[str],
    blobs: LayerBlobs,
    report: Report,
) -> None:
    """Push to one tag, or untagged; ``pushed`` has the repositories that got the blobs meanwhile."""
    digest = image.descriptor.digest
    final = target if target.tag else target.with_digest(digest)
    shown = f"{target}@{digest}"
    if target.repository not in pushed:
        asked = final.with_digest(digest) if not target.tag else final
        there = client.head_manifest(asked)
        if there is not None and there.digest == digest:
            with report.stage("pushing layers"), report.stage(f"pushing manifest for {shown}"):
                return
    with report.stage("pushing layers"):
        if target.repository not in pushed:
            _push_blobs(context, client, image, target, blobs, report)
    with report.stage(f"pushing manifest for {shown}"):
        if image.index is not None and target.repository not in pushed:

            def push_manifest(one: tuple[Descriptor, bytes], cancel: CancelToken) -> None:
                by_digest = Reference(target.domain, target.path, digest=one[0].digest)
                client.scoped(cancel=cancel).push_manifest(by_digest, *one)

            images = {one.descriptor.digest: (one.descriptor, one.manifest.raw) for one in image.platforms}
            # Attestations after the images that they are about: a registry may look for the subject.
            about = {one.descriptor.digest: (one.descriptor, one.raw) for one in image.attestations}
            for wave in (images, about):
                run_parallel(push_manifest, wave.values(), workers=_WORKERS, cancel=context.cancel)
        client.push_manifest(final, image.descriptor, image.raw)
    pushed.add(target.repository)


def _push_blobs(
    context: ExportContext,
    client: RegistryClient,
    image: BuiltImage,
    target: Reference,
    blobs: LayerBlobs,
    report: Report,
) -> None:
    unique: dict[str, _Blob] = {}
    for one in image.platforms:
        for layer in one.manifest.layers:
            unique[layer.digest] = _Blob(layer, one.repositories.get(layer.digest, ()))
        unique[one.manifest.config.digest] = _Blob(one.manifest.config, ())
    for attested in image.attestations:
        unique.update({blob.digest: _Blob(blob, ()) for blob in attested.blobs})
    content = context.store.content

    def push(blob: _Blob, cancel: CancelToken) -> None:
        descriptor = blob.descriptor

        def open_at(offset: int) -> BinaryIO:
            blobs.ensure_local(descriptor, blob.repositories, report, cancel)
            return content.open_at(descriptor.digest, offset)

        nearby = [name for name in blob.repositories if name != target.repository]
        scoped = client.scoped(cancel=cancel)
        if not is_layer(descriptor.media_type):
            scoped.push_blob(target, descriptor, open_at, mount_from=nearby)
            return
        with report.transfer(descriptor.digest, "pushing", descriptor.size) as progress:
            scoped.push_blob(target, descriptor, open_at, mount_from=nearby, progress=progress)

    # Large blobs first: the last worker then does not start the longest transfer.
    ordered = sorted(unique.values(), key=lambda blob: -blob.descriptor.size)
    run_parallel(push, ordered, workers=_WORKERS, cancel=context.cancel)
    for blob in ordered:
        if target.repository not in blob.repositories:
            context.store.layers.add_repositories(blob.descriptor.digest, (target.repository,))
