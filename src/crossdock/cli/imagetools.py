"""``imagetools``: look at images in registries, and make new ones of them.

Spec: docker/buildx ``commands/imagetools``, ``util/imagetools/printers.go``.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import Group, SubCommand, flag
from crossdock.cli.command import command as make_command
from crossdock.errors import ConfigError, ExportError, UsageError, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cli.command import Globals
    from crossdock.image.descriptor import Descriptor
    from crossdock.imagetools.combine import Annotation, Combined
    from crossdock.imagetools.sources import Source
    from crossdock.registry import RegistryClient

__all__ = ["command", "create", "inspect"]

_WHOLE = re.compile(r"\{\{\s*\.Manifest\s*\}\}\Z")
_ANNOTATION = re.compile(r"(index|manifest-descriptor)(?:\[([A-Za-z0-9_/-]+)\])?\Z")

command = Group(
    "imagetools",
    help="Commands to work on images in registry",
    table={
        "create": SubCommand("crossdock.cli.imagetools:create", "Create a new image based on source images"),
        "inspect": SubCommand("crossdock.cli.imagetools:inspect", "Show details of an image in the registry"),
    },
)


@make_command("inspect [OPTIONS] NAME", args=(1, 1))
@flag("--format", default="{{.Manifest}}", help="Format the output using the given Go template")
@flag("--raw", kind="bool", help="Show original, unformatted JSON manifest")
def inspect(_globals: Globals, args: tuple[str, ...], format: str, raw: bool) -> None:
    """Show details of an image in the registry"""
    from crossdock.imagetools.sources import load

    if raw and format != "{{.Manifest}}":
        summary = "format and raw cannot be used together"
        raise UsageError(summary)
    client = _client()
    source = load(client, args[0])
    if raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(source.raw)
    elif _WHOLE.match(format.strip()):
        sys.stdout.write(_details(source))
    else:
        sys.stdout.write(_templated(client, source, format, args[0]) + "\n")


def _client() -> RegistryClient:
    from crossdock.cancel import CancelToken
    from crossdock.registry import Credentials, RegistryClient, RegistryConfig

    return RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=CancelToken())


def _details(source: Source) -> str:
    from crossdock.cli.table import align_columns
    from crossdock.image.manifest import Index

    rows = [
        ("Name:", str(source.ref)),
        ("MediaType:", source.descriptor.media_type),
        ("Digest:", source.descriptor.digest),
    ]
    text = "".join(line + "\n" for line in align_columns(rows))
    parsed = source.parsed()
    if not isinstance(parsed, Index):
        return text
    text += "           \nManifests: \n"
    blocks = [_entry_lines(source, entry) for entry in parsed.manifests]
    return text + "\n".join(blocks)


def _entry_lines(source: Source, entry: Descriptor) -> str:
    from crossdock.cli.table import align_columns

    rows = [
        ("  Name:", str(source.ref.with_digest(entry.digest))),
        ("  MediaType:", entry.media_type),
    ]
    if entry.platform is not None:
        rows.append(("  Platform:", str(entry.platform)))
    text = "".join(line + "\n" for line in align_columns(rows))
    if entry.annotations:
        text += "  Annotations:\n"
        notes = [(f"    {key}:", value) for key, value in sorted(entry.annotations.items())]
        text += "".join(line + "\n" for line in align_columns(notes))
    return text


def _templated(client: RegistryClient, source: Source, form: str, name: str) -> str:
    from crossdock.cli.template import Struct, Template
    from crossdock.imagetools.sources import image_configs

    configs = image_configs(client, source)
    manifest = {"digest": source.descriptor.digest, "size": source.descriptor.size, **json.loads(source.raw)}
    manifest.setdefault("mediaType", source.descriptor.media_type)
    data = Struct(
        Name=name,
        Manifest=_capitalised(manifest),
        Image=_only(configs),
        **_attestations(client, source, form),
    )
    return Template(form, {"json": _pretty}).render(data)


def _attestations(client: RegistryClient, source: Source, form: str) -> dict[str, Any]:
    """Return what attestations say, as far as the template asks for it: they can be large."""
    from crossdock.imagetools.attestations import image_provenance, image_sboms

    readers = {"Provenance": image_provenance, "SBOM": image_sboms}
    return {name: _only(read(client, source)) for name, read in readers.items() if f".{name}" in form}


def _only(by_platform: dict[str, Any]) -> Any:
    """Return the value of the only platform, else all of them."""
    return by_platform if len(by_platform) != 1 else next(iter(by_platform.values()))


class _Shown(dict[str, Any]):
    """A JSON object whose fields answer to Go's names (``.Digest``) and print under their own."""

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_lower(key))

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(_lower(key))


def _lower(key: object) -> str:
    text = str(key)
    return text[:1].lower() + text[1:]


