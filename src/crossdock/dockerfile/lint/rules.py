"""The build checks as data: name, description, page, message. Loaded when the first finding is reported.

Names, pages and message texts are those of BuildKit, as people search for them.
Spec: https://docs.docker.com/reference/build-checks/
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.dockerfile.text import quote

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RULES", "Rule"]

_BASE = "https://docs.docker.com/go/dockerfile/rule/"


class Rule:
    """One check. ``bad`` and ``good`` are example Dockerfiles for its page (and for the tests)."""

    __slots__ = ("_page", "bad", "description", "experimental", "good", "message", "name", "why")

    def __init__(
        self,
        name: str,
        description: str,
        message: Callable[..., str],
        *,
        why: str,
        bad: str,
        good: str,
        experimental: bool = False,
        page: bool = True,
    ) -> None:
        self.name = name
        self.description = description
        self.message = message
        self.why = why
        self.bad = bad
        self.good = good
        self.experimental = experimental
        self._page = page

    @property
    def url(self) -> str:
        """Address of the page about it; ``""`` when there is none."""
        return f"{_BASE}{self.slug}/" if self._page else ""

    @property
    def slug(self) -> str:
        """The name in kebab case, as in the page's address."""
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", self.name)
        return spaced.lower()


def _with_suggestion(message: str, suggestion: str) -> str:
    return f"{message} (did you mean {suggestion}?)" if suggestion else message


