"""Attestations that a frontend made itself: files of its results, or directories full of statements.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto`` (Attestation), ``exporter/attestation/unbundle.go``, ``make.go``.
"""

from __future__ import annotations

import json
import posixpath
import stat
from typing import TYPE_CHECKING, Any

from crossdock.engine.exporters.attestation import Attestation, Subject
from crossdock.errors import NotSupported, SolveError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.proto import gateway_pb2
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.store import LayerId
    from crossdock.image.descriptor import Descriptor
    from crossdock.server.jobs import Job
    from crossdock.server.results import PlatformResult, ResultRef

    Given = tuple[gateway_pb2.Attestation, ResultRef]

__all__ = ["attestations_of", "check_attestation"]

_IN_TOTO, _BUNDLE = 0, 1
_RAW = 1
_PROVENANCE = "https://slsa.dev/provenance/"
_CORE, _INLINE_ONLY = "sbom-core", "inline-only"
_MAX_BYTES = 64 << 20


def check_attestation(given: gateway_pb2.Attestation) -> None:
    """Refuse what cannot be made. Raises: UsageError, NotSupported."""
    if given.kind not in (_IN_TOTO, _BUNDLE):
        summary = f"attestations of kind {given.kind} are not known"
        raise NotSupported(summary)
    if not given.ref.id:
        summary = "attestation does not have available content"
        raise UsageError(summary)
    if given.kind == _IN_TOTO:
        if not given.path:
            summary = "attestation does not have set path"
            raise UsageError(summary)
        if given.inTotoPredicateType.startswith(_PROVENANCE):
            # Only who runs the build can say how it was run.
            summary = "frontend may not set provenance attestations"
            raise UsageError(summary)
    kinds = {subject.kind for subject in given.inTotoSubjects}
    if kinds - {0, _RAW} or len(kinds) > 1:
        summary = "attestations about the result and other things at once are not supported"
        raise NotSupported(summary)


def attestations_of(
    job: Job, platforms: Sequence[PlatformResult], made: Sequence[Sequence[Attestation]]
) -> list[Sequence[Attestation]]:
    """Return what is attested of each platform: ``made`` by us, after what its frontend made, whose refs are solved.

    Raises: SolveError for what is no statement.
    """
    own = made or [()] * len(platforms)
    return [
        [*_sorted([one for given in p.attestations for one in _of(job, *given)]), *more]
        for p, more in zip(platforms, own, strict=True)
    ]


def _of(job: Job, given: gateway_pb2.Attestation, result: ResultRef) -> list[_Made]:
    ref = result.ref
    if ref is None:
        summary = "no ref provided for attestation"
        raise SolveError(summary)
    if given.kind == _BUNDLE:
        return _unbundled(job, given, ref)
    data = _read(job, ref, given.path)
    subjects = tuple(
        Subject(one.name or "_", {d.partition(":")[0]: d.partition(":")[2] for d in one.digest})
        for one in given.inTotoSubjects
        if one.kind == _RAW
    )
    return [_made(given, given.inTotoPredicateType, given.path, data, subjects)]


#: an attestation, and whether it is the one about the result itself
_Made = tuple[bool, Attestation]


def _sorted(made: Sequence[_Made]) -> list[Attestation]:
    return [one for core, one in sorted(made, key=lambda pair: not pair[0])]


def _made(
    given: gateway_pb2.Attestation, kind: str, path: str, data: bytes, subjects: tuple[Subject, ...]
) -> _Made:
    core = given.metadata.get(_CORE, b"").decode(errors="replace")
    attestation = Attestation(
        predicate_type=kind,
        path=posixpath.basename(path),
        content=_constant(data),
        subjects=subjects,
        inline_only=given.metadata.get(_INLINE_ONLY, b"") in (b"1", b"t", b"true"),
    )
    return bool(core) and attestation.path.partition(".")[0] == core, attestation


def _constant(data: bytes) -> Callable[[Mapping[LayerId, Descriptor]], bytes]:
    return lambda _layers: data


def _unbundled(job: Job, given: gateway_pb2.Attestation, ref: Ref) -> list[_Made]:
    folder = given.path or "/"
    entries = job.engine.read_dir(ref, folder, cancel=job.cancel, sink=job.log)
    if entries is None:
        summary = f"attestation bundle {folder}: no such directory"
        raise SolveError(summary)
    made = []
    for entry in entries:
        if not stat.S_ISREG(entry.mode):
            summary = f"{entry.name} of the attestation bundle is not a regular file"
            raise SolveError(summary)
        statement = _statement(_read(job, ref, posixpath.join(folder, entry.name)), entry.name)
        kind = statement["predicateType"]
        if given.inTotoPredicateType and kind != given.inTotoPredicateType:
            summary = (
                f"bundle entry {kind} does not match required predicate type {given.inTotoPredicateType}"
            )
            raise SolveError(summary)
        if kind.startswith(_PROVENANCE):
            summary = "frontend may not bundle provenance attestations"
            raise SolveError(summary)
        predicate = json.dumps(statement.get("predicate"), separators=(",", ":")).encode()
        made.append(_made(given, kind, entry.name, predicate, _subjects(statement, entry.name)))
    return made


def _statement(data: bytes, name: str) -> dict[str, Any]:
    try:
        statement = json.loads(data)
    except (ValueError, RecursionError) as exc:
        summary = f"cannot decode in-toto statement {name}: {exc}"
        raise SolveError(summary) from exc
    if not isinstance(statement, dict) or not isinstance(statement.get("predicateType"), str):
        summary = f"{name} of the attestation bundle is no in-toto statement"
        raise SolveError(summary)
    return statement


def _subjects(statement: Mapping[str, Any], name: str) -> tuple[Subject, ...]:
    try:
        return tuple(
            Subject(str(one.get("name") or "_"), {str(k): str(v) for k, v in one["digest"].items()})
            for one in statement.get("subject") or ()
        )
    except (AttributeError, KeyError, TypeError) as exc:
        summary = f"{name} of the attestation bundle has malformed subjects"
        raise SolveError(summary) from exc


def _read(job: Job, ref: Ref, path: str) -> bytes:
    found = job.engine.stat(ref, path, cancel=job.cancel, sink=job.log)
    if found is not None and found.size > _MAX_BYTES:
        summary = f"{path} exceeds {_MAX_BYTES} bytes"
        raise SolveError(summary)
    data = job.engine.read_file(ref, path, cancel=job.cancel, sink=job.log)
    if data is None:
        summary = f"cannot read in-toto attestation: open {path}: no such file or directory"
        raise SolveError(summary)
    return data
