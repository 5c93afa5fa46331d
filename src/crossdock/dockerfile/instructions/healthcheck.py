"""``HEALTHCHECK [options] CMD …`` and ``HEALTHCHECK NONE``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction, parse_flags, text_flag
from crossdock.dockerfile.text import SPACE, parse_duration, quote
from crossdock.dockerfile.words import NotStrings, json_strings

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Flags, Statement

__all__ = ["HealthcheckInstruction", "parse"]

_FLAGS: dict[str, type] = {
    "interval": str,
    "timeout": str,
    "start-period": str,
    "start-interval": str,
    "retries": str,
}


class HealthcheckInstruction(Instruction):
    """``HEALTHCHECK``; durations in nanoseconds, 0 when not given."""

    #: ``NONE``, or ``CMD``/``CMD-SHELL`` and the command
    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


def parse(s: Statement) -> HealthcheckInstruction:
    """Read a HEALTHCHECK.

    Raises: DockerfileError.
    """
    if not s.rest:
        message = "HEALTHCHECK requires at least one argument"
        raise s.error(message)
    end = next((i for i, ch in enumerate(s.rest) if ch in SPACE), len(s.rest))
    written, command = s.rest[:end], s.rest[end:].lstrip(SPACE)
    kind = written.upper()
    if kind == "NONE":
        if command:
            message = "HEALTHCHECK NONE takes no arguments"
            raise s.error(message, command)
        return HealthcheckInstruction(**s.common(), test=("NONE",))
    flags = parse_flags(s, _FLAGS)
    if kind != "CMD":
        message = f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)"
        raise s.error(message, written)
    return HealthcheckInstruction(
        **s.common(),
        test=_test(s, command),
        interval_ns=_duration(s, flags, "interval"),
        timeout_ns=_duration(s, flags, "timeout"),
        start_period_ns=_duration(s, flags, "start-period"),
        start_interval_ns=_duration(s, flags, "start-interval"),
        retries=_retries(s, flags),
    )


def _test(s: Statement, command: str) -> tuple[str, ...]:
    try:
        args = json_strings(command)
    except NotStrings as exc:
        raise s.error(str(exc), command) from None
    if args is None and command:
        return ("CMD-SHELL", command)
    if not args:
        message = "Missing command after HEALTHCHECK CMD"
        raise s.error(message)
    return ("CMD", *args)


def _duration(s: Statement, flags: Flags, name: str) -> int:
    text = text_flag(flags, name)
    if not text:
        return 0
    try:
        value = parse_duration(text)
    except ValueError as exc:
        raise s.error(str(exc), f"--{name}={text}", hint="write a duration as 30s, 1m30s or 500ms") from None
    if value != 0 and value < 1_000_000:
        message = f"Interval {quote(name)} cannot be less than 1ms"
        raise s.error(message, f"--{name}={text}")
    return value


def _retries(s: Statement, flags: Flags) -> int:
    text = text_flag(flags, "retries")
    if not text:
        return 0
    digits = text[1:] if text[:1] in "+-" else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 10 or int(digits) > 0x7FFFFFFF:
        message = f"--retries must be a whole number, not {quote(text)}"
        raise s.error(message, f"--retries={text}")
    if int(text) < 0:
        message = f"--retries cannot be negative ({text})"
        raise s.error(message, f"--retries={text}")
    return int(text)
