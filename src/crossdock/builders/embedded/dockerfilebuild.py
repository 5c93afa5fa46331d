"""One build: Dockerfile to graph, graph to layers, layers to outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.builders.attributes import entitlements
from crossdock.builders.embedded.attests import BuildAttests
from crossdock.builders.embedded.caches import BuildCaches
from crossdock.builders.embedded.explain import Explainer
from crossdock.builders.embedded.outputs import build_result, packing, plan_outputs, reproducible
from crossdock.builders.localpaths import LocalFiles
from crossdock.builders.result import BuildResult
from crossdock.builders.secrets import secret_reader
from crossdock.builds.early import EarlyExport
from crossdock.builds.images import EngineImages
from crossdock.builds.steps import lint_warning
from crossdock.dockerfile.syntax import foreign_frontend
from crossdock.engine.facade import SolveInputs
from crossdock.errors import CacheError, CrossdockError, NotSupported
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from crossdock.builders.embedded.inputs import Inputs
    from crossdock.builders.request import BuildRequest
    from crossdock.builds.steps import EventKeeper
    from crossdock.builds.times import EngineTimes
    from crossdock.cancel import CancelToken
    from crossdock.dockerfile.convert.options import ConvertOptions, PlatformResult
    from crossdock.dockerfile.lint import LintWarning
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.exporters.model import ExporterSpec, ExportResult, PlatformImage
    from crossdock.engine.facade import Engine, FileInfo
    from crossdock.image.digest import Digest
    from crossdock.llb.graph import Output
    from crossdock.llb.policy import SourcePolicies

__all__ = ["DockerfileBuild"]


class DockerfileBuild:
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
        self._policies = _policies(request)
        self._images = EngineImages(engine, keeper, cancel, self._layouts, self._policies)
        self._dockerfile, self._name = inputs.dockerfile or b"", inputs.name
        self._caches = BuildCaches(engine, request, keeper, cancel)
        self._explainer = Explainer(request)
        self._attests = BuildAttests(engine, request, inputs, self._images, keeper, cancel)
        #: what caches and attestations add to the response
        self._metadata: dict[str, Any] = {}

    def run(self) -> BuildResult:
        """Do it all. Raises: everything a build can fail with; see ``crossdock.errors``."""
        from crossdock.dockerfile.attrs import options_from_attrs

        options = options_from_attrs(self._inputs.attrs, build_platforms=(local_platform(),))
        options = self._fetch(options)
        image = foreign_frontend(self._dockerfile, self._name, options.build_args)
        if image:
            from crossdock.builders.embedded.frontendimage import build_by_image

            return build_by_image(
                self._engine, self._request, self._inputs, image, self._keeper, self._cancel
            )
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
        return build_result(results, exported, self._metadata, self._keeper.warnings)

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
        output = output if self._policies is None else self._policies.apply(output)
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
        results = convert(
            dockerfile,
            options,
            images=self._images,
            context=self._files,
            warn=self._warn,
            sources=self._times(),
        )
        policies = self._policies
        if policies is None:
            return results
        from crossdock.record import replace

        return [replace(r, output=policies.apply(r.output), scan=policies.apply_all(r.scan)) for r in results]

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
        inputs = self._solve_inputs()._replace(pack=packing(specs, results[0].epoch))
        outputs = [r.output for r in results]
        scans = self._attests.scans(results, self._name)
        keyed = self._attests.begin(self._caches.begin())
        with EarlyExport(
            self._engine,
            reproducible(specs, results[0].epoch),
            multi_platform=options.multi_platform,
            epoch_s=results[0].epoch,
            cancel=self._cancel,
        ) as early:

            def known(number: int, ref: Ref) -> None:
                if number < len(results):  # the rest is scanned, not exported
                    early.add(_image(results[number], ref, ()))

            try:
                solved = self._engine.solve(
                    [*outputs, *scans],
                    inputs=inputs,
                    sink=self._keeper,
                    cancel=self._cancel,
                    keyed=keyed,
                    recorder=self._explainer,
                    early=known,
                )
            except CrossdockError as exc:
                from crossdock.builds.locate import locate

                locate(exc, outputs, self._keeper.failed)
                self._explain_empty_context(exc)
                raise
            refs = solved[: len(outputs)]
            attestations = self._attests.make(solved[len(outputs) :])
            exported = self._export(results, refs, specs, options, attestations, early) if specs else None
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
        early: EarlyExport,
    ) -> ExportResult:
        self._caches.secure(refs, [spec.type for spec in specs])
        images = [
            _image(r, ref, attested)
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
            ahead=early.ahead,
        )

    def _explain_empty_context(self, error: CrossdockError) -> None:
        """Do not speak of the directory that stands for a context that there is not."""
        if self._request.context or not error.hint:
            return
        if str(self._inputs.directories["context"]) in error.hint:
            error.hint = "the build context is empty: the Dockerfile came from standard input"

    def _warn(self, warning: LintWarning) -> None:
        self._keeper.emit(lint_warning(self._definition, warning))

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


def _image(result: PlatformResult, ref: Ref, attestations: Sequence[Attestation]) -> PlatformImage:
    from crossdock.engine.exporters import PlatformImage

    return PlatformImage(result.platform, ref.layers, result.config, result.base_config, attestations)


def _policies(request: BuildRequest) -> SourcePolicies | None:
    """Return the rules for sources, when the build has any. Raises: UsageError."""
    if request.source_policy is None:
        return None
    from crossdock.llb.policy import SourcePolicies

    return SourcePolicies([request.source_policy])


def _layouts(inputs: Inputs) -> dict[str, Callable[[Digest], BinaryIO]]:
    """Return what opens the blobs of each OCI layout."""
    if not inputs.layouts:
        return {}
    from crossdock.engine.sources.ocilayout import DirectoryLayout

    return {name: DirectoryLayout(layout.root).open for name, layout in inputs.layouts.items()}
