"""Users of a step, looked up in a root file system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.users import StepUser, resolve_user
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

PASSWD = """\
# comment
root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/srv/app:/bin/sh
nohome:x:5:6
+::::::
broken:x:one:2::/:/bin/sh
123:x:77:78::/home/digits:/bin/sh
"""
GROUP = """\
root:x:0:
app:x:1001:
extra:x:2000:app,root
other:x:2001:somebody,app
digits:x:1001000:
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        pytest.param("", StepUser(0, 0, (2000,), "/root"), id="nobody named: root"),
        pytest.param(
            "app", StepUser(1000, 1001, (2000, 2001), "/srv/app"), id="a name brings its groups and home"
        ),
        pytest.param("1000", StepUser(1000, 1001, (2000, 2001), "/srv/app"), id="its number too"),
        pytest.param(
            "app:other", StepUser(1000, 2001, (), "/srv/app"), id="a named group replaces the others"
        ),
        pytest.param("app:55", StepUser(1000, 55, (), "/srv/app"), id="a numeric group need not exist"),
        pytest.param("55", StepUser(55, 0, (), "/"), id="a number nobody has is in group 0"),
        pytest.param("55:66", StepUser(55, 66, (), "/"), id="two numbers need no files"),
        pytest.param("1000:1000", StepUser(1000, 1000, (), "/srv/app"), id="two numbers still find the home"),
        pytest.param("nohome", StepUser(5, 6, (), "/"), id="an entry without a home"),
        pytest.param(
            "123", StepUser(77, 78, (), "/home/digits"), id="a name that is a number wins over the number"
        ),
        pytest.param("root:extra", StepUser(0, 2000, (), "/root"), id="root in another group"),
    ],
)
def test_resolved(root: str, user: str, expected: StepUser) -> None:
    assert resolve_user(root, user) == expected


@pytest.mark.parametrize(
    ("user", "text"),
    [
        pytest.param("ghost", "unable to find user ghost: no matching entries in passwd file", id="unknown user"),
        pytest.param("app:ghosts", "unable to find group ghosts: no matching entries in group file", id="unknown group"),
        pytest.param("4294967296", "uids and gids must be in range 0-2147483647, not 4294967296", id="out of range"),
    ],
)  # fmt: skip
def test_refused(root: str, user: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_user(root, user)
    assert caught.value.summary == text


def test_without_files_numbers_and_root_still_work(tmp_path: Path) -> None:
    assert resolve_user(str(tmp_path), "") == StepUser(0, 0)
    assert resolve_user(str(tmp_path), "7:8") == StepUser(7, 8)


def test_a_link_out_of_the_image_is_followed_inside_of_it(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc/passwd").symlink_to("../../host/passwd")
    with pytest.raises(UsageError):
        resolve_user(str(image), "evil")
