"""Why namespaces are refused, in the words of the setting to change."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.refusal import namespace_refused

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("code", "files", "missing", "hint"),
    [
        pytest.param(errno.ENOSPC, {}, "user.max_user_namespaces", "sysctl -w user.max_user_namespaces=", id="the limit is reached"),
        pytest.param(errno.EPERM, {"proc/sys/user/max_user_namespaces": "0\n"}, "user.max_user_namespaces", "sysctl -w", id="the limit is zero"),
        pytest.param(errno.EPERM, {"proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "kernel.unprivileged_userns_clone", "sysctl -w kernel.unprivileged_userns_clone=1", id="Debian's switch"),
        pytest.param(errno.EACCES, {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "kernel.apparmor_restrict_unprivileged_userns", "AppArmor", id="Ubuntu's AppArmor"),
        pytest.param(errno.EPERM, {"proc/self/status": "Name:\tx\nSeccomp:\t2\n"}, "seccomp", "--security-opt seccomp=unconfined", id="a container's seccomp"),
        pytest.param(errno.EINVAL, {}, "CONFIG_USER_NS", "run as root", id="a kernel without"),
        pytest.param(errno.EPERM, {"proc/self/status": "Seccomp:\t0\n"}, "user namespaces", "chroot", id="something else"),
    ],
)  # fmt: skip
def test_the_setting_is_named(
    tmp_path: Path, code: int, files: dict[str, str], missing: str, hint: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    error = namespace_refused(code, "create a user namespace", root=tmp_path)
    assert error.missing == missing
    assert hint in (error.hint or "")
    assert error.summary.startswith("cannot create a user namespace: ")
