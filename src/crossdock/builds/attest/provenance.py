"""The provenance predicate: how a result was made, in SLSA v1 and v0.2, with BuildKit's extensions.

Spec: slsa.dev/spec/v1.1/provenance, slsa.dev/spec/v0.2/provenance; moby/buildkit
``docs/attestations/slsa-definitions.md``, ``solver/llbsolver/provenance/types``. Members stand in the order in which Go
writes them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crossdock.builds.attest.capture import commit_set, materials, redacted
from crossdock.dockerfile.giturl import GitUrlError, parse_git_ref
from crossdock.errors import SolveError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builds.attest.capture import Captured, Material
    from crossdock.builds.attest.requests import ProvenanceOptions
    from crossdock.builds.images import ResolvedSource
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output

__all__ = [
    "SLSA_02",
    "SLSA_1",
    "BuildFacts",
    "as_slsa_02",
    "check_complete",
    "finished",
    "metadata_predicate",
    "predicate",
]

SLSA_1 = "https://slsa.dev/provenance/v1"
SLSA_02 = "https://slsa.dev/provenance/v0.2"
_TYPE_1 = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
_TYPE_02 = "https://mobyproject.org/buildkit@v1"
_EXTENSION_02 = "https://mobyproject.org/buildkit@v1#"
#: of the machine rather than of the build
_HOST_ONLY = frozenset(["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"])
#: only in ``max``, for their values may be confidential
_PRIVATE = ("build-arg:", "label:")
_PROXIES = re.compile(r"build-arg:(?:http|https|ftp|all)_proxy\Z", re.IGNORECASE)
_VCS = "vcs:"

_Json = dict[str, Any]


class BuildFacts(NamedTuple):
    """What is known of a build besides its graph."""

    #: ``dockerfile.v0`` or ``gateway.v0``; ``""`` for a graph that the client made
    frontend: str
    #: the frontend's attributes
    attrs: Mapping[str, str]
    #: tells this run from all others
    invocation_id: str
    started_ns: int
    #: images the frontend asked about
    resolved: Sequence[ResolvedSource] = ()
    #: graphs solved on the way, for a Dockerfile that is remote
    also: Sequence[Output] = ()
    #: local directories read without a vertex
    locals: Sequence[str] = ()
    #: where the Dockerfile comes from, as a graph would have it
    definition: Output | None = None
    #: the machine's own
    builder_platform: Platform | None = None
    #: version of the frontend
    builder_version: str = ""


def predicate(options: ProvenanceOptions, facts: BuildFacts, found: Captured) -> _Json:
    """Return the predicate in SLSA v1, without what only ``max`` has and without the time of the end."""
    listed = materials(found)
    args = _filtered(facts.attrs)
    vcs = _take_vcs(args)
    source = _config_source(args, found)
    minimal = options.mode == "min"
    complete = bool(facts.frontend)
    if minimal and any(name.startswith(_PRIVATE) for name in args):
        complete = False
        args = {name: value for name, value in args.items() if not name.startswith(_PRIVATE)}
    incomplete = found.incomplete or bool(found.locals)
    metadata: _Json = {"invocationId": facts.invocation_id, "startedOn": _time(facts.started_ns)}
    metadata["buildkit_metadata"] = {"vcs": vcs} if vcs else {}
    if not incomplete and not found.network:
        metadata["buildkit_hermetic"] = True
    metadata["buildkit_completeness"] = {"request": complete, "resolvedDependencies": not incomplete}
    if options.reproducible:
        metadata["buildkit_reproducible"] = True
    definition: _Json = {"buildType": _TYPE_1}
    if listed:
        definition["resolvedDependencies"] = [_dependency(one) for one in listed]
    definition["externalParameters"] = {
        "configSource": source,
        "request": _request(facts.frontend, args, found, minimal=minimal),
    }
    definition["internalParameters"] = {"builderPlatform": str(facts.builder_platform or "")}
    builder: _Json = {"id": options.builder_id}
    if facts.builder_version:
        builder["version"] = {"crossdock": facts.builder_version}
    return {"buildDefinition": definition, "runDetails": {"builder": builder, "metadata": metadata}}


def check_complete(options: ProvenanceOptions, found: Captured) -> None:
    """Hold a build to ``complete-materials``. Raises: SolveError naming what is not known by a digest."""
    if not options.complete_materials or not (found.incomplete or found.locals):
        return
    lines = [f"  - {name or '<unnamed>'}: local directory" for name in found.locals]
    if found.incomplete:
        lines.append("  - a nested build")
    summary = "provenance materials are incomplete"
    error = SolveError(summary, hint="build from a Git URL, or leave out complete-materials=true")
    error.detail = "\n".join(["not known by a digest:", *lines])
    raise error


def _dependency(one: Material) -> _Json:
    return {"uri": one.uri, "digest": dict(one.digest)} if one.digest else {"uri": one.uri}


def _request(frontend: str, args: Mapping[str, str], found: Captured, *, minimal: bool) -> _Json:
    out: _Json = {}
    if frontend:
        out["frontend"] = frontend
    if args:
        out["args"] = dict(sorted(args.items()))
    if not minimal:
        for key, names in (("secrets", found.secrets), ("ssh", found.ssh)):
            if names:
                out[key] = [
                    {"id": name, "optional": True} if names[name] else {"id": name} for name in sorted(names)
                ]
    if found.locals:
        out["locals"] = [{"name": name} for name in found.locals]
    return out


def _filtered(attrs: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is the machine's, mask logins in URLs."""
    context = attrs.get("contextkey") or "context"
    out: dict[str, str] = {}
    for name, value in attrs.items():
        if name in _HOST_ONLY or name.startswith("attest:"):
            continue
        masked = name == context or name.startswith("context:") or _PROXIES.match(name)
        out[name] = redacted(value) if masked else value
    return out


