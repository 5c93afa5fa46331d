"""Outputs of a BuildKit build: the exporters the daemon runs, and where the client puts what it receives.

Spec: docker/buildx ``build/opt.go`` (exporter rewriting); moby/buildkit ``client/solve.go``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from crossdock.buildkit.session.layout import LayoutStore
from crossdock.buildkit.session.targets import DirectoryTarget, StreamTarget
from crossdock.buildkit.solve import Export
from crossdock.errors import ExportError, UsageError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crossdock.builders.request import BuildRequest, OutputSpec

__all__ = ["Outputs", "plan_outputs"]

_IMAGE_TYPES = frozenset({"image", "registry", "moby"})


class Outputs(Record, frozen=False):
    """What is asked of the daemon, and the client's side of each."""

    exports: list[Export] = field(default_factory=list)
    targets: dict[int, DirectoryTarget | StreamTarget] = field(default_factory=dict)
    stores: dict[str, LayoutStore] = field(default_factory=dict)
    #: OCI directories whose index is written after the build
    layouts: list[Path] = field(default_factory=list)


def plan_outputs(
    request: BuildRequest, *, engine: bool, load: Callable[[Iterator[bytes]], None] | None
) -> Outputs:
    """Plan every output; ``engine``: the daemon is a Docker Engine's own BuildKit, which keeps images itself.

    ``load`` streams an archive into a Docker Engine, for ``type=docker`` without ``dest``.
    Raises: UsageError, ExportError.
    """
    out = Outputs()
    for spec in request.outputs:
        if spec.type != "cacheonly":
            _plan(spec, request, out, engine=engine, load=load)
    return out


def _plan(
    spec: OutputSpec,
    request: BuildRequest,
    out: Outputs,
    *,
    engine: bool,
    load: Callable[[Iterator[bytes]], None] | None,
) -> None:
    attrs = dict(spec.attrs)
    number = len(out.exports)
    if request.tags and spec.type not in ("local", "tar"):
        attrs.setdefault("name", ",".join(request.tags))
    for annotation in request.annotations:
        key, _, value = annotation.partition("=")
        attrs[f"annotation.{key}" if ":" not in key else _annotation(key)] = value
    kind = spec.type
    match kind:
        case "local":
            if not spec.dest:
                summary = "output type=local needs dest=DIRECTORY"
                raise UsageError(summary)
            mirror = attrs.get("mode") == "delete"
            out.targets[number] = DirectoryTarget(path=Path(spec.dest).absolute(), mirror=mirror)
        case "tar" | "oci" | "docker" if spec.dest or kind != "docker":
            _archive(spec, attrs, number, out)
        case "docker" if engine:
            kind = "moby"
        case "docker":
            if load is None:
                summary = "output type=docker without dest= needs a Docker Engine to load into"
                raise ExportError(summary, hint="write an archive with dest=FILE")
            out.targets[number] = _loader(load)
        case "image" | "registry":
            if kind == "registry":
                attrs.setdefault("push", "true")
            kind = "moby" if engine else "image"
        case _:
            summary = f"unknown output type {kind!r}"
            raise UsageError(summary, hint="use image, registry, oci, docker, local, tar or cacheonly")
    out.exports.append(Export(type=kind, attrs=attrs))


def _annotation(key: str) -> str:
    where, _, name = key.rpartition(":")
    return f"annotation-{where}.{name}"


def _archive(spec: OutputSpec, attrs: dict[str, str], number: int, out: Outputs) -> None:
    if not spec.dest:
        summary = f"output type={spec.type} needs dest=FILE (or dest=- for standard output)"
        raise UsageError(summary)
    if attrs.get("tar", "true").lower() in ("false", "0"):
        root = Path(spec.dest).absolute()
        root.mkdir(parents=True, exist_ok=True)
        out.stores["export"] = LayoutStore(root, writable=True)
        out.layouts.append(root)
        return
    if spec.dest == "-":
        if sys.stdout.isatty():
            summary = "refusing to write an archive to the terminal"
            raise ExportError(summary, hint="redirect standard output, or give dest=FILE")
        out.targets[number] = StreamTarget(
            open=lambda _md: sys.stdout.buffer, finish=lambda s, _ok: s.flush()
        )
        return
    target = _FileTarget(Path(spec.dest).absolute())
    out.targets[number] = StreamTarget(open=target.open, finish=target.finish)


class _FileTarget:
    """A file that appears under its name only when complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = ""
        if path.is_dir():
            summary = f"cannot write {path}: it is a directory"
            raise ExportError(summary, hint="name a file, or use tar=false for a directory")

    def open(self, _metadata: Mapping[str, str]) -> BinaryIO:
        """Open a temporary file beside the destination."""
        import tempfile

        try:
            fd, self._temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as exc:
            summary = f"cannot write {self._path}: {exc.strerror}"
            raise ExportError(summary, hint="check that the directory exists and is writable") from exc
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(fd, 0o666 & ~umask)
        return os.fdopen(fd, "wb")

    def finish(self, stream: BinaryIO, ok: bool) -> None:
        """Rename into place, or remove."""
        stream.close()
        if ok:
            os.replace(self._temporary, self._path)
        else:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)


def _loader(load: Callable[[Iterator[bytes]], None]) -> StreamTarget:
    """Feed what the daemon sends to ``load``, running in a thread of its own."""
    failure: list[BaseException] = []
    threads: list[threading.Thread] = []

    def run(read: int) -> None:
        try:
            with open(read, "rb", buffering=0) as pipe:
                load(iter(lambda: pipe.read(1 << 20), b""))
        except Exception as exc:  # noqa: BLE001 - raised again by finish, in the thread that waits
            failure.append(exc)

    def start(_metadata: Mapping[str, str]) -> BinaryIO:
        read, write = os.pipe()
        thread = threading.Thread(target=run, args=(read,), name="image-load", daemon=True)
        thread.start()
        threads.append(thread)
        return os.fdopen(write, "wb")

    def finish(stream: BinaryIO, _ok: bool) -> None:
        with contextlib.suppress(BrokenPipeError):
            stream.close()
        for thread in threads:
            thread.join()
        if failure:
            raise failure[0]

    return StreamTarget(open=start, finish=finish)
