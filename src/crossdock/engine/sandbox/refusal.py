"""Why the kernel refuses namespaces, said in the words of the setting to change.

Imported only when something was refused.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from crossdock.errors import SandboxError

__all__ = ["namespace_refused"]

_APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
_DEBIAN = "kernel.unprivileged_userns_clone"
_LIMIT = "user.max_user_namespaces"


def namespace_refused(code: int, what: str, *, root: Path = Path("/")) -> SandboxError:
    """Explain that ``what`` failed with errno ``code``; looks at the settings below ``root``."""
    summary = f"cannot {what}: {os.strerror(code)}"
    missing, hint = _cause(code, root)
    return SandboxError(summary, missing=missing, hint=hint)


def _cause(code: int, root: Path) -> tuple[str, str]:
    if code == errno.ENOSPC or _sysctl(root, _LIMIT) == "0":
        return _LIMIT, f"run `sudo sysctl -w {_LIMIT}=28633` (and put it in /etc/sysctl.d to keep it)"
    if code in (errno.EINVAL, errno.ENOSYS):
        return "CONFIG_USER_NS", "this kernel has no user namespaces; run as root or use another kernel"
    if _sysctl(root, _DEBIAN) == "0":
        return _DEBIAN, f"run `sudo sysctl -w {_DEBIAN}=1` (and put it in /etc/sysctl.d to keep it)"
    if _sysctl(root, _APPARMOR) not in ("", "0"):
        hint = (
            f"AppArmor restricts user namespaces: run `sudo sysctl -w {_APPARMOR}=0`, or give the Python that "
            "runs crossdock an AppArmor profile with the rule `userns,`"
        )
        return _APPARMOR, hint
    status = _status(root)
    if status.get("Seccomp") == "2":
        hint = (
            "a seccomp filter forbids it, as in a container started with default settings: start the container "
            "with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`"
        )
        return "seccomp", hint
    hint = "the kernel or a security module forbids it (a chroot does too); run as root or outside of it"
    return "user namespaces", hint


def _sysctl(root: Path, name: str) -> str:
    try:
        return (root / "proc/sys" / name.replace(".", "/")).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _status(root: Path) -> dict[str, str]:
    try:
        lines = (root / "proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}
