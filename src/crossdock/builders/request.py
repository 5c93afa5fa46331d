"""A build, described once for every driver. All values are checked and normalised here, at the border."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.image.platform import Platform
    from crossdock.llb.policyrules import Policy
    from crossdock.secret import Secret

__all__ = ["BuildRequest", "OutputSpec", "SecretSpec"]


class OutputSpec(Record):
    """One ``--output``: exporter type, its attributes, and where the client puts the result."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    #: file or directory; ``-`` = standard output, ``""`` = the exporter has no destination
    dest: str = ""


class SecretSpec(Record):
    """One ``--secret``: exactly one of file, environment variable or value."""

    id: str
    path: str = ""
    env: str = ""
    value: Secret | None = None


class BuildRequest(Record):
    """Everything a build needs to know; relative paths are relative to the current directory."""

    #: directory, URL, or ``""`` for an empty context
    context: str
    #: path; ``""`` = ``Dockerfile`` in the context
    dockerfile: str = ""
    #: the Dockerfile itself, when it does not come from a file
    dockerfile_text: bytes | None = None
    named_contexts: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    #: empty = the builder's default
    platforms: tuple[Platform, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    outputs: tuple[OutputSpec, ...] = ()
    no_cache: bool = False
    #: stages to rebuild
    no_cache_filter: tuple[str, ...] = ()
    #: say why steps were not cached
    explain: bool = False
    #: re-resolve every image
    pull: bool = False
    #: ``default``, ``host`` or ``none``
    network: str = "default"
    #: ``host=ip``
    add_hosts: tuple[str, ...] = ()
    #: bytes, 0 = default
    shm_size: int = 0
    #: ``name=soft[:hard]``
    ulimits: tuple[str, ...] = ()
    cgroup_parent: str = ""
    #: granted entitlements
    allow: tuple[str, ...] = ()
    secrets: tuple[SecretSpec, ...] = ()
    ssh: tuple[str, ...] = ()
    cache_from: tuple[Mapping[str, str], ...] = ()
    cache_to: tuple[Mapping[str, str], ...] = ()
    #: attestation type -> its parameters; ``None`` = switched off
    attests: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    annotations: tuple[str, ...] = ()
    #: make an index even of one platform, as the share of a node is to be merged
    multi_platform: bool = False
    resources: Mapping[str, str] = field(default_factory=dict)
    #: rules for the sources of the build
    source_policy: Policy | None = None
    #: ``min`` or ``max``: how much provenance a BuildKit node's answer shall hold, ``""`` for none
    metadata_provenance: str = ""
    #: frontend method other than ``build``
    call: str = "build"
