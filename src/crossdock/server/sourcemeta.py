"""What sources are, asked by frontends and by policies of clients: images, commits, files of the web.

Spec: moby/buildkit ``frontend/gateway/gateway.go`` (ResolveSourceMeta), ``solver/llbsolver/bridge.go``,
``source/http/source.go`` (checksum requests).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.builds.steps import shown
from crossdock.errors import CrossdockError, NotSupported, UsageError
from crossdock.image.platform import local_platform
from crossdock.image.reference import parse_reference
from crossdock.llb.ops import SourceOp
from crossdock.server.policies import read_policies
from crossdock.server.results import platform_from_pb

if TYPE_CHECKING:
    from crossdock.engine.facade_sources import AttestationChain, SourceFacts
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.platform import Platform
    from crossdock.server.jobs import Job

__all__ = ["resolve_image", "resolve_source"]

pb = gateway_pb2
_MODES = {"": "default", "default": "default", "pull": "pull", "local": "local"}
_MAX_SUFFIX = 4096
_BLOCK = 1 << 20
_ALGORITHMS = {0: "sha256", 1: "sha384", 2: "sha512"}


def resolve_image(job: Job, request: pb.ResolveImageConfigRequest) -> pb.ResolveImageConfigResponse:
    """Find an image's digest and config, under the name that policies give it. Raises: as ``EngineImages``."""
    platform = platform_from_pb(request.Platform) if request.HasField("Platform") else local_platform()
    name = request.LogName or f"resolve image config for {request.Ref}"
    scheme = "oci-layout" if request.ResolverType == 1 else "docker-image"
    policies = job.policies.also(read_policies(request.SourcePolicies))
    source = policies.evaluate(SourceOp(f"{scheme}://{request.Ref}"), platform)
    ref = _reference(source, scheme)
    if scheme == "oci-layout":
        found = job.images.resolve_oci_layout(ref, store=request.StoreID, platform=platform, log_name=name)
    else:
        found = _image(job, ref, platform, request.ResolveMode, name)
    return pb.ResolveImageConfigResponse(
        Digest=found.digest, Config=found.config, Ref=ref if policies else request.Ref
    )


def resolve_source(
    job: Job, request: pb.ResolveSourceMetaRequest, *, asking: bool = True
) -> pb.ResolveSourceMetaResponse:
    """Find what a source is. Without ``asking``, the client's own policy is not consulted: it is what asks.

    Raises: UsageError, NotSupported; PolicyDenied; what looking at the source raises.
    """
    if not request.Source.identifier.partition("://")[2]:
        summary = "source is required"
        raise UsageError(summary)
    platform = platform_from_pb(request.Platform) if request.HasField("Platform") else local_platform()
    policies = job.policies.also(read_policies(request.SourcePolicies))
    given = SourceOp(request.Source.identifier, dict(request.Source.attrs))
    op = policies.evaluate(given, platform, asking=asking)
    response = pb.ResolveSourceMetaResponse(
        Source=ops_pb2.SourceOp(identifier=op.identifier, attrs=dict(op.attrs))
    )
    name = request.LogName or f"resolve image config for {op.identifier}"
    scheme = op.identifier.partition("://")[0]
    facts = job.engine.sources(inputs=job.inputs(), sink=job.log, cancel=job.cancel)
    if scheme == "docker-image":
        _describe_image(job, op, platform, request, name, response)
        _describe_chain(job, facts, op, platform, request, response)
    elif scheme == "oci-layout":
        store = op.attrs.get("oci.store", "")
        ref = _reference(op, scheme)
        found = job.images.resolve_oci_layout(ref, store=store, platform=platform, log_name=name)
        response.Image.Digest, response.Image.Config = found.digest, found.config
    elif scheme == "git":
        with shown(job.log, name):
            git = facts.git(op, objects=request.Git.ReturnObject)
        response.Git.Ref, response.Git.Checksum, response.Git.CommitChecksum = (
            git.ref,
            git.checksum,
            git.commit,
        )
        response.Git.CommitObject, response.Git.TagObject = git.commit_object, git.tag_object
    elif scheme in ("http", "https"):
        _describe_http(job, facts, op, request, name, response)
    return response


