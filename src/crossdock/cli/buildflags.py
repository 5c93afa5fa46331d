"""From the flags of ``build`` to a request, and the files and warnings after it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from crossdock.errors import ExportError, NotSupported, UsageError, translate
from crossdock.wholefile import replaceable, write_whole

if TYPE_CHECKING:
    from io import BufferedReader

    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.llb.policyrules import Policy

__all__ = ["display_mode", "print_warnings", "request_of", "warn_ignored", "write_files"]

_LEGACY_RESOURCES = (
    "memory",
    "memory_swap",
    "cpu_shares",
    "cpu_period",
    "cpu_quota",
    "cpuset_cpus",
    "cpuset_mems",
)
_RESOURCES = frozenset(name.replace("_", "-") for name in _LEGACY_RESOURCES)
_SNIFFED_BYTES = 1024
_MAX_DOCKERFILE_BYTES = 2 << 20


def display_mode(flags: dict[str, Any]) -> str:
    """Settle on the progress mode.

    Raises: UsageError.
    """
    from crossdock.progress.display import choose_mode

    return choose_mode(flags["progress"], quiet=flags["quiet"])


def warn_ignored(flags: dict[str, Any]) -> None:
    """Tell about legacy flags that have no effect, as buildx does."""
    texts = {
        "isolation": "isolation flag is deprecated with BuildKit.",
        "security_opt": 'security-opt flag is deprecated. "RUN --security=insecure" should be used with BuildKit.',
        "squash": "experimental flag squash is removed with BuildKit. You should squash inside build using a "
        "multi-stage Dockerfile for efficiency.",
    }
    for name, text in texts.items():
        if flags[name]:
            sys.stderr.write(f"WARNING: {text}\n")


def request_of(context: str, flags: dict[str, Any]) -> BuildRequest:
    """Make the request; reads standard input when ``-`` says so.

    Raises: UsageError, NotSupported.
    """
    from crossdock.api import make_request
    from crossdock.builders import parse

    if flags["policy"]:
        summary = "--policy is not supported: this version evaluates no policies"
        raise NotSupported(summary)
    if flags["iidfile"] and any(parse.parse_output(o).type in ("local", "tar") for o in flags["output"]):
        summary = "local and tar exporters are incompatible with image ID file"
        raise UsageError(summary)
    context, dockerfile = _inputs(context, flags["file"])
    return make_request(
        context,
        dockerfile=dockerfile,
        tags=flags["tag"],
        platforms=flags["platform"] or _default_platforms(),
        push=flags["push"],
        load=flags["load"],
        outputs=flags["output"],
        cache_from=flags["cache_from"],
        cache_to=flags["cache_to"],
        attests=parse.parse_attests(
            flags["attest"], provenance=flags["provenance"] or "", sbom=flags["sbom"] or ""
        ),
        build_args=parse.parse_build_args(flags["build_arg"], os.environ),
        labels=parse.parse_labels(flags["label"]),
        target=flags["target"] or "",
        named_contexts=parse.parse_contexts(flags["build_context"]),
        no_cache=flags["no_cache"],
        explain=flags["explain"],
        no_cache_filter=_no_cache_filter(flags),
        pull=flags["pull"],
        network=_network(flags["network"]),
        add_hosts=_commas(flags["add_host"]),
        shm_size=flags["shm_size"],
        ulimits=flags["ulimit"],
        cgroup_parent=flags["cgroup_parent"] or "",
        allow=_grants(flags["allow"]),
        secrets=tuple(parse.parse_secret(s) for s in flags["secret"]),
        ssh=flags["ssh"],
        annotations=flags["annotation"],
        resources=_resources(flags),
        call=_call(flags),
        metadata_provenance=_metadata_provenance(flags),
        source_policy=_source_policy(),
    )


def _inputs(context: str, file: str | None) -> tuple[str, str | bytes | None]:
    """Sort out what comes from standard input."""
    if context == "-" and file == "-":
        summary = "invalid argument: can't use stdin for both build context and dockerfile"
        raise UsageError(summary)
    if file == "-":
        return context, _read_stdin()
    if context != "-":
        return context, file
    if _is_archive_on_stdin():
        return "-", file
    data = _read_stdin()
    if file:
        summary = "--file cannot be combined with a Dockerfile on standard input"
        raise UsageError(summary)
    return "", data


def _is_archive_on_stdin() -> bool:
    """Look at the first bytes of standard input; an archive is put into a file that takes its place, read from 0."""
    from crossdock.dockerfile.contexts import is_archive

    stdin = cast("BufferedReader", sys.stdin.buffer)
    if not is_archive(stdin.peek(_SNIFFED_BYTES)[:_SNIFFED_BYTES]):
        return False
    import shutil
    import tempfile

    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stdin, spool)
        spool.flush()
        os.dup2(spool.fileno(), 0)
    os.lseek(0, 0, os.SEEK_SET)
    return True


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read(_MAX_DOCKERFILE_BYTES + 1)
    if not data:
        summary = "standard input is empty"
        raise UsageError(summary, hint="pipe a Dockerfile into the command")
    return data


def _default_platforms() -> list[str]:
    value = os.environ.get("DOCKER_DEFAULT_PLATFORM")
    return [value] if value else []


def _no_cache_filter(flags: dict[str, Any]) -> tuple[str, ...]:
    stages = _commas(flags["no_cache_filter"])
    if stages and flags["no_cache"]:
        summary = "cannot specify both --no-cache and --no-cache-filter"
        raise UsageError(summary)
    return stages


def _commas(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def _grants(values: tuple[str, ...]) -> tuple[str, ...]:
    """Split at commas, which older clients did, but for devices, whose options they divide."""
    parts = ((value,) if value.startswith("device=") else _commas((value,)) for value in values)
    return tuple(grant for group in parts for grant in group)


def _network(mode: str) -> str:
    if mode not in ("", "default", "host", "none"):
        summary = f"network mode {mode!r} not supported"
        raise UsageError(summary, hint="modes: default, host, none")
    return mode or "default"


def _resources(flags: dict[str, Any]) -> dict[str, str]:
    found = {n.replace("_", "-"): str(flags[n]) for n in _LEGACY_RESOURCES if flags[n] is not None}
    for item in flags["resource"]:
        key, equals, value = item.partition("=")
        if not equals or key not in _RESOURCES:
            summary = f"invalid resource {item!r}"
            raise UsageError(summary, hint=f"resources: {', '.join(sorted(_RESOURCES))}")
        found[key] = value
    return found


def _metadata_provenance(flags: dict[str, Any]) -> str:
    """How much provenance the metadata file shall hold: ``$BUILDX_METADATA_PROVENANCE``, ``min`` when unset."""
    mode = os.environ.get("BUILDX_METADATA_PROVENANCE", "min").lower()
    if not flags["metadata_file"] or mode in ("disabled", "false", "0"):
        return ""
    return mode if mode == "max" else "min"


def _source_policy() -> Policy | None:
    """Read the rules for sources that ``$EXPERIMENTAL_BUILDKIT_SOURCE_POLICY`` names."""
    name = os.environ.get("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY")
    if not name:
        return None
    from crossdock.llb.policyrules import parse_policy

    try:
        data = Path(name).read_bytes()
    except OSError as exc:
        summary = f"failed to read policy file: {name}: {exc.strerror}"
        raise UsageError(summary, hint="EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names it") from exc
    return parse_policy(data, name)


def _call(flags: dict[str, Any]) -> str:
    value = flags["print_"] or ("check" if flags["check"] else flags["call"]) or "build"
    method = value.partition(",")[0]
    return "lint" + value[len(method) :] if method == "check" else value


def write_files(result: BuildResult, flags: dict[str, Any]) -> None:
    """Write ``--iidfile`` and ``--metadata-file``, each at once or not at all.

    Raises: ExportError.
    """
    if flags["iidfile"]:
        _write(flags["iidfile"], result.image_id)
    if flags["metadata_file"]:
        metadata = {k: v for k, v in result.metadata.items() if not k.startswith("result.")}
        if os.environ.get("BUILDX_METADATA_WARNINGS", "").lower() in ("1", "true") and result.warnings:
            from crossdock.progress.rawjson import event_to_json

            metadata["buildx.build.warnings"] = [event_to_json(w)[1] for w in result.warnings]
        _write(flags["metadata_file"], json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False))


def _write(path: str, text: str) -> None:
    def refuse(exc: BaseException) -> ExportError:
        return ExportError(f"cannot write {path}: {exc}")

    with translate({OSError: refuse}):
        if replaceable(path):
            write_whole(path, text.encode(), mode=0o666)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)


def print_warnings(result: BuildResult, *, debug: bool) -> None:
    """Summarise warnings after the build, all details with ``debug``.

    Spec: docker/buildx ``commands/build.go`` (printWarnings).
    """
    warnings = result.warnings
    if not warnings:
        return
    out = [f"\n {len(warnings)} warning{'s' if len(warnings) > 1 else ''} found"]
    out[0] += ":" if debug or len(warnings) <= 10 else " (use docker --debug to expand):"
    for warning in warnings if debug else warnings[:10]:
        line = f" - {warning.short}"
        # Findings of a Dockerfile frontend end in it.
        if warning.source is not None and not line.endswith(here := f" (line {warning.source.start.line})"):
            line += here
        out.append(line)
        if debug:
            out += [f"   {detail}" for detail in warning.detail]
            if warning.url:
                out.append(f"   More info: {warning.url}")
    sys.stderr.write("\n".join(out) + "\n")
