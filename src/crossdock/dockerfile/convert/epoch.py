"""``SOURCE_DATE_EPOCH``: a number, or the name of a source whose time is taken.

Spec: Dockerfile reference "SOURCE_DATE_EPOCH"; behaviour of moby/buildkit ``dockerfile2llb/epoch.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.contexts import (
    GitContext,
    HttpContext,
    InputContext,
    context_output,
    git_source,
    http_source,
    named,
)
from crossdock.dockerfile.convert.args import global_args, platform_args
from crossdock.dockerfile.convert.copy import http_filename
from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.giturl import GitUrlError, parse_git_ref
from crossdock.dockerfile.instructions.arg import Arg
from crossdock.dockerfile.instructions.copy import Add
from crossdock.errors import DockerfileError, NotSupported, UsageError
from crossdock.llb.graph import Node, Output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.convert.options import ConvertOptions, SourceTimes
    from crossdock.dockerfile.tree import Dockerfile, Stage

__all__ = ["resolve_epoch"]

_NAME = "SOURCE_DATE_EPOCH"
#: end of the year 9999
_MAX = 253402300799


def resolve_epoch(
    dockerfile: Dockerfile, options: ConvertOptions, sources: SourceTimes | None
) -> tuple[int | None, Mapping[str, str]]:
    """Return the time in seconds, and the build arguments with the name replaced by the number.

    Raises: UsageError, DockerfileError; NotSupported when a source's time is asked for and ``sources`` is ``None``.
    """
    args = platform_args(
        options.build_platforms[0],
        (options.platforms or options.build_platforms)[0],
        options.build_args,
        options.target,
    )
    args = global_args(args, dockerfile.global_args, options.build_args, dockerfile.escape)
    text = options.build_args.get(_NAME, args.get(_NAME, ""))
    if not text:
        return None, options.build_args
    digits = text.removeprefix("-").removeprefix("+")
    if digits.isascii() and digits.isdigit():
        value: int | None = int(text[:30])
        if not 0 <= (value or 0) <= _MAX:
            summary = f"invalid {_NAME}: {text}: not a time between 1970 and 9999"
            raise UsageError(summary)
    else:
        value = _source_time(dockerfile, options, args, text, sources)
    build_args = dict(options.build_args)
    if value is None:
        build_args.pop(_NAME, None)
    else:
        build_args[_NAME] = str(value)
    return value, build_args


def _source_time(
    dockerfile: Dockerfile,
    options: ConvertOptions,
    args: Mapping[str, str],
    text: str,
    sources: SourceTimes | None,
) -> int | None:
    output, log_name = _named_source(dockerfile, options, args, text)
    if output is None:
        return None
    if sources is None:
        summary = f"{_NAME}={text} needs the time of a remote source, which this builder cannot ask for"
        raise NotSupported(summary, hint=f"set {_NAME} to a number of seconds")
    return sources.source_time(output, log_name=log_name)


def _named_source(
    dockerfile: Dockerfile, options: ConvertOptions, args: Mapping[str, str], text: str
) -> tuple[Output | None, str]:
    if text == "context":
        spec = options.main_context
        found = context_output(spec) if isinstance(spec, GitContext | HttpContext | InputContext) else None
        return found, "[internal] resolve main build context metadata"
    named_spec = options.contexts.get(text)
    if named_spec is not None:
        remote = isinstance(named_spec, GitContext | HttpContext | InputContext)
        found = context_output(named_spec) if remote else None  # type: ignore[arg-type]
        return found, f"[internal] resolve {_NAME} named context {text}"
    for stage in dockerfile.stages:
        if stage.name and stage.name == text.lower():
            return (
                _stage_source(stage, options, args, dockerfile.escape),
                f"[internal] resolve {_NAME} source stage {stage.name}",
            )
    summary = f"invalid {_NAME}: {text}"
    raise UsageError(summary, hint="write seconds since 1970, `context`, a context's or a stage's name")


def _stage_source(stage: Stage, options: ConvertOptions, args: Mapping[str, str], escape: str) -> Output:
    """Return the source of a stage that is nothing but one remote ADD on scratch."""
    env = {k: v for k, v in args.items() if k != _NAME}

    def word(text: str) -> str:
        try:
            return expand(text, env, escape=escape).text
        except ExpandError as exc:
            raise DockerfileError(str(exc), source=stage.head.where) from None

    if word(stage.head.base) != "scratch":
        summary = f"{_NAME} stage must use FROM scratch"
        raise DockerfileError(summary, source=stage.head.where)
    found: Output | None = None
    for instruction in stage.instructions:
        if isinstance(instruction, Arg):
            for item in instruction.items:
                if item.name in options.build_args:
                    env[item.name] = options.build_args[item.name]
                elif item.value is not None:
                    env[item.name] = word(item.value)
        elif isinstance(instruction, Add) and found is None:
            found = _remote(instruction, word(instruction.sources[0]) if instruction.sources else "")
        else:
            summary = f"{_NAME} stage must contain exactly one remote ADD and nothing else"
            raise DockerfileError(summary, source=instruction.where)
    if found is None:
        summary = f"{_NAME} stage must contain exactly one remote ADD"
        raise DockerfileError(summary, source=stage.head.where)
    return found


def _remote(add: Add, source: str) -> Output:
    try:
        git = parse_git_ref(source)
    except GitUrlError as exc:
        raise DockerfileError(str(exc), source=add.where) from None
    metadata = named(f"[internal] {source}")
    if git is not None and not git.local_looking:
        return Output(Node(git_source(git, checksum=add.checksum), metadata=metadata))
    if source.startswith(("http://", "https://")) and len(add.sources) == 1 and not add.files:
        op = http_source(source, filename=http_filename(source), checksum=add.checksum)
        return Output(Node(op, metadata=metadata))
    summary = f"{_NAME} stage source must be a single HTTP(S) or Git ADD"
    raise DockerfileError(summary, source=add.where)
