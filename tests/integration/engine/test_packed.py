"""Layers of large files that are packed as they are made: no directory, the same digests, found again, unpacked when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from integration.engine.harness import Worker

pytestmark = pytest.mark.needs("base", "userns", "crun")

HELPERS = """
import crossdock.engine.ops.pack as pack
from crossdock.engine.exporters.model import ExporterSpec, PlatformImage
from crossdock.image.platform import local_platform
from crossdock.layers.compression import Compression

pack.LEAST_BYTES, pack._LEAST_AVERAGE = 10_000, 1
GZIP, ZSTD = Compression(), Compression("zstd")

def image(engine, ref, compression="gzip"):
    spec = ExporterSpec("image", {"name": "example.com/a:1", "compression": compression})
    done = engine.export([PlatformImage(local_platform(), ref.layers)], [spec], sink=Sink(), cancel=CancelToken())
    (one,) = done.image.platforms
    return [str(d.digest) for d in one.manifest.layers], [str(d) for d in one.config.diff_ids]

def directories(engine, ref):
    return [engine.store.layers.get(layer).has_directory for layer in ref.layers]

def made(mtime=True):
    return copied(local(), "/", "/app/", onto=base(), timestamp_ns=10**18)
"""


@pytest.fixture
def large(worker: Worker) -> Worker:
    (worker.context / "large").write_bytes(b"0123456789" * 5000)
    (worker.context / "small").write_bytes(b"small")
    return worker


def run(worker: Worker, body: str) -> Any:
    return worker.run(HELPERS + body)


def test_the_image_is_that_of_a_build_with_directories(large: Worker) -> None:
    said = run(
        large,
        """
with open_engine() as engine:
    (ref,) = solve(engine, made(), pack=GZIP)
    say(directories=directories(engine, ref), packed=image(engine, ref), again=image(engine, ref, "zstd"))
    say(problems=engine.store.check(repair=False))
with Engine.open(EngineOptions(STORE.with_name("other"))) as engine:
    (ref,) = solve(engine, made())
    say(plain=directories(engine, ref), full=image(engine, ref), zstd=image(engine, ref, "zstd"))
""",
    )
    assert said["directories"] == [True, True, False]
    assert said["plain"] == [True, True, True]
    # The base's layers have times of their own.
    assert said["packed"][0][-1] == said["full"][0][-1]
    assert said["again"][0][-1] == said["zstd"][0][-1]
    assert said["packed"][1][-1] == said["full"][1][-1] == said["again"][1][-1]
    assert said["problems"] == []


def test_it_is_cached_and_unpacked_when_a_step_needs_it(large: Worker) -> None:
    run(large, "with open_engine() as engine: solve(engine, made(), pack=GZIP)")
    said = run(
        large,
        """
with open_engine() as engine:
    sink = Sink()
    out = run(made(), "wc -c < /app/large; cat /app/small")
    (ref,) = solve(engine, out, sink=sink, pack=GZIP)
    say(cached=sink.cached, log=sink.log, directories=directories(engine, ref)[:3])
    say(problems=engine.store.check(repair=False))
""",
    )
    assert said["cached"]["copy"] is True
    assert said["log"] == "50000\nsmall"
    assert said["directories"] == [True, True, True]
    assert said["problems"] == []


def test_what_another_step_uses_has_a_directory_at_once(large: Worker) -> None:
    said = run(
        large,
        """
with open_engine() as engine:
    (ref,) = solve(engine, run(made(), "true"), pack=GZIP)
    say(directories=directories(engine, ref))
    (ref,) = solve(engine, files(FileActionMkDir(path="/x"), onto=copied(local(), "/", "/b/")), pack=GZIP)
    say(mixed=directories(engine, ref))
""",
    )
    assert said["directories"] == [True, True, True, True]
    assert said["mixed"] == [True, True]


def test_a_result_can_be_looked_into(large: Worker) -> None:
    said = run(
        large,
        """
with open_engine() as engine:
    (ref,) = solve(engine, made(), pack=ZSTD)
    say(small=text(engine, ref, "/app/small"), size=len(text(engine, ref, "/app/large")))
""",
    )
    assert said["small"] == "small"
    assert said["size"] == 50000


def test_after_its_blob_is_lost_and_the_store_repaired_it_is_made_again(large: Worker) -> None:
    said = run(
        large,
        """
with open_engine() as engine:
    (ref,) = solve(engine, made(), pack=GZIP)
    before = image(engine, ref)
    engine.store.content.path(before[0][-1]).write_bytes(b"damaged")
with open_engine() as engine:
    say(problems=[p.kind for p in engine.store.check(repair=True)])
    say(left=[p.text for p in engine.store.check(repair=True)])
with open_engine() as engine:
    sink = Sink()
    (ref,) = solve(engine, made(), pack=GZIP, sink=sink)
    say(cached=sink.cached["copy"], same=image(engine, ref) == before)
""",
    )
    assert said["problems"][0] == "blob"
    assert said["left"] == []
    assert said["cached"] is False
    assert said["same"] is True
