"""``history inspect`` and ``history inspect attachment``.

Spec: docker/buildx ``commands/history/inspect.go``, ``inspect_attachment.go``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import chosen_builder
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.builders.records import FoundRecord
    from crossdock.cli.command import Globals
    from crossdock.image import Descriptor

__all__ = ["attachment", "inspect"]

_PREDICATE = "in-toto.io/predicate-type"
_SHORT_TYPES = {
    "index": ("application/vnd.oci.image.index.v1+json",),
    "manifest": ("application/vnd.oci.image.manifest.v1+json",),
    "image": ("application/vnd.oci.image.config.v1+json",),
    "provenance": ("https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"),
    "sbom": ("https://spdx.dev/Document",),
}
#: frontend attributes shown as the build's configuration
_CONFIG = {
    "NoCache": "no-cache",
    "ImageResolveMode": "image-resolve-mode",
    "Network": "force-network-mode",
    "ExtraHosts": "add-hosts",
    "Ulimit": "ulimit",
    "ShmSize": "shm-size",
    "CgroupParent": "cgroup-parent",
}


@make_command("inspect [OPTIONS] [REF]", args=(0, 1))
@flag("--format", default="pretty", help="Format the output")
def inspect(globals_: Globals, args: tuple[str, ...], format: str) -> None:
    """Inspect a build record"""
    from crossdock.builders.records import find_one

    found = find_one(chosen_builder(globals_), args[0] if args else "")
    details = _details(found)
    if format == "json":
        import json

        sys.stdout.write(json.dumps(details, indent=2, ensure_ascii=False) + "\n")
    elif format == "pretty":
        sys.stdout.write(_pretty(found, details, globals_.program))
    else:
        from crossdock.cli.template import Template

        sys.stdout.write(Template(format).render(details) + "\n")


def _details(found: FoundRecord) -> dict[str, Any]:
    from crossdock.cli.history import stamp

    record, local = found.record, found.local
    attrs = record.frontend_attrs
    out: dict[str, Any] = {
        "Name": found.name,
        "Ref": record.ref,
        "Context": attrs.get("context") or local.context,
        "Dockerfile": local.dockerfile or attrs.get("filename", ""),
        "VCSRepository": attrs.get("vcs:source", ""),
        "VCSRevision": attrs.get("vcs:revision", ""),
        "Target": attrs.get("target", ""),
        "Platform": [p for p in attrs.get("platform", "").split(",") if p],
        "NamedContexts": _pairs(attrs, "context:"),
        "StartedAt": stamp(record.created_ns),
        "CompletedAt": stamp(record.completed_ns) if record.completed_ns is not None else "",
        "Duration": int(found.duration_s * 1e9),
        "Status": record.status.lower(),
        "NumCompletedSteps": record.completed_steps,
        "NumTotalSteps": record.total_steps,
        "NumCachedSteps": record.cached_steps,
        "NumWarnings": record.warnings,
        "Error": {"Message": record.error} if record.error else {},
        "BuildArgs": _pairs(attrs, "build-arg:"),
        "Labels": _pairs(attrs, "label:"),
        "Config": {name: attrs[key] for name, key in _CONFIG.items() if key in attrs},
        "Attachments": [_attachment(platform, blob) for platform, blob in _blobs(found)],
    }
    kept = ("Config", "NumCompletedSteps", "NumTotalSteps", "NumCachedSteps", "Name")
    return {k: v for k, v in out.items() if v or k in kept}


def _pairs(attrs: Any, prefix: str) -> list[dict[str, str]]:
    found = {k.removeprefix(prefix): v for k, v in attrs.items() if k.startswith(prefix)}
    return [{"Name": k, "Value": v} for k, v in sorted(found.items())]


def _blobs(found: FoundRecord) -> list[tuple[str, Descriptor]]:
    """Results and attestations by platform, and the images of indexes that are still there."""
    from crossdock.buildkit.history import read_blob
    from crossdock.errors import RemoteError

    record = found.record
    out = [
        (platform, blob)
        for platform in sorted({*record.results, *record.attestations})
        for blob in (*record.results.get(platform, ()), *record.attestations.get(platform, ()))
    ]
    with found.client() as client:
        for _, blob in [b for b in out if "index" in b[1].media_type or "manifest.list" in b[1].media_type]:
            try:
                out += _images(b"".join(read_blob(client, blob)))
            except RemoteError as exc:
                if exc.grpc_code != "NOT_FOUND":
                    raise
    return out


def _images(raw: bytes) -> Iterator[tuple[str, Descriptor]]:
    from crossdock.image import Index, parse_manifest
    from crossdock.image.mediatypes import OCI_INDEX

    index = parse_manifest(raw, OCI_INDEX, "the build's index")
    if isinstance(index, Index):
        for entry in index.manifests:
            if entry.platform is not None and entry.platform.os != "unknown":
                yield str(entry.platform), entry


def _type_of(blob: Descriptor) -> str:
    return blob.annotations.get(_PREDICATE) or blob.media_type


def _attachment(platform: str, blob: Descriptor) -> dict[str, str]:
    out = {"Digest": str(blob.digest), "Platform": platform, "Type": _type_of(blob)}
    return {k: v for k, v in out.items() if v}


def _pretty(found: FoundRecord, details: dict[str, Any], program: str) -> str:
    from crossdock.cli.history import duration_text
    from crossdock.cli.table import align_columns

    record = found.record
    heads = ("Name", "Ref", "Context", "Dockerfile", "VCSRepository", "VCSRevision", "Target")
    titles = {"VCSRepository": "VCS Repository", "VCSRevision": "VCS Revision"}
    rows = [(f"{titles.get(k, k)}:", str(details[k])) for k in heads if details.get(k)]
    if details.get("Platform"):
        rows.append(("Platform:", ", ".join(details["Platform"])))
    parts = ["".join(line + "\n" for line in align_columns(rows))]
    times = [
        ("Started:", details["StartedAt"][:19].replace("T", " ")),
        ("Duration:", duration_text(found.duration_s) + ("+" if record.completed_ns is None else "")),
    ]
    if record.error:
        times.append(("Error:", record.error))
    share = f" ({record.cached_steps * 100 // record.total_steps}% cached)" if record.total_steps else ""
    times.append(("Build Steps:", f"{record.completed_steps}/{record.total_steps}{share}"))
    if record.warnings:
        times.append(("Warnings:", str(record.warnings)))
    parts.append("".join(line + "\n" for line in align_columns(times)))
    for title, key in (("NAMED CONTEXT", "NamedContexts"), ("BUILD ARG", "BuildArgs"), ("LABEL", "Labels")):
        if details.get(key):
            parts.append(_table([(title, "VALUE"), *((p["Name"], p["Value"]) for p in details[key])]))
    if details["Config"]:
        parts.append(_table([("CONFIG", "VALUE"), *details["Config"].items()]))
    if details.get("Attachments"):
        cells = [(a["Digest"], a.get("Platform", ""), a["Type"]) for a in details["Attachments"]]
        parts.append("Attachments:\n" + _table([("DIGEST", "PLATFORM", "TYPE"), *cells]))
    return "\n".join([*parts, f"Print build logs: {program} history logs {record.ref}\n"])


def _table(rows: list[Any]) -> str:
    from crossdock.cli.table import align_columns

    return "".join(line.rstrip() + "\n" for line in align_columns(rows, gap=3))


@make_command("attachment [OPTIONS] [REF [DIGEST]]", args=(0, 2))
@flag("--platform", help="Platform of attachment")
@flag("--type", "type_", help="Type of attachment")
def attachment(globals_: Globals, args: tuple[str, ...], platform: str | None, type_: str | None) -> None:
    """Inspect a build record attachment"""
    from crossdock.builders.records import find_one
    from crossdock.buildkit.history import read_blob

    digest = args[1] if len(args) > 1 else ""
    if digest and (platform or type_):
        summary = "a digest names the attachment: --platform and --type cannot be used with it"
        raise UsageError(summary)
    found = find_one(chosen_builder(globals_), args[0] if args else "")
    blob = _choose(found, digest, platform or "", type_ or "")
    with found.client() as client:
        sys.stdout.flush()
        for part in read_blob(client, blob):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _choose(found: FoundRecord, digest: str, platform: str, kind: str) -> Descriptor:
    types = _SHORT_TYPES.get(kind, (kind,))
    for where, blob in _blobs(found):
        if digest:
            if str(blob.digest) == digest:
                return blob
        elif (not kind or _type_of(blob) in types) and (not platform or platform == where):
            return blob
    known = ", ".join(dict.fromkeys(_type_of(b) for _, b in _blobs(found))) or "none"
    summary = f"build {found.record.ref} has no such attachment"
    raise BuilderError(summary, hint=f"its attachments: {known}")
