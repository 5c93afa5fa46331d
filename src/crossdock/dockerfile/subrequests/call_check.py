"""``--call=check``: the build checks, and the error the build would end with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.dockerfile.convert import converted_jobs
from crossdock.dockerfile.parser import parse
from crossdock.dockerfile.source import decode
from crossdock.dockerfile.subrequests import SubResult
from crossdock.dockerfile.subrequests.shape import base64_text, dump, location, ranges
from crossdock.errors import Cancelled, CrossdockError, InternalError
from crossdock.progress.excerpt import render_source
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.dockerfile.convert.options import (
        ContextFiles,
        ConvertOptions,
        ImageResolver,
        SourceTimes,
    )
    from crossdock.dockerfile.lint import LintWarning

__all__ = ["render_warnings", "run_checks"]


def run_checks(
    data: bytes,
    name: str,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    sources: SourceTimes | None,
) -> SubResult:
    """Check every stage, or those the target needs; what would fail the build is part of the answer."""
    warnings: list[LintWarning] = []
    error: CrossdockError | None = None
    if not options.target:
        options = replace(options, all_stages=True)
    try:
        dockerfile = parse(data, name)
        jobs = converted_jobs(
            dockerfile, options, images=images, context=context, warn=warnings.append, sources=sources
        )
        jobs[0].linter.raise_found()
    except (Cancelled, InternalError):
        raise
    except CrossdockError as exc:
        error = exc
    answer: dict[str, Any] = {
        "warnings": [_warning(w) for w in warnings] or None,
        "sources": [
            {"filename": name, "data": base64_text(decode(data)), "language": "Dockerfile"},
        ],
    }
    if error is not None:
        answer["buildError"] = {"message": str(error), "location": location(error.source)}
    return SubResult(
        version="1.0.0",
        json=dump(answer),
        text=render_warnings(warnings),
        status=1 if warnings or error is not None else 0,
    )


def _warning(warning: LintWarning) -> dict[str, Any]:
    values: dict[str, Any] = {
        "ruleName": warning.rule,
        "description": warning.description,
        "url": warning.url,
        "detail": warning.message,
        "location": {"ranges": ranges(warning.where)} if warning.where else {},
    }
    return {k: v for k, v in values.items() if v or k in ("ruleName", "location")}


def render_warnings(warnings: Sequence[LintWarning]) -> str:
    """Write the findings with their lines, in file order."""
    ordered = sorted(warnings, key=lambda w: w.where.start.line if w.where else 0)
    out: list[str] = []
    for warning in ordered:
        title = f"\nWARNING: {warning.rule}" + (f" - {warning.url}" if warning.url else "")
        out.append(f"{title}\n{warning.message}\n")
        if warning.where is not None:
            out.append(render_source(warning.where))
    return "".join(out)
