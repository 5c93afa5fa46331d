"""Does cost grow linearly? Files, bytes, steps and stages at 1, 4 and 16 times, for Crossdock alone.

    python bench/scaling.py [--runs N] [--dimension files|bytes|steps|stages …] [--write]

Each build starts from an empty store (steps and stages: with the base in it, ``--no-cache``) and pushes to a registry
on loopback. What counts is the cost above that of a build of nothing, so that start-up does not flatter the small ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import baseimage
import contestants
import measure
import services
from contestants import Job

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).resolve().parent / "README.md"
_BEGIN, _END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
FACTORS = (1, 4, 16)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What grows: how many at 1x, and what makes the Dockerfile's context."""

    name: str
    unit: int
    title: str
    make: Callable[[Path, int], None]
    #: from an empty store each time
    cold: bool


def files(folder: Path, count: int) -> None:
    """``count`` files of 4 KB in directories of 100."""
    source = random.Random(count)
    for number in range(count):
        path = folder / f"tree/{number // 100}/{number % 100}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(2048).hex().encode())
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY tree /tree\n")


def data(folder: Path, megabytes: int) -> None:
    """One file, half of it compressible."""
    source = random.Random(megabytes)
    with (folder / "big").open("wb") as out:
        for _ in range(megabytes):
            out.write(source.randbytes(1 << 19) + bytes(1 << 19))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY big /big\n")


def steps(folder: Path, count: int) -> None:
    """``count`` RUN steps in a row."""
    lines = "".join(f"RUN echo {number} > /f{number}\n" for number in range(count))
    (folder / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\n{lines}")


def stages(folder: Path, count: int) -> None:
    """``count`` stages with a step each, and one that copies from all."""
    text = "ARG BASE\n"
    for number in range(count):
        text += f"FROM ${{BASE}} AS s{number}\nRUN echo {number} > /f{number}\n"
    copies = "".join(f"COPY --from=s{number} /f{number} /\n" for number in range(count))
    (folder / "Dockerfile").write_text(f"{text}FROM ${{BASE}}\n{copies}")


DIMENSIONS = (
    Dimension(name="files", unit=2000, title="files of 4 KB", make=files, cold=True),
    Dimension(name="bytes", unit=64, title="MB in one file", make=data, cold=True),
    # overlayfs takes 500 layers and images 127 of docker's; 16 times five is well within both
    Dimension(name="steps", unit=5, title="RUN steps in a row", make=steps, cold=False),
    Dimension(name="stages", unit=4, title="stages side by side", make=stages, cold=False),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one size: medians."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure how cost grows.")
    names = [each.name for each in DIMENSIONS]
    parser.add_argument("--dimension", action="append", choices=names, default=[], help="may be repeated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    options = parser.parse_args()
    lines = [
        "| what grows | 1x | 4x | 16x | CPU s: 1x | 4x | 16x | CPU per unit, 16x to 1x | peak (MB): 1x | 4x | 16x |",
        "|" + "---|" * 11,
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-scaling-", dir="/var/tmp"))
        )
        registry = stack.enter_context(services.Registry())
        baseimage.push(baseimage.busybox_image(), registry.host, "base/busybox", "1")
        contestant = contestants.Crossdock(folder / "crossdock")
        stack.callback(contestant.remove)
        stack.enter_context(contestant)
        for each in DIMENSIONS:
            if not options.dimension or each.name in options.dimension:
                lines.append(_row(each, folder, registry.host, contestant, options.runs))
                print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    if options.write:
        _write("\n".join(lines))
    return 0


def _row(
    dimension: Dimension, folder: Path, registry: str, contestant: contestants.Crossdock, runs: int
) -> str:
    nothing, *costs = (
        _cost(dimension, factor, folder, registry, contestant, runs) for factor in (0, *FACTORS)
    )
    above = [max(cost.cpu_s - nothing.cpu_s, 0.001) for cost in costs]
    growth = above[-1] / above[0] / FACTORS[-1]
    cells = [f"{dimension.title}, {dimension.unit:,} at 1x"]
    cells += [f"{cost.seconds:.2f} s" for cost in costs]
    cells += [f"{cpu_s:.2f}" for cpu_s in above]
    cells.append(f"**{growth:.2f}**")
    cells += [f"{cost.peak_bytes / 1e6:.0f}" for cost in costs]
    return "| " + " | ".join(cells) + " |"


def _cost(
    dimension: Dimension,
    factor: int,
    folder: Path,
    registry: str,
    contestant: contestants.Crossdock,
    runs: int,
) -> Cost:
    context = folder / f"{dimension.name}-{factor}"
    context.mkdir()
    dimension.make(context, dimension.unit * factor)
    job = Job(
        context=context,
        platforms=("linux/amd64",),
        build_args={"BASE": f"{registry}/base/busybox:1"},
        no_cache=not dimension.cold,
    )
    taken: list[measure.Measurement] = []
    for number in range(-1, runs):
        if dimension.cold:
            contestant.forget()
        pushed = replace(job, push=f"{registry}/scaling/{dimension.name}-{factor}-{number + 1}:latest")
        os.sync()  # what others left to be written is not this run's to pay for
        taken.append(measure.run([contestant.command(pushed)], env=contestant.env, cwd=contestant.folder))
    summary = measure.summarise(taken[1:])
    return Cost(seconds=summary.seconds, cpu_s=summary.cpu_s, peak_bytes=summary.peak_bytes)


def _write(text: str) -> None:
    page = README.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    README.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


if __name__ == "__main__":
    sys.exit(main())
