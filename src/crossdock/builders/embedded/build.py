"""One build: Dockerfile to graph, graph to layers, layers to outputs."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.builders.attributes import entitlements
from crossdock.builders.embedded.attests import BuildAttests
from crossdock.builders.embedded.caches import BuildCaches
from crossdock.builders.embedded.explain import Explainer
from crossdock.builders.embedded.inputs import gather
from crossdock.builders.embedded.outputs import plan_outputs, reproducible
from crossdock.builders.embedded.supported import check_supported
from crossdock.builders.localpaths import LocalFiles
from crossdock.builders.result import BuildResult, BuiltImage, BuiltIndex
from crossdock.builders.secrets import check_secrets, secret_reader
from crossdock.builds.images import EngineImages
from crossdock.builds.steps import EventKeeper, shown
from crossdock.engine.facade import Engine, EngineOptions, SolveInputs
from crossdock.errors import CacheError, Cancelled, CrossdockError, NotSupported, SandboxError, SolveError
from crossdock.image.platform import local_platform
from crossdock.progress.events import VertexWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from crossdock.builders.bootrecord import BootRecord
    from crossdock.builders.embedded.inputs import Inputs
    from crossdock.builders.embedded.settings import StepSettings
    from crossdock.builders.request import BuildRequest
    from crossdock.builds.times import EngineTimes
    from crossdock.cancel import CancelToken
    from crossdock.dockerfile.convert.options import ConvertOptions, PlatformResult
    from crossdock.dockerfile.lint import LintWarning
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.exporters.model import ExporterSpec, ExportResult
    from crossdock.engine.facade import FileInfo
    from crossdock.image.digest import Digest
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["build"]


def build(
    root: Path, payload: tuple[BuildRequest, bool, int, StepSettings], sink: EventSink, cancel: CancelToken
) -> tuple[BuildResult, BootRecord | None]:
    """Build. ``payload``: the request, whether a record of what the machine can run is wanted, bytes the store may hold,
    how steps run.

    Raises: everything a build can fail with; see ``crossdock.errors``.
    """
    request, wants_record, limit_bytes, settings = payload
    started = time.monotonic()
    check_supported(request)
    check_secrets(request.secrets)
    keeper = EventKeeper(sink)
    with ExitStack() as stack:
        empty = _empty_directory(request, stack)
        with shown(keeper, f"[internal] load build definition from {_display_name(request)}") as step:
            inputs = gather(request, empty)
            step.transferred("transferring dockerfile:", len(inputs.dockerfile or b""))
        agents = _agents(request, stack)
        options = EngineOptions(
            root,
            registry=_client,
            max_used_space=limit_bytes,
            hang_deadline_s=settings.hang_deadline_s,
            network=settings.network,
        )
        engine = stack.enter_context(Engine.open(options))
        stack.callback(_keep_house, engine, limit_bytes, started, cancel)
        result = _Build(engine, request, inputs, keeper, cancel, step.digest, agents).run()
        record = _survey(engine) if wants_record else None
    return result, record


def _empty_directory(request: BuildRequest, stack: ExitStack) -> Path | None:
    """Make an empty directory for a build that has no context, or no directory for its Dockerfile."""
    if request.context not in ("", "-") and request.dockerfile_text is None:
        return None
    import tempfile

    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-")))


def _display_name(request: BuildRequest) -> str:
    if request.dockerfile_text is not None or not request.dockerfile:
        return "Dockerfile"
    return Path(request.dockerfile).name


def _client(cancel: CancelToken) -> RegistryClient:
    from crossdock.registry import Credentials, RegistryClient, RegistryConfig

    return RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=cancel)


def _keep_house(engine: Engine, limit_bytes: int, started: float, cancel: CancelToken) -> None:
    """Look after the store, whatever became of the build; trouble with that is no reason for the build to fail."""
    if cancel.cancelled:
        return
    from crossdock.engine.store.upkeep import keep_house
    from crossdock.errors import StoreError

    try:
        engine.forget()
        keep_house(engine.store, max_bytes=limit_bytes, spent_s=time.monotonic() - started, cancel=cancel)
    except (StoreError, Cancelled) as exc:
        from logging import getLogger

        getLogger(__name__).warning("after the build: %s", exc.summary)


def _survey(engine: Engine) -> BootRecord | None:
    """Note what the machine offers, for ``ls``; a build that ran no step may work where no step would."""
    from crossdock.builders.embedded.machine import survey

    try:
        return survey(engine, verify=False)
    except SandboxError:
        return None


def _agents(request: BuildRequest, stack: ExitStack) -> Mapping[str, Path]:
    """Return the ssh agents of the build; those started here end with ``stack``."""
    if not request.ssh and "@" not in request.context and not request.context.startswith("ssh://"):
        return {}
    from crossdock.builders.agents import agent_sockets, implied_ssh
    from crossdock.engine.sandbox.worker import current_worker

    worker = current_worker()  # its folder is gone with it, however it ends
    folder = worker.run_dir if worker is not None else None
    return agent_sockets(implied_ssh(request.context, request.ssh), stack, folder=folder)


def _layouts(inputs: Inputs) -> dict[str, Callable[[Digest], BinaryIO]]:
    """Return what opens the blobs of each OCI layout."""
    if not inputs.layouts:
        return {}
    from crossdock.engine.sources.ocilayout import DirectoryLayout

    return {name: DirectoryLayout(layout.root).open for name, layout in inputs.layouts.items()}


class _Build:
    """The parts of one build, with what they share."""

    def __init__(
        self,
        engine: Engine,
        request: BuildRequest,
        inputs: Inputs,
        keeper: EventKeeper,
        cancel: CancelToken,
        definition: str,
        agents: Mapping[str, Path],
    ) -> None:
        self._engine = engine
        self._request = request
        self._inputs = inputs
        self._keeper = keeper
        self._cancel = cancel
        #: vertex that stands for reading the Dockerfile; warnings belong to it
        self._definition = definition
        self._agents = agents
        self._layouts = _layouts(inputs)
        self._files = LocalFiles(inputs.directories)
        self._images = EngineImages(engine, keeper, cancel, self._layouts)
        self._dockerfile, self._name = inputs.dockerfile or b"", inputs.name
        self._caches = BuildCaches(engine, request, keeper, cancel)
        self._explainer = Explainer(request)
        self._attests = BuildAttests(engine, request, inputs, self._images, keeper, cancel)
        #: what caches and attestations add to the response
        self._metadata: dict[str, Any] = {}

    def run(self) -> BuildResult:
        """Do it all."""
        from crossdock.dockerfile.attrs import options_from_attrs

        options = options_from_attrs(self._inputs.attrs, build_platforms=(local_platform(),))
        options = self._fetch(options)
        if self._request.call != "build":
            return self._call(options)
        specs, loaders = plan_outputs(
            self._request, multi_platform=options.multi_platform, sink=self._keeper, cancel=self._cancel
        )
        self._check_outputs(specs, options)
        results = self._convert(options)
        try:
            exported = self._solve_and_export(results, specs, options)
            for loader in loaders:
                loader.finish()
        except BaseException:
            for loader in loaders:
                loader.abort()
            raise
        return self._result(results, exported)

    def _fetch(self, options: ConvertOptions) -> ConvertOptions:
        """Fetch a remote context, and a Dockerfile that is remote."""
        if "context" in self._inputs.directories and self._inputs.dockerfile is not None:
            return options
        from crossdock.builders.embedded.remote import RemoteInputs
        from crossdock.record import replace

        remote = RemoteInputs(self._engine, self._solve_one, self._read_result)
        if "context" not in self._inputs.directories:
            spec, dockerfile, name = remote.context(self._request)
            options = replace(options, main_context=spec)
            if dockerfile is not None:
                self._dockerfile, self._name = dockerfile, name
                return options
        if self._inputs.dockerfile is None:
            self._dockerfile, self._name = remote.dockerfile(self._request.dockerfile)
        return options

    def _solve_one(self, output: Output | None) -> Ref:
        self._attests.note(output)
        (ref,) = self._engine.solve(
            [output], inputs=self._solve_inputs(), sink=self._keeper, cancel=self._cancel
        )
        return ref

    def _read_result(self, ref: Ref, path: str) -> bytes | None:
        return self._engine.read_file(ref, path, cancel=self._cancel, sink=self._keeper)

    def _solve_inputs(self) -> SolveInputs:
        return SolveInputs(
            locals=self._inputs.directories,
            secrets=secret_reader(self._request.secrets),
            ssh=self._agents.get,
            allow=frozenset(entitlements(self._request)),
            layouts=self._layouts,
        )

    def _check_outputs(self, specs: Sequence[ExporterSpec], options: ConvertOptions) -> None:
        if specs:
            from crossdock.engine.exporters import check_exporters

            check_exporters(specs, multi_platform=options.multi_platform, attested=self._attests.attested)

    def _convert(self, options: ConvertOptions) -> list[PlatformResult]:
        from crossdock.dockerfile.convert import convert
        from crossdock.dockerfile.parser import parse

        dockerfile = parse(self._dockerfile, self._name)
        return convert(
            dockerfile,
            options,
            images=self._images,
            context=self._files,
            warn=self._warn,
            sources=self._times(),
        )

    def _times(self) -> EngineTimes:
        """Return what tells the times of sources, when the epoch is no number."""
        from crossdock.builds.times import EngineTimes

        return EngineTimes(self._solve_one, self._list_result)

    def _list_result(self, ref: Ref, path: str) -> list[FileInfo] | None:
        return self._engine.read_dir(ref, path, cancel=self._cancel, sink=self._keeper)

    def _solve_and_export(
        self, results: Sequence[PlatformResult], specs: Sequence[ExporterSpec], options: ConvertOptions
    ) -> ExportResult | None:
        self._caches.load()
        try:
            while True:
                try:
                    return self._solve_and_export_once(results, specs, options)
                except CacheError:
                    if not self._caches.retry():
                        raise
        finally:
            why = self._explainer.finish(self._engine.store)
            if self._explainer.wanted:
                self._metadata["crossdock.explain"] = why

    def _solve_and_export_once(
        self, results: Sequence[PlatformResult], specs: Sequence[ExporterSpec], options: ConvertOptions
    ) -> ExportResult | None:
        inputs = self._solve_inputs()
        outputs = [r.output for r in results]
        scans = self._attests.scans(results, self._name)
        keyed = self._attests.begin(self._caches.begin())
        try:
            solved = self._engine.solve(
                [*outputs, *scans],
                inputs=inputs,
                sink=self._keeper,
                cancel=self._cancel,
                keyed=keyed,
                recorder=self._explainer,
            )
        except CrossdockError as exc:
            self._locate(exc, results)
            raise
        refs = solved[: len(outputs)]
        attestations = self._attests.make(solved[len(outputs) :])
        exported = self._export(results, refs, specs, options, attestations) if specs else None
        self._metadata.update(self._caches.export(refs, outputs, results[0].epoch))
        self._metadata.update(self._attests.metadata(multi_platform=options.multi_platform))
        return exported

    def _export(
        self,
        results: Sequence[PlatformResult],
        refs: Sequence[Ref],
        specs: Sequence[ExporterSpec],
        options: ConvertOptions,
        attestations: Sequence[Sequence[Attestation]],
    ) -> ExportResult:
        from crossdock.engine.exporters import PlatformImage

        self._caches.secure(refs, [spec.type for spec in specs])
        images = [
            PlatformImage(r.platform, ref.layers, r.config, r.base_config, attested)
            for r, ref, attested in zip(results, refs, attestations or [()] * len(refs), strict=True)
        ]
        return self._engine.export(
            images,
            reproducible(specs, results[0].epoch),
            sink=self._keeper,
            cancel=self._cancel,
            epoch_s=results[0].epoch,
            multi_platform=options.multi_platform,
            inline=self._caches.inline(results),
        )

    def _locate(self, error: CrossdockError, results: Sequence[PlatformResult]) -> None:
        """Say where in the Dockerfile the failed step is, and for which platform it ran."""
        if isinstance(error, Cancelled):
            return
        from crossdock.llb.graph import walk

        failed = self._keeper.failed
        wanted = (error.vertex or "").partition("!")[0] if isinstance(error, SolveError) else ""
        wanted = wanted or (failed.digest if failed is not None else "")
        for node in walk([r.output for r in results if r.output is not None]):
            if node.digest == wanted:
                error.source = error.source or node.source
                if isinstance(error, SolveError):
                    error.vertex_name = error.vertex_name or node.name
                    error.platform = error.platform or (str(node.platform) if node.platform else None)
                break
        if (
            not self._request.context
            and error.hint
            and str(self._inputs.directories["context"]) in error.hint
        ):
            error.hint = "the build context is empty: the Dockerfile came from standard input"

    def _result(self, results: Sequence[PlatformResult], exported: ExportResult | None) -> BuildResult:
        images = {str(r.platform): BuiltImage(platform=r.platform, config=r.config) for r in results}
        index = None
        metadata: dict[str, Any] = {**(exported.merged if exported is not None else {}), **self._metadata}
        image = exported.image if exported is not None else None
        if image is not None:
            for one in image.platforms:
                images[str(one.platform)] = BuiltImage(
                    platform=one.platform,
                    config=one.config,
                    digest=one.descriptor.digest,
                    config_digest=one.manifest.config.digest,
                )
            if image.index is not None:
                top = image.descriptor
                index = BuiltIndex(digest=top.digest, media_type=top.media_type, size=top.size)
        return BuildResult(
            images=images, index=index, metadata=metadata, warnings=tuple(self._keeper.warnings)
        )

    def _warn(self, warning: LintWarning) -> None:
        self._keeper.emit(
            VertexWarning(
                vertex=self._definition,
                level=1,
                short=f"{warning.rule}: {warning.message}",
                detail=(warning.description,),
                url=warning.url,
                source=warning.where,
            )
        )

    def _call(self, options: ConvertOptions) -> BuildResult:
        """Answer a question instead of building."""
        from crossdock.dockerfile.subrequests import METHODS, answer

        method = self._request.call.partition(",")[0]
        if method not in METHODS:
            summary = f"--call={method} is not supported"
            raise NotSupported(summary, hint=f"methods: {', '.join(METHODS)}")
        found = answer(
            METHODS[method],
            self._dockerfile,
            self._name,
            options,
            images=self._images,
            context=self._files,
            sources=self._times(),
        )
        metadata = {key: value.decode() for key, value in found.metadata().items()}
        return BuildResult(metadata=metadata, warnings=tuple(self._keeper.warnings))
