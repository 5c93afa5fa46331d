"""What ``history inspect`` tells of a build record: the daemon's record, its blobs, and what this client remembers.

Spec: docker/buildx ``commands/history/inspect.go``; names and order are those of its JSON.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.details import decode_details, source_of, vertex_of
from crossdock.buildkit.history import has_blob, read_blob, record_events
from crossdock.progress import Vertex, VertexLog
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crossdock.builders.records import FoundRecord
    from crossdock.buildkit.client import Client
    from crossdock.errors import SourceRange
    from crossdock.image import Descriptor

__all__ = ["Attachment", "Failure", "attachments", "failure_of", "record_details", "time_text", "type_of"]

_PREDICATE = "in-toto.io/predicate-type"
_PROVENANCE = "https://slsa.dev/provenance/"
_REFERENCE = "vnd.docker.reference.type"
_LAST_LINES = 16
_STATUS = {"Running": "running", "Completed": "completed", "Canceled": "canceled", "Error": "failed"}
_KEEP_GIT_DIR, _MULTI_PLATFORM = (
    "build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "build-arg:BUILDKIT_MULTI_PLATFORM",
)
#: the build's configuration: names and attributes, in order
_CONFIG = {
    "Network": "force-network-mode",
    "ExtraHosts": "add-hosts",
    "Hostname": "hostname",
    "CgroupParent": "cgroup-parent",
    "ImageResolveMode": "image-resolve-mode",
    "MultiPlatform": "multi-platform",
    "NoCache": "no-cache",
    "NoCacheFilter": "no-cache",
    "ShmSize": "shm-size",
    "Ulimit": "ulimit",
    "Memory": "memory",
    "MemorySwap": "memswap",
    "CPUShares": "cpushares",
    "CPUPeriod": "cpuperiod",
    "CPUQuota": "cpuquota",
    "CPUSetCPUs": "cpusetcpus",
    "CPUSetMems": "cpusetmems",
    "CacheMountNS": "build-arg:BUILDKIT_CACHE_MOUNT_NS",
    "DockerfileCheckConfig": "build-arg:BUILDKIT_DOCKERFILE_CHECK",
    "SourceDateEpoch": "build-arg:SOURCE_DATE_EPOCH",
    "SandboxHostname": "build-arg:SANDBOX_HOSTNAME",
}
_SHOWN_ELSEWHERE = ("vcs:", "build-arg:", "label:", "context:", "attest:")
_NUMBERS = ("NumCompletedSteps", "NumTotalSteps", "NumCachedSteps")


class Attachment(NamedTuple):
    """A blob of a record and the platform that it belongs to, empty for the whole."""

    platform: str
    blob: Descriptor


class Failure(NamedTuple):
    """How a build failed: the step, its last lines, the place in the build file, the daemon's stack."""

    name: str
    logs: tuple[str, ...]
    source: SourceRange | None
    stack: str


def type_of(blob: Descriptor) -> str:
    """Return the type of an attachment: its predicate's, else its media type."""
    return blob.annotations.get(_PREDICATE) or blob.media_type


def attachments(found: FoundRecord, client: Client) -> list[Attachment]:
    """Return results and attestations, and what indexes among them name and the daemon still has."""
    record = found.record
    out: list[Attachment] = []
    for platform in {**record.results, **record.attestations}:
        out += [Attachment(platform, blob) for blob in record.attestations.get(platform, ())]
        for blob in record.results.get(platform, ()):
            out += _walk(client, platform, blob)
    return sorted(out, key=lambda a: (a.platform, type_of(a.blob)))


def _walk(client: Client, platform: str, blob: Descriptor) -> Iterator[Attachment]:
    if not has_blob(client, blob):
        return
    if blob.annotations.get(_REFERENCE) != "attestation-manifest":
        yield Attachment(platform, blob)
    if "index" not in blob.media_type and "manifest.list" not in blob.media_type:
        return
    from crossdock.image import Index, parse_manifest

    index = parse_manifest(b"".join(read_blob(client, blob)), blob.media_type, "the build's index")
    for entry in index.manifests if isinstance(index, Index) else ():
        yield from _walk(client, str(entry.platform) if entry.platform is not None else platform, entry)