def _take_vcs(args: dict[str, str]) -> dict[str, str]:
    vcs: dict[str, str] = {}
    for name in sorted(args):
        if name.startswith(_VCS):
            value = args.pop(name)
            if value:
                vcs[name.removeprefix(_VCS)] = redacted(value) if name == "vcs:source" else value
    return vcs


def _config_source(args: dict[str, str], found: Captured) -> _Json:
    """Take out of the arguments where the Dockerfile comes from."""
    key = args.get("contextkey") or ("input:context" if args.get("input:context") else "context")
    source: _Json = {}
    uri = args.pop(key, "")
    if uri:
        source.update(_located(uri, found))
    path = args.pop("filename", "")
    if path:
        source["path"] = path
    return source


def _located(uri: str, found: Captured) -> _Json:
    try:
        git = parse_git_ref(uri)
    except GitUrlError:
        git = None
    if git is not None:
        remote = redacted(f"https://{git.remote}" if git.local_looking else git.remote)
        plain = remote + (f"#{git.ref}" if git.ref else "")
        shown = remote + (
            f"#{git.ref}" + (f":{git.subdir}" if git.subdir else "") if git.ref or git.subdir else ""
        )
        digest = commit_set(found.git.get(plain, ""))
        return {"uri": shown, "digest": digest} if digest else {"uri": shown}
    uri = redacted(uri)
    algorithm, colon, digits = found.http.get(uri, "").partition(":")
    return {"uri": uri, "digest": {algorithm: digits}} if colon else {"uri": uri}


def _time(time_ns: int) -> str:
    from crossdock.engine.exporters.history import format_time

    return format_time(time_ns)


def finished(one: _Json, time_ns: int) -> None:
    """Note when the build ended."""
    metadata = one["runDetails"]["metadata"]
    later = {key: value for key, value in metadata.items() if key not in ("invocationId", "startedOn")}
    for key in later:
        del metadata[key]
    metadata["finishedOn"] = _time(time_ns)
    metadata.update(later)


def metadata_predicate(made: _Json, predicate_type: str, mode: str) -> _Json:
    """Return a predicate as a build's metadata has it: always SLSA v0.2; in ``min`` without steps and metadata.

    Spec: docker/buildx ``build/provenance.go``.
    """
    out = as_slsa_02(made) if predicate_type == SLSA_1 else {**made}
    if mode == "min":
        out.pop("buildConfig", None)
        out.pop("metadata", None)
    return out


def as_slsa_02(one: Mapping[str, Any]) -> _Json:
    """Return a v1 predicate as v0.2."""
    definition, run = one["buildDefinition"], one["runDetails"]
    external, internal = definition["externalParameters"], definition["internalParameters"]
    source = external["configSource"]
    out: _Json = {"builder": {"id": run["builder"]["id"]}, "buildType": _TYPE_02}
    if definition.get("resolvedDependencies"):
        out["materials"] = definition["resolvedDependencies"]
    # What a daemon's own environment adds is flat beside the platform.
    environment = {k: v for k, v in internal.items() if k not in ("builderPlatform", "buildConfig")}
    out["invocation"] = {
        "configSource": {
            **{key: source[key] for key in ("uri", "digest") if key in source},
            **({"entryPoint": source["path"]} if "path" in source else {}),
        },
        "parameters": external["request"],
        "environment": {"platform": internal["builderPlatform"], **environment},
    }
    if "buildConfig" in internal:
        out["buildConfig"] = internal["buildConfig"]
    if "metadata" in run:
        out["metadata"] = _metadata_02(run["metadata"])
    return out


def _metadata_02(metadata: Mapping[str, Any]) -> _Json:
    complete = metadata["buildkit_completeness"]
    renamed: _Json = {
        "buildInvocationID": metadata["invocationId"],
        "buildStartedOn": metadata["startedOn"],
    }
    if "finishedOn" in metadata:
        renamed["buildFinishedOn"] = metadata["finishedOn"]
    renamed["completeness"] = {
        "parameters": complete["request"],
        "environment": True,
        "materials": complete["resolvedDependencies"],
    }
    renamed["reproducible"] = metadata.get("buildkit_reproducible", False)
    renamed[_EXTENSION_02 + "metadata"] = metadata["buildkit_metadata"]
    if metadata.get("buildkit_hermetic"):
        renamed[_EXTENSION_02 + "hermetic"] = True
    return renamed
