"""What sources are, for who asks before a build: commits, files of the web, images with what attests to them.

Spec: moby/buildkit ``source/*`` (ResolveMetadata), ``source/containerimage/source.go`` (attestation chains).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.solver import OpContext
from crossdock.errors import LayerError, NotSupported
from crossdock.image.descriptor import Descriptor
from crossdock.image.manifest import Index, Manifest, parse_manifest, select_platform
from crossdock.image.mediatypes import OCI_INDEX
from crossdock.llb.graph import Node
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.sources.git import GitFacts
    from crossdock.engine.sources.http import HttpFacts
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.image.reference import Reference
    from crossdock.llb.ops import SourceOp
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["AttestationChain", "SourceFacts"]

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_COSIGN = "application/vnd.dev.cosign.artifact.sig.v1+json"
_TYPE, _SUBJECT = "vnd.docker.reference.type", "vnd.docker.reference.digest"
_PREDICATE = "in-toto.io/predicate-type"
#: bytes of one document at most
_MAX_BYTES = 16 << 20


class AttestationChain(NamedTuple):
    """From an index to what attests to one of its images, with the documents that somebody who verifies it needs."""

    root: Digest
    image: Digest | None = None
    attestation: Digest | None = None
    signatures: tuple[Digest, ...] = ()
    blobs: tuple[tuple[Descriptor, bytes], ...] = ()


class SourceFacts:
    """Tells what sources are, in the name of one caller. Safe from any thread."""

    def __init__(
        self,
        env: OpEnv,
        registry: Callable[[CancelToken], RegistryClient],
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        self._env = env
        self._registry = registry
        self._sink = sink
        self._cancel = cancel

    def git(self, op: SourceOp, *, objects: bool) -> GitFacts:
        """Say what a ref of a repository is. Raises: SolveError; SandboxError without git; the token's cause."""
        from crossdock.engine.sources.git import GitSolverOp

        return GitSolverOp(Node(op), self._env).describe(self._context(), objects=objects)

    def http(self, op: SourceOp, *, content: bool) -> HttpFacts:
        """Say what a URL gives; with ``content`` it is in the store afterwards. Raises: SolveError; the token's cause."""
        from crossdock.engine.sources.http import HttpSolverOp

        return HttpSolverOp(Node(op), self._env).describe(self._context(), content=content)

    def chain(
        self, ref: Reference, platform: Platform, *, predicates: Collection[str] = ()
    ) -> AttestationChain | None:
        """Find what attests to the image of ``platform``; ``None`` when the reference is no index.

        ``predicates``: types of statements whose documents are wanted too.
        Raises: RegistryError and its kin; LayerError for a malformed document; the token's cause.
        """
        client = self._registry(self._cancel)
        top, raw = client.fetch_manifest(ref)
        where = f"{ref.repository}@{top.digest}"
        index = parse_manifest(raw, top.media_type, where)
        if not isinstance(index, Index) or index.media_type != OCI_INDEX:
            return None
        blobs = [(top, raw)]
        image = select_platform(index, platform)
        attesting = _attesting(index.manifests, image) if image is not None else None
        if image is None or attesting is None:
            return AttestationChain(
                top.digest, image.digest if image is not None else None, blobs=tuple(blobs)
            )
        statements = _manifest(client, ref, attesting, blobs)
        signature = _signature(client, ref.with_digest(attesting.digest))
        if signature is not None:
            signed = _manifest(client, ref, signature, blobs)
            blobs += [(layer, _blob(client, ref, layer)) for layer in signed.layers]
        blobs += [
            (layer, _blob(client, ref, layer))
            for layer in statements.layers
            if layer.annotations.get(_PREDICATE) in predicates
        ]
        signatures = () if signature is None else (signature.digest,)
        return AttestationChain(top.digest, image.digest, attesting.digest, signatures, tuple(blobs))

    def _context(self) -> OpContext:
        return OpContext(self._cancel, self._sink)


def _attesting(manifests: Sequence[Descriptor], image: Descriptor) -> Descriptor | None:
    for one in manifests:
        if (
            one.annotations.get(_TYPE) == "attestation-manifest"
            and one.annotations.get(_SUBJECT) == image.digest
        ):
            return one
    return None


def _signature(client: RegistryClient, ref: Reference) -> Descriptor | None:
    """Return what signs a manifest: a bundle rather than a bare signature."""
    found = client.referrers(ref).manifests
    for kind in (_BUNDLE, _COSIGN):
        for one in found:
            if one.artifact_type == kind:
                return one
    return None


def _manifest(
    client: RegistryClient, ref: Reference, wanted: Descriptor, blobs: list[tuple[Descriptor, bytes]]
) -> Manifest:
    pinned = ref.with_digest(wanted.digest)
    found, raw = client.fetch_manifest(pinned)
    blobs.append((Descriptor(found.media_type or wanted.media_type, wanted.digest, len(raw)), raw))
    document = parse_manifest(raw, found.media_type, f"{ref.repository}@{wanted.digest}")
    if not isinstance(document, Manifest):
        summary = f"{ref.repository}@{wanted.digest} is no manifest"
        raise LayerError(summary)
    return document


def _blob(client: RegistryClient, ref: Reference, blob: Descriptor) -> bytes:
    if blob.size > _MAX_BYTES:
        summary = (
            f"the attestation {blob.digest} of {ref.familiar} has {blob.size} bytes, which no message holds"
        )
        raise NotSupported(summary)
    return client.fetch_blob(ref, blob, limit=_MAX_BYTES)
