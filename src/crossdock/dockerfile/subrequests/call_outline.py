"""``--call=outline``: what the target can be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.dockerfile.convert import converted_jobs
from crossdock.dockerfile.parser import parse
from crossdock.dockerfile.subrequests import SubResult
from crossdock.dockerfile.subrequests.shape import base64_text, dump, location, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.dockerfile.convert.options import (
        ContextFiles,
        ConvertOptions,
        ImageResolver,
        SourceTimes,
    )
    from crossdock.dockerfile.convert.stage import Capture, StageState
    from crossdock.errors import SourceRange

__all__ = ["run_outline"]

_Entry = tuple[int, dict[str, Any]]


def run_outline(
    data: bytes,
    name: str,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    sources: SourceTimes | None,
) -> SubResult:
    """Convert for the first platform and collect what the target's stages use.

    Raises: as ``convert``.
    """
    dockerfile = parse(data, name)
    jobs = converted_jobs(dockerfile, options, images=images, context=context, warn=None, sources=sources)
    target = jobs[0].target
    stages = list(target.reachable())
    head = target.head
    values = {
        "name": head.name if head else "",
        "description": head.description if head else "",
        "args": _args(stages),
        "secrets": _mounts([s.capture.secrets for s in stages]),
        "ssh": _mounts([s.capture.ssh for s in stages]),
        "sources": [base64_text(dockerfile.file.text)],
    }
    answer = {k: v for k, v in values.items() if v}
    return SubResult(version="1.0.0", json=dump(answer), text=_text(answer))


def _args(stages: Sequence[StageState]) -> list[dict[str, Any]]:
    found: dict[str, _Entry] = {}
    for stage in stages:
        for name in _used(stage.capture):
            known = stage.capture.args.get(name)
            if known is None or name in found:
                continue
            value, description, where, _ = known
            entry = {"name": name, "description": description, "value": value, "location": location(where)}
            found[name] = (where.start.line, {k: v for k, v in entry.items() if v or k == "name"})
    return _sorted(found)


def _used(capture: Capture) -> list[str]:
    """Return the used names and those their defaults use."""
    seen: dict[str, None] = {}
    stack = list(reversed(capture.used))
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen[name] = None
        known = capture.args.get(name)
        if known is not None:
            stack += known[3]
    return list(seen)


def _mounts(captured: Sequence[dict[str, tuple[bool, SourceRange]]]) -> list[dict[str, Any]]:
    found: dict[str, _Entry] = {}
    for mounts in captured:
        for name, (required, where) in mounts.items():
            if name not in found:
                entry: dict[str, Any] = {"name": name}
                if required:
                    entry["required"] = True
                entry["location"] = location(where)
                found[name] = (where.start.line, entry)
    return _sorted(found)


def _sorted(found: dict[str, _Entry]) -> list[dict[str, Any]]:
    return [entry for _, entry in sorted(found.values(), key=lambda pair: pair[0])]


def _text(answer: dict[str, Any]) -> str:
    out = ""
    name, description = answer.get("name", ""), answer.get("description", "")
    if name or description:
        rows = [("TARGET:", name or "(default)")]
        if description:
            rows.append(("DESCRIPTION:", description))
        out += table(rows, 1) + "\n"
    if "args" in answer:
        rows3 = [("BUILD ARG", "VALUE", "DESCRIPTION")]
        rows3 += [(a["name"], a.get("value", ""), a.get("description", "")) for a in answer["args"]]
        out += table(rows3, 3) + "\n"
    for key, title in (("secrets", "SECRET"), ("ssh", "SSH")):
        if key in answer:
            rows = [(title, "REQUIRED")]
            rows += [(m["name"], "true" if m.get("required") else "") for m in answer[key]]
            out += table(rows, 3) + "\n"
    return out
