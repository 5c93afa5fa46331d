"""What a conversion needs and gives: options, results, and the protocols its callers satisfy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from crossdock.image.platform import Platform, local_platform
from crossdock.llb.ops import NetMode
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.contexts import ContextSpec
    from crossdock.image.config import ImageConfig
    from crossdock.llb.graph import Output
    from crossdock.llb.ops import CdiDevice, HostIP, LinuxResources, Ulimit

__all__ = [
    "ContextFiles",
    "ConvertOptions",
    "ImageResolver",
    "PlatformResult",
    "ResolvedImage",
    "SourceTimes",
]


class ResolvedImage(Protocol):
    """What a resolver found."""

    @property
    def ref(self) -> str:
        """The reference, possibly changed by a policy."""
        ...

    @property
    def digest(self) -> str:
        """Digest the reference is pinned to: of the index when there is one."""
        ...

    @property
    def config(self) -> bytes:
        """The image config of the platform, as JSON."""
        ...


class ImageResolver(Protocol):
    """Finds images. Called from several threads at once when a file has several bases."""

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> ResolvedImage:
        """Resolve a canonical reference; ``mode`` is ``default``, ``pull`` or ``local``.

        ``log_name`` is the step's name in progress. Raises: CrossdockError.
        """
        ...

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> ResolvedImage:
        """Resolve ``name@digest`` in the OCI layout known as ``store``. Raises: CrossdockError."""
        ...


class ContextFiles(Protocol):
    """Reads single files of local contexts."""

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Return a file of the local context ``local``; ``None`` when there is none."""
        ...


class SourceTimes(Protocol):
    """Tells when a remote source was made, for ``SOURCE_DATE_EPOCH=context`` and its like."""

    def source_time(self, source: Output, *, log_name: str) -> int | None:
        """Return commit time or modification time in seconds since the epoch; ``None`` when unknown."""
        ...


class ConvertOptions(Record):
    """Everything about a build that is not in the Dockerfile."""

    #: target platforms; none = that of the build machine, or of the base image
    platforms: tuple[Platform, ...] = ()
    #: platforms of the build machine, native first
    build_platforms: tuple[Platform, ...] = (local_platform(),)
    #: stage name or index; "" = the last stage
    target: str = ""
    build_args: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    #: the main build context; ``None`` = the local directory named ``context``
    main_context: ContextSpec | None = None
    #: named contexts by name, or by ``name::platform``
    contexts: Mapping[str, ContextSpec] = {}
    #: ``None`` = use the cache; empty = ignore it everywhere; else the stages to build anew
    no_cache: tuple[str, ...] | None = None
    network: NetMode = NetMode.UNSET
    extra_hosts: tuple[HostIP, ...] = ()
    #: bytes; 0 = default
    shm_size: int = 0
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[CdiDevice, ...] = ()
    cgroup_parent: str = ""
    resources: LinuxResources | None = None
    #: hostname of RUN steps; "" = default
    hostname: str = ""
    #: ``default``, ``pull`` or ``local``
    image_resolve_mode: str = "default"
    #: step names begin with the platform
    multi_platform: bool = False
    #: prefix of the ids of cache mounts
    cache_namespace: str = ""
    #: BuildKit session that serves the local contexts; "" for the embedded engine
    session: str = ""
    #: convert every stage, not only those the target needs (checks)
    all_stages: bool = False


class PlatformResult(Record):
    """One platform's graph and image config."""

    platform: Platform
    #: ``None`` = an empty image
    output: Output | None
    #: history without times unless there is an epoch; the exporter fills layers and times
    config: ImageConfig
    #: config of the base image; ``None`` for scratch
    base_config: ImageConfig | None
    #: SOURCE_DATE_EPOCH in seconds
    epoch: int | None = None
    ignore_cache: bool = False
    #: further file systems an SBOM scanner is to look at, by name
    scan: Mapping[str, Output] = {}
