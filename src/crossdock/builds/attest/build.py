"""What one build attests, step by step: which scans to solve, then the attestations of each platform."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from crossdock.builds.attest.capture import capture
from crossdock.builds.attest.provenance import (
    SLSA_02,
    SLSA_1,
    as_slsa_02,
    check_complete,
    finished,
    metadata_predicate,
    predicate,
)
from crossdock.engine.exporters.attestation import Attestation, Subject
from crossdock.engine.store.layers import PACKED_ANNOTATION
from crossdock.image.descriptor import Descriptor
from crossdock.image.manifest import dump_json
from crossdock.image.platform import local_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.builds.attest.provenance import BuildFacts
    from crossdock.builds.attest.requests import AttestRequests, ProvenanceOptions
    from crossdock.builds.attest.sbom import Scanner
    from crossdock.builds.images import EngineImages
    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import Engine
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.store import LayerId
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink

__all__ = ["BuildAttestations", "Target", "metadata_provenance"]


class Target(NamedTuple):
    """The result for one platform, before it is solved."""

    #: of the platform, as shown
    id: str
    platform: Platform
    #: ``None``: an empty file system
    output: Output | None
    #: further file systems for the scanner, by name
    scan: Mapping[str, Output] = {}
    ignore_cache: bool = False


class BuildAttestations:
    """The attestations of one build: :meth:`scans`, solve, :meth:`make`, export."""

    def __init__(
        self,
        requests: AttestRequests,
        facts: BuildFacts,
        *,
        engine: Engine,
        images: EngineImages,
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        self._requests = requests
        self._facts = facts
        self._engine = engine
        self._images = images
        self._sink = sink
        self._cancel = cancel
        self._scanner: Scanner | None = None
        # Guards _finished_ns.
        self._lock = threading.Lock()
        self._finished_ns = 0

    def scans(self, targets: Sequence[Target]) -> list[Output | None]:
        """Return the steps that scan the targets, one each; ``None`` when no SBOM is wanted.

        Raises: as :class:`Scanner`, when the scanner's image cannot be had.
        """
        options = self._requests.sbom
        if options is None:
            return [None] * len(targets)
        from crossdock.builds.attest.sbom import Scanner

        if self._scanner is None:
            mode = self._facts.attrs.get("image-resolve-mode") or "default"
            platform = self._facts.builder_platform or local_platform()
            self._scanner = Scanner(options, self._images, platform, mode=mode)
        return [self._scanner.step(t.id, t.output, t.scan, ignore_cache=t.ignore_cache) for t in targets]

    def make(
        self, targets: Sequence[Target], *, scanned: Sequence[Ref | None], keyed: Sequence[KeyedVertex] = ()
    ) -> list[tuple[Attestation, ...]]:
        """Return the attestations of each target, SBOMs first; ``scanned`` are the results of :meth:`scans`.

        ``keyed`` are the keys of the solve, without which provenance tells of no layers.
        Raises: SolveError for what a scanner should not have written, or materials that are not complete.
        """
        made: list[tuple[Attestation, ...]] = []
        for target, ref in zip(targets, scanned, strict=True):
            own = [] if ref is None else self._documents(ref)
            if self._requests.provenance is not None:
                own.append(self._provenance(self._requests.provenance, target, targets, keyed))
            made.append(tuple(own))
        return made

    # --- SBOM ---

    def _documents(self, ref: Ref) -> list[Attestation]:
        from crossdock.builds.attest.sbom import SPDX, read_documents

        def read(name: str) -> bytes | None:
            return self._engine.read_file(ref, f"/{name}", cancel=self._cancel, sink=self._sink)

        entries = self._engine.read_dir(ref, "/", cancel=self._cancel, sink=self._sink)
        return [
            Attestation(
                predicate_type=SPDX,
                path=document.name,
                content=self._document(document.predicate, core=document.core),
                subjects=tuple(Subject(*subject) for subject in document.subjects),
            )
            for document in read_documents(entries, read)
        ]

    def _document(self, predicate: Any, *, core: bool) -> Callable[[Mapping[LayerId, Descriptor]], bytes]:
        from crossdock._version import __version__
        from crossdock.builds.attest.sbom import with_layers

        def content(layers: Mapping[LayerId, Descriptor]) -> bytes:
            pairs = []
            if core and layers:
                directories = self._engine.directories(tuple(layers), "", self._sink, self._cancel)
                pairs = list(zip(directories, layers.values(), strict=True))
            return with_layers(predicate, pairs, creator=f"crossdock-{__version__}")

        return content

    # --- provenance ---

    def _provenance(
        self,
        options: ProvenanceOptions,
        target: Target,
        targets: Sequence[Target],
        keyed: Sequence[KeyedVertex],
    ) -> Attestation:
        facts = self._facts
        found = capture(
            [target.output, *facts.also],
            self._engine.pin,
            resolved=facts.resolved,
            platform=target.platform,
            platforms=[t.platform for t in targets],
            locals_=facts.locals,
        )
        check_complete(options, found)
        outputs = self._engine.outputs_of(keyed) if options.mode == "max" and keyed else {}

        def content(layers: Mapping[LayerId, Descriptor]) -> bytes:
            made = predicate(options, facts, found)
            if options.mode == "max" and target.output is not None:
                self._add_steps(made, target.output, outputs, layers)
            finished(made, self._end())
            return dump_json(as_slsa_02(made) if options.version == "v0.2" else made)

        return Attestation(
            predicate_type=SLSA_02 if options.version == "v0.2" else SLSA_1,
            path=options.filename,
            content=content,
            inline_only=options.inline_only,
        )

    def _end(self) -> int:
        """Return when the build ended: the first time somebody asks, for all attestations."""
        with self._lock:
            self._finished_ns = self._finished_ns or time.time_ns()
            return self._finished_ns

    def _add_steps(
        self,
        made: dict[str, Any],
        output: Output,
        outputs: Mapping[str, Sequence[Sequence[LayerId]]],
        layers: Mapping[LayerId, Descriptor],
    ) -> None:
        from crossdock.builds.attest.steps import BuildSteps, layer_chains

        steps = BuildSteps(output)
        internal = made["buildDefinition"]["internalParameters"]
        made["buildDefinition"]["internalParameters"] = {"buildConfig": steps.config(), **internal}
        own = made["runDetails"]["metadata"]["buildkit_metadata"]
        source = steps.source(self._facts.definition)
        if source is not None:
            own["source"] = source
        chains = layer_chains(steps, outputs, self._blobs(outputs, layers))
        if chains:
            own["layers"] = chains

    def _blobs(
        self, outputs: Mapping[str, Sequence[Sequence[LayerId]]], layers: Mapping[LayerId, Descriptor]
    ) -> dict[str, object]:
        """Return the blobs of layers: of the image, and of images it was made from, which are the same in any store."""
        found: dict[str, object] = {layer: _plain(blob) for layer, blob in layers.items()}
        for layer in {layer for chains in outputs.values() for chain in chains for layer in chain}:
            if layer in found:
                continue
            for blob in self._engine.store.layers.get(layer).blobs:
                if PACKED_ANNOTATION not in blob.descriptor.annotations:
                    found[layer] = _plain(blob.descriptor)
                    break
        return found


def _plain(blob: Descriptor) -> dict[str, object]:
    return Descriptor(blob.media_type, blob.digest, blob.size).to_json()


def metadata_provenance(attestations: Sequence[Attestation], mode: str) -> dict[str, Any] | None:
    """Return the provenance for a build's metadata: always SLSA v0.2; in ``min`` without steps and metadata.

    ``None`` when there is no provenance among the attestations.
    Spec: docker/buildx ``build/provenance.go``.
    """
    import json

    for attestation in attestations:
        if attestation.predicate_type not in (SLSA_1, SLSA_02):
            continue
        made: dict[str, Any] = json.loads(attestation.content({}))
        return metadata_predicate(made, attestation.predicate_type, mode)
    return None
