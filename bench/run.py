"""Compare Crossdock with the peers on this machine: interleaved runs, medians, time and peak memory.

    python bench/run.py [--case NAME …] [--all] [--peer buildkitd|docker|buildah|serve …] [--runs N] [--distance MS] [--write]

Daemons are warm; a cold case makes every contestant forget all it has cached before each run. Contestants take turns,
and the order turns round every time, so that a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import baseimage
import cases
import contestants
import emulation
import measure
import privateapt
import services

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

README = Path(__file__).resolve().parent / "README.md"
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
MEMORY_GOAL_MB = 150


def main() -> int:
    """Command line."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    chosen = [
        case
        for case in cases.CASES
        if (case.name in options.case if options.case else options.all or case.group == "foundation")
    ]
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-bench-", dir="/var/tmp"))
        )
        rivals = contestants.peers(options.peer)
        if rivals:
            stack.enter_context(emulation.host_handler())
        registry = stack.enter_context(services.Registry())
        baseimage.push(baseimage.busybox_image(), registry.host, "base/busybox", "1")
        host = (
            stack.enter_context(_distant(registry.host, options.distance))
            if options.distance
            else registry.host
        )
        bench = cases.Bench(registry=host, base=f"{host}/base/busybox:1", folder=folder)
        field: list[type[contestants.Contestant]] = [contestants.Crossdock, *rivals]
        everyone = [kind(folder / re.sub(r"\W+", "-", kind.name)) for kind in field]
        for each in everyone:
            stack.callback(each.remove)
            stack.enter_context(each)
        lines = _table_head([each.name for each in everyone])
        for case in chosen:
            lines += _row(case, _measure(case, bench, everyone, options.runs), everyone)
            print(lines[-1], flush=True)
    text = "\n".join([*_machine(everyone), "", *lines])
    print(f"\n{text}")
    if options.write:
        _write(text)
    return 0


@contextlib.contextmanager
def _distant(host: str, milliseconds: float) -> Iterator[str]:
    """Put the registry so many milliseconds away, each way; yields its other address."""
    program = Path(__file__).with_name("distance.py")
    with subprocess.Popen(
        [sys.executable, str(program), host, str(milliseconds)], stdout=subprocess.PIPE, text=True
    ) as relay:
        assert relay.stdout is not None
        try:
            yield relay.stdout.readline().strip()
        finally:
            relay.terminate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Crossdock with its peers.")
    names = [case.name for case in cases.CASES]
    parser.add_argument("--case", action="append", choices=names, default=[], help="may be repeated")
    parser.add_argument("--all", action="store_true", help="the wider set as well")
    parser.add_argument(
        "--peer", action="append", choices=["buildkitd", "docker", "buildah", "serve"], default=[]
    )
    parser.add_argument("--runs", type=int, help="instead of each case's own number")
    parser.add_argument("--distance", type=float, default=0, help="milliseconds to the registry, each way")
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    return parser.parse_args()


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _measure(
    case: cases.Case, bench: cases.Bench, everyone: Sequence[contestants.Contestant], runs: int | None
) -> dict[str, measure.Summary | str]:
    """All runs of one case; a contestant that cannot do it has its error for a result."""
    print(f"bench: {case.title}", flush=True)
    job = case.prepare(bench)
    taken: dict[str, list[measure.Measurement]] = {each.name: [] for each in everyone}
    failed: dict[str, str] = {}
    for number in range(-1 if case.warm_up else 0, runs or case.runs):
        for each in everyone if number % 2 else reversed(everyone):
            if each.name in failed:
                continue
            try:
                taken[each.name].append(_once(case, job, each, number))
            except measure.RunError as error:
                print(f"bench: {each.name}: {error}", file=sys.stderr, flush=True)
                failed[each.name] = "failed"
            if number < 0:
                taken[each.name].clear()
    return {name: failed.get(name) or measure.summarise(found) for name, found in taken.items()}


def _once(
    case: cases.Case, job: contestants.Job, contestant: contestants.Contestant, number: int
) -> measure.Measurement:
    if case.cold:
        contestant.forget()
    if case.touch:
        case.touch(job, number)
    jobs = [case.job(job, contestant, number, copy) for copy in range(case.parallel)]
    commands = [contestant.command(replace(each)) for each in jobs]
    os.sync()  # what others left to be written is not this run's to pay for
    return measure.run(commands, env=contestant.env, cwd=contestant.folder, daemon=contestant.daemon)


def _machine(everyone: Sequence[contestants.Contestant]) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(filter(None, (each.version() for each in everyone)))
    return [f"Linux {platform.release().split('-')[0]}, {platform.machine()}, {cores} cores; {versions}."]


def _table_head(names: Sequence[str]) -> list[str]:
    own, *peers = names
    head = ["case", f"{own} (s)", "CPU (s)", "peak (MB)"]
    for name in peers:
        head += [f"{name} (s)", "CPU (s)", "peak (MB)", "ratio", "ratio of CPU"]
    head += ["goal"]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def _row(
    case: cases.Case, results: dict[str, measure.Summary | str], everyone: Sequence[contestants.Contestant]
) -> list[str]:
    own, *peers = (results[each.name] for each in everyone)
    cells = [case.title, *_cells(own)]
    for peer in peers:
        ratios = ["-", "-"]
        if isinstance(own, measure.Summary) and isinstance(peer, measure.Summary):
            ratios = [f"**{own.seconds / peer.seconds:.2f}**", f"{own.cpu_s / max(peer.cpu_s, 0.01):.2f}"]
        cells += [*_cells(peer), *ratios]
    cells.append(f"≤ {case.goal}, < {MEMORY_GOAL_MB} MB")
    return ["| " + " | ".join(cells) + " |"]


def _cells(result: measure.Summary | str) -> list[str]:
    if isinstance(result, str):
        return [result, "-", "-"]
    return [
        f"{result.seconds:.3f} ({result.least_s:.3f}-{result.most_s:.3f})",
        f"{result.cpu_s:.2f}",
        f"{result.peak_bytes / 1e6:.0f}",
    ]


def _write(text: str) -> None:
    page = README.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    README.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (services.ServiceError, privateapt.AptError) as problem:
        sys.exit(f"bench: {problem}")
