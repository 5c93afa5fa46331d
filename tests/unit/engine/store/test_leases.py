from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store import Store
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_lease_is_seen_while_it_lives_and_leaves_no_file(store: Store) -> None:
    with store.lease() as lease:
        lease.protect(layers=["aaaaaaaa"], blobs=["sha256:b"], results=["sha256:r"])
        assert store.leases.live_names() == {"l:aaaaaaaa", "b:sha256:b", "r:sha256:r"}
        assert store.leases.live_count() == 1
        assert store.leases.live_names(besides=lease.path) == frozenset()
    assert os.listdir(store.layout.leases) == []
    assert store.leases.live_names() == frozenset()


def test_a_lease_that_is_over_refuses_more(store: Store) -> None:
    with store.lease() as lease:
        pass
    with pytest.raises(StoreError, match="over"):
        lease.protect(layers=["aaaaaaaa"])


def test_names_are_written_once(store: Store) -> None:
    with store.lease() as lease:
        for _ in range(3):
            lease.protect(layers=["aaaaaaaa", "aaaaaaaa"])
        assert lease.path.read_text() == "\nl:aaaaaaaa"


def test_a_line_cut_short_does_not_spoil_the_next(store: Store) -> None:
    with store.lease() as lease:
        with lease.path.open("a") as file:
            file.write("\nl:cut")
        lease.protect(layers=["aaaaaaaa"])
        assert store.leases.live_names() == {"l:cut", "l:aaaaaaaa"}


def test_children_that_exec_do_not_keep_a_lease(store: Store) -> None:
    with store.lease() as lease:
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        path = lease.path
    try:
        assert not path.exists()
        assert store.leases.live_count() == 0
    finally:
        child.kill()
        child.wait()


_CHILD = """
import os, sys
from pathlib import Path
from crossdock.engine.store import Store
store = Store.open(Path(sys.argv[1]))
manager = store.lease()
lease = manager.__enter__()
new = store.layers.new(lease, kind="exec")
(new.fs / "x").write_text("y")
kept = store.layers.new(lease, kind="exec")
kept_id = kept.commit()
writer = store.content.writer(lease)
writer.write(b"x" * 1000000)
lease.protect(blobs=["sha256:" + "0" * 64])
print(new.id, kept_id, flush=True)
sys.stdin.read(1)
os._exit(9)
"""


def test_what_a_dead_process_had_begun_is_cleared_by_the_next_opener(tmp_path: Path) -> None:
    root = tmp_path / "s"
    command = [sys.executable, "-c", _CHILD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        begun, kept = child.stdout.readline().split()
        with Store.open(root) as store:
            # alive: nothing is taken from it
            assert begun in os.listdir(root / "layers")
            assert len(os.listdir(root / "content/ingest")) == 1
            store.prune()
            assert store.layers.exists(kept)
        child.communicate("x")
    with Store.open(root) as store:
        assert os.listdir(root / "layers") == [kept]
        assert os.listdir(root / "content/ingest") == []
        assert os.listdir(root / "leases") == []
        assert store.check(repair=False) == []
        store.prune()
        assert os.listdir(root / "layers") == []
