"""The attestations of an embedded build: none unless asked for, since they make an index of every image.

Spec: docker/buildx ``build/opt.go`` (attest attributes), ``build/provenance.go`` (metadata), ``build/git.go``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from crossdock.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.embedded.inputs import Inputs
    from crossdock.builders.request import BuildRequest
    from crossdock.builds.attest import AttestRequests, BuildAttestations, BuildFacts, Target
    from crossdock.builds.images import EngineImages
    from crossdock.cancel import CancelToken
    from crossdock.dockerfile.convert.options import PlatformResult
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.facade import Engine
    from crossdock.engine.solver import KeyedVertex
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink

__all__ = ["BuildAttests", "asks_for_attestations", "metadata_mode"]

_ARGUMENT = "BUILDKIT_ATTEST_"
_METADATA_MODE = "BUILDX_METADATA_PROVENANCE"
_METADATA_KEY = "buildx.build.provenance"
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False", "disabled"})


class BuildAttests:
    """What one build attests; nothing, most of the time, and then nothing is loaded."""

    def __init__(
        self,
        engine: Engine,
        request: BuildRequest,
        inputs: Inputs,
        images: EngineImages,
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        """Read what is asked for. Raises: UsageError, NotSupported; ConfigError for a wrong environment variable."""
        self._engine = engine
        self._request = request
        self._inputs = inputs
        self._images = images
        self._sink = sink
        self._cancel = cancel
        self._started_ns = time.time_ns()
        self._requests = _requests(request)
        #: of the provenance in the build's metadata: ``min``, ``max`` or ``""`` for none
        self._metadata_mode = metadata_mode(wanted=self._requests is not None)
        #: solved to read the Dockerfile
        self._read_first: list[Output] = []
        self._attesting: BuildAttestations | None = None
        self._targets: list[Target] = []
        self._keyed: list[KeyedVertex] = []
        self._made: list[tuple[Attestation, ...]] = []

    @property
    def attested(self) -> bool | None:
        """Whether outputs get attestations: true for all of them, false for images only, ``None`` for none."""
        return None if self._requests is None else self._requests.beyond_inline

    def note(self, output: Output | None) -> None:
        """Note what is solved before the Dockerfile is known."""
        if output is not None:
            self._read_first.append(output)

    def scans(self, results: Sequence[PlatformResult], dockerfile: str) -> list[Output]:
        """Return the scanner steps to be solved beside the results. Raises: what finding the scanner raises."""
        requests = self._requests or self._metadata_requests()
        if requests is None:
            return []
        from crossdock.builds.attest import BuildAttestations, Target

        self._targets = [
            Target(str(r.platform.normalised()), r.platform.normalised(), r.output, r.scan, r.ignore_cache)
            for r in results
        ]
        self._attesting = BuildAttestations(
            requests,
            self._facts(dockerfile),
            engine=self._engine,
            images=self._images,
            sink=self._sink,
            cancel=self._cancel,
        )
        return [output for output in self._attesting.scans(self._targets) if output is not None]

    def begin(self, keyed: list[KeyedVertex] | None) -> list[KeyedVertex] | None:
        """Return what a solve is to put its keys in; ``keyed`` is what others want of them."""
        if self._attesting is None:
            return keyed
        self._keyed = [] if keyed is None else keyed
        return self._keyed

    def make(self, scanned: Sequence[Ref]) -> list[tuple[Attestation, ...]]:
        """Return the attestations of each result that go into outputs. Raises: as ``BuildAttestations.make``."""
        if self._attesting is None:
            return []
        self._made = self._attesting.make(
            self._targets, scanned=scanned or [None] * len(self._targets), keyed=self._keyed
        )
        return self._made if self._requests is not None else []

    def metadata(self, *, multi_platform: bool) -> dict[str, Any]:
        """Return the provenance that goes into the metadata file."""
        if not self._metadata_mode or self._attesting is None:
            return {}
        from crossdock.builds.attest import metadata_provenance

        found: dict[str, Any] = {}
        for target, made in zip(self._targets, self._made, strict=True):
            provenance = metadata_provenance(made, self._metadata_mode)
            if provenance is not None:
                found[f"{_METADATA_KEY}/{target.id}" if multi_platform else _METADATA_KEY] = provenance
        return found

    def _metadata_requests(self) -> AttestRequests | None:
        """Make provenance for the metadata file alone, where the environment asks for it."""
        switched_off = "provenance" in self._request.attests
        if not self._metadata_mode or switched_off:
            return None
        from crossdock.builds.attest import AttestRequests, ProvenanceOptions

        return AttestRequests(ProvenanceOptions(mode=self._metadata_mode), None)

    def _facts(self, dockerfile: str) -> BuildFacts:
        from crossdock._version import __version__
        from crossdock.builds.attest import BuildFacts
        from crossdock.image.platform import local_platform

        directories = self._inputs.directories
        local = [name for name in ("context", "dockerfile") if name in directories]
        if self._request.context in ("", "-"):
            local = [name for name in local if name != "context"]
        if self._request.dockerfile_text is not None:
            local = [name for name in local if name != "dockerfile"]
        definition = None
        if "dockerfile" in local:
            from crossdock.dockerfile.contexts import definition_source

            definition = definition_source(dockerfile)
        return BuildFacts(
            frontend="dockerfile.v0",
            attrs=self._attributes(dockerfile),
            invocation_id=_new_id(),
            started_ns=self._started_ns,
            resolved=self._images.resolved,
            also=self._read_first,
            locals=local,
            definition=definition,
            builder_platform=local_platform(),
            builder_version=__version__,
        )

    def _attributes(self, dockerfile: str) -> dict[str, str]:
        attrs = {**self._inputs.attrs, "filename": dockerfile}
        request = self._request
        if "context" not in self._inputs.directories and request.context != "-":
            attrs["context"] = request.context
        elif request.context not in ("", "-"):
            from crossdock.builders.gitinfo import git_attributes

            attrs.update(git_attributes(self._inputs.directories, self._cancel))
        return attrs


def _requests(request: BuildRequest) -> AttestRequests | None:
    arguments = {k: v for k, v in request.build_args.items() if k.startswith(_ARGUMENT)}
    if not arguments and not any(params is not None for params in request.attests.values()):
        return None
    from crossdock.builds.attest import read_attests

    # What is switched off by a flag stays off.
    attrs = {
        f"build-arg:{k}": v
        for k, v in arguments.items()
        if k.removeprefix(_ARGUMENT).lower() not in request.attests
    }
    attrs.update({f"attest:{k}": _csv(v) for k, v in request.attests.items() if v is not None})
    return read_attests(attrs)


def _csv(params: Mapping[str, str]) -> str:
    fields = (f"{key}={value}" for key, value in params.items())
    return ",".join('"' + f.replace('"', '""') + '"' if set(f) & set(',"\n') else f for f in fields)


def asks_for_attestations(request: BuildRequest) -> bool:
    """Whether a build is to attest anything. Raises: UsageError, NotSupported for what cannot be attested."""
    return _requests(request) is not None


def metadata_mode(*, wanted: bool) -> str:
    """Return how much provenance goes into the metadata; ``wanted``: outputs get attestations. Raises: ConfigError."""
    text = os.environ.get(_METADATA_MODE, "")
    if text in _FALSE:
        return ""
    if text in ("min", "max"):
        return text
    if text in _TRUE:
        return "min"
    if text:
        summary = f"invalid value {text!r} of {_METADATA_MODE}"
        raise ConfigError(summary, hint="set it to min, max or disabled")
    return "min" if wanted else ""


def _new_id() -> str:
    """Return a random id in BuildKit's alphabet."""
    import secrets

    return "".join(secrets.choice("0123456789abcdefghijklmnopqrstuvwxyz") for _ in range(25))
