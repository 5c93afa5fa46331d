"""``@pytest.mark.needs("crun", "userns")``: what a case needs of the machine.

A missing thing skips the case with a reason; with ``REQUIRE=all`` (CI) it fails it. What hangs on who runs the suite
(``root``, ``user`` and all that only root can start) always skips: the suite runs once as each.

Not for: starting anything; fixtures do that.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import idmap
import objectstores
import privateapt
import services
import sshserver

if TYPE_CHECKING:
    from collections.abc import Callable

#: emulators by platform, as Debian names the programs
EMULATORS = {
    "linux/amd64": "x86_64",
    "linux/arm64": "aarch64",
    "linux/arm/v7": "arm",
    "linux/386": "i386",
    "linux/ppc64le": "ppc64le",
    "linux/s390x": "s390x",
}


@dataclass(frozen=True)
class Missing:
    """Why a need is not met; ``identity``: because of who runs the suite and where, so that it is never a failure."""

    reason: str
    identity: bool = False


def _root() -> Missing | None:
    return None if os.geteuid() == 0 else Missing("root", identity=True)


def _user() -> Missing | None:
    return None if os.geteuid() != 0 else Missing("an ordinary user", identity=True)


def _program(*names: str) -> Callable[[], Missing | None]:
    def probe() -> Missing | None:
        return None if any(map(shutil.which, names)) else Missing(f"{' or '.join(names)} on PATH")

    return probe


def _succeeds(command: str, reason: str) -> Missing | None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=folder, capture_output=True, text=True, check=False, timeout=30
        )
    return None if done.returncode == 0 else Missing(f"{reason} ({done.stderr.strip()[-200:]})")


def _userns() -> Missing | None:
    return _succeeds("unshare --user --map-root-user true", "user namespaces")


def _subids() -> Missing | None:
    if os.geteuid() == 0:
        return None
    if not shutil.which("newuidmap"):
        return Missing("newuidmap on PATH (package uidmap)")
    for table in ("/etc/subuid", "/etc/subgid"):
        if not idmap.subordinate_range(table):
            return Missing(f"a range for this user in {table}")
    return None


def _overlay() -> Missing | None:
    command = """unshare --user --map-root-user --mount sh -ec '
        mkdir l u w m; mount -t overlay -o userxattr,lowerdir=l,upperdir=u,workdir=w overlay m'"""
    return _succeeds(command, "overlayfs in a user namespace")


def _binfmt() -> Missing | None:
    command = "unshare --user --map-root-user --mount sh -ec 'mkdir b; mount -t binfmt_misc none b; test -e b/register'"
    return _succeeds(command, "binfmt_misc in a user namespace (Linux 6.7)")


def _host_binfmt() -> Missing | None:
    if missing := _root():
        return missing
    command = """unshare --mount --propagation private sh -ec '
        test -e /proc/sys/fs/binfmt_misc/register || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc'"""
    return _succeeds(command, "binfmt_misc of the host")


def _qemu() -> Missing | None:
    machine = os.uname().machine
    absent = [
        f"qemu-{name}-static"
        for name in EMULATORS.values()
        if name != machine and not shutil.which(f"qemu-{name}-static") and not shutil.which(f"qemu-{name}")
    ]
    return Missing(f"{', '.join(absent)} on PATH (package qemu-user-static)") if absent else None


def _loop() -> Missing | None:
    if missing := _root():
        return missing
    return None if Path("/dev/loop-control").exists() else Missing("loop devices")


def _pasta() -> Missing | None:
    # an alternative to slirp4netns that not every release has: welcome, not required
    return None if shutil.which("pasta") else Missing("pasta on PATH (package passt)", identity=True)


def _tun() -> Missing | None:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # often only root may open it; where root may not either, the machine lacks it
        return Missing(f"/dev/net/tun ({error.strerror})", identity=os.geteuid() != 0)
    return None


def _fetched(fetch: Callable[[], object]) -> Missing | None:
    try:
        fetch()
    except privateapt.AptError as error:
        return Missing(str(error))
    return None


def _registry() -> Missing | None:
    return _fetched(services.registry_binary)


def _base() -> Missing | None:
    # the packages themselves are fetched by the fixture
    return _registry() or _program("dpkg-deb")()


def _docker() -> Missing | None:
    # a chroot, for one, cannot give an Engine a mount namespace of its own
    alone = shlex.join([*services.NAMESPACES, "true"])
    return (
        _root()
        or _fetched(lambda: services.engine_folder("20.10"))
        or _succeeds(alone, "mount and PID namespaces for an Engine")
    )


def _docker26() -> Missing | None:
    return _docker() or _fetched(lambda: services.engine_folder("26.1"))


def _dockercli() -> Missing | None:
    return _fetched(lambda: services.engine_folder("26.1"))


def _sshd() -> Missing | None:
    if pwd.getpwuid(os.geteuid()).pw_shell.endswith(("/nologin", "/false")):
        return Missing("a user who may log in", identity=True)
    return _program("ssh")() or _program("ssh-agent")() or _fetched(sshserver.server_folder)


def _moto() -> Missing | None:
    return _stores(objectstores.check_moto)


def _azurite() -> Missing | None:
    if shutil.which("npm") is None:
        # Debian's npm brings hundreds of packages, too much for one stand-in: where it is absent the cases are, too
        return Missing("npm on PATH, which fetches Azurite", identity=True)
    return _stores(objectstores.azurite) or _stores(objectstores.check_azure)


def _stores(look: Callable[[], object]) -> Missing | None:
    try:
        look()
    except objectstores.MissingError as error:
        return Missing(str(error))
    return None


PROBES: dict[str, Callable[[], Missing | None]] = {
    "root": _root,
    "user": _user,
    "userns": _userns,
    "subids": _subids,
    "overlay": _overlay,
    "binfmt": _binfmt,
    "hostbinfmt": _host_binfmt,
    "qemu": _qemu,
    "loop": _loop,
    "crun": _program("crun"),
    "runc": _program("runc"),
    "skopeo": _program("skopeo"),
    "umoci": _program("umoci"),
    "openssl": _program("openssl"),
    "fuse-overlayfs": _program("fuse-overlayfs"),
    "slirp4netns": _program("slirp4netns"),
    "pasta": _pasta,
    "tun": _tun,
    "registry": _registry,
    "base": _base,
    "docker": _docker,
    "docker26": _docker26,
    "dockercli": _dockercli,
    "sshd": _sshd,
    "moto": _moto,
    "azurite": _azurite,
}


@cache
def missing(name: str) -> Missing | None:
    """Why the need ``name`` is not met, or None."""
    return PROBES[name]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unknown names; keep the cases of one Engine on one worker, as each worker would start its own."""
    for item in items:
        names = {name for marker in item.iter_markers("needs") for name in marker.args}
        if unknown := names - set(PROBES):
            msg = f"{item.nodeid}: unknown needs {sorted(unknown)}; known: {sorted(PROBES)}"
            raise pytest.UsageError(msg)
        if names & {"docker", "docker26"}:
            item.add_marker(pytest.mark.xdist_group("docker"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the case, or fail it in CI, when the machine lacks what it needs."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            lack = missing(name)
            if lack is None:
                continue
            if os.environ.get("REQUIRE") == "all" and not lack.identity:
                pytest.fail(f"needs {lack.reason}, and REQUIRE=all", pytrace=False)
            pytest.skip(f"needs {lack.reason}")
