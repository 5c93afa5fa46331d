"""Carry out one solve request: frontend, results, outputs.

Spec: moby/buildkit ``solver/llbsolver/solver.go`` (Solve), ``solver/llbsolver/bridge.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builds.early import EarlyExport
from crossdock.errors import CacheError, NotSupported, UsageError
from crossdock.image.reference import parse_reference
from crossdock.server.caches import imports_of_attrs
from crossdock.server.export import check_outputs, export_results, frontend_metadata, image_of, specs_of
from crossdock.server.results import ResultRef, Results, decode_output, platforms_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.buildkit.proto import ops_pb2
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.attestation import Attestation
    from crossdock.engine.exporters.model import ExporterSpec
    from crossdock.server.jobs import Job
    from crossdock.server.results import PlatformResult

__all__ = ["check_request", "run_job", "solve_request"]

_OURS = frozenset(["docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream"])


def check_request(job: Job) -> None:
    """Refuse what would otherwise be ignored. Raises: NotSupported naming the field; UsageError."""
    request = job.request
    if request.ProxyNetwork:
        summary = "networks by proxy are not supported by this server: steps reach the network directly or not at all"
        raise NotSupported(summary, hint="--network none keeps steps off the network")
    check_outputs(specs_of(request), attested=job.attests.attested)


def run_job(job: Job) -> dict[str, str]:
    """Solve, export; returns the exporters' response. Raises: all that a build can fail with."""
    request = job.request
    check_request(job)
    job.caches.load_request()
    if request.Frontend or request.Definition.ByteSize():
        results = solve_request(
            job,
            frontend=request.Frontend,
            attrs=request.FrontendAttrs,
            definition=request.Definition,
            inputs=request.FrontendInputs,
        )
    else:
        results = job.answer.wait(job.cancel)
    job.results = results
    response = frontend_metadata(results.metadata)
    response.update(_finish(job, results))
    if request.EnableSessionExporter:
        from crossdock.server.sessionexporter import finish_outputs

        finish_outputs(job, response)
    return response


def _finish(job: Job, results: Results) -> dict[str, str]:
    """Make what is left to be made, and write it out; once more without each imported cache that fails it."""
    specs = specs_of(job.request)
    refs = results.all_refs()
    job.police(refs)
    asked = not job.request.EnableSessionExporter
    while True:
        try:
            if not asked:
                from crossdock.server.sessionexporter import session_outputs

                job.solve(refs)
                specs, asked = [*specs, *session_outputs(job, results)], True
            if not specs and not job.caches.wants_keys:
                job.solve(refs)
                return {}
            platforms = platforms_of(results)
            return _write_out(job, platforms, specs, multi_platform=not results.single)
        except CacheError:
            if not job.engine.drop_failed_caches(job.log):
                raise
            for ref in refs:
                ref.ref = None


def _write_out(
    job: Job, platforms: Sequence[PlatformResult], specs: Sequence[ExporterSpec], *, multi_platform: bool
) -> dict[str, str]:
    # What is written at the client waits for all of it; what is pushed need not.
    pushed = [spec for spec in specs if spec.type in ("image", "registry")]
    epoch_s = platforms[0].epoch_s if platforms else None
    with EarlyExport(
        job.engine, pushed, multi_platform=multi_platform, epoch_s=epoch_s, cancel=job.cancel
    ) as early:
        return _write_out_with(job, platforms, specs, early, multi_platform=multi_platform)


def _write_out_with(
    job: Job,
    platforms: Sequence[PlatformResult],
    specs: Sequence[ExporterSpec],
    early: EarlyExport,
    *,
    multi_platform: bool,
) -> dict[str, str]:
    scans = [ResultRef(output) if output is not None else None for output in job.attests.scans(platforms)]
    refs = [p.ref for p in platforms if p.ref is not None]
    attesting = [ref for p in platforms for _, ref in p.attestations]

    def known(ref: ResultRef, made: Ref) -> None:
        for platform in platforms:
            if platform.ref is ref:
                early.add(image_of(platform, made))

    wanted = [*refs, *attesting, *(scan for scan in scans if scan is not None)]
    solved = job.solve(wanted, early=known)[: len(refs)]
    keyed = job.keyed or []
    made: Sequence[Sequence[Attestation]]
    made = job.attests.make([scan.ref if scan is not None else None for scan in scans], keyed)
    if attesting:
        from crossdock.server.frontendattests import attestations_of

        made = attestations_of(job, platforms, made)
    response: dict[str, str] = {}
    if specs:
        job.caches.secure(solved)
        response = export_results(
            job,
            platforms,
            specs,
            made,
            inline=job.caches.inline(platforms, keyed),
            multi_platform=multi_platform,
            ahead=early.ahead,
        )
    response.update(job.caches.export(platforms, solved, keyed))
    return response


def solve_request(
    job: Job,
    *,
    frontend: str,
    attrs: Mapping[str, str],
    definition: ops_pb2.Definition | None,
    inputs: Mapping[str, ops_pb2.Definition],
) -> Results:
    """Run a frontend, or take a definition; nothing of the result is made yet.

    Raises: UsageError, NotSupported, DockerfileError; what resolving images raises.
    """
    if definition is not None and definition.ByteSize():
        if frontend:
            summary = f"cannot solve with both Definition and Frontend specified: {frontend}"
            raise UsageError(summary)
        return job.remember(Results.of(decode_output(definition)))
    if not frontend:
        return job.remember(Results({"": ResultRef(None)}, single=True))
    if frontend not in ("gateway.v0", "dockerfile.v0"):
        summary = f"invalid frontend: {frontend}"
        raise UsageError(summary, hint="this server has dockerfile.v0 and gateway.v0")
    job.frontends.check(frontend, attrs.get("source", "") if frontend == "gateway.v0" else "")
    job.asked.frontend, job.asked.attrs = frontend, dict(attrs)
    job.caches.load(imports_of_attrs(attrs))
    source = attrs.get("source", "")
    if frontend == "gateway.v0" and not _is_ours(source):
        return job.remember(run_image(job, source, attrs, inputs))
    from crossdock.server.frontend import run_dockerfile

    given = {name: decode_output(value) for name, value in inputs.items()}

    def other(image: str) -> Results:
        return run_image(job, image, {**attrs, "source": image, "cmdline": image}, inputs)

    return job.remember(run_dockerfile(job, attrs, given, other))


def run_image(
    job: Job, source: str, attrs: Mapping[str, str], inputs: Mapping[str, ops_pb2.Definition]
) -> Results:
    """Run the frontend in an image. Raises: NotSupported; as ``run_frontend_image``."""
    from crossdock.server.imagefrontend import run_frontend_image

    bridge = job.bridge
    if bridge is None:
        summary = f"the frontend image {source} cannot be run here"
        raise NotSupported(summary)
    return run_frontend_image(job, source, attrs, lambda answer: bridge(answer, inputs))


def _is_ours(source: str) -> bool:
    """Whether our own frontend serves an image of the official one. Raises: UsageError without one."""
    if source == "dockerfile.v0":
        return True
    if not source:
        summary = "no source specified for gateway"
        raise UsageError(summary)
    return parse_reference(source).repository in _OURS
