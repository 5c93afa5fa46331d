from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.wholefile import temporary_name, write_whole

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("mode", "written"), [(0o600, 0o600), (0o755, 0o755)])
def test_a_file_is_written_and_replaced(tmp_path: Path, mode: int, written: int) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"2nd"):
        write_whole(os.fspath(path), data, mode=mode, durable=data == b"2nd")
        assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == written
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(os.fspath(tmp_path / "directory"), b"x")
    assert os.listdir(tmp_path) == ["directory"]


def test_the_unfinished_file_can_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watched").mkdir()
    seen: list[str] = []
    real = os.replace

    def replace(source: str, target: str) -> None:
        seen.append(os.path.dirname(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    write_whole(os.fspath(tmp_path / "watched/file"), b"x", folder=os.fspath(tmp_path))
    assert seen == [os.fspath(tmp_path)]
    assert (tmp_path / "watched/file").read_bytes() == b"x"


def test_writers_with_one_process_id_do_not_meet(tmp_path: Path) -> None:
    """As two builds, each of which is process 2 of its own PID namespace."""
    failures: list[BaseException] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(50):
                write_whole(os.fspath(tmp_path / "file"), text)
        except OSError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=write, args=(b"%d" % n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set((tmp_path / "file").read_bytes())) == 1
    assert temporary_name("a") != temporary_name("a")