def failure_of(found: FoundRecord, client: Client) -> Failure | None:
    """Return how a build failed, as far as the daemon kept it (v0.20 and later)."""
    blob = found.record.external_error
    if blob is None:
        return None
    details = decode_details(b"".join(read_blob(client, blob)))
    vertex = vertex_of(details)
    name, logs = _vertex_logs(found, client, vertex) if vertex else ("", ())
    stacks = [detail for kind, detail in details if kind == "stack.Stack"]
    return Failure(name, logs, source_of(details), "\n\n".join(map(_stack, stacks)))


def _vertex_logs(found: FoundRecord, client: Client, vertex: str) -> tuple[str, tuple[str, ...]]:
    name, data = "", b""
    for event in record_events(client, found.record) if found.record.logs is not None else ():
        if isinstance(event, Vertex) and event.digest == vertex:
            name = event.name
        elif isinstance(event, VertexLog) and event.vertex == vertex:
            data += event.data
    lines = [line for line in data.decode(errors="replace").splitlines() if line]
    return name, tuple(lines[-_LAST_LINES:])


def _stack(stack: Mapping[str, Any]) -> str:
    frames = [
        f"{f.get('Name', '')}\n\t{f.get('File', '')}:{f.get('Line', 0)}" for f in stack.get("frames") or ()
    ]
    head = [str(stack.get(k, "")) for k in ("pid", "version")] + [" ".join(stack.get("cmdline") or ())]
    return "\n".join([" ".join(head), *frames])


def record_details(found: FoundRecord, client: Client, *, full: bool = False) -> dict[str, Any]:
    """Return everything; what is empty is left out unless ``full``, which templates want."""
    record = found.record
    attrs = {k: v for k, v in record.frontend_attrs.items() if k != "frontend.caps"}
    errors: list[str] = []
    context, dockerfile = _places(found, attrs)
    is_local = "context" not in attrs
    blobs = attachments(found, client)
    out: dict[str, Any] = {
        "Name": found.name,
        "Ref": record.ref,
        "Context": context,
        "Dockerfile": dockerfile,
        "VCSRepository": attrs.get("vcs:source", "") if is_local else "",
        "VCSRevision": attrs.get("vcs:revision", "") if is_local else "",
        "Target": attrs.pop("target", ""),
        "Platform": [p for p in attrs.pop("platform", "").split(",") if p],
        "KeepGitDir": _flag(attrs.pop(_KEEP_GIT_DIR, ""), errors),
        "NamedContexts": _pairs(attrs, "context:"),
        **_times(found),
        "Status": _STATUS[record.status],
        "Error": _error(found, client),
        "NumCompletedSteps": record.completed_steps,
        "NumTotalSteps": record.total_steps,
        "NumCachedSteps": record.cached_steps,
        "NumWarnings": record.warnings,
    }
    config = _config(attrs, errors)
    out |= {
        "BuildArgs": _pairs(attrs, "build-arg:"),
        "Labels": _pairs(attrs, "label:"),
        "Config": config if full else _filled(config),
        "Materials": _materials(client, blobs),
        "Attachments": [
            _filled({"Digest": str(b.digest), "Platform": p, "Type": type_of(b)}) for p, b in blobs
        ],
        "Errors": errors,
    }
    return out if full else {k: v for k, v in out.items() if v or k in (*_NUMBERS, "Config", "Ref")}


def _places(found: FoundRecord, attrs: dict[str, str]) -> tuple[str, str]:
    """Context and Dockerfile: relative to here and to the context when they are below."""
    local = found.local
    context, dockerfile = local.context, local.dockerfile
    if dockerfile and dockerfile != "-":
        dockerfile = _below(dockerfile, context)
    if context:
        context = _below(context, os.getcwd())
    if not context:
        context = attrs.pop("context", "")
    filename = attrs.pop("filename", "")
    if not dockerfile and filename:
        dockerfile = os.path.normpath(os.path.join(attrs.get("vcs:localdir:dockerfile", ""), filename))
    return context, dockerfile


