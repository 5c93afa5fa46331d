"""Layers that are fetched, verified, kept and unpacked in one go."""

from __future__ import annotations

import gzip
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
import zstandard

from crossdock.cancel import CancelToken
from crossdock.engine.sources.image import ImageSource
from crossdock.engine.sources.pull import LayerPuller, PullContext
from crossdock.errors import Cancelled, DigestMismatch, LayerError, NotFoundError, StoreError
from crossdock.image import Descriptor, DiffId, parse_platform, parse_reference, sha256_digest
from crossdock.image.mediatypes import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from crossdock.layers import UnpackOptions
from crossdock.progress.events import Event, VertexStatus
from support.imagekit import Layer, Shelf, layer, tar
from support.scripted import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.registry import RegistryClient

ONE = layer({"one": b"1", "dir/deep": b"x" * 100_000})
TWO = layer({"two": b"2"})


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)

    def statuses(self, status_id: str) -> list[VertexStatus]:
        return [e for e in self.events if isinstance(e, VertexStatus) and e.id == status_id]


class Bench:
    """A puller and what it pulls into."""

    def __init__(self, store: Store, client: RegistryClient, lease: Lease, shelf: Shelf) -> None:
        self.store = store
        self.client = client
        self.lease = lease
        self.shelf = shelf
        self.sink = Recorder()
        options = UnpackOptions(ignore_chown_errors=os.geteuid() != 0)
        self.puller = LayerPuller(store, client, unpack_options=options)

    def context(self, cancel: CancelToken | None = None) -> PullContext:
        return PullContext(self.lease, self.sink, "sha256:vertex", cancel or CancelToken())

    def add(self, one: Layer, *, repositories: Sequence[str] | None = None, diff_id: str = "") -> LayerId:
        return self.store.layers.add_remote(
            self.lease,
            diff_id=DiffId(diff_id or one.diff_id),
            blob=one.descriptor,
            repositories=[self.shelf.repository] if repositories is None else repositories,
        )

    def shelve(self, *layers: Layer) -> list[LayerId]:
        for one in layers:
            self.shelf.blob(one.blob)
        return [self.add(one) for one in layers]


@pytest.fixture
def bench(store: Store, client: RegistryClient, lease: Lease, shelf: Shelf) -> Bench:
    return Bench(store, client, lease, shelf)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def nothing_is_left(store: Store, layer_id: LayerId, one: Layer) -> bool:
    ingest = list((store.root / "content/ingest").iterdir())
    halves = [p for p in (store.root / "layers").glob("*/*") if p.name == "partial"]
    return (
        store.layers.directory(layer_id) is None
        and not store.content.has(one.descriptor.digest)
        and not ingest
        and not halves
    )


def test_layers_get_directories_and_their_blobs_are_kept(bench: Bench) -> None:
    ids = bench.shelve(ONE, TWO)
    one, two = bench.puller.directories(ids, bench.context())
    assert files(one) == {"one": b"1", "dir/deep": b"x" * 100_000}
    assert files(two) == {"two": b"2"}
    for each in (ONE, TWO):
        assert bench.store.content.read(each.descriptor.digest) == each.blob
    asked = len(bench.shelf.server.got)
    assert bench.puller.directories(ids, bench.context()) == (one, two)
    assert len(bench.shelf.server.got) == asked == 2


@pytest.mark.parametrize(
    "one",
    [
        Layer(tar({"f": b"1"}), tar({"f": b"1"}), OCI_LAYER),
        Layer(tar({"f": b"1"}), gzip.compress(tar({"f": b"1"})), OCI_LAYER_GZIP),
        Layer(tar({"f": b"1"}), zstandard.compress(tar({"f": b"1"})), OCI_LAYER_ZSTD),
        Layer(tar({"f": b"1"}), zstandard.compress(tar({"f": b"1"})), OCI_LAYER_GZIP),
    ],
    ids=["uncompressed", "gzip", "zstd", "zstd that calls itself gzip"],
)
def test_every_compression(bench: Bench, one: Layer) -> None:
    (path,) = bench.puller.directories(bench.shelve(one), bench.context())
    assert files(path) == {"f": b"1"}


def test_the_same_layer_twice_is_fetched_once(bench: Bench) -> None:
    (layer_id,) = bench.shelve(ONE)
    first, second = bench.puller.directories([layer_id, layer_id], bench.context())
    assert first == second
    assert len(bench.shelf.server.got) == 1


