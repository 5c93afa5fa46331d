from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdock.engine.store import hooks
from crossdock.errors import DigestMismatch, StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest, sha256_digest

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import Lease, Store

DATA = b"some content"
DIGEST = sha256_digest(DATA)


def descriptor(digest: str = DIGEST, size: int = len(DATA)) -> Descriptor:
    return Descriptor("application/octet-stream", Digest(digest), size)


def test_bytes_come_back(store: Store, lease: Lease) -> None:
    assert store.content.put_bytes(DATA, lease) == DIGEST
    assert store.content.read(DIGEST) == DATA
    with store.content.open(DIGEST) as file:
        assert file.read() == DATA
    with store.content.open_at(DIGEST, 5) as file:
        assert file.read() == b"content"
    assert store.content.has(DIGEST)
    assert store.content.size(DIGEST) == len(DATA)


def test_what_is_not_stored_is_not_there(store: Store) -> None:
    assert not store.content.has(DIGEST)
    assert store.content.size(DIGEST) is None
    for call in (store.content.open, store.content.read, store.content.open_at):
        with pytest.raises(StoreError, match="no blob"):
            call(DIGEST)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.sampled_from([0, 1, 100, 70_000, 262_143, 262_144, 300_000, 1 << 20]), max_size=6))
def test_any_sequence_of_writes_is_the_concatenation(store: Store, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    whole = b"".join(parts)
    with store.lease() as lease, store.content.writer(lease) as writer:
        for index, part in enumerate(parts):
            assert writer.write(memoryview(part) if index % 2 else part) == len(part)
        assert writer.tell() == len(whole)
        digest, size = writer.commit()
    assert (digest, size) == (sha256_digest(whole), len(whole))
    assert store.content.read(digest) == whole


def test_an_uncommitted_blob_leaves_nothing(store: Store, lease: Lease) -> None:
    with store.content.writer(lease) as writer:
        writer.write(DATA)
    assert os.listdir(store.layout.ingest) == []
    assert not store.content.has(DIGEST)


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        (descriptor(size=3), "12 bytes, 3 were announced"),
        (descriptor(digest="sha256:" + "0" * 64), "other content"),
    ],
)
def test_a_wrong_blob_is_refused_and_leaves_nothing(
    store: Store, lease: Lease, expect: Descriptor, said: str
) -> None:
    with store.content.writer(lease) as writer:
        writer.write(DATA)
        with pytest.raises(DigestMismatch, match=said):
            writer.commit(expect)
    assert list(store.content.digests()) == []
    assert os.listdir(store.layout.ingest) == []


def test_other_algorithms_are_verified_too(store: Store, lease: Lease) -> None:
    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    with store.content.writer(lease) as writer:
        writer.write(DATA)
        writer.commit(descriptor(digest=digest))
    with store.content.open(digest) as file:
        assert file.read() == DATA
    with store.content.writer(lease) as writer:
        writer.write(b"other bytes!")
        with pytest.raises(DigestMismatch):
            writer.commit(descriptor(digest=digest))


def test_a_producer_who_hashes_is_believed_about_the_digest_but_not_the_size(
    store: Store, lease: Lease
) -> None:
    with store.content.writer(lease, hashing=False) as writer:
        writer.write(DATA)
        with pytest.raises(StoreError, match="needs its descriptor"):
            writer.commit()
    with store.content.writer(lease, hashing=False) as writer:
        writer.write(DATA)
        assert writer.commit(descriptor()) == (DIGEST, len(DATA))
    with store.content.writer(lease, hashing=False) as writer:
        writer.write(DATA)
        with pytest.raises(DigestMismatch):
            writer.commit(descriptor(size=1))


@pytest.mark.parametrize("damage", [b"some CONTENT", b"some", b"some content and more"])
def test_damage_on_disk_is_noticed_at_the_end_of_reading(store: Store, lease: Lease, damage: bytes) -> None:
    store.content.put_bytes(DATA, lease)
    store.content.path(DIGEST).write_bytes(damage)
    with store.content.open(DIGEST) as file, pytest.raises(DigestMismatch):
        list(iter(partial(file.read, 4), b""))
    with pytest.raises(DigestMismatch):
        store.content.read(DIGEST)


def test_a_file_that_vanished_is_forgotten_so_that_it_is_made_again(store: Store, lease: Lease) -> None:
    store.content.put_bytes(DATA, lease)
    store.content.path(DIGEST).unlink()
    with pytest.raises(StoreError, match="missing from the store"):
        store.content.open(DIGEST)
    assert not store.content.has(DIGEST)
    store.content.put_bytes(DATA, lease)
    assert store.content.read(DIGEST) == DATA


def test_two_writers_of_the_same_blob_both_succeed(store: Store, lease: Lease) -> None:
    with store.content.writer(lease) as first, store.content.writer(lease) as second:
        first.write(DATA)
        second.write(DATA)
        assert first.commit() == second.commit()
    assert store.content.read(DIGEST) == DATA
    assert len(list(store.content.digests())) == 1


def test_files_are_copied_in(store: Store, lease: Lease, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA * 100_000)
    digest, size = store.content.add_file(tmp_path / "file", lease)
    assert size == len(DATA) * 100_000
    assert store.content.read(digest) == DATA * 100_000


def test_a_failure_before_the_rename_leaves_nothing_visible(store: Store, lease: Lease) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    hooks.install("store.blob:before_rename", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        store.content.put_bytes(DATA, lease)
    assert not store.content.has(DIGEST)
    assert os.listdir(store.layout.ingest) == []