def _below(path: str, folder: str) -> str:
    if not os.path.isabs(path) or not os.path.isabs(folder):
        return path
    relative = os.path.relpath(path, folder)
    return path if relative == ".." or relative.startswith("../") else relative


def _times(found: FoundRecord) -> dict[str, Any]:
    record = found.record
    return {
        "StartedAt": time_text(record.created_ns),
        "CompletedAt": time_text(record.completed_ns) if record.completed_ns is not None else "",
        "Duration": int(found.duration_s * 1e9)
        if record.completed_ns is None
        else record.completed_ns - record.created_ns,
    }


def time_text(time_ns: int) -> str:
    """Format a time as Go's JSON does, in this machine's zone."""
    from datetime import datetime

    at = datetime.fromtimestamp(time_ns // 10**9).astimezone()
    fraction = f"{time_ns % 10**9:09}".rstrip("0")
    zone = at.strftime("%z")
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return f"{at:%Y-%m-%dT%H:%M:%S}{'.' + fraction if fraction else ''}{zone}"


def _error(found: FoundRecord, client: Client) -> dict[str, Any]:
    import base64

    from crossdock.cli.render import source_excerpt

    record = found.record
    if not record.error and record.external_error is None:
        return {}
    out: dict[str, Any] = {"Code": record.error_code, "Message": record.error}
    failure = failure_of(found, client)
    if failure is not None:
        sources = source_excerpt(failure.source) + "\n" if failure.source is not None else ""
        out |= {
            "Name": failure.name,
            "Logs": list(failure.logs),
            "Sources": base64.b64encode(sources.encode()).decode(),
            "Stack": base64.b64encode(failure.stack.encode()).decode(),
        }
    return _filled(out)


def _config(attrs: dict[str, str], errors: list[str]) -> dict[str, Any]:
    multi = attrs.pop(_MULTI_PLATFORM, "")
    no_cache = attrs.get("no-cache")
    found: dict[str, Any] = {name: attrs.get(key, "") for name, key in _CONFIG.items()}
    found |= {
        "ExtraHosts": [h for h in found["ExtraHosts"].split(",") if h],
        "MultiPlatform": _flag(found["MultiPlatform"] or multi, errors),
        "NoCache": no_cache == "",
        "NoCacheFilter": [s for s in (no_cache or "").split(",") if s],
    }
    for key in _CONFIG.values():
        attrs.pop(key, None)
    rest = {k: v for k, v in attrs.items() if not k.startswith(_SHOWN_ELSEWHERE)}
    found["RestRaw"] = [{"Name": k, "Value": v} for k, v in sorted(rest.items())]
    return found


def _flag(text: str, errors: list[str]) -> bool:
    from crossdock.builders.values import parse_bool
    from crossdock.errors import UsageError

    try:
        return bool(text) and parse_bool(text, "attribute")
    except UsageError as exc:
        errors.append(f"failed to parse {text}: ({exc.summary})")
        return False


def _pairs(attrs: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
    found = {k.removeprefix(prefix): v for k, v in attrs.items() if k.startswith(prefix)}
    return [_filled({"Name": k, "Value": v}) for k, v in sorted(found.items())]


def _materials(client: Client, blobs: list[Attachment]) -> list[dict[str, Any]]:
    """What went into the build, by its provenance."""
    kept = next((b.blob for b in blobs if type_of(b.blob).startswith(_PROVENANCE)), None)
    if kept is None:
        return []
    predicate: dict[str, Any] = {}
    with suppress(ValueError):
        predicate = json.loads(b"".join(read_blob(client, kept)))
    definition = predicate.get("buildDefinition") or {}
    listed = definition.get("resolvedDependencies") or predicate.get("materials") or ()
    return [
        {"URI": m.get("uri", ""), "Digests": [f"{k}:{v}" for k, v in (m.get("digest") or {}).items()]}
        for m in listed
    ]


def _filled(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if v}