def test_threads_that_want_the_same_layer_share_it(bench: Bench) -> None:
    (layer_id,) = bench.shelve(ONE)
    threads = [
        threading.Thread(target=bench.puller.directories, args=([layer_id], bench.context()))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.shelf.server.got) == 1


def test_progress_is_reported_in_buildkit_s_shape(bench: Bench) -> None:
    bench.puller.directories(bench.shelve(ONE), bench.context())
    digest, size = ONE.descriptor.digest, ONE.descriptor.size
    transfer = bench.sink.statuses(digest)
    assert (transfer[0].current, transfer[0].total, transfer[0].completed_ns) == (0, size, None)
    assert (transfer[-1].current, transfer[-1].total) == (size, size)
    assert transfer[-1].completed_ns is not None
    assert transfer[-1].started_ns == transfer[0].timestamp_ns
    extracting = bench.sink.statuses(f"extracting {digest}")
    assert [status.completed_ns is None for status in extracting] == [True, False]
    assert {status.vertex for status in [*transfer, *extracting]} == {"sha256:vertex"}


def test_a_blob_in_the_store_is_not_fetched(bench: Bench) -> None:
    bench.store.content.put_bytes(ONE.blob, bench.lease)
    (path,) = bench.puller.directories([bench.add(ONE, repositories=())], bench.context())
    assert "one" in files(path)
    assert bench.shelf.server.got == []
    assert bench.sink.statuses(ONE.descriptor.digest) == []
    assert len(bench.sink.statuses(f"extracting {ONE.descriptor.digest}")) == 2


def test_a_damaged_blob_in_the_store_is_fetched_again(bench: Bench) -> None:
    (layer_id,) = bench.shelve(ONE)
    bench.store.content.put_bytes(ONE.blob, bench.lease)
    path = bench.store.content.path(ONE.descriptor.digest)
    damaged = bytearray(ONE.blob)
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    (directory,) = bench.puller.directories([layer_id], bench.context())
    assert "one" in files(directory)
    assert bench.store.content.read(ONE.descriptor.digest) == ONE.blob


def test_a_damaged_blob_that_nobody_has_is_an_error(bench: Bench) -> None:
    layer_id = bench.add(ONE, repositories=())
    bench.store.content.put_bytes(ONE.blob, bench.lease)
    bench.store.content.path(ONE.descriptor.digest).write_bytes(ONE.blob[:-1] + b"x")
    with pytest.raises(DigestMismatch):
        bench.puller.directories([layer_id], bench.context())


FLIPPED = bytes([ONE.blob[0]]) + ONE.blob[1:-9] + bytes([ONE.blob[-9] ^ 1]) + ONE.blob[-8:]


@pytest.mark.parametrize(
    "sent",
    [FLIPPED, TWO.blob + b"\0" * (len(ONE.blob) - len(TWO.blob)), b"\0" * len(ONE.blob)],
    ids=["a flipped bit", "another archive", "zeros"],
)
def test_bytes_that_are_not_the_blob_leave_nothing(bench: Bench, sent: bytes) -> None:
    layer_id = bench.add(ONE)
    bench.shelf.blob(ONE.blob, Reply(200, sent))
    with pytest.raises(DigestMismatch, match="does not match its digest"):
        bench.puller.directories([layer_id], bench.context())
    assert nothing_is_left(bench.store, layer_id, ONE)
    assert bench.sink.statuses(ONE.descriptor.digest)[-1].completed_ns is None


def test_a_layer_with_another_diff_id_leaves_no_directory(bench: Bench) -> None:
    bench.shelf.blob(ONE.blob)
    layer_id = bench.add(ONE, diff_id=TWO.diff_id)
    with pytest.raises(DigestMismatch, match="unpacks to other content"):
        bench.puller.directories([layer_id], bench.context())
    assert bench.store.layers.directory(layer_id) is None


@pytest.mark.parametrize(
    "archive",
    [tar({"../../evil": b"x"}), b"not an archive at all" * 100, tar({"f": b"x" * 5000})[:3000]],
    ids=["leaves its root", "no archive", "cut short"],
)
def test_a_bad_archive_leaves_nothing(bench: Bench, archive: bytes) -> None:
    bad = Layer(archive, gzip.compress(archive))
    (layer_id,) = bench.shelve(bad)
    with pytest.raises(LayerError):
        bench.puller.directories([layer_id], bench.context())
    assert nothing_is_left(bench.store, layer_id, bad)
    assert not (bench.store.root.parent / "evil").exists()


