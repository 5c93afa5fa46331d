"""The attestations of one build of the server, as its client asks for them by attributes (``attest:…``).

Spec: moby/buildkit ``frontend/attestations``, ``solver/llbsolver/proc``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.image.platform import local_platform

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
        from crossdock.builds.attest import BuildAttestations, BuildFacts, Target

        job, asked = self._job, self._job.asked
        self._targets = [
            Target(
                str(p.platform.normalised()),
                p.platform.normalised(),
                p.ref.output if p.ref is not None else None,
                p.ref.scan if p.ref is not None else {},
                p.ref is not None and p.ref.ignore_cache,
            )
            for p in platforms
        ]
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
        self._making = BuildAttestations(
            self._requests, facts, engine=job.engine, images=job.images, sink=job.log, cancel=job.cancel
        )
        return self._making.scans(self._targets)

    def make(
        self, scanned: Sequence[Ref | None], keyed: Sequence[KeyedVertex]
    ) -> list[tuple[Attestation, ...]]:
        """Return the attestations of each result. Raises: as ``BuildAttestations.make``."""
        if self._making is None:
            return []
        self._made = self._making.make(self._targets, scanned=scanned, keyed=keyed)
        return self._made

    def predicates(self) -> dict[str, list[tuple[str, bytes]]]:
        """Return kind and content of what was attested, by platform: buildx reads them in the build's record."""
        return {
            target.id: [(one.predicate_type, one.content({})) for one in made]
            for target, made in zip(self._targets, self._made, strict=False)
        }


def _requests(attrs: Mapping[str, str]) -> AttestRequests | None:
    if not any(key.startswith(_PREFIXES) for key in attrs):
        return None
    from crossdock.builds.attest import read_attests

    return read_attests(attrs)
