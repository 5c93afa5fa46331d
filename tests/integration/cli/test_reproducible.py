"""The same inputs give the same digests: from empty stores, on one core and on all, whatever is built beside it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard

from support.cli import PROGRAM, make

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt")

MB = 1 << 20


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    """Steps side by side, a file of many compression blocks, and many small files."""
    made = tmp_path / "context"
    made.mkdir()
    source = random.Random(7)
    (made / "big").write_bytes(b"".join(source.randbytes(MB // 2) + bytes(MB // 2) for _ in range(11)))
    for number in range(300):
        path = made / f"tree/{number % 7}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * number)
    stages = "".join(f"FROM {base.index} AS s{n}\nRUN echo {n} > /r{n} && mkdir /d{n}\n" for n in range(4))
    copies = "".join(f"COPY --from=s{n} /r{n} /d{n} /all/\n" for n in range(4))
    (made / "Dockerfile").write_text(
        f"{stages}FROM {base.index}\n{copies}COPY big /\nCOPY tree /tree\nRUN rm /tree/1/1 && uname -m > /m\n"
    )
    return made


def built(tmp_path: Path, name: str, context: Path, compression: str, *, cores: set[int]) -> dict[str, str]:
    """Build from an empty store on some cores; returns the digests of everything in the image, and of what is packed in it."""
    runner = make(tmp_path / name)
    layout = tmp_path / name / "layout"
    output = f"type=oci,dest={layout},tar=false,compression={compression},force-compression=true"
    platforms = ["--platform", "linux/amd64,linux/arm64"]
    try:
        subprocess.run(
            [PROGRAM, "build", "--progress", "plain", *platforms, "-o", output, context],
            env={**runner.environment, "SOURCE_DATE_EPOCH": "1700000000"},
            check=True,
            capture_output=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    finally:
        runner.close()
    index = json.loads((layout / "index.json").read_text())
    found = {"index": index["manifests"][0]["digest"]}
    for path in sorted((layout / "blobs/sha256").iterdir()):
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == path.name, (
            f"{path.name} is not the digest of its {len(data)} bytes"
        )
        if data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            data = gzip.decompress(data) if data[0] == 0x1F else unzstd(data)
        found[path.name] = f"{hashlib.sha256(data).hexdigest()}, {len(data)} bytes"
    return found


def unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        return stream.read()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_neither_cores_nor_timing_change_a_digest(tmp_path: Path, context: Path, compression: str) -> None:
    every = os.sched_getaffinity(0)
    if len(every) < 2:
        pytest.skip("there is one core only")
    one = built(tmp_path, "one", context, compression, cores={min(every)})
    for attempt in range(2):
        # Where they differ, the same bytes packed otherwise are another defect than other bytes.
        assert built(tmp_path, f"all-{attempt}", context, compression, cores=every) == one
