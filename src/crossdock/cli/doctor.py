"""``doctor``: check this machine, and say for each gap what to type."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.cli.command import Globals
    from crossdock.cli.doctorchecks import Check

__all__ = ["command"]

_MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


@make_command("doctor [OPTIONS]", builder=False)
@flag("--format", default="table", help='"table" or "json"')
def command(_globals: Globals, format: str) -> int:
    """Check what this machine can build and run"""
    if format not in ("table", "json"):
        summary = f"unknown format {format!r}"
        raise UsageError(summary, hint='use "table" or "json"')
    from crossdock.builders.bootrecord import default_root
    from crossdock.cli.doctorchecks import all_checks

    checks = all_checks(Path(default_root()))
    if format == "json":
        found = list(checks)
        sys.stdout.write(json.dumps([check._asdict() for check in found], indent=2) + "\n")
    else:
        found = _print(checks)
    return 1 if any(check.state == "fail" for check in found) else 0


def _print(checks: Iterable[Check]) -> list[Check]:
    found: list[Check] = []
    for check in checks:
        found.append(check)
        sys.stdout.write(f"{_MARKS[check.state]:<5} {check.name:<16} {check.text}\n")
        if check.fix:
            sys.stdout.write(f"{'':<23}{check.fix}\n")
        sys.stdout.flush()
    gaps = [check for check in found if check.state == "fail"]
    if gaps:
        sys.stdout.write(f"\n{len(gaps)} of {len(found)} checks failed\n")
    return found
