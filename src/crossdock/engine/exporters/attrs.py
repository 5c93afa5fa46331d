"""Exporter attributes: what each type knows, parsed into options; anything else is an error that names it.

Spec: BuildKit ``exporter/containerimage/exptypes/keys.go``, ``exporter/local``, ``exporter/tar``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.annotations import NO_ANNOTATIONS, Annotations
from crossdock.errors import UsageError
from crossdock.image.reference import parse_reference
from crossdock.layers.compression import COMPRESSION_ATTRS, Compression, parse_bool
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.engine.exporters.model import ExporterSpec

__all__ = ["FilesOptions", "ImageOptions", "parse_files", "parse_image"]

# Attributes that are understood and need nothing here: the store is always complete.
_WITHOUT_EFFECT = frozenset(
    {
        "buildinfo",
        "buildinfo-attrs",
        "prefer-image-digest",
        "unsafe-internal-store-allow-incomplete",
    }
)
_COMMON = COMPRESSION_ATTRS | {
    "attestation-inline",
    "name",
    "oci-artifact",
    "oci-mediatypes",
    "prefer-nondist-layers",
    "rewrite-timestamp",
    "source-date-epoch",
}
_IMAGE_ONLY = frozenset(
    {
        "danging-name-empty-only",
        "dangling-name-prefix",
        "name-canonical",
        "push",
        "push-by-digest",
        "registry.insecure",
        "store",
        "unpack",
    }
)
_ARCHIVE_ONLY = frozenset({"dest", "tar", "context"})
_FILES = frozenset({"attestation-prefix", "dest", "mode", "platform-split", "source-date-epoch"})


class ImageOptions(NamedTuple):
    """Options of ``image``, ``registry``, ``oci`` and ``docker``."""

    names: tuple[str, ...]
    oci_types: bool
    compression: Compression
    annotations: Annotations
    epoch_s: int | None
    rewrite_timestamp: bool
    prefer_nondist: bool
    push: bool = False
    push_by_digest: bool = False
    insecure: bool = False
    store: bool = False
    unpack: bool = False
    name_canonical: bool = False
    dangling_prefix: str = ""
    dangling_empty_only: bool = False
    #: of ``oci`` and ``docker``
    dest: str = ""
    tar: bool = True
    #: whether attestations that are only for inline use make an index of a single image
    force_attestations: bool = False
    #: attestation manifests are artifacts with a subject, which registries list as referrers
    oci_artifact: bool = False


class FilesOptions(NamedTuple):
    """Options of ``local`` and ``tar``."""

    dest: str
    #: None: when there are several platforms
    platform_split: bool | None
    delete: bool
    epoch_s: int | None
    #: goes before the names of attestations
    attestation_prefix: str


def parse_image(spec: ExporterSpec, epoch_s: int | None) -> ImageOptions:
    """Read the options of an exporter that makes images; ``epoch_s`` is the build's SOURCE_DATE_EPOCH.

    Raises: UsageError, NotSupported.
    """
    attrs, annotations = Annotations.split(spec.attrs)
    pushes = spec.type in ("image", "registry")
    _check_known(spec.type, attrs, _COMMON | (_IMAGE_ONLY if pushes else _ARCHIVE_ONLY))
    oci_types = _flag(attrs, "oci-mediatypes", default=True)
    annotations = annotations or NO_ANNOTATIONS
    if annotations.beyond_manifest and not oci_types:
        summary = 'cannot export annotations with "oci-mediatypes=false"'
        raise UsageError(summary)
    push = _flag(attrs, "push", default=spec.type == "registry")
    options = ImageOptions(
        names=_names(attrs.get("name", ""), pushes=pushes),
        oci_types=oci_types,
        compression=Compression.from_attrs(attrs),
        annotations=annotations,
        epoch_s=_epoch(attrs, epoch_s),
        rewrite_timestamp=_flag(attrs, "rewrite-timestamp"),
        prefer_nondist=_flag(attrs, "prefer-nondist-layers"),
        force_attestations=_flag(attrs, "attestation-inline", default=pushes),
        oci_artifact=_flag(attrs, "oci-artifact", default=oci_types),
        push=push,
        push_by_digest=_flag(attrs, "push-by-digest"),
        insecure=_flag(attrs, "registry.insecure"),
        # A pushed image is in the registry; keeping its name here too would pin its layers for good.
        store=_flag(attrs, "store", default=pushes and not push),
        unpack=_flag(attrs, "unpack"),
        name_canonical=_flag(attrs, "name-canonical"),
        dangling_prefix=attrs.get("dangling-name-prefix", ""),
        dangling_empty_only=_flag(attrs, "danging-name-empty-only"),
        dest=attrs.get("dest", ""),
        tar=_flag(attrs, "tar", default=True),
    )
    _check_conflicts(options)
    return options


def parse_files(spec: ExporterSpec, epoch_s: int | None) -> FilesOptions:
    """Read the options of ``local`` or ``tar``.

    Raises: UsageError.
    """
    _check_known(spec.type, spec.attrs, _FILES if spec.type == "local" else _FILES - {"mode"})
    mode = spec.attrs.get("mode", "copy")
    if mode not in ("copy", "delete"):
        summary = f"invalid value {mode!r} for mode of the local exporter"
        raise UsageError(summary, hint="use mode=copy or mode=delete")
    split = _flag(spec.attrs, "platform-split") if "platform-split" in spec.attrs else None
    return FilesOptions(
        spec.attrs.get("dest", ""),
        split,
        mode == "delete",
        _epoch(spec.attrs, epoch_s),
        spec.attrs.get("attestation-prefix", ""),
    )


def _check_conflicts(options: ImageOptions) -> None:
    if options.rewrite_timestamp and options.unpack:
        summary = 'exporter option "rewrite-timestamp" conflicts with "unpack"'
        raise UsageError(summary)
    if options.push and not options.names and not options.dangling_prefix:
        summary = "a name is needed to push an image"
        raise UsageError(summary, hint="add --tag, or name= to the output")
    if options.push_by_digest:
        for name in options.names:
            if parse_reference(name).tag:
                summary = f"can't push tagged ref {name} by digest"
                raise UsageError(summary, hint="leave out the tag, or push-by-digest=true")


def _names(text: str, *, pushes: bool) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    parsed = [parse_reference(name) for name in dict.fromkeys(names)]
    # `image` keeps names as given, since push-by-digest has none of its own; archives name a tag.
    return tuple(str(ref if pushes else ref.with_default_tag()) for ref in parsed)


def _flag(attrs: Mapping[str, str], key: str, *, default: bool = False) -> bool:
    return parse_bool(key, attrs[key]) if key in attrs else default


def _epoch(attrs: Mapping[str, str], build_epoch_s: int | None) -> int | None:
    text = attrs.get("source-date-epoch")
    if text is None:
        return build_epoch_s
    if not text:
        return None
    try:
        return int(text)
    except ValueError as exc:
        summary = f"invalid source-date-epoch: {text!r} is no number of seconds"
        raise UsageError(summary) from exc


def _check_known(kind: str, attrs: Mapping[str, str], known: frozenset[str]) -> None:
    for key in attrs:
        if key in known or key in _WITHOUT_EFFECT:
            continue
        import difflib

        near = difflib.get_close_matches(key, known, 1)
        summary = f"unknown attribute {key!r} for the {kind} exporter"
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
        raise UsageError(summary, hint=hint)
