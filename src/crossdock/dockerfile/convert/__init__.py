"""Syntax tree to LLB: one graph and image config per platform, equal steps shared.

Spec: Dockerfile reference; behaviour of moby/buildkit ``frontend/dockerfile/dockerfile2llb``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.contexts import LocalContext
from crossdock.dockerfile.convert.job import Job
from crossdock.dockerfile.lint import CheckOptions, Linter, parse_check_options
from crossdock.errors import DockerfileError, UsageError
from crossdock.patterns import compile_patterns, read_ignore_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.dockerfile.convert.options import (
        ContextFiles,
        ConvertOptions,
        ImageResolver,
        PlatformResult,
        SourceTimes,
    )
    from crossdock.dockerfile.convert.vertex import Interned
    from crossdock.dockerfile.lint import LintWarning
    from crossdock.dockerfile.tree import Dockerfile

__all__ = ["convert", "converted_jobs"]


def convert(
    dockerfile: Dockerfile,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    warn: Callable[[LintWarning], None] | None = None,
    sources: SourceTimes | None = None,
) -> list[PlatformResult]:
    """Convert for every target platform, in their order; warnings come once, from the first.

    Raises: DockerfileError (further problems in ``others``); UsageError for
    a wrong build argument; what ``images`` raises, with the place of the FROM.
    """
    interned: Interned = {}
    jobs = converted_jobs(dockerfile, options, images=images, context=context, warn=warn, sources=sources)
    return [job.result(interned) for job in jobs]


def converted_jobs(
    dockerfile: Dockerfile,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    warn: Callable[[LintWarning], None] | None,
    sources: SourceTimes | None,
) -> list[Job]:
    """Do everything but finish the graphs; for the sub-requests, which want the stages."""
    check_options = _check_options(dockerfile, options.build_args)
    patterns = _ignore_patterns(dockerfile, options, context)
    try:
        matcher = compile_patterns(patterns) if patterns else None
    except UsageError as exc:
        summary = f"failed parsing the ignore file: {exc.summary}"
        raise UsageError(summary, hint=exc.hint) from None
    jobs: list[Job] = []
    for number, platform in enumerate(options.platforms or (None,)):
        linter = Linter(check_options, warn if number == 0 else None)
        if linter.active:
            from crossdock.dockerfile.lint.checks import check_tree

            check_tree(dockerfile, linter)
        epoch, build_args = _epoch(dockerfile, options, sources)
        jobs.append(
            Job(
                dockerfile,
                options,
                platform,
                linter,
                epoch=epoch,
                build_args=build_args,
                files=context,
                ignore=matcher,
                ignore_patterns=patterns,
            )
        )
    _resolve(jobs, images)
    for job in jobs:
        job.dispatch()
    return jobs


def _resolve(jobs: list[Job], images: ImageResolver) -> None:
    """Resolve the images of all platforms together, round by round until no trigger asks for more."""
    from crossdock.dockerfile.convert.bases import resolve_all

    pending = jobs
    while pending:
        wanted = [(job, job.requests()) for job in pending]
        requests = [request for _, many in wanted for request in many]
        if requests:
            found = resolve_all(requests, images, jobs[0].stages.names())
            for job, many in wanted:
                job.answer(many, found)
        pending = [job for job in pending if job.take_triggers()]


def _check_options(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> CheckOptions:
    directive = dockerfile.directive("check")
    text = build_args.get("BUILDKIT_DOCKERFILE_CHECK")
    try:
        if text is not None:
            options = parse_check_options(text)
        else:
            options = parse_check_options(directive.value if directive else "")
        experimental = build_args.get("BUILDKIT_DOCKERFILE_CHECK_EXPERIMENTAL")
        if experimental:
            options = options.merged(parse_check_options(f"experimental={experimental}"))
    except ValueError as exc:
        if text is not None:
            summary = f"failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {exc}"
            raise UsageError(summary) from None
        summary = f"failed to parse check options: {exc}"
        where = directive.where if directive else None
        hint = "write # check=skip=Rule1,Rule2;error=true"
        raise DockerfileError(summary, source=where, hint=hint) from None
    return options


def _ignore_patterns(
    dockerfile: Dockerfile, options: ConvertOptions, context: ContextFiles
) -> tuple[str, ...]:
    """Read the ignore file: the one beside the Dockerfile, else the main context's; remote contexts have none."""
    spec = options.main_context
    if spec is not None and not isinstance(spec, LocalContext):
        return ()
    data = context.read_file(dockerfile.file.name + ".dockerignore", local="dockerfile")
    if data is None:
        data = context.read_file(".dockerignore", local=spec.name if spec is not None else "context")
    return read_ignore_file(data) if data else ()


def _epoch(
    dockerfile: Dockerfile, options: ConvertOptions, sources: SourceTimes | None
) -> tuple[int | None, Mapping[str, str]]:
    """Return SOURCE_DATE_EPOCH in seconds, and the build arguments with it as a number."""
    text = options.build_args.get("SOURCE_DATE_EPOCH")
    if text is None and not any(
        item.name == "SOURCE_DATE_EPOCH" for arg in dockerfile.global_args for item in arg.items
    ):
        return None, options.build_args
    from crossdock.dockerfile.convert.epoch import resolve_epoch

    return resolve_epoch(dockerfile, options, sources)
