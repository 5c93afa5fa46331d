"""Fuzz the Dockerfile frontend: mutate known files; anything but a result or a typed error with a place is a defect.

Usage: nice python tests/fuzz/fuzz_dockerfile.py [--seconds N] [--seed N] [DIRECTORY…]

Seeds are the golden cases and every file of the directories. Not collected by pytest; a defect's input is written to
``fuzz-defect-N`` in the current directory, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import traceback
from pathlib import Path

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "tests"))

from crossdock.dockerfile import ConvertOptions, parse  # noqa: E402
from crossdock.dockerfile.printer import print_dockerfile  # noqa: E402
from crossdock.dockerfile.subrequests import answer  # noqa: E402
from crossdock.errors import CrossdockError, DockerfileError  # noqa: E402
from support.dockerfiles import AMD64, ARM64, Files, Images, build  # noqa: E402  # noqa: E402, I001

#: seconds one input may take
LIMIT_S = 10
PIECES = [
    b"FROM a\n", b"RUN x\n", b"<<EOF", b"<<-'E'\n", b"EOF\n", b"\\\n", b"`\n", b"${A:-", b"${A##*/", b"${A//a/b}", b"}", b"$",
    b'"', b"'", b'["a","b"]', b"--mount=type=", b"--from=", b"--chmod=", b"--link ", b"# escape=`\n", b"# check=error=true\n",
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\t", b"ONBUILD ", b"AS x\n", b"scratch", b"--parents ", b"/./", b"=",
    b"https://h/x.git#a:b?tag=c ", b"$TARGETARCH", b"1-99999999999", b"999999999999999999999", b"\xc2\x85", b"\xe2\x80\xa8",
]  # fmt: skip


class Slow(Exception):
    """An input took too long."""


def mutate(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """Change a file in a few places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(out))
        end = min(len(out), at + rng.choice([1, 1, 2, 5, 20, 80]))
        match rng.randrange(7):
            case 0:
                del out[at:end]
            case 1:
                out[at:at] = rng.choice(PIECES)
            case 2:
                out[at:at] = out[at:end]
            case 3:
                out[at:end] = rng.choice(PIECES)
            case 4:
                other = rng.choice(seeds)
                start = rng.randint(0, len(other))
                out[at:at] = other[start : start + rng.choice([5, 40, 200])]
            case 5:
                out[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
            case _:
                lines = bytes(out).split(b"\n")
                rng.shuffle(lines)
                out = bytearray(b"\n".join(lines[: rng.randint(1, len(lines))]))
    return bytes(out[:20_000])


def examine(data: bytes) -> str:
    """Put one input through everything; return how it ended.

    Raises: AssertionError, or whatever escapes.
    """
    dockerfile = None
    problems: tuple[DockerfileError, ...] = ()
    try:
        dockerfile = parse(data)
    except DockerfileError as exc:
        problems = (exc, *exc.others)
    assert all(p.source is not None for p in problems), "a problem without a place"
    if dockerfile is None:
        return "refused by the parser"
    again = parse(print_dockerfile(dockerfile).encode("utf-8", "surrogateescape"))
    assert shape(again) == shape(dockerfile), "printing changed the tree"
    options = ConvertOptions(platforms=(AMD64,), build_platforms=(AMD64,))
    for method in ("check", "outline", "targets"):
        try:
            answer(method, data, "Dockerfile", options, images=Images(), context=Files())
        except CrossdockError:
            continue
    try:
        for result in build(data, platforms=(AMD64, ARM64), warnings=[]):
            result.config.to_json()
            if result.output is not None:
                assert result.output.node.digest
    except CrossdockError as exc:
        return f"refused: {exc.code}"
    return "converted"


def shape(dockerfile: object) -> list[object]:
    """Return everything of a tree but places."""
    statements = dockerfile.statements  # type: ignore[attr-defined]
    return [[(n, getattr(i, n)) for n in type(i)._fields if n != "where"] for i, _ in statements]


def main() -> int:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time_ns() % 2**31))
    parser.add_argument("directory", nargs="*", type=Path)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    places = [TOP / "tests/golden/dockerfile", *args.directory]
    seeds = [p.read_bytes() for d in places for p in sorted(d.rglob("*Dockerfile*")) if p.is_file()]

    def too_slow(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, too_slow)
    ends: dict[str, int] = {}
    defects = count = 0
    stop = time.monotonic() + args.seconds
    while time.monotonic() < stop:
        data = mutate(rng.choice(seeds), seeds, rng)
        count += 1
        signal.alarm(LIMIT_S)
        try:
            end = examine(data)
        except Exception:  # noqa: BLE001  what this program looks for
            defects += 1
            end = "DEFECT"
            path = Path(f"fuzz-defect-{defects}")
            path.write_bytes(data)
            print(f"{path}:\n{traceback.format_exc()}", flush=True)
            if defects >= 20:
                break
        finally:
            signal.alarm(0)
        ends[end] = ends.get(end, 0) + 1
    print(f"seed {args.seed}: {count} inputs from {len(seeds)} files in {args.seconds:.0f} s: {ends}")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
