"""What ``--call`` prints, and its exit code.

Spec: docker/buildx ``commands/build.go`` (printResult); moby/buildkit ``frontend/subrequests/lint``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.errors import SourceRange

__all__ = ["print_answer"]


def print_answer(metadata: Mapping[str, Any], call: str) -> int:
    """Print the answer to ``METHOD[,format=json][,ignorestatus=true]``; returns the exit code.

    Raises: DockerfileError when checks found that the build would fail, and text is printed.
    """
    method, *words = call.split(",")
    options = {key: value or "true" for key, _, value in (word.partition("=") for word in words)}
    status = int(metadata.get("result.statuscode", 0) or 0)
    if options.get("ignorestatus", "false") in ("true", "1"):
        status = 0
    if options.get("format") == "json":
        _write(str(metadata.get("result.json", "")))
        return status
    text = str(metadata.get("result.txt", ""))
    if method in ("check", "lint"):
        _print_checks(text, str(metadata.get("result.json", "")))
    else:
        _write(text)
    return status


def _write(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")


def _print_checks(text: str, answer: str) -> None:
    import json

    found = json.loads(answer or "{}")
    count = len(found.get("warnings") or ())
    if count:
        words = "1 warning has been found!" if count == 1 else f"{count} warnings have been found!"
        _write(f"Check complete, {words}")
    _write(text)
    failure = found.get("buildError")
    if failure:
        from crossdock.errors import DockerfileError

        sys.stdout.flush()
        raise DockerfileError(str(failure.get("message", "")), source=_place(failure, found))
    if not count:
        _write("Check complete, no warnings found.")


def _place(failure: Mapping[str, Any], found: Mapping[str, Any]) -> SourceRange | None:
    """Return the place that a build error names."""
    import base64

    from crossdock.errors import Position, SourceFile, SourceRange

    location = failure.get("location") or {}
    ranges, sources = location.get("ranges") or (), found.get("sources") or ()
    index = int(location.get("sourceIndex", 0) or 0)
    if not ranges or index >= len(sources):
        return None
    text = base64.b64decode(sources[index].get("data") or "").decode(errors="replace")
    file = SourceFile(sources[index].get("filename") or "Dockerfile", text)
    start, end = ({"line": 1, **(one or {})} for one in (ranges[0].get("start"), ranges[-1].get("end")))
    return SourceRange(
        file,
        Position(int(start["line"]), int(start.get("character", 0))),
        Position(int(end["line"]), int(end.get("character", 0))),
    )
