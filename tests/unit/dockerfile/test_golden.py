"""Whole files: the graph, the image config and the findings, as golden files.

A case is a directory of ``tests/golden/dockerfile``: ``Dockerfile``, optional ``options.json``, and ``result.json``
(or ``error.txt``), which ``make golden`` rewrites.
"""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.dockerfile import parse_context
from crossdock.errors import CrossdockError
from crossdock.image.platform import parse_platform
from crossdock.llb import walk
from crossdock.progress.excerpt import render_source
from crossdock.record import Record
from support.dockerfiles import Files, Images, build

if TYPE_CHECKING:
    from crossdock.dockerfile import LintWarning, PlatformResult
    from crossdock.llb import Node

pytestmark = pytest.mark.golden

ROOT = Path(__file__).parents[2] / "golden" / "dockerfile"
CASES = sorted(p.name for p in ROOT.iterdir() if (p / "Dockerfile").is_file())


def plain(value: Any) -> Any:
    """Return an op as JSON, without default values."""
    if isinstance(value, Record):
        out = {}
        for name in type(value)._fields:
            item = getattr(value, name)
            if item not in (type(value)._defaults.get(name), (), ""):
                out[name] = plain(item)
        return {type(value).__name__: out}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return dict(sorted(value.items()))
    return value


def shown(node: Node, numbers: dict[str, int]) -> dict[str, Any]:
    """Return a node as JSON."""
    out: dict[str, Any] = {"name": node.name, "op": plain(node.op)}
    if node.inputs:
        out["inputs"] = [f"{numbers[i.node.digest]}.{i.index}" for i in node.inputs]
    if node.platform is not None:
        out["platform"] = str(node.platform)
    if node.source is not None:
        out["lines"] = [node.source.start.line, node.source.end.line]
    if node.metadata.ignore_cache:
        out["ignore_cache"] = True
    if node.metadata.progress_group is not None:
        out["progress_group"] = plain(node.metadata.progress_group)
    out["digest"] = node.digest[7:19]
    return out


def graph(results: list[PlatformResult]) -> dict[str, Any]:
    """Return all results as JSON; nodes shared by platforms occur once."""
    nodes = list(walk([r.output for r in results if r.output is not None]))
    numbers = {str(node.digest): i for i, node in enumerate(nodes)}
    return {
        "nodes": [{"n": i, **shown(node, numbers)} for i, node in enumerate(nodes)],
        "results": {
            str(r.platform): {
                "output": None if r.output is None else f"{numbers[r.output.node.digest]}.{r.output.index}",
                "config": json.loads(r.config.to_json()),
            }
            for r in results
        },
    }


def run(case: Path) -> tuple[str, str]:
    """Convert a case; return the golden file's name and content."""
    options: dict[str, Any] = {}
    if (case / "options.json").is_file():
        options = json.loads((case / "options.json").read_text())
    platforms = tuple(parse_platform(p) for p in options.pop("platforms", ["linux/amd64"]))
    contexts = {k: parse_context(v) for k, v in options.pop("contexts", {}).items()}
    images = Images(options.pop("images", {}))
    ignored = options.pop("dockerignore", None)
    files = Files({("context", ".dockerignore"): ignored.encode()} if ignored else {})
    if "no_cache" in options:
        options["no_cache"] = tuple(options["no_cache"])
    warnings: list[LintWarning] = []
    try:
        results = build(
            (case / "Dockerfile").read_bytes(),
            images=images,
            files=files,
            warnings=warnings,
            platforms=platforms,
            multi_platform=len(platforms) > 1,
            contexts=contexts,
            **options,
        )
    except CrossdockError as exc:
        text = ""
        for problem in (exc, *getattr(exc, "others", ())):
            text += f"{problem}\n" + (f"hint: {problem.hint}\n" if problem.hint else "")
            text += render_source(problem.source, columns=True) if problem.source else ""
        return "error.txt", text
    out = {"warnings": [w.short for w in warnings], **graph(results)}
    return "result.json", json.dumps(out, indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_its_graph(case: str) -> None:
    name, content = run(ROOT / case)
    path = ROOT / case / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(content)
    assert path.read_text() == content
