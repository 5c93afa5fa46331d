from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock import linux
from crossdock.engine.store import Store, default_root, layout, place
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        pytest.param(0, {}, "/var/lib/crossdock", id="root has one for the machine"),
        pytest.param(
            1000, {"HOME": "/home/u"}, "/home/u/.local/share/crossdock", id="a user has one at home"
        ),
        pytest.param(
            1000, {"HOME": "/h", "XDG_DATA_HOME": "/d"}, "/d/crossdock", id="XDG_DATA_HOME moves it"
        ),
        pytest.param(0, {"CROSSDOCK_ROOT": "/x"}, "/x", id="CROSSDOCK_ROOT wins for root"),
        pytest.param(
            1, {"CROSSDOCK_ROOT": "/x", "XDG_DATA_HOME": "/d"}, "/x", id="CROSSDOCK_ROOT wins for a user"
        ),
        pytest.param(
            1000, {"XDG_DATA_HOME": ""}, "/.local/share/crossdock", id="empty variables count as absent"
        ),
    ],
)
def test_default_root(uid: int, environ: dict[str, str], expected: str) -> None:
    assert default_root(uid, environ) == Path(expected)


def test_a_store_is_created_for_its_owner_only_and_opens_again(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    Store.open(root).close()
    assert root.stat().st_mode & 0o777 == 0o700
    assert (root / "version").read_text() == "crossdock store 1\n"
    Store.open(root).close()


def test_threads_that_create_the_same_store_all_get_it(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            Store.open(tmp_path / "s").close()
        except BaseException as exc:  # noqa: BLE001 - reported below
            failures.append(exc)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match="not a Crossdock store") as caught:
        Store.open(tmp_path)
    assert caught.value.hint
    assert set(os.listdir(tmp_path)) - {"creation.lock"} == {"photo.jpg"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crossdock store 99\n", "layout 99"),
        ("crossdock store 0\n", "unsupported layout 0"),
        ("something else\n", "not a Crossdock store"),
        ("", "not a Crossdock store"),
        ("crossdock store x\n", "not a Crossdock store"),
    ],
)
def test_versions_that_are_not_known_are_refused(tmp_path: Path, text: str, said: str) -> None:
    Store.open(tmp_path / "s").close()
    (tmp_path / "s/version").write_text(text)
    with pytest.raises(StoreError, match=said) as caught:
        Store.open(tmp_path / "s")
    assert caught.value.hint


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.db.one("PRAGMA user_version=77")
    with pytest.raises(StoreError, match="version 77"):
        Store.open(tmp_path / "s")


def test_a_damaged_database_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    Store.open(tmp_path / "s").close()
    for name in os.listdir(tmp_path / "s"):
        if name.startswith("metadata.sqlite-"):
            (tmp_path / "s" / name).unlink()
    (tmp_path / "s/metadata.sqlite").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path / "s")
    assert "store check" in (caught.value.hint or "")


@pytest.mark.needs("user")
def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "s").close()
    (tmp_path / "s").chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot be written") as caught:
            Store.open(tmp_path / "s")
    finally:
        (tmp_path / "s").chmod(0o700)
    assert "CROSSDOCK_ROOT" in (caught.value.hint or "")


@pytest.mark.needs("user")
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot create the store"):
            Store.open(tmp_path / "s")
    finally:
        tmp_path.chmod(0o700)


def test_a_place_where_no_folder_can_be_is_nothing_to_repair() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(Path("/proc/crossdock"))
    assert "no folder can be made at /proc/crossdock" in caught.value.summary
    assert "CROSSDOCK_ROOT" in (caught.value.hint or "")


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    with pytest.raises(StoreError):
        Store.open(tmp_path / "s")


