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
    from crossdock.buildkit.client import Client
    from crossdock.cli.command import Globals
    from crossdock.image import Descriptor

__all__ = ["attachment", "inspect"]

_SHORT_TYPES = {
    "index": ("application/vnd.oci.image.index.v1+json",),
    "manifest": ("application/vnd.oci.image.manifest.v1+json",),
    "image": ("application/vnd.oci.image.config.v1+json",),
    "provenance": ("https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"),
    "sbom": ("https://spdx.dev/Document",),
}
#: of the configuration, the titles that are not their names in words
_TITLES = {
    "ExtraHosts": "Extra Hosts",
    "CgroupParent": "Cgroup Parent",
    "ImageResolveMode": "Image Resolve Mode",
    "MultiPlatform": "Multi-Platform",
    "NoCache": "No Cache",
    "NoCacheFilter": "No Cache Filter",
    "ShmSize": "Shm Size",
    "Ulimit": "Resource Limits",
    "MemorySwap": "Memory Swap",
    "CPUShares": "CPU Shares",
    "CPUPeriod": "CPU Period",
    "CPUQuota": "CPU Quota",
    "CPUSetCPUs": "CPUSet CPUs",
    "CPUSetMems": "CPUSet Mems",
    "CacheMountNS": "Cache Mount Namespace",
    "DockerfileCheckConfig": "Dockerfile Check Config",
    "SourceDateEpoch": "Source Date Epoch",
    "SandboxHostname": "Sandbox Hostname",
}


@make_command("inspect [OPTIONS] [REF]", args=(0, 1))
@flag("--format", default="pretty", help="Format the output")
def inspect(globals_: Globals, args: tuple[str, ...], format: str) -> None:
    """Inspect a build record"""
    from crossdock.builders.records import find_one
    from crossdock.cli.recorddetails import record_details

    found = find_one(chosen_builder(globals_), args[0] if args else "")
    plain = format in ("json", "pretty")
    with found.client() as client:
        details = record_details(found, client, full=not plain)
    if format == "json":
        import json

        sys.stdout.write(json.dumps(details, indent=2, ensure_ascii=False) + "\n")
    elif format == "pretty":
        sys.stdout.write(_pretty(found, details, globals_.program, debug=globals_.debug))
    else:
        from crossdock.cli.template import Template

        sys.stdout.write(Template(format).render(details) + "\n")


def _pretty(found: FoundRecord, details: dict[str, Any], program: str, *, debug: bool) -> str:
    record = found.record
    parts = [_lines(_head(details))]
    if details.get("NamedContexts"):
        parts.append(_named("NAMED CONTEXT", details["NamedContexts"]))
    parts.append(_lines(_course(found, details)))
    if details["Config"]:
        parts.append(_lines(list(_config(details["Config"]))))
    for title, key in (("BUILD ARG", "BuildArgs"), ("LABEL", "Labels")):
        if details.get(key):
            parts.append(_named(title, details[key]))
    if details.get("Materials"):
        cells = [(m["URI"], ", ".join(m["Digests"])) for m in details["Materials"]]
        parts.append("Materials:\n" + _table([("URI", "DIGEST"), *cells]))
    if details.get("Attachments"):
        blobs = [(a["Digest"], a.get("Platform", ""), a["Type"]) for a in details["Attachments"]]
        parts.append("Attachments:\n" + _table([("DIGEST", "PLATFORM", "TYPE"), *blobs]))
    if details.get("Error"):
        parts.append(_error(details["Error"], debug=debug))
    last = f"Print build logs: {program} history logs {record.ref}\n"
    return "\n".join([*filter(None, parts), last])


def _head(details: dict[str, Any]) -> list[tuple[str, str]]:
    titles = {"VCSRepository": "VCS Repository", "VCSRevision": "VCS Revision"}
    names = ("Name", "Ref", "Context", "Dockerfile", "VCSRepository", "VCSRevision", "Target")
    rows = [(f"{titles.get(k, k)}:", str(details[k])) for k in names if details.get(k)]
    if details.get("Platform"):
        rows.append(("Platforms:", ", ".join(details["Platform"])))
    if details.get("KeepGitDir"):
        rows.append(("Keep Git Dir:", "true"))
    return rows


def _course(found: FoundRecord, details: dict[str, Any]) -> list[tuple[str, str]]:
    from crossdock.cli.history import duration_text

    record = found.record
    running = " (running)" if record.completed_ns is None else ""
    rows = [
        ("Started:", details["StartedAt"][:19].replace("T", " ")),
        ("Duration:", duration_text(found.duration_s) + running),
    ]
    if details["Status"] == "canceled":
        rows.append(("Status:", "Canceled"))
    elif record.error:
        rows.append(("Error:", record.error))
    share = f" ({record.cached_steps * 100 / record.total_steps:.0f}% cached)" if record.total_steps else ""
    rows.append(("Build Steps:", f"{record.completed_steps}/{record.total_steps}{share}"))
    if record.warnings:
        rows.append(("Warnings:", str(record.warnings)))
    return rows


def _config(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if name == "RestRaw":
            yield from ((f"{pair['Name']}:", pair["Value"]) for pair in value)
            continue
        text = ", ".join(value) if isinstance(value, list) else "true" if value is True else str(value)
        if name in ("Memory", "MemorySwap") and text.isdigit():
            from crossdock.cli.values import human_size

            text = human_size(int(text))
        yield f"{_TITLES.get(name, name)}:", text


def _error(error: dict[str, Any], *, debug: bool) -> str:
    import base64

    out = base64.b64decode(error.get("Sources", "")).decode()
    if error.get("Logs"):
        lines = [f"> => {error.get('Name', '')}:", *(f"> {line}" for line in error["Logs"])]
        out += "\n".join(["Logs:", *lines]) + "\n"
    if debug and error.get("Stack"):
        out += "\n" + base64.b64decode(error["Stack"]).decode() + "\n"
    return out


def _named(title: str, pairs: list[dict[str, str]]) -> str:
    return _table([(title, "VALUE"), *((p["Name"], p.get("Value", "")) for p in pairs)])


def _lines(rows: list[tuple[str, str]]) -> str:
    from crossdock.cli.table import align_columns

    return "".join(line.rstrip() + "\n" for line in align_columns(rows))


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
    if not digest and not platform and not type_:
        summary = "which attachment? at least one of --type, --platform or DIGEST must be given"
        raise UsageError(summary, hint="`history inspect` lists them")
    found = find_one(chosen_builder(globals_), args[0] if args else "")
    with found.client() as client:
        blob = _choose(found, client, digest, platform or "", type_ or "")
        sys.stdout.flush()
        for part in read_blob(client, blob):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _choose(found: FoundRecord, client: Client, digest: str, platform: str, kind: str) -> Descriptor:
    from crossdock.cli.recorddetails import attachments, type_of

    types = _SHORT_TYPES.get(kind, (kind,))
    known = attachments(found, client)
    for where, blob in known:
        if digest:
            if str(blob.digest) == digest:
                return blob
        elif (not kind or type_of(blob) in types) and (not platform or platform == where):
            return blob
    summary = f"build {found.record.ref} has no such attachment"
    listed = ", ".join(dict.fromkeys(type_of(b) for _, b in known)) or "none"
    raise BuilderError(summary, hint=f"its attachments: {listed}")
