"""From flags and API arguments to the typed parts of a build request.

Spec: docker/buildx ``util/buildflags``, ``build/opt.go``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from crossdock.builders.request import OutputSpec, SecretSpec
from crossdock.builders.values import csv_fields, parse_bool
from crossdock.errors import UsageError
from crossdock.image.reference import parse_reference
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "is_remote_context",
    "parse_attests",
    "parse_build_args",
    "parse_cache_entries",
    "parse_contexts",
    "parse_labels",
    "parse_output",
    "parse_secret",
    "parse_tags",
    "with_load",
    "with_push",
]

_TYPES = frozenset(["image", "registry", "oci", "docker", "local", "tar", "cacheonly"])
#: written to standard output when no dest is given
_TO_STDOUT = frozenset(["tar", "oci"])
_MAX_SECRET_BYTES = 500 * 1024


def parse_output(text: str) -> OutputSpec:
    """Read one ``--output``: ``type=T,key=value,…``, a directory, or ``-`` for a tar on standard output.

    Raises: UsageError.
    """
    fields = csv_fields(text)
    if len(fields) == 1 and "=" not in text:
        return check_output(OutputSpec(type="tar" if text == "-" else "local", dest=text))
    if len(fields) == 1 and not text.startswith("type="):
        return OutputSpec(type="local", dest=text)
    attrs: dict[str, str] = {}
    for item in fields:
        key, equals, value = item.partition("=")
        if not equals:
            summary = f"invalid value {item}"
            raise UsageError(summary, hint="an output is type=TYPE,key=value,…")
        attrs[key.strip().lower()] = value
    kind, dest = attrs.pop("type", ""), attrs.pop("dest", "")
    return check_output(OutputSpec(type=kind, attrs=attrs, dest=dest))


def check_output(output: OutputSpec) -> OutputSpec:
    """Refuse an output that cannot work; ``registry`` becomes an ``image`` that is pushed.

    Raises: UsageError.
    """
    if not output.type:
        summary = "type is required for output"
        raise UsageError(summary, hint=f"types: {', '.join(sorted(_TYPES))}")
    if output.type not in _TYPES:
        summary = f"unsupported output type {output.type!r}"
        raise UsageError(summary, hint=f"types: {', '.join(sorted(_TYPES))}")
    if output.type == "local" and not output.dest:
        summary = "dest is required for local output"
        raise UsageError(summary, hint="for example -o type=local,dest=out")
    if output.type in ("image", "registry") and output.dest:
        summary = f"{output.type} output takes no dest"
        raise UsageError(summary, hint="use type=oci or type=docker to write a file")
    if output.type == "local" and output.dest == "-":
        summary = "local output cannot go to standard output"
        raise UsageError(summary, hint="use type=tar,dest=-")
    if output.dest == "-" or (output.type in _TO_STDOUT and not output.dest):
        if sys.stdout.isatty():
            summary = f"dest file is required for {output.type} output: refusing to write to the terminal"
            raise UsageError(summary, hint=f"for example -o type={output.type},dest=out.tar")
        return replace(output, dest="-")
    if output.type == "registry":
        return OutputSpec(type="image", attrs={"push": "true", "unpack": "false", **output.attrs})
    return output


def with_push(outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
    """Apply ``--push``: image outputs are pushed; without one, a registry output is added."""
    if not any(o.type == "image" for o in outputs):
        return (*outputs, check_output(OutputSpec(type="registry")))
    return tuple(
        OutputSpec(type="image", attrs={**o.attrs, "push": "true", "unpack": "false"})
        if o.type == "image"
        else o
        for o in outputs
    )


def with_load(outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
    """Apply ``--load``: a docker output into the engine is added unless there is one."""
    if any(o.type == "docker" and not o.dest for o in outputs):
        return tuple(outputs)
    return (*outputs, OutputSpec(type="docker"))


def parse_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Check tags; each is returned as the full name, ``docker.io/library/app:latest``.

    Raises: UsageError for a malformed name or one with a digest.
    """
    out: dict[str, None] = {}
    for tag in tags:
        reference = parse_reference(tag)
        if reference.digest:
            summary = f"invalid tag {tag!r}: a tag cannot have a digest"
            raise UsageError(summary)
        out.setdefault(str(reference.with_default_tag()))
    return tuple(out)


