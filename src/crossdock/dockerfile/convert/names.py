"""How steps are named in progress: ``[linux/arm64 build 2/4] RUN make``.

Spec: moby/buildkit ``frontend/dockerfile/dockerfile2llb``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.errors import UsageError
from crossdock.image.platform import Platform, parse_platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.convert.stage import StageState

__all__ = ["shown_command", "step_name", "summary_of"]


def shown_command(text: str, env: Mapping[str, str], escape: str, *, for_shell: bool = False) -> str:
    """Return an instruction's text with variables filled in and its keyword in capitals.

    ``for_shell`` keeps quotes and unset variables, which the shell will see.
    """
    # What cannot be expanded is shown as written; a real problem is reported by the instruction itself.
    with suppress(ExpandError):
        text = expand(text, env, escape=escape, keep_quotes=for_shell, keep_unset=for_shell).text
    keyword, space, rest = text.partition(" ")
    return keyword.upper() + space + rest


def step_name(
    stage: StageState, command: str, *, platform: Platform | None, env: Mapping[str, str], prefixed: bool
) -> str:
    """Number the next step of ``stage`` and return its name."""
    if stage.steps == 0:
        return command
    out = "["
    if prefixed and platform is not None:
        out += f"{platform}{_cross(platform, env)} "
    if stage.shown_name:
        out += stage.shown_name + " "
    stage.step += 1
    out += f"{str(stage.step).rjust(len(str(stage.steps)))}/{stage.steps}] "
    return out + ("ONBUILD " if stage.on_build_now else "") + command


def _cross(base: Platform, env: Mapping[str, str]) -> str:
    """Return ``->arm64`` when the stage builds for another platform than it runs on."""
    target = _target(env)
    if target is None:
        return ""
    target = Platform(target.os or base.os, target.architecture or base.architecture, target.variant)
    target = target.normalised()
    if target.os != base.os:
        return f"->{target}"
    if target.architecture == base.architecture:
        return ""
    return f"->{target.architecture}" + (f"/{target.variant}" if target.variant else "")


def _target(env: Mapping[str, str]) -> Platform | None:
    parts = {"TARGETOS": "", "TARGETARCH": "", "TARGETVARIANT": ""}
    found = False
    for key in env:
        if key == "TARGETPLATFORM":
            try:
                return parse_platform(env[key])
            except UsageError:
                continue
        if key in parts:
            parts[key] = env[key]
            found = True
    os_name, arch, variant = parts.values()
    return Platform(os_name, arch, variant) if found else None


def summary_of(body: str) -> str:
    """Return the first line of a here-document, with dots when there are more."""
    lines = body.strip().replace("\r\n", "\n").split("\n")
    return lines[0] + ("..." if len(lines) > 1 else "")