def _capitalised(value: Any) -> Any:
    if isinstance(value, dict):
        return _Shown({k: _capitalised(v) for k, v in value.items()})
    return [_capitalised(v) for v in value] if isinstance(value, list) else value


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@make_command("create [OPTIONS] [SOURCE...]", args=(0, None))
@flag("--annotation", kind="stringArray", help="Add annotation to the image")
@flag("--append", kind="bool", help="Append to existing manifest")
@flag("--dry-run", kind="bool", help="Show final image instead of pushing")
@flag("-f", "--file", "file", kind="stringArray", help="Read source descriptor from file")
@flag("--metadata-file", help="Write create result metadata to a file")
@flag("-p", "--platform", "platform", kind="stringArray", help="Filter specified platforms of target image")
@flag(
    "--prefer-index/--no-prefer-index",
    kind="bool",
    default="true",
    help="When only a single source is specified, prefer outputting an image index or manifest list instead of "
    "performing a carbon copy",
)
@flag(
    "--progress",
    help='Set type of progress output ("auto", "none", "plain", "rawjson", "tty"). Use plain to show container '
    'output (default "auto")',
)
@flag("-t", "--tag", "tag", kind="stringArray", help="Set reference for new image")
def create(globals_: Globals, args: tuple[str, ...], **flags: Any) -> None:
    """Create a new image based on source images"""
    from crossdock.image.platform import parse_platforms
    from crossdock.imagetools.combine import combine

    names = _source_names(args, flags)
    annotations = _annotations(flags["annotation"])
    client = _client()
    combined = combine(
        client,
        _load_all(client, names, flags["tag"]),
        annotations=annotations,
        prefer_index=flags["prefer_index"],
        platforms=parse_platforms(flags["platform"]),
    )
    if flags["dry_run"]:
        sys.stdout.write(combined.raw.decode() + "\n")
        return
    _push(globals_, client, combined, flags)
    if flags["metadata_file"]:
        _write_metadata(flags["metadata_file"], combined, flags["tag"])


def _source_names(args: Sequence[str], flags: dict[str, Any]) -> list[str]:
    names = [*args]
    for path in flags["file"]:
        with (
            translate({OSError: lambda exc: ConfigError(f"cannot read source file: {exc}")}),
            open(path, encoding="utf-8") as file,
        ):
            names.append(file.read().strip())
    if flags["append"] and flags["tag"]:
        names.insert(0, flags["tag"][0])
    if not flags["tag"] and not flags["dry_run"]:
        summary = "can't push without specifying tag"
        raise UsageError(summary, hint="name the new image with -t, or show it with --dry-run")
    if not names:
        summary = "no sources specified"
        raise UsageError(summary, hint="name the images to combine")
    return names


def _load_all(client: RegistryClient, names: Sequence[str], tags: Sequence[str]) -> list[Source]:
    """Fetch sources: names, digests in the repository of the tags, or descriptors as JSON."""
    from crossdock.imagetools.sources import load

    found = []
    for name in names:
        digest = name
        if name.startswith("{"):
            try:
                digest = str(json.loads(name)["digest"])
            except (ValueError, KeyError) as exc:
                summary = f"source is not a descriptor: {name[:100]}"
                raise UsageError(summary) from exc
        if digest.startswith("sha256:"):
            found.append(load(client, f"{_only_repository(tags)}@{digest}"))
        else:
            found.append(load(client, name))
    return found


def _only_repository(tags: Sequence[str]) -> str:
    from crossdock.image.reference import parse_reference

    repositories = {parse_reference(tag).repository for tag in tags}
    if len(repositories) != 1:
        summary = "a source that is only a digest needs exactly one repository among the tags"
        raise UsageError(summary)
    return repositories.pop()


def _annotations(values: Sequence[str]) -> list[Annotation]:
    from crossdock.image.platform import parse_platform
    from crossdock.imagetools.combine import Annotation

    found = []
    for text in values:
        name, equals, value = text.partition("=")
        types, colon, key = name.partition(":")
        if not equals or not colon:
            summary = (
                f"invalid annotation {text!r}, expected index:key=value or manifest-descriptor:key=value"
            )
            raise UsageError(summary)
        for kind in types.split(","):
            match = _ANNOTATION.match(kind)
            if match is None:
                summary = f"{kind!r} annotations are not supported here"
                raise UsageError(summary, hint="use index: or manifest-descriptor:")
            platform = parse_platform(match[2]) if match[2] else None
            found.append(Annotation(match[1], key, value, platform))
    return found


def _push(globals_: Globals, client: RegistryClient, combined: Combined, flags: dict[str, Any]) -> None:
    from crossdock.builders.embedded.steps import shown
    from crossdock.cli.interrupt import interruptible
    from crossdock.image.reference import parse_reference
    from crossdock.imagetools.combine import push
    from crossdock.progress.display import Display, choose_mode, make_printer

    printer = make_printer(choose_mode(flags["progress"]), sys.stderr, phase="Creating")
    with interruptible(plugin=globals_.plugin) as cancel, Display(printer) as display:
        scoped = client.scoped(cancel=cancel)
        for tag in flags["tag"]:
            dest = parse_reference(tag).with_default_tag()
            with shown(display, f"[internal] pushing {dest}"):
                push(scoped, combined, dest)


def _write_metadata(path: str, combined: Combined, tags: Sequence[str]) -> None:
    data = {"containerimage.descriptor": combined.descriptor.to_json(), "image.name": ",".join(tags)}
    with (
        translate({OSError: lambda exc: ExportError(f"cannot write {path}: {exc}")}),
        open(path, "w", encoding="utf-8") as file,
    ):
        json.dump(data, file, indent=2, sort_keys=True)