_ALL = (
    Rule(
        "StageNameCasing",
        "Stage names should be lowercase",
        lambda name: f"Stage name '{name}' should be lowercase",
        why="Stage names are compared without regard to case; writing them in lower case avoids surprises.",
        bad="FROM alpine AS BuilderBase\n",
        good="FROM alpine AS builder-base\n",
    ),
    Rule(
        "FromAsCasing",
        "The 'as' keyword should match the case of the 'from' keyword",
        lambda from_, as_: f"'{as_}' and '{from_}' keywords' casing do not match",
        why="Mixed case in one line reads badly.",
        bad="FROM alpine as build\n",
        good="FROM alpine AS build\n",
    ),
    Rule(
        "NoEmptyContinuation",
        "Empty continuation lines will become errors in a future release",
        lambda: "Empty continuation line",
        why="A blank line inside a continued instruction usually means that a backslash is missing or left over.",
        bad="FROM alpine\nEXPOSE \\\n\n80\n",
        good="FROM alpine\nEXPOSE \\\n  80\n",
    ),
    Rule(
        "ConsistentInstructionCasing",
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        lambda name, casing: f"Command '{name}' should match the case of the command majority ({casing})",
        why="One style of keywords makes a file easier to read.",
        bad="FROM alpine\nRUN true\nrun true\n",
        good="FROM alpine\nRUN true\nRUN true\n",
    ),
    Rule(
        "DuplicateStageName",
        "Stage names should be unique",
        lambda name: f"Duplicate stage name {quote(name)}, stage names should be unique",
        why="The later stage hides the earlier one; references to the name mean the last one defined before them.",
        bad="FROM alpine AS build\nFROM alpine AS build\n",
        good="FROM alpine AS build\nFROM alpine AS test\n",
    ),
    Rule(
        "ReservedStageName",
        "Reserved words should not be used as stage names",
        lambda name: f"Stage name should not use the same name as reserved stage {quote(name)}",
        why="`scratch` and `context` have a meaning of their own, so a stage of that name cannot be referred to.",
        bad="FROM alpine AS scratch\n",
        good="FROM alpine AS base\n",
    ),
    Rule(
        "JSONArgsRecommended",
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        lambda name: (
            f"JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
        ),
        why=(
            "In shell form the program is a child of /bin/sh, which does not pass signals on: the container does not "
            "stop when asked to. Write a JSON array, or set SHELL to show that a shell is wanted."
        ),
        bad="FROM alpine\nENTRYPOINT my-program start\n",
        good='FROM alpine\nENTRYPOINT ["my-program", "start"]\n',
    ),
    Rule(
        "MaintainerDeprecated",
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        lambda: "Maintainer instruction is deprecated in favor of using label",
        why="A label can be seen with the others and has a standard name.",
        bad="FROM alpine\nMAINTAINER me@example.org\n",
        good='FROM alpine\nLABEL org.opencontainers.image.authors="me@example.org"\n',
    ),
    Rule(
        "UndefinedArgInFrom",
        "FROM command must use declared ARGs",
        lambda name, near: _with_suggestion(f"FROM argument '{name}' is not declared", near),
        why="Only arguments declared before the first FROM can be used in FROM; others are empty.",
        bad="ARG VERSION=3\nFROM alpine:3${VERSIO}\n",
        good="ARG VERSION=3\nFROM alpine:${VERSION}\n",
    ),
    Rule(
        "WorkdirRelativePath",
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the "
        "base image changes",
        lambda path: f"Relative workdir {quote(path)} can have unexpected results if the base image changes",
        why="A relative path starts from whatever working directory the base image has.",
        bad="FROM alpine\nWORKDIR app\n",
        good="FROM alpine\nWORKDIR /app\n",
    ),
    Rule(
        "UndefinedVar",
        "Variables should be defined before their use",
        lambda name, near: _with_suggestion(
            f"Usage of undefined variable '${name}'", f"${near}" if near else ""
        ),
        why="A variable that is neither set nor declared is empty, often because of a typing error.",
        bad="FROM alpine AS base\nARG FILE=a\nCOPY ${FLE} .\n",
        good="FROM alpine AS base\nARG FILE=a\nCOPY ${FILE} .\n",
    ),
    Rule(
        "MultipleInstructionsDisallowed",
        "Multiple instructions of the same type should not be used in the same stage",
        lambda name: (
            f"Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        ),
        why="Only the last CMD, ENTRYPOINT or HEALTHCHECK of a stage counts.",
        bad='FROM alpine\nCMD ["a"]\nCMD ["b"]\n',
        good='FROM alpine\nCMD ["b"]\n',
    ),
    Rule(
        "LegacyKeyValueFormat",
        "Legacy key/value format with whitespace separator should not be used",
        lambda name: f'"{name} key=value" should be used instead of legacy "{name} key value" format',
        why="The old form sets one variable per line and cannot be told from a typing error.",
        bad="FROM alpine\nENV DIR /my arm/dir\n",
        good='FROM alpine\nENV DIR="/my arm/dir"\n',
    ),
    Rule(
        "InvalidBaseImagePlatform",
        "Base image platform does not match expected target platform",
        lambda image, expected, actual: (
            f"Base image {image} was pulled with platform {quote(actual)}, expected {quote(expected)} for current build"
        ),
        why="The image has no variant for the platform, so its programs may not run.",
        bad="FROM --platform=linux/arm64 amd64-only\n",
        good="FROM --platform=linux/amd64 amd64-only\n",
        page=False,
    ),
    Rule(
        "RedundantTargetPlatform",
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        lambda text: (
            f"Setting platform to predefined {text} in FROM is redundant as this is the default behavior"
        ),
        why="The target platform is the default.",
        bad="FROM --platform=$TARGETPLATFORM alpine\n",
        good="FROM alpine\n",
    ),
    Rule(
        "SecretsUsedInArgOrEnv",
        "Sensitive data should not be used in the ARG or ENV commands",
        lambda kind, name: f"Do not use ARG or ENV instructions for sensitive data ({kind} {quote(name)})",
        why="Build arguments and variables stay in the image's history and config. Use RUN --mount=type=secret.",
        bad="FROM alpine\nARG AWS_SECRET_ACCESS_KEY\n",
        good="FROM alpine\nRUN --mount=type=secret,id=aws,env=AWS_SECRET_ACCESS_KEY true\n",
    ),
    Rule(
        "InvalidDefaultArgInFrom",
        "Default value for global ARG results in an empty or invalid base image name",
        lambda base: f"Default value for ARG {base} results in empty or invalid base image name",
        why="The file should build without any build argument.",
        bad="ARG TAG\nFROM busybox:${TAG}\n",
        good="ARG TAG=latest\nFROM busybox:${TAG}\n",
    ),
    Rule(
        "FromPlatformFlagConstDisallowed",
        "FROM --platform flag should not use a constant value",
        lambda text: f"FROM --platform flag should not use constant value {quote(text)}",
        why="A constant platform keeps the file from being built for others. Name the stage after it if it is meant.",
        bad="FROM --platform=linux/amd64 alpine AS base\n",
        good="FROM --platform=$BUILDPLATFORM alpine AS base\n",
    ),
    Rule(
        "CopyIgnoredFile",
        "Attempting to Copy file that is excluded by .dockerignore",
        lambda kind, path: f"Attempting to {kind} file {quote(path)} that is excluded by .dockerignore",
        why="The build will fail, or find nothing: the file is not in the context.",
        bad="FROM scratch\nCOPY ./tmp/file /\n",
        good="FROM scratch\nCOPY ./other/file /\n",
    ),
    Rule(
        "InvalidDefinitionDescription",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is "
        "not intended to be a description comment, add an empty line or comment between the instruction and the "
        "comment.",
        lambda kind, name: f"Comment for {kind} should follow the format: `# {name} <description>`",
        why="Comments above ARG and FROM are shown by --call=outline and --call=targets.",
        bad="# a comment\nFROM scratch AS base\n",
        good="# base is where it starts\nFROM scratch AS base\n",
        experimental=True,
    ),
    Rule(
        "ExposeProtoCasing",
        "Protocol in EXPOSE instruction should be lowercase",
        lambda port: f"Defined protocol '{port}' in EXPOSE instruction should be lowercase",
        why="Protocols are lower case in the image config.",
        bad="FROM alpine\nEXPOSE 80/TcP\n",
        good="FROM alpine\nEXPOSE 80/tcp\n",
    ),
    Rule(
        "ExposeInvalidFormat",
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a "
        "future release",
        lambda port: (
            f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        ),
        why="EXPOSE says which ports the program listens on; mapping them is for whoever runs the container.",
        bad="FROM alpine\nEXPOSE 127.0.0.1:80:80\n",
        good="FROM alpine\nEXPOSE 80\n",
    ),
)

#: every check by name
RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}
