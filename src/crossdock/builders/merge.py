"""A build spread over several nodes: each builds its platforms, and the results become one index.

Nodes push what they built by digest, so that no layer passes through here; only manifests are read back and one index is
pushed under the tags.

Spec: docker/buildx ``build/build.go`` ("merging manifest list"), ``util/imagetools/create.go`` (Combine).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from crossdock.builders.drivers.steps import Step
from crossdock.builders.result import BuildResult, BuiltIndex
from crossdock.cancel import CancelToken
from crossdock.errors import UsageError
from crossdock.image import ImageConfig, Index, make_index, parse_manifest, parse_reference
from crossdock.image.mediatypes import DOCKER_MANIFEST
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.drivers.base import Driver
    from crossdock.builders.request import BuildRequest, OutputSpec
    from crossdock.image import Descriptor, Platform, Reference
    from crossdock.progress import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["Share", "build_on_nodes"]

#: one node and the platforms it builds
Share: TypeAlias = "tuple[Driver, tuple[Platform, ...]]"


def build_on_nodes(
    shares: Sequence[Share], request: BuildRequest, sink: EventSink, cancel: CancelToken
) -> BuildResult:
    """Build every share at the same time and merge what was pushed.

    The first failure cancels the others. Raises: UsageError for outputs that cannot be merged; what drivers raise;
    RegistryError when the index cannot be pushed.
    """
    pushed = [o for o in request.outputs if _pushes(o)]
    for output in request.outputs:
        if output not in pushed and output.type not in ("local", "cacheonly"):
            summary = f"output type={output.type} cannot be made from the results of several nodes"
            raise UsageError(summary, hint="use --push, or type=local, or build on one node")
    names = _names(request, pushed)
    if pushed and not names:
        summary = "pushing needs a tag: the results of several nodes are merged under it"
        raise UsageError(summary, hint="give one with -t")
    by_digest = replace(
        request, outputs=tuple(_by_digest(o, names) if _pushes(o) else o for o in request.outputs)
    )
    results = _run(shares, by_digest, sink, cancel)
    images = {k: v for r in results for k, v in r.images.items()}
    warnings = tuple(w for r in results for w in r.warnings)
    if not pushed:
        return BuildResult(images=images, metadata=results[0].metadata, warnings=warnings)
    insecure = any(o.attrs.get("registry.insecure", "").lower() in ("true", "1") for o in pushed)
    built = [(str(r.metadata["containerimage.digest"]), s[1]) for r, s in zip(results, shares, strict=True)]
    index = _push_index(names, built, insecure=insecure, sink=sink, cancel=cancel)
    descriptor = index.descriptor
    return BuildResult(
        images=images,
        index=BuiltIndex(digest=descriptor.digest, media_type=descriptor.media_type, size=descriptor.size),
        metadata={
            "containerimage.digest": descriptor.digest,
            "containerimage.descriptor": descriptor.to_json(),
            "image.name": ",".join(map(str, names)),
        },
        warnings=warnings,
    )


def _pushes(output: OutputSpec) -> bool:
    return output.type == "registry" or (
        output.type == "image" and output.attrs.get("push", "").lower() in ("true", "1")
    )


def _names(request: BuildRequest, outputs: Sequence[OutputSpec]) -> list[Reference]:
    texts = [t for o in outputs for t in o.attrs.get("name", "").split(",") if t] or list(request.tags)
    return [parse_reference(t).with_default_tag() for t in dict.fromkeys(texts)]


def _by_digest(output: OutputSpec, names: Sequence[Reference]) -> OutputSpec:
    repositories = dict.fromkeys(n.repository for n in names)
    attrs = {**output.attrs, "push": "true", "push-by-digest": "true", "name": ",".join(repositories)}
    return replace(output, type="image", attrs=attrs)


def _run(
    shares: Sequence[Share], request: BuildRequest, sink: EventSink, cancel: CancelToken
) -> list[BuildResult]:
    together = CancelToken(cancel)

    def one(share: Share) -> BuildResult:
        driver, platforms = share
        try:
            return driver.build(
                replace(request, platforms=platforms, tags=(), multi_platform=True), sink, together
            )
        except BaseException as exc:
            # The others' work is worthless now.
            together.cancel(exc)
            raise

    try:
        with ThreadPoolExecutor(len(shares), thread_name_prefix="node") as pool:
            futures = [pool.submit(one, share) for share in shares]
        if together.cancelled:
            # What failed first, not what was cancelled because of it.
            raise together.cause
        return [future.result() for future in futures]
    finally:
        together.close()


def _push_index(
    names: Sequence[Reference],
    built: Sequence[tuple[str, tuple[Platform, ...]]],
    *,
    insecure: bool,
    sink: EventSink,
    cancel: CancelToken,
) -> Index:
    from crossdock.image import parse_digest
    from crossdock.registry import Credentials, RegistryClient, RegistryConfig

    client = RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=cancel)
    try:
        scoped = client.scoped(insecure=insecure) if insecure else client
        first = names[0]
        entries: list[Descriptor] = []
        for digest, platforms in built:
            entries += _entries(scoped, replace(first, tag=None, digest=parse_digest(digest)), platforms)
        docker = all(e.media_type == DOCKER_MANIFEST for e in entries)
        index = make_index(entries, oci=not docker)
        for name in names:
            with Step(sink, f"merging manifest list {name}"):
                scoped.push_manifest(name, index.descriptor, index.raw)
    finally:
        client.close()
    return index


def _entries(client: RegistryClient, ref: Reference, platforms: tuple[Platform, ...]) -> list[Descriptor]:
    """Return what one node's result adds to the index: its own entries, or itself with its platform."""
    descriptor, raw = client.fetch_manifest(ref)
    document = parse_manifest(raw, descriptor.media_type, str(ref))
    if isinstance(document, Index):
        return list(document.manifests)
    if len(platforms) == 1:
        return [replace(document.descriptor, platform=platforms[0])]
    config = client.fetch_blob(ref, document.config)
    platform = ImageConfig.from_json(config, str(ref)).platform
    return [replace(document.descriptor, platform=platform)]
