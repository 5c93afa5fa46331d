"""Which attestations a build asks for: ``attest:TYPE`` attributes and ``BUILDKIT_ATTEST_TYPE`` build arguments.

Spec: moby/buildkit ``frontend/attestations``, ``docs/attestations/slsa-provenance.md``, ``sbom.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.text import parse_bool
from crossdock.dockerfile.words import csv_fields
from crossdock.errors import NotSupported, UsageError
from crossdock.image.reference import parse_reference
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.image.reference import Reference

__all__ = [
    "DEFAULT_GENERATOR",
    "AttestRequests",
    "ProvenanceOptions",
    "SbomOptions",
    "asks_for",
    "read_attests",
]

DEFAULT_GENERATOR = "docker/buildkit-syft-scanner:stable-1"
_ATTRIBUTE = "attest:"
_ARGUMENT = "build-arg:BUILDKIT_ATTEST_"
_KINDS = ("provenance", "sbom")
_PROVENANCE = frozenset(
    [
        "mode",
        "version",
        "builder-id",
        "filename",
        "reproducible",
        "inline-only",
        "complete-materials",
        "capture-usage",
    ]
)
_MODES = {"min": "min", "max": "max", "full": "max"}


class ProvenanceOptions(NamedTuple):
    """``type=provenance``."""

    #: ``min`` or ``max``
    mode: str = "max"
    #: of SLSA: ``v1`` or ``v0.2``
    version: str = "v1"
    builder_id: str = ""
    #: among files
    filename: str = "provenance.json"
    #: what the user says of the build; it is not checked
    reproducible: bool = False
    #: not among files
    inline_only: bool = False
    #: fail when a material is not known by its digest
    complete_materials: bool = False


class SbomOptions(NamedTuple):
    """``type=sbom``."""

    generator: Reference
    #: given to the generator as ``BUILDKIT_SCAN_KEY``
    params: Mapping[str, str]


class AttestRequests(NamedTuple):
    """What one build attests."""

    provenance: ProvenanceOptions | None
    sbom: SbomOptions | None

    @property
    def beyond_inline(self) -> bool:
        """Whether outputs other than images are to have some."""
        return self.sbom is not None or (self.provenance is not None and not self.provenance.inline_only)


def asks_for(attrs: Mapping[str, str]) -> bool:
    """Whether frontend attributes say anything of attestations."""
    return any(name.startswith((_ATTRIBUTE, _ARGUMENT)) for name in attrs)


def read_attests(attrs: Mapping[str, str]) -> AttestRequests | None:
    """Read frontend attributes; ``None`` when nothing is to be attested. An attribute goes before the argument.

    Raises: UsageError for an unknown type, parameter or value; NotSupported.
    """
    texts: dict[str, str] = {}
    for prefix in (_ARGUMENT, _ATTRIBUTE):
        for name, value in attrs.items():
            if name.startswith(prefix):
                texts[name.removeprefix(prefix).lower()] = value
    for kind in texts:
        if kind not in _KINDS:
            summary = f"unknown attestation type {kind!r}"
            raise UsageError(summary, hint=f"attestation types: {', '.join(_KINDS)}")
    found = {kind: params for kind, text in texts.items() if (params := _params(kind, text)) is not None}
    if not found:
        return None
    return AttestRequests(
        _provenance(found["provenance"]) if "provenance" in found else None,
        _sbom(found["sbom"]) if "sbom" in found else None,
    )


def _params(kind: str, text: str) -> dict[str, str] | None:
    """Read ``key=value,…``, or a plain yes or no; ``None`` when it is switched off."""
    try:
        return {} if not text or parse_bool(text) else None
    except ValueError:
        pass
    try:
        fields = csv_fields(text)
    except ValueError as exc:
        summary = f"failed to parse {kind}: {exc}"
        raise UsageError(summary) from exc
    params = {key: value for key, _, value in (field.partition("=") for field in fields)}
    if _flag(kind, params, "disabled"):
        return None
    params.pop("disabled", None)
    # buildx repeats the kind among the parameters.
    params.pop("type", None)
    return params


def _provenance(params: Mapping[str, str]) -> ProvenanceOptions:
    for key in params:
        if key not in _PROVENANCE:
            summary = f"unknown parameter {key!r} of the provenance attestation"
            raise UsageError(summary, hint=f"parameters: {', '.join(sorted(_PROVENANCE))}")
    mode = params.get("mode", "max")
    if mode not in _MODES:
        summary = f"invalid mode {mode!r} of the provenance attestation"
        raise UsageError(summary, hint="use mode=min or mode=max")
    version = params.get("version", "v1")
    if version not in ("v1", "v0.2"):
        summary = f"invalid provenance SLSA version: {version}"
        raise UsageError(summary, hint="use version=v1 or version=v0.2")
    if _flag("provenance", params, "capture-usage"):
        summary = "capture-usage of the provenance attestation is not supported: the engine takes no samples of steps"
        raise NotSupported(summary, hint="leave out capture-usage=true")
    filename = params.get("filename", "provenance.json")
    if not filename or "/" in filename or filename in (".", ".."):
        summary = f"invalid filename {filename!r} of the provenance attestation"
        raise UsageError(summary, hint="give a plain file name")
    return ProvenanceOptions(
        mode=_MODES[mode],
        version=version,
        builder_id=params.get("builder-id", ""),
        filename=filename,
        reproducible=_flag("provenance", params, "reproducible"),
        inline_only=_flag("provenance", params, "inline-only"),
        complete_materials=_flag("provenance", params, "complete-materials"),
    )


def _sbom(params: Mapping[str, str]) -> SbomOptions:
    generator = params.get("generator", DEFAULT_GENERATOR)
    if not generator:
        summary = "sbom generator cannot be empty"
        raise UsageError(summary, hint="write --sbom=generator=IMAGE")
    rest = {key: value for key, value in params.items() if key != "generator"}
    return SbomOptions(parse_reference(generator).with_default_tag(), rest)


def _flag(kind: str, params: Mapping[str, str], key: str) -> bool:
    text = params.get(key)
    if text is None:
        return False
    try:
        return parse_bool(text) if text else True
    except ValueError:
        summary = f"failed to parse {key} of the {kind} attestation: {text!r} is not a boolean value"
        raise UsageError(summary) from None
