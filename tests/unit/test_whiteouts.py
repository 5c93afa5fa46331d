from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.whiteouts import is_whiteout, make_whiteout, takes_whiteouts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def overlay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As overlayfs answers: no character device 0/0."""
    real = os.mknod

    def mknod(path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode) and device == 0:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, mode, device, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", mknod)


def test_it_is_overlayfs_s_own_where_that_can_be_made(tmp_path: Path) -> None:
    make_whiteout(str(tmp_path / "w"))
    st = (tmp_path / "w").lstat()
    assert stat.S_ISCHR(st.st_mode)
    assert is_whiteout(st)
    assert takes_whiteouts(tmp_path)
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.usefixtures("overlay")
def test_elsewhere_it_is_a_socket_without_permissions(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    make_whiteout(b"w", dir_fd=fd)
    os.close(fd)
    st = (tmp_path / "w").lstat()
    assert st.st_mode == stat.S_IFSOCK
    assert is_whiteout(st)
    assert not takes_whiteouts(tmp_path)
    assert os.listdir(tmp_path) == ["w"]


def test_nothing_else_is_one(tmp_path: Path) -> None:
    (tmp_path / "f").touch(mode=0)
    (tmp_path / "d").mkdir(mode=0)
    (tmp_path / "l").symlink_to("f")
    os.mkfifo(tmp_path / "p", 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "s"))
    assert not [path for path in tmp_path.iterdir() if is_whiteout(path.lstat())]
    assert not is_whiteout(os.stat("/dev/null"))


def test_where_something_is_it_fails(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(FileExistsError):
        make_whiteout(str(tmp_path / "f"))
