"""Parse, convert and check every Dockerfile below a directory, and report.

Usage: python scripts/corpus.py DIRECTORY [--verbose]

Images are not fetched: every reference resolves to a small invented config. What is reported is therefore what the
frontend alone decides. Exit code 1 when a file makes it fail with anything but a DockerfileError.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.dockerfile import ConvertOptions, convert, parse
from crossdock.dockerfile.printer import print_dockerfile
from crossdock.dockerfile.subrequests import check
from crossdock.errors import CrossdockError, DockerfileError
from crossdock.image.platform import Platform
from crossdock.llb import walk

if TYPE_CHECKING:
    from crossdock.dockerfile import Dockerfile


@dataclass(frozen=True)
class Image:
    """An invented image."""

    ref: str
    digest: str
    config: bytes


class Images:
    """Resolves everything."""

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> Image:
        del mode, log_name
        config = {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {"Env": ["PATH=/usr/bin:/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
            "history": [{"created_by": "invented"}],
        }
        return Image(ref, "sha256:" + "a" * 64, json.dumps(config).encode())

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> Image:
        del store
        return self.resolve_image(ref, platform=platform, mode="default", log_name=log_name)


class NoFiles:
    """A context without an ignore file."""

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        del path, local
        return None


def tree(dockerfile: Dockerfile) -> list[str]:
    """What must survive printing and parsing again: everything but positions."""
    skipped = ("where", "comments")
    return [
        repr([(n, getattr(i, n)) for n in type(i)._fields if n not in skipped])
        for i, _ in dockerfile.statements
    ]


def examine(path: Path, build_args: dict[str, str]) -> tuple[str, Counter[str], int]:
    """Return the outcome of one file, its findings, and the number of steps."""
    data = path.read_bytes()
    dockerfile = parse(data, path.name)
    again = parse(print_dockerfile(dockerfile).encode("utf-8", "surrogateescape"), path.name)
    if tree(again) != tree(dockerfile):
        return "PRINTED DIFFERENTLY", Counter(), 0
    platforms = (Platform("linux", "amd64"), Platform("linux", "arm64"))
    options = ConvertOptions(platforms=platforms, multi_platform=True, build_args=build_args)
    results = convert(dockerfile, options, images=Images(), context=NoFiles())
    steps = sum(1 for _ in walk([r.output for r in results if r.output is not None]))
    answer = json.loads(check(data, path.name, options, images=Images(), context=NoFiles()).json)
    found = Counter(w["ruleName"] for w in answer["warnings"] or ())
    return "ok", found, steps


def main() -> int:
    """Run over the directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--verbose", action="store_true", help="one line per file")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    build_args = dict(item.split("=", 1) for item in args.build_arg)
    outcomes: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    failed = 0
    started = time.perf_counter()
    for path in sorted(p for p in args.directory.rglob("*") if p.is_file()):
        steps = 0
        found: Counter[str] = Counter()
        try:
            outcome, found, steps = examine(path, build_args)
        except DockerfileError as exc:
            where = exc.source.start if exc.source else None
            outcome = f"error{f' at {where.line}:{where.column}' if where else ''}: {exc}"
        except CrossdockError as exc:
            outcome = f"{exc.code}: {exc}"
        except Exception as exc:  # noqa: BLE001  the point of the run is to find these
            outcome = f"TRACEBACK {type(exc).__name__}: {exc}"
            failed += 1
        outcomes[outcome.split(":")[0].split(" at ")[0]] += 1
        findings += found
        if args.verbose or outcome != "ok":
            print(f"{path.relative_to(args.directory)}: {outcome} {steps} steps {dict(found) or ''}")
    print(f"\n{sum(outcomes.values())} files in {time.perf_counter() - started:.1f} s: {dict(outcomes)}")
    print(f"findings: {dict(findings.most_common())}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