def parse_build_args(values: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Read ``K=V``; a bare ``K`` takes the caller's environment, and is dropped when unset there."""
    out: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if equals:
            out[key] = rest
        elif key in environ:
            out[key] = environ[key]
    return out


def parse_labels(values: Iterable[str]) -> dict[str, str]:
    """Read ``K=V``; a bare ``K`` is an empty label."""
    return {k: v for k, _, v in (value.partition("=") for value in values) if k}


def parse_contexts(values: Iterable[str]) -> dict[str, str]:
    """Read ``name=value`` named contexts; names are normalised as image names, ``:latest`` dropped.

    Raises: UsageError.
    """
    out: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals:
            summary = f"invalid context value: {value}, expected key=value"
            raise UsageError(summary)
        base, _, platform = name.partition("::")
        short = parse_reference(base).familiar.removesuffix(":latest")
        out[f"{short}::{platform}" if platform else short] = rest
    return out


def parse_secret(text: str) -> SecretSpec:
    """Read ``id=…[,type=file|env][,src=…][,env=…]``; without a source, a variable or file of that name.

    Raises: UsageError.
    """
    parts: dict[str, str] = {}
    for item in csv_fields(text):
        key, equals, value = item.partition("=")
        key = {"source": "src"}.get(key.lower(), key.lower())
        if not equals:
            summary = f"invalid field '{item}' must be a key=value pair"
            raise UsageError(summary)
        if key not in ("id", "type", "src", "env"):
            summary = f"unexpected key '{key}' in '{item}'"
            raise UsageError(summary, hint="keys: id, type, src, env")
        parts[key] = value
    kind, src, env = parts.get("type", ""), parts.get("src", ""), parts.get("env", "")
    name = parts.get("id", "")
    if kind not in ("", "file", "env"):
        summary = f"unsupported secret type {kind!r}"
        raise UsageError(summary, hint="types: file, env")
    if not name:
        summary = f"secret without id: {text!r}"
        raise UsageError(summary, hint="write id=NAME,src=FILE")
    if kind == "env" and not env:
        env, src = src, ""
    if not src and not env:
        env, src = (name, "") if kind == "env" or (kind != "file" and name in os.environ) else ("", name)
    return SecretSpec(id=name, path="" if env else src, env=env)


def parse_cache_entries(values: Iterable[str]) -> tuple[dict[str, str], ...]:
    """Read ``type=T,…``; a value without ``=`` lists registry references.

    Raises: UsageError.
    """
    out: list[dict[str, str]] = []
    for value in values:
        fields = csv_fields(value)
        if not any("=" in f for f in fields):
            out += [{"type": "registry", "ref": ref} for ref in fields if ref]
            continue
        entry: dict[str, str] = {}
        for item in fields:
            key, equals, rest = item.partition("=")
            if not equals:
                summary = f"invalid value {item}"
                raise UsageError(summary, hint="a cache is type=TYPE,key=value,… or a registry reference")
            entry[key.lower()] = rest
        if not entry.get("type"):
            summary = f"type required for cache entry {value!r}"
            raise UsageError(summary)
        out.append(entry)
    return tuple(out)


def parse_attests(
    values: Iterable[str], *, provenance: str = "", sbom: str = ""
) -> dict[str, dict[str, str] | None]:
    """Read ``--attest`` and its two shorthands; ``None`` switches a type off.

    Raises: UsageError for a repeated or missing type.
    """
    texts = [*values]
    for kind, value in (("provenance", provenance), ("sbom", sbom)):
        if value:
            texts.append(_canonical_attest(kind, value))
    out: dict[str, dict[str, str] | None] = {}
    for text in texts:
        entry = {k.lower(): v for k, _, v in (f.partition("=") for f in csv_fields(text))}
        kind = entry.pop("type", "")
        if kind not in ("sbom", "provenance"):
            summary = f"attestation type must be sbom or provenance, not {kind!r}"
            raise UsageError(summary)
        if kind in out:
            summary = f"duplicate attestation field {kind}"
            raise UsageError(summary)
        disabled = entry.pop("disabled", "")
        out[kind] = None if disabled and parse_bool(disabled, "disabled") else entry
    return out


def _canonical_attest(kind: str, value: str) -> str:
    if value in ("true", "1", "t", "T", "TRUE", "True"):
        return f"type={kind}"
    if value in ("false", "0", "f", "F", "FALSE", "False"):
        return f"type={kind},disabled=true"
    if kind == "provenance" and value in ("min", "max"):
        return f"type={kind},mode={value}"
    return f"type={kind},{value}"


def is_remote_context(text: str) -> bool:
    """Whether a context is a URL that the builder fetches, by docker's rules for Git and HTTP."""
    if os.path.isdir(text):
        return False
    return text.startswith(("http://", "https://", "git://", "ssh://", "git@", "github.com/")) or (
        "@" in text.partition("/")[0] and ":" in text
    )
