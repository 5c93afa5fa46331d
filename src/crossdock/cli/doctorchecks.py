"""The checks behind ``doctor``: what builds need of this machine, found out by doing it where that is possible.

Each check is a function that returns findings; those that need the worker namespace run in a forked child.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from crossdock.distro import install_hint
from crossdock.errors import CrossdockError, SandboxError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.selftest import Finding
    from crossdock.engine.sandbox.worker import WorkerInfo

__all__ = ["Check", "all_checks"]

#: bytes and inodes below which a build is likely to fail, and below which it may
_FREE_FAIL, _FREE_WARN = 500 << 20, 5 << 30
_INODES_FAIL = 10_000
_NFS_MAGIC = 0x6969
#: platforms people build for; lacking others is only worth a notice
_COMMON = frozenset({"amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64"})
_TIMEOUT_S = 10


class Check(NamedTuple):
    """One line of the report: ``state`` is ``ok``, ``warn`` or ``fail``; ``fix`` is what to do, or ``""``."""

    name: str
    state: str
    text: str
    fix: str = ""


def all_checks(root: Path) -> Iterator[Check]:
    """Check this machine for builds with the store at ``root``. The process must have one thread."""
    yield _runtime()
    yield from _id_ranges()
    yield from _inside_worker(_existing(root))
    yield from _disk(root)
    yield _system_trust()
    yield from _registry_certificates()
    yield from _credential_helpers()
    yield from _optional()


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _runtime() -> Check:
    from crossdock.engine.sandbox.runtime import find_runtime

    try:
        runtime = find_runtime()
    except CrossdockError as exc:
        return Check("runtime", "fail", exc.summary, exc.hint or "")
    text = f"{_first_line(runtime.path, '--version')} ({runtime.path})"
    if runtime.name != "crun":
        return Check(
            "runtime", "warn", f"{text}; crun is faster and needs no control groups", install_hint("crun")
        )
    return Check("runtime", "ok", text)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return command[0]
    return done.stdout.partition("\n")[0].strip() or command[0]


def _id_ranges() -> Iterator[Check]:
    if os.geteuid() == 0:
        return
    for helper in ("newuidmap", "newgidmap"):
        if shutil.which(helper) is None:
            text = f"{helper} is missing, so builds have one user id"
            yield Check("id ranges", "warn", text, install_hint("newuidmap"))
            return
    from crossdock.engine.sandbox.launch import plan_maps

    maps = plan_maps(use_ranges=True)
    if maps.kind == "single":
        from crossdock.engine.sandbox.launch import user_name

        name = user_name(os.geteuid())
        fix = f"run `sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}`"
        yield Check("id ranges", "warn", f"{maps.note}, so builds have one user id", fix)
        return
    yield Check(
        "id ranges",
        "ok",
        f"{sum(r.size for r in maps.uids)} user ids, {sum(r.size for r in maps.gids)} group ids",
    )


def _inside_worker(directory: Path) -> Iterator[Check]:
    """Run :func:`_worker_checks` in a worker process and read its findings."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _report_from_worker(directory, write_end)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as stream:
        for line in stream:
            yield Check(*json.loads(line))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        yield Check("sandbox", "fail", f"the checks inside the sandbox ended with status {code}")


def _report_from_worker(directory: Path, write_end: int) -> None:
    """Become a worker, write one JSON line per check, end. Never returns."""
    from crossdock.engine.sandbox.worker import become_worker

    with open(write_end, "w", encoding="utf-8") as out:
        try:
            checks = _worker_checks(become_worker(), directory)
            out.writelines(json.dumps(check) + "\n" for check in checks)
        except CrossdockError as exc:
            out.write(json.dumps(Check("namespaces", "fail", exc.summary, exc.hint or "")) + "\n")
    os._exit(0)


def _worker_checks(info: WorkerInfo, directory: Path) -> Iterator[Check]:
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.selftest import check_mounts, check_step

    yield Check("namespaces", "ok", _rungs(info))
    if not info.pid_namespace:
        note = "; ".join(f"{r.name}: {r.note or r.state}" for r in info.rungs if r.state == "refused")
        yield Check("processes", "warn", f"no PID namespace with a /proc of its own ({note})")
    try:
        sandbox = Sandbox(info)
    except CrossdockError:  # no runtime: said already
        return
    overlay = check_mounts(sandbox, directory)
    if overlay.ok and sandbox.root_mounts != "overlay":
        fix = "" if sandbox.root_mounts == "fuse-overlayfs" else install_hint("fuse-overlayfs")
        yield Check("overlay", "warn", f"{sandbox.root_mounts} is used: {sandbox.roots.note}", fix)
    else:
        yield _as_check(overlay, f"overlayfs on {directory}")
    step = check_step(sandbox, info.run_dir)
    yield _as_check(step, "a step runs")
    yield _limits(info)
    if step.ok:
        yield from _platforms(sandbox)


def _rungs(info: WorkerInfo) -> str:
    ids = {
        "identity": "all ids",
        "ranges": f"{sum(r.size for r in info.uid_map)} ids",
        "single": "one id",
        "none": "no user namespace",
    }
    return f"user ({ids[info.ids]}), mount, {'PID, ' if info.pid_namespace else ''}IPC, UTS"