def _reference(op: SourceOp, scheme: str) -> str:
    found, _, rest = op.identifier.partition("://")
    if found != scheme:
        summary = f"a policy made {op.identifier} of an image, which has no config to resolve"
        raise UsageError(summary)
    return rest


def _image(job: Job, ref: str, platform: Platform, mode: str, name: str) -> ResolvedImage:
    if mode not in _MODES:
        summary = f"invalid image resolve mode {mode!r}"
        raise UsageError(summary)
    full = str(parse_reference(ref).with_default_tag())
    # The policies were asked already.
    return job.images.resolve_image(full, platform=platform, mode=_MODES[mode], log_name=name, policed=True)


def _describe_image(
    job: Job,
    op: SourceOp,
    platform: Platform,
    request: pb.ResolveSourceMetaRequest,
    name: str,
    response: pb.ResolveSourceMetaResponse,
) -> None:
    found = _image(job, _reference(op, "docker-image"), platform, request.ResolveMode, name)
    response.Image.Digest = found.digest
    if not request.Image.NoConfig:
        response.Image.Config = found.config


def _describe_chain(
    job: Job,
    facts: SourceFacts,
    op: SourceOp,
    platform: Platform,
    request: pb.ResolveSourceMetaRequest,
    response: pb.ResolveSourceMetaResponse,
) -> None:
    wanted = request.Image.ResolveAttestations
    if not request.Image.AttestationChain and not wanted:
        return
    ref = parse_reference(_reference(op, "docker-image")).with_default_tag()
    with shown(job.log, f"resolving attestations of {ref.familiar}"):
        chain = facts.chain(ref, platform, predicates=frozenset(filter(None, wanted)))
    if chain is None:
        return
    if response.Image.Digest != chain.root:
        summary = (
            f"attestation chain root digest {chain.root} does not match image digest {response.Image.Digest}"
        )
        raise CrossdockError(summary, retryable=True)
    response.Image.AttestationChain.CopyFrom(_chain(chain))


def _chain(chain: AttestationChain) -> pb.AttestationChain:
    out = pb.AttestationChain(
        Root=chain.root,
        ImageManifest=chain.image or "",
        AttestationManifest=chain.attestation or "",
        SignatureManifests=chain.signatures,
    )
    for descriptor, data in chain.blobs:
        out.Blobs[descriptor.digest].CopyFrom(pb.Blob(descriptor=_descriptor(descriptor), data=data))
    return out


def _descriptor(given: Descriptor) -> pb.Descriptor:
    return pb.Descriptor(
        media_type=given.media_type,
        digest=given.digest,
        size=given.size,
        annotations=dict(given.annotations),
    )


def _describe_http(
    job: Job,
    facts: SourceFacts,
    op: SourceOp,
    request: pb.ResolveSourceMetaRequest,
    name: str,
    response: pb.ResolveSourceMetaResponse,
) -> None:
    wanted = request.HTTP.ChecksumRequest
    summing = request.HTTP.HasField("ChecksumRequest")
    if summing and (len(wanted.Suffix) > _MAX_SUFFIX or wanted.Algo not in _ALGORITHMS):
        summary = f"invalid checksum request: algorithm {wanted.Algo}, {len(wanted.Suffix)} bytes of suffix"
        raise NotSupported(summary)
    with shown(job.log, name):
        found = facts.http(op, content=summing)
    response.HTTP.Checksum, response.HTTP.Filename = found.digest, found.filename
    if found.modified:
        response.HTTP.LastModified.seconds = found.modified
    if not summing:
        return
    algorithm = _ALGORITHMS[wanted.Algo]
    state = hashlib.new(algorithm)
    with job.engine.store.content.open(found.digest) as file:
        while data := file.read(_BLOCK):
            job.cancel.check()
            state.update(data)
    state.update(wanted.Suffix)
    response.HTTP.ChecksumResponse.Digest = f"{algorithm}:{state.hexdigest()}"
    response.HTTP.ChecksumResponse.Suffix = wanted.Suffix