def test_bytes_after_the_archive_belong_to_the_blob(bench: Bench) -> None:
    archive = ONE.archive + b"\0" * 50_000
    padded = Layer(archive, gzip.compress(archive))
    (path,) = bench.puller.directories(bench.shelve(padded), bench.context())
    assert "one" in files(path)


def test_the_next_repository_is_asked(bench: Bench) -> None:
    layer_id = bench.add(ONE, repositories=[f"{bench.shelf.server.host}/gone", bench.shelf.repository])
    bench.shelf.blob(ONE.blob)
    (path,) = bench.puller.directories([layer_id], bench.context())
    assert "one" in files(path)


def test_the_first_repository_s_error_is_told(bench: Bench) -> None:
    layer_id = bench.add(ONE, repositories=[f"{bench.shelf.server.host}/gone"])
    with pytest.raises(NotFoundError, match="/gone"):
        bench.puller.directories([layer_id], bench.context())


def test_a_layer_that_is_nowhere(bench: Bench) -> None:
    layer_id = bench.add(ONE, repositories=())
    with pytest.raises(StoreError, match="no registry is known to have it"):
        bench.puller.directories([layer_id], bench.context())


def test_the_first_failure_ends_the_others(bench: Bench) -> None:
    others = [layer({f"f{n}": os.urandom(1000)}) for n in range(6)]
    ids = [bench.add(one) for one in others]
    for one in others[1:]:
        bench.shelf.blob(one.blob, Reply(200, one.blob, delay_s=8))
    started = time.monotonic()
    with pytest.raises(NotFoundError):
        bench.puller.directories(ids, bench.context())
    assert time.monotonic() - started < 4
    assert all(bench.store.layers.directory(layer_id) is None for layer_id in ids)


def test_cancelling_ends_a_pull_at_once(bench: Bench) -> None:
    ids = [bench.add(one) for one in (ONE, TWO)]
    for one in (ONE, TWO):
        bench.shelf.blob(one.blob, Reply(200, one.blob, delay_s=10))
    token = CancelToken()
    timer = threading.Timer(0.3, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        bench.puller.directories(ids, bench.context(token))
    timer.join()
    assert time.monotonic() - started < 2


def test_blobs_are_fetched_without_unpacking(bench: Bench) -> None:
    ids = bench.shelve(ONE, TWO)
    wanted = [(one.descriptor, [bench.shelf.repository]) for one in (ONE, TWO, ONE)]
    bench.puller.blobs(wanted, bench.context())
    assert bench.store.content.read(ONE.descriptor.digest) == ONE.blob
    assert bench.store.layers.directory(ids[0]) is None
    assert len(bench.shelf.server.got) == 2
    bench.puller.blobs(wanted, bench.context())
    assert len(bench.shelf.server.got) == 2


def test_a_blob_that_is_nowhere(bench: Bench) -> None:
    with pytest.raises(StoreError, match="no registry is known to have it"):
        bench.puller.blobs([(ONE.descriptor, [])], bench.context())


def test_a_pulled_image_from_end_to_end(bench: Bench, shelf: Shelf) -> None:
    manifest = shelf.image("linux/arm64", [ONE, TWO])
    shelf.manifest(manifest.raw, manifest.media_type, "1")
    source = ImageSource(bench.store, bench.client)
    image = source.resolve(
        parse_reference(f"{shelf.repository}:1"),
        platform=parse_platform("linux/arm64"),
        lease=bench.lease,
        cancel=CancelToken(),
    )
    ids = source.add_layers(image, lease=bench.lease)
    one, two = bench.puller.directories(ids, bench.context())
    assert set(files(one)) | set(files(two)) == {"one", "dir/deep", "two"}


def test_a_foreign_descriptor_is_not_believed(bench: Bench) -> None:
    """A manifest may announce any size; nothing beyond it is read."""
    lying = Descriptor(OCI_LAYER_GZIP, sha256_digest(ONE.blob), 10)
    layer_id = bench.store.layers.add_remote(
        bench.lease,
        diff_id=DiffId(ONE.diff_id),
        blob=lying,
        repositories=[bench.shelf.repository],
    )
    bench.shelf.blob(ONE.blob)
    with pytest.raises(DigestMismatch):
        bench.puller.directories([layer_id], bench.context())
