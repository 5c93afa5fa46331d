"""A new image of existing ones: one index over their manifests, copied to where it shall be.

Spec: docker/buildx ``util/imagetools/create.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.image import mediatypes
from crossdock.image.manifest import Index, make_index, parse_manifest
from crossdock.image.platform import Platform
from crossdock.record import NamedTuple, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import BinaryIO

    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.image.reference import Reference
    from crossdock.imagetools.sources import Source
    from crossdock.registry import RegistryClient

__all__ = ["Annotation", "Combined", "combine", "push"]

_DOCKER_PREFIX = "application/vnd.docker."
_REFERENCE_DIGEST = "vnd.docker.reference.digest"


class Annotation(NamedTuple):
    """An annotation for ``index`` or, with a platform or for all, for ``manifest-descriptor``."""

    kind: str
    key: str
    value: str
    platform: Platform | None = None


class Combined(NamedTuple):
    """The result: its bytes, and where each manifest it names can be read."""

    raw: bytes
    descriptor: Descriptor
    origins: Mapping[Digest, Reference]


def combine(
    client: RegistryClient,
    sources: Sequence[Source],
    *,
    annotations: Sequence[Annotation] = (),
    prefer_index: bool = True,
    platforms: Sequence[Platform] = (),
) -> Combined:
    """Make one image of the sources.

    A single index, or with ``prefer_index`` off a single manifest, is taken as it is. The index is Docker's list when
    all manifests are Docker's. ``platforms`` keeps those images, and what refers to them.

    Raises: UsageError when nothing is left; RegistryError and its kin, LayerError.
    """
    if len(sources) == 1 and not annotations and not platforms:
        only = sources[0]
        if isinstance(only.parsed(), Index) or not prefer_index:
            return Combined(only.raw, only.descriptor, {only.descriptor.digest: only.ref})
    entries: dict[Digest, Descriptor] = {}
    origins: dict[Digest, Reference] = {}
    for source in sources:
        for entry in _entries(client, source):
            old = entries.get(entry.digest)
            entries[entry.digest] = entry if old is None else _merged(old, entry)
            origins[entry.digest] = source.ref
    kept = _of_platforms(list(entries.values()), platforms)
    oci = not all(e.media_type.startswith(_DOCKER_PREFIX) for e in kept)
    if annotations and not oci:
        summary = "annotations need OCI media types, and all sources have Docker's"
        raise UsageError(summary)
    kept = [_annotated(e, annotations) for e in kept]
    top = {a.key: a.value for a in annotations if a.kind == "index"}
    index = make_index(kept, oci=oci, annotations=top or None)
    return Combined(index.raw, index.descriptor, origins)


def _entries(client: RegistryClient, source: Source) -> Iterable[Descriptor]:
    parsed = source.parsed()
    if isinstance(parsed, Index):
        return parsed.manifests
    entry = replace(source.descriptor, annotations={}, platform=None)
    if parsed.config.media_type in (mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG):
        import json

        config = json.loads(client.fetch_blob(source.ref, parsed.config))
        entry = replace(entry, platform=Platform.from_json(config).normalised())
    return (entry,)


def _merged(old: Descriptor, new: Descriptor) -> Descriptor:
    return replace(
        old, platform=new.platform or old.platform, annotations={**old.annotations, **new.annotations}
    )


def _of_platforms(entries: list[Descriptor], platforms: Sequence[Platform]) -> list[Descriptor]:
    if not platforms:
        return entries
    wanted = {p.normalised() for p in platforms}
    images = {e.digest for e in entries if e.platform is not None and e.platform.normalised() in wanted}
    kept = [e for e in entries if e.digest in images or e.annotations.get(_REFERENCE_DIGEST) in images]
    if not kept:
        summary = f"no source has {', '.join(map(str, platforms))}"
        has = ", ".join(dict.fromkeys(str(e.platform) for e in entries if e.platform is not None))
        raise UsageError(summary, hint=f"they have: {has}")
    return kept


def _annotated(entry: Descriptor, annotations: Sequence[Annotation]) -> Descriptor:
    mine = {
        a.key: a.value
        for a in annotations
        if a.kind == "manifest-descriptor" and (a.platform is None or a.platform == entry.platform)
    }
    return replace(entry, annotations={**entry.annotations, **mine}) if mine else entry


def push(client: RegistryClient, combined: Combined, dest: Reference) -> None:
    """Put an image under a name; what lies in another repository is mounted or copied first.

    Raises: RegistryError and its kin, DigestMismatch, LayerError.
    """
    parsed = parse_manifest(combined.raw, combined.descriptor.media_type, str(dest))
    if isinstance(parsed, Index):
        for entry in parsed.manifests:
            origin = combined.origins.get(entry.digest) or combined.origins.get(combined.descriptor.digest)
            if origin is not None:
                _copy_manifest(client, origin.with_digest(entry.digest), entry, dest)
    else:
        _copy_parts(
            client, combined.origins[combined.descriptor.digest], combined.raw, combined.descriptor, dest
        )
    client.push_manifest(dest, combined.descriptor, combined.raw)


def _copy_manifest(client: RegistryClient, origin: Reference, entry: Descriptor, dest: Reference) -> None:
    if origin.repository == dest.repository:
        return
    _, raw = client.fetch_manifest(origin)
    _copy_parts(client, origin, raw, entry, dest)
    client.push_manifest(replace(dest, tag=None, digest=entry.digest), entry, raw)


def _copy_parts(
    client: RegistryClient, origin: Reference, raw: bytes, descriptor: Descriptor, dest: Reference
) -> None:
    if origin.repository == dest.repository:
        return
    parsed = parse_manifest(raw, descriptor.media_type, str(origin))
    if isinstance(parsed, Index):
        for entry in parsed.manifests:
            _copy_manifest(client, origin.with_digest(entry.digest), entry, dest)
        return
    for blob in dict.fromkeys((parsed.config, *parsed.layers)):
        if not blob.urls:
            _copy_blob(client, origin, blob, dest)


def _copy_blob(client: RegistryClient, origin: Reference, blob: Descriptor, dest: Reference) -> None:
    def open_at(offset: int) -> BinaryIO:
        reader = client.open_blob(origin, blob)
        while offset > 0 and (skipped := reader.read(min(offset, 1 << 20))):
            offset -= len(skipped)
        return reader  # type: ignore[return-value]  # a RawIOBase that reads in full, all that is needed

    mounts = (origin.path,) if origin.domain == dest.domain else ()
    client.push_blob(dest, blob, open_at, mount_from=mounts)
