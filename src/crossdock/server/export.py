"""Write results out: what goes to registries or the store by the engine, what goes to the client over its session.

Spec: moby/buildkit ``exporter/*``, ``session/filesync`` (FileSend, BytesMessage), ``session/content`` (store ``export``).
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import filesync_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.engine.cache.refs import SCRATCH
from crossdock.engine.exporters import PlatformImage, check_exporters
from crossdock.engine.exporters.attrs import parse_files
from crossdock.engine.exporters.model import ExporterSpec
from crossdock.engine.exporters.report import reported
from crossdock.errors import ExportError, UsageError
from crossdock.server.clientstore import write_blob
from crossdock.server.streams import session_failure
from crossdock.server.treesend import send_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from crossdock.buildkit.proto import control_pb2
    from crossdock.buildkit.rpc.channel import Call
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.ahead import Ahead
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.solver import KeyedVertex
    from crossdock.server.jobs import Job
    from crossdock.server.results import PlatformResult
    from crossdock.server.sessions import ClientSession

__all__ = ["check_outputs", "export_results", "frontend_metadata", "image_of", "specs_of"]

_METHOD = "/moby.filesync.v1.FileSend/DiffCopy"
_ARCHIVES = frozenset(["oci", "docker", "tar"])
_EPOCH = "source-date-epoch"
_MESSAGE = 1 << 20


def specs_of(request: control_pb2.SolveRequest) -> list[ExporterSpec]:
    """Return the exporters a request asks for, in both its old and its new form."""
    wanted = [(e.Type, dict(e.Attrs)) for e in request.Exporters]
    if not wanted and request.ExporterDeprecated:
        wanted = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
    epoch = request.FrontendAttrs.get("build-arg:SOURCE_DATE_EPOCH", "")
    for _, attrs in wanted:
        if epoch.isdecimal():
            attrs.setdefault(_EPOCH, epoch)
    return [ExporterSpec(kind, attrs) for kind, attrs in wanted]


def check_outputs(specs: Sequence[ExporterSpec], *, attested: bool | None = None) -> None:
    """Find what is wrong with outputs before anything is built.

    Raises: UsageError naming the type or attribute; NotSupported.
    """
    for spec in specs:
        if "dest" in spec.attrs:
            # A path of the client is nothing to us, and must never be one of ours.
            summary = f"exporter {spec.type} has no attribute dest here: the client writes its files"
            raise UsageError(summary)
        if spec.type == "local":
            parse_files(spec, None)
        else:
            attrs = {k: v for k, v in spec.attrs.items() if k != "tar"}
            check_exporters(
                [ExporterSpec(spec.type, attrs, _Nowhere())], multi_platform=False, attested=attested
            )


class _Nowhere:
    """Stands for the client's file while attributes are checked."""

    def write(self, data: bytes, /) -> object:
        return len(data)


def export_results(
    job: Job,
    platforms: Sequence[PlatformResult],
    specs: Sequence[ExporterSpec],
    attestations: Sequence[Sequence[Attestation]] = (),
    *,
    multi_platform: bool,
    inline: Mapping[str, Sequence[KeyedVertex]] | None = None,
    ahead: Ahead | None = None,
) -> dict[str, str]:
    """Run all exporters; returns the response under BuildKit's keys. ``ahead`` is what was begun before all was solved.

    Raises: ExportError, RegistryError and their kin; SessionLost; StoreFull; the token's cause.
    """
    response: dict[str, object] = {}
    epoch_s = platforms[0].epoch_s if platforms else None
    images = [
        image_of(p, None if p.ref is None else p.ref.ref, own)
        for p, own in zip(platforms, attestations or [()] * len(platforms), strict=True)
    ]
    with ExitStack() as stack:
        plain: list[ExporterSpec] = []
        streams: list[_ClientFile] = []
        layouts: list[Path] = []
        numbers: list[int] = []
        for number, spec in enumerate(specs):
            if spec.type == "local":
                _export_local(job, number, spec, images, epoch_s, multi_platform=multi_platform)
                continue
            numbers.append(number)
            if spec.type in _ARCHIVES and _flag(spec.attrs.get("tar", "true")):
                stream = stack.enter_context(_ClientFile(job, number))
                streams.append(stream)
                plain.append(spec._replace(output=stream))
            elif spec.type in _ARCHIVES:
                directory = Path(tempfile.mkdtemp(prefix="crossdock-layout-", dir=job.engine.store.root))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                layouts.append(directory)
                plain.append(spec._replace(attrs={**spec.attrs, "dest": str(directory)}))
            else:
                plain.append(spec)
        if plain:
            done = job.engine.export(
                images,
                plain,
                sink=job.log,
                cancel=job.cancel,
                epoch_s=epoch_s,
                multi_platform=multi_platform,
                inline=inline,
                ahead=ahead,
            )
            response.update(done.merged)
            job.exported.update((n, image) for n, image in zip(numbers, done.images, strict=True) if image)
            for stream in streams:
                stream.finish()
            for directory in layouts:
                _send_layout(job, directory)
    return {key: _text(value) for key, value in response.items()}


