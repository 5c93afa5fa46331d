"""What the build checks look for: pure functions that report to a linter.

Checks that need the state of a stage (its variables, shell, working directory) are called where that state is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.convert.args import META_ONLY, global_args
from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.paths import clean
from crossdock.dockerfile.text import closest
from crossdock.errors import DigestMismatch, DockerfileError, UsageError
from crossdock.image.platform import Platform, parse_platform
from crossdock.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.dockerfile.convert.stage import StageState
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.instructions.from_ import From
    from crossdock.dockerfile.lint import Linter
    from crossdock.dockerfile.tree import Dockerfile
    from crossdock.errors import SourceRange
    from crossdock.patterns import PatternMatcher

__all__ = [
    "check_base_platform",
    "check_default_bases",
    "check_from_args",
    "check_ignored",
    "check_platform_flag",
    "check_tree",
    "check_unset",
    "looks_secret",
]

_RESERVED = frozenset(["context", "scratch"])
_SECRET_WORDS = frozenset(
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"]
)
_HARMLESS_WORDS = frozenset(["public", "file", "version"])


def check_tree(dockerfile: Dockerfile, linter: Linter) -> None:
    """Check what the syntax alone shows."""
    for where in dockerfile.blank_continuations:
        linter.report("NoEmptyContinuation", where)
    for instruction, _ in dockerfile.statements:
        kind = type(instruction).__name__
        if kind == "From":
            _check_from_words(instruction, linter)  # type: ignore[arg-type]
        elif kind == "Maintainer":
            linter.report("MaintainerDeprecated", instruction.where, comments=instruction.comments)
        elif kind == "Arg":
            names = [item.name for item in instruction.items]  # type: ignore[attr-defined]
            _check_description("ARG", names, instruction, linter)
    _check_stage_names(dockerfile, linter)
    _check_casing(dockerfile, linter)


def _check_from_words(head: From, linter: Linter) -> None:
    if head.written_name != head.written_name.lower():
        linter.report("StageNameCasing", head.where, head.written_name, comments=head.comments)
    if head.as_word:
        lower, upper = head.keyword == head.keyword.lower(), head.keyword == head.keyword.upper()
        wanted = head.as_word.lower() if lower else head.as_word.upper()
        if (lower or upper) and head.as_word != wanted:
            linter.report("FromAsCasing", head.where, head.keyword, head.as_word, comments=head.comments)
    if head.name:
        _check_description("FROM", [head.name], head, linter)


def _check_description(kind: str, names: Sequence[str], instruction: Instruction, linter: Linter) -> None:
    comments = instruction.comments
    if not comments or not names or comments[-1].split(" ")[0] in names:
        return
    example = names[0] if len(names) == 1 else "<arg_key>"
    linter.report("InvalidDefinitionDescription", instruction.where, kind, example, comments=comments)


def _check_stage_names(dockerfile: Dockerfile, linter: Linter) -> None:
    seen: set[str] = set()
    for stage in dockerfile.stages:
        head = stage.head
        if not head.name:
            continue
        if head.name in _RESERVED:
            linter.report("ReservedStageName", head.where, head.name)
        if head.name in seen:
            linter.report("DuplicateStageName", head.where, head.name)
        seen.add(head.name)


def _check_casing(dockerfile: Dockerfile, linter: Linter) -> None:
    keywords = [
        (i.keyword, i.where) for stage in dockerfile.stages for i in (stage.head, *stage.instructions)
    ]
    lower = sum(word == word.lower() for word, _ in keywords)
    upper = sum(word == word.upper() for word, _ in keywords)
    casing = "lowercase" if lower > upper else "uppercase"
    for word, where in keywords:
        if word != (word.lower() if lower > upper else word.upper()):
            linter.report("ConsistentInstructionCasing", where, word, casing)


def check_default_bases(dockerfile: Dockerfile, predefined: Mapping[str, str], linter: Linter) -> None:
    """Check that every FROM is valid when no build argument is given."""
    try:
        args = global_args(predefined, dockerfile.global_args, {}, dockerfile.escape)
    except DockerfileError:
        return  # the conversion reports it
    for stage in dockerfile.stages:
        try:
            text = expand(stage.head.base, args, escape=dockerfile.escape).text
        except ExpandError:
            return
        try:
            parse_reference(text)
        except (UsageError, DigestMismatch):
            linter.report("InvalidDefaultArgInFrom", stage.head.where, stage.head.base)


def check_from_args(
    unset: Sequence[str],
    known: Sequence[str],
    where: SourceRange,
    comments: Sequence[str],
    linter: Linter,
) -> None:
    """Check that FROM uses declared arguments."""
    for name in unset:
        if name not in known:
            linter.report("UndefinedArgInFrom", where, name, closest(name, known) or "", comments=comments)


def check_platform_flag(head: From, text: str, env: Mapping[str, str], escape: str, linter: Linter) -> None:
    """Check the value of ``FROM --platform``."""
    result = expand(head.platform, env, escape=escape)
    if result.matched == ("TARGETPLATFORM",) and not result.unmatched:
        if text == env.get("TARGETPLATFORM"):
            linter.report("RedundantTargetPlatform", head.where, head.platform, comments=head.comments)
        return
    if result.matched or result.unmatched:
        return
    try:
        platform = parse_platform(text)
    except UsageError:
        return  # the conversion reports it
    if platform.os not in head.name and platform.architecture not in head.name:
        linter.report("FromPlatformFlagConstDisallowed", head.where, text, comments=head.comments)


def check_unset(
    names: Sequence[str],
    declared: Sequence[str],
    env: Mapping[str, str],
    instruction: Instruction,
    linter: Linter,
) -> None:
    """Check that used variables are set or declared."""
    for name in names:
        if name not in declared and name not in META_ONLY:
            near = closest(name, env) or ""
            linter.report("UndefinedVar", instruction.where, name, near, comments=instruction.comments)


def check_base_platform(
    image: str, expected: Platform, actual: Platform, state: StageState, linter: Linter
) -> None:
    """Check that the base image is for the wanted platform."""
    if (expected.os, expected.architecture) != (actual.os, actual.architecture):
        linter.report(
            "InvalidBaseImagePlatform",
            state.where,
            image,
            str(expected.normalised()),
            str(actual.normalised()),
        )


def check_ignored(
    source: str, ignore: PatternMatcher, instruction: Instruction, kind: str, linter: Linter
) -> None:
    """Check that a COPY source is not excluded by the ignore file."""
    path = clean(source)
    if path in (".", "/") and not any(
        p.text in ("*", "**", "**/*") and not p.negated for p in ignore.patterns
    ):
        return
    if ignore.matches(path):
        linter.report("CopyIgnoredFile", instruction.where, kind, path, comments=instruction.comments)


def looks_secret(name: str) -> bool:
    """Return whether a variable's name looks like that of a credential."""
    words = name.lower().split("_")
    return not _SECRET_WORDS.isdisjoint(words) and _HARMLESS_WORDS.isdisjoint(words)