def _as_check(finding: Finding, text: str) -> Check:
    name = finding.name.partition(" ")[0]
    return Check(name, "ok", text) if finding.ok else Check(name, "fail", finding.text, finding.hint)


def _limits(info: WorkerInfo) -> Check:
    from crossdock.engine.sandbox.cgroups import Unavailable, find_limits, hierarchy_of

    limits = find_limits(info.cgroups, hierarchy_of(info.cgroups, info.run_dir))
    if isinstance(limits, Unavailable):
        return Check("limits", "warn", f"--resource has no effect: {limits.reason}")
    return Check("limits", "ok", f"memory and cpu through control groups ({info.cgroups})")


def _platforms(sandbox: Sandbox) -> Iterator[Check]:
    from crossdock.emulation.architectures import by_name
    from crossdock.emulation.platforms import LISTED, offered_platforms

    emulator = sandbox.emulator
    offers = offered_platforms(emulator)
    for offer in offers:
        name = str(offer.platform)
        if offer.problem or offer.running is None:
            hint = "`crossdock binfmt ls` shows the host's handlers"
            yield Check(name, "fail", f"its probe does not run: {offer.problem}", hint)
            continue
        text = offer.running.how.value
        if offer.running.emulator is not None and text != "native":
            text += f", {offer.running.emulator.path} {offer.running.emulator.version()}".rstrip()
        yield Check(name, "ok", text)
    have = {offer.platform.architecture for offer in offers}
    for name in LISTED:
        architecture = by_name(name)
        if name in have or architecture is None:
            continue
        state = "fail" if name in _COMMON else "warn"
        hint = install_hint("qemu", machine=architecture.qemu)
        yield Check(f"linux/{name}", state, f"no static QEMU for it (qemu-{architecture.qemu}-static)", hint)
    if emulator.private_problem:
        yield Check(
            "handlers", "warn", emulator.private_problem, "`sudo crossdock binfmt install all` registers QEMU"
        )


def _disk(root: Path) -> Iterator[Check]:
    at = _existing(root)
    stats = os.statvfs(at)
    free = stats.f_bavail * stats.f_frsize
    text = f"{free >> 30} GiB free for {root}"
    fix = f"free some space, run `crossdock prune`, or set CROSSDOCK_ROOT (now {root})"
    if free < _FREE_FAIL or (stats.f_files and stats.f_favail < _INODES_FAIL):
        yield Check("disk", "fail", f"{text}, {stats.f_favail} inodes", fix)
    elif free < _FREE_WARN:
        yield Check("disk", "warn", text, fix)
    else:
        yield Check("disk", "ok", text)
    if not os.access(at, os.W_OK):
        yield Check("store", "fail", f"{at} is not writable", "set CROSSDOCK_ROOT to a directory of yours")
    from crossdock import linux

    if linux.filesystem_magic(at) == _NFS_MAGIC:
        yield Check(
            "store",
            "warn",
            f"{root} is on NFS, which takes no overlays",
            "set CROSSDOCK_ROOT to a local disk",
        )


def _system_trust() -> Check:
    import ssl

    paths = ssl.get_default_verify_paths()
    folder = (
        paths.capath if paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath) else None
    )
    where = paths.cafile or folder
    if where is None:
        text = "no certificate authorities: registries with public certificates cannot be reached"
        return Check("trust", "fail", text, install_hint("ca-certificates"))
    return Check("trust", "ok", f"certificate authorities from {where}")


def _registry_certificates() -> Iterator[Check]:
    from crossdock.registry.config import RegistryConfig, default_cert_dirs
    from crossdock.registry.tls import make_context

    config = RegistryConfig()
    for folder in default_cert_dirs(os.environ):
        for host in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
            try:
                make_context(config.tls_for(host))
            except CrossdockError as exc:
                yield Check("trust", "fail", f"{folder / host}: {exc.summary}", exc.hint or "")
            else:
                yield Check("trust", "ok", f"{host}: {folder / host}")


def _credential_helpers() -> Iterator[Check]:
    from crossdock.builders.dockerconfig import load_config

    try:
        config = load_config()
    except CrossdockError as exc:
        yield Check("logins", "fail", exc.summary, exc.hint or "")
        return
    helpers = config.get("credHelpers")
    names = set(map(str, helpers.values())) if isinstance(helpers, dict) else set()
    if store := config.get("credsStore"):
        names.add(str(store))
    for name in sorted(names):
        program = f"docker-credential-{name}"
        if shutil.which(program) is None:
            yield Check("logins", "fail", f"{program}, named in docker's config.json, is not on PATH")
        else:
            yield Check("logins", "ok", program)


def _optional() -> Iterator[Check]:
    if shutil.which("git") is None:
        yield Check("git", "warn", "needed for git contexts and ADD of repositories", install_hint("git"))
    yield _isolated_network()


def _isolated_network() -> Check:
    from crossdock.engine.sandbox.network import find_helper

    name = "isolated network"
    try:
        helper = find_helper()
    except SandboxError as exc:
        return Check(name, "warn", exc.summary, exc.hint or "")
    return Check(name, "ok", f"{helper.path} (steps use it with network=isolated)")
