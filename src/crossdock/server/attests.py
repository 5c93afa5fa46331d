"""The attestations of one build of the server, as its client asks for them by attributes (``attest:…``).

Spec: moby/buildkit ``frontend/attestations``, ``solver/llbsolver/proc``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.errors import CrossdockError
from crossdock.image.platform import local_platform
from crossdock.server.results import platforms_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builds.attest import AttestRequests, BuildAttestations, Target
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.solver import KeyedVertex
    from crossdock.llb.graph import Output
    from crossdock.server.jobs import Job
    from crossdock.server.results import PlatformResult

__all__ = ["Asked", "JobAttests"]

_log = logging.getLogger("crossdock.server.attests")

_PREFIXES = ("attest:", "build-arg:BUILDKIT_ATTEST_")


class Asked:
    """What a frontend asked for on its way, for provenance. Lists are appended to only."""

    def __init__(self) -> None:
        self.started_ns = time.time_ns()
        self.frontend = ""
        self.attrs: dict[str, str] = {}
        #: solved to read a Dockerfile
        self.also: list[Output] = []
        #: directories of the client that were read
        self.locals: list[str] = []
        self.definition: Output | None = None


class JobAttests:
    """What one build attests; nothing is loaded when nothing is asked for."""

    def __init__(self, job: Job) -> None:
        """Read what is asked for. Raises: UsageError, NotSupported."""
        self._job = job
        self._requests = _requests(job.request.FrontendAttrs)
        self._making: BuildAttestations | None = None
        self._targets: list[Target] = []
        self._made: list[tuple[Attestation, ...]] = []

    @property
    def wants_keys(self) -> bool:
        """Whether solves are to note their keys."""
        return self._requests is not None

    @property
    def attested(self) -> bool | None:
        """Whether outputs get attestations: true for all, false for images only, ``None`` for none."""
        return None if self._requests is None else self._requests.beyond_inline

    def scans(self, platforms: Sequence[PlatformResult]) -> list[Output | None]:
        """Return the scanner steps to be solved beside the results. Raises: what finding the scanner raises."""
        if self._requests is None:
            return []
        self._targets = _targets(platforms)
        self._making = self._maker(self._requests)
        return self._making.scans(self._targets)

    def make(
        self, scanned: Sequence[Ref | None], keyed: Sequence[KeyedVertex]
    ) -> list[tuple[Attestation, ...]]:
        """Return the attestations of each result. Raises: as ``BuildAttestations.make``."""
        if self._making is None:
            return []
        self._made = self._making.make(self._targets, scanned=scanned, keyed=keyed)
        return self._made

    def for_record(self) -> dict[str, list[tuple[str, bytes]]]:
        """Return kind and content of what is told of a build in its record, by platform; one result alone is ``""``.

        That is the whole provenance, whether asked for or not, and whatever else was. What was not solved has none.
        """
        results = self._job.results
        if results is None or any(ref.ref is None for ref in results.all_refs()):
            return {}
        try:
            platforms = platforms_of(results)
            targets, made = _targets(platforms), self._made or [()] * len(platforms)
            whole = [()] * len(targets) if self._has_whole() else self._whole(targets)
            return {
                "" if results.single else p.id: [
                    (one.predicate_type, one.content({}))
                    for one in (
                        *more,
                        *(one for one in own if not more or one.predicate_type != more[0].predicate_type),
                    )
                ]
                for p, own, more in zip(platforms, made, whole, strict=True)
            }
        except CrossdockError as exc:
            _log.info("build %s has no provenance in its record: %s", self._job.ref, exc.summary)
            return {}

    def _has_whole(self) -> bool:
        """Whether what was asked for is the whole provenance."""
        options = self._requests.provenance if self._requests is not None and self._made else None
        return options is not None and options.mode == "max" and options.version == "v1"

    def _whole(self, targets: Sequence[Target]) -> list[tuple[Attestation, ...]]:
        from crossdock.builds.attest import AttestRequests, ProvenanceOptions

        asked = self._requests.provenance if self._requests is not None else None
        options = ProvenanceOptions(builder_id=asked.builder_id if asked is not None else "")
        making = self._maker(AttestRequests(options, None))
        return making.make(targets, scanned=[None] * len(targets), keyed=self._job.keyed or ())

    def _maker(self, requests: AttestRequests) -> BuildAttestations:
        from crossdock.builds.attest import BuildAttestations, BuildFacts

        job, asked = self._job, self._job.asked
        facts = BuildFacts(
            frontend=asked.frontend,
            attrs=asked.attrs or dict(job.request.FrontendAttrs),
            invocation_id=job.ref,
            started_ns=asked.started_ns,
            resolved=job.images.resolved,
            also=asked.also,
            locals=asked.locals,
            definition=asked.definition,
            builder_platform=local_platform(),
            builder_version=__version__,
        )
        return BuildAttestations(
            requests, facts, engine=job.engine, images=job.images, sink=job.log, cancel=job.cancel
        )


def _targets(platforms: Sequence[PlatformResult]) -> list[Target]:
    from crossdock.builds.attest import Target

    return [
        Target(
            str(p.platform.normalised()),
            p.platform.normalised(),
            p.ref.output if p.ref is not None else None,
            p.ref.scan if p.ref is not None else {},
            p.ref is not None and p.ref.ignore_cache,
        )
        for p in platforms
    ]


def _requests(attrs: Mapping[str, str]) -> AttestRequests | None:
    if not any(key.startswith(_PREFIXES) for key in attrs):
        return None
    from crossdock.builds.attest import read_attests

    return read_attests(attrs)