def image_of(
    platform: PlatformResult, ref: Ref | None, attestations: Sequence[Attestation] = ()
) -> PlatformImage:
    """Return what an exporter takes of a platform, made as ``ref``."""
    layers = (ref or SCRATCH).layers
    return PlatformImage(platform.platform, layers, platform.config, platform.base_config, attestations)


def _flag(text: str) -> bool:
    return text.lower() not in ("false", "0", "f")


def _text(value: object) -> str:
    """Return a response as BuildKit's map of strings holds it: objects as base64 of their JSON."""
    if isinstance(value, str):
        return value
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def _export_local(
    job: Job,
    number: int,
    spec: ExporterSpec,
    images: Sequence[PlatformImage],
    epoch_s: int | None,
    *,
    multi_platform: bool,
) -> None:
    """Send the files of the results into a directory of the client."""
    options = parse_files(spec, epoch_s)
    split = multi_platform if options.platform_split is None else options.platform_split
    fixed_ns = None if options.epoch_s is None else options.epoch_s * 1_000_000_000
    session = job.session(job.cancel)
    with ExitStack() as stack:
        report = stack.enter_context(
            reported(job.log, "exporting to client directory", f"{job.ref} {number}")
        )
        roots = []
        for image in images:
            name = str(image.platform.normalised()).replace("/", "_")
            suffix = name if multi_platform and not split else ""
            root = _mounted(job, image, stack, options.attestation_prefix, suffix, fixed_ns)
            roots.append((name if split else "", root))
        if len(roots) > 1 and not split:
            from crossdock.engine.exporters.treecopy import check_overlap

            check_overlap([root for _, root in roots], [str(i.platform) for i in images])
        sent = 0
        progress = stack.enter_context(report.transfer("copying files", "transferring"))

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            progress(sent)

        send_tree(session, number, roots, fixed_ns=fixed_ns, on_bytes=count, cancel=job.cancel)


def _mounted(
    job: Job, image: PlatformImage, stack: ExitStack, prefix: str, suffix: str, fixed_ns: int | None
) -> Path:
    """Mount a result, its attestations among its files."""

    def mount(above: Sequence[Path]) -> AbstractContextManager[Path]:
        return job.engine.mounted(image.ref, above=above, sink=job.log, cancel=job.cancel)

    if not image.attestations:
        return stack.enter_context(mount(()))
    from crossdock.engine.exporters.attestation import with_statements

    return with_statements(
        stack,
        mount,
        image,
        scratch=job.engine.store.root,
        prefix=prefix,
        suffix=suffix,
        fixed_ns=fixed_ns,
        cancel=job.cancel,
    )


def _send_layout(job: Job, directory: Path) -> None:
    """Put the blobs of a layout into the client's store, which writes the index itself."""
    session = job.session(job.cancel)
    for path in sorted((directory / "blobs").glob("*/*")):
        job.cancel.check()
        with path.open("rb") as file:
            digest, size = f"{path.parent.name}:{path.name}", path.stat().st_size
            write_blob(session, "export", digest, file, size, job.cancel)


class _ClientFile:
    """A file that the client writes; opened by the first write, so that nothing appears before there is something."""

    def __init__(self, job: Job, number: int) -> None:
        self._job = job
        self._number = number
        self._session: ClientSession | None = None
        self._call: Call | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        # Guards opening: exporters may write from several threads, one after the other.
        self._lock = threading.Lock()

    def __enter__(self) -> _ClientFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()
        if self._call is not None:
            self._call.cancel()

    def write(self, data: bytes, /) -> int:
        """Send a part. Raises: ExportError with the client's words; SessionLost; the token's cause."""
        call = self._opened()
        view = memoryview(data)
        for at in range(0, len(view), _MESSAGE):
            message = filesync_pb2.BytesMessage(data=bytes(view[at : at + _MESSAGE]))
            try:
                call.send(message.SerializeToString())
            except RpcError as exc:
                self._wait(call)
                summary = "the client closed the output early"
                raise ExportError(summary) from exc
        return len(data)

    def finish(self) -> None:
        """Wait until the client has it all. Raises: as :meth:`write`."""
        call = self._opened()
        try:
            call.end()
        except RpcError as exc:
            raise self._failure(exc) from exc
        self._wait(call)

    def _opened(self) -> Call:
        with self._lock:
            if self._call is None:
                session = self._session = self._job.session(self._job.cancel)
                if not session.supports(_METHOD):
                    summary = "the client takes no files: it offers no FileSend service"
                    raise ExportError(summary)
                metadata = (("buildkit-attachable-exporter-id", str(self._number)),)
                self._call = session.start(_METHOD, metadata)
                self._unsubscribe = self._job.cancel.on_cancel(self._call.cancel)
            return self._call

    def _wait(self, call: Call) -> None:
        try:
            for _ in call.messages():
                pass
        except RpcError as exc:
            raise self._failure(exc) from exc

    def _failure(self, exc: RpcError) -> ExportError:
        self._job.cancel.check()
        if self._session is None:
            return ExportError(exc.message)
        return ExportError(session_failure(self._session, exc, "sending an output to the client").summary)


def frontend_metadata(metadata: Mapping[str, bytes]) -> dict[str, str]:
    """Return what of a result's metadata belongs into the response."""
    return {
        key: value.decode(errors="replace") for key, value in metadata.items() if key.startswith("frontend.")
    }