@pytest.mark.parametrize("made", [False, True], ids=["new", "moved there"])
@pytest.mark.parametrize(
    ("magic", "name"),
    [(0x6969, "nfs"), (0xFE534D42, "smb3"), (0x01021997, "9p"), (0x00C36400, "ceph"), (0x0BD00BD0, "lustre")],
)
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool, magic: int, name: str
) -> None:
    """The kernel's answer is replaced: a machine need not have a client for each."""
    if made:
        Store.open(tmp_path / "s").close()
    monkeypatch.setattr(layout, "filesystem_magic", lambda _path: magic)
    with pytest.raises(StoreError, match=rf"network file system \({name}\)") as caught:
        Store.open(tmp_path / "s")
    assert "CROSSDOCK_ROOT" in (caught.value.hint or "")
    assert not (tmp_path / "s/version").exists() or made


@pytest.mark.parametrize(
    ("kind", "refused"), [("fuse.sshfs", True), ("fuse.mergerfs", False), ("virtiofs", False)]
)
def test_of_fuse_file_systems_those_of_other_machines_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    monkeypatch.setattr(layout, "filesystem_magic", lambda _path: 0x65735546)
    monkeypatch.setattr(place, "filesystem_type", lambda _path: kind)
    if refused:
        with pytest.raises(StoreError, match=rf"network file system \({kind}\)"):
            Store.open(tmp_path / "s")
    else:
        Store.open(tmp_path / "s").close()


def test_a_store_that_was_once_on_an_overlay_is_never_mounted_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers may hold whiteouts that no kernel understands, also after it was moved."""
    with Store.open(tmp_path / "s") as store:
        assert not store.layout.unmountable.exists()
    monkeypatch.setattr(layout, "filesystem_magic", lambda _path: 0x794C7630)
    with Store.open(tmp_path / "s") as store:
        assert store.layout.unmountable.exists()
    monkeypatch.undo()
    with Store.open(tmp_path / "s") as store:
        assert store.layout.unmountable.exists()


def test_the_file_system_type_is_that_of_the_innermost_mount() -> None:
    assert place.filesystem_type(Path("/proc/self")) == "proc"
    assert place.filesystem_type(Path("/")) != "unknown"


def test_an_older_database_is_brought_up_to_date(tmp_path: Path, cancel: CancelToken) -> None:
    """``schema-1.sql`` is what the first version made; never change it."""
    with Store.open(tmp_path / "new") as store:
        wanted = schema(store)
    Store.open(tmp_path / "s").close()
    for path in (tmp_path / "s").glob("metadata.sqlite*"):
        path.unlink()
    with closing(sqlite3.connect(tmp_path / "s/metadata.sqlite")) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.executescript(Path(__file__).with_name("schema-1.sql").read_text())
        old.execute("INSERT INTO mounts VALUES('m','/cache','cached mount /cache',5,1,1,1,1)")
        old.execute("PRAGMA user_version=1")
        old.commit()
    (tmp_path / "s/mounts/m/fs").mkdir(parents=True)
    with Store.open(tmp_path / "s") as store, store.lease() as lease:
        assert schema(store) == wanted
        assert store.total_size() == 5
        (record,) = store.disk_usage()
        assert (record.id, record.record_type) == ("m", "exec.cachemount")
        with store.mounts.use(
            lease, name="n", sharing="shared", cancel=cancel, record_type="source.git.checkout"
        ):
            pass
        assert {r.record_type for r in store.disk_usage()} == {"exec.cachemount", "source.git.checkout"}


def schema(store: Store) -> dict[str, list[object]]:
    """Columns of tables by name, and what else there is; indices and triggers are compared by their text."""
    tables = [name for (name,) in store.db.all("SELECT name FROM sqlite_master WHERE type='table'")]
    others = store.db.all("SELECT name, sql FROM sqlite_master WHERE type != 'table' ORDER BY name")
    return {"": others, **{name: store.db.all(f"PRAGMA table_info({name})") for name in tables}}


def test_layers_are_placed_far_from_each_other_where_the_file_system_can(tmp_path: Path) -> None:
    try:
        linux.spread_subdirectories(tmp_path)
    except OSError:
        pytest.skip("this file system places directories as it likes")
    root = tmp_path / "store"
    layout.Layout(root).ensure()
    assert _flags(root / "layers") & 0x20000
    assert not _flags(root / "content") & 0x20000


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, 0x80086601, bytes(8)))
    finally:
        os.close(fd)
    return int(flags)
