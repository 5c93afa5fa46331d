"""The OCI runtime spec of a step, as plain data. Pure.

Follows what BuildKit's executor gives a container: docker's default capabilities, masked and read-only paths, no
``/run`` mount, no new user namespace (the worker's is used).

Spec: OCI runtime-spec 1.0 ``config.md``, ``config-linux.md``; moby/buildkit ``executor/oci/spec.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.llb.ops import NetMode, SecurityMode
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.engine.sandbox.users import StepUser
    from crossdock.llb.ops import Ulimit

__all__ = ["ALL_CAPABILITIES", "DEFAULT_CAPABILITIES", "OciMount", "SpecInput", "runtime_spec"]

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
_KERNEL_ORDER = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
#: by bit number
ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in _KERNEL_ORDER.split())
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_PRIVATE_FLAGS = ("nosuid", "noexec", "nodev")
_TTY_GROUP = 5


class OciMount(NamedTuple):
    """One entry of ``mounts``."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...]


class SpecInput(NamedTuple):
    """Everything a spec depends on, resolved."""

    rootfs: str
    readonly_rootfs: bool
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: StepUser
    hostname: str
    network: NetMode
    security: SecurityMode
    mounts: tuple[OciMount, ...]
    ulimits: tuple[Ulimit, ...]
    #: capabilities the worker itself may hand on
    capability_bound: frozenset[str]
    pid_namespace: bool
    #: ``/proc`` can be mounted; otherwise the worker's is shown, in which the step has other PIDs than by getpid(2)
    fresh_proc: bool
    cgroup_namespace: bool
    #: group 5 exists (``/dev/pts`` wants it)
    has_tty_group: bool
    #: whether a process may set groups (not with a single-id map)
    may_set_groups: bool
    #: OCI seccomp object, or ``None``
    seccomp: Mapping[str, object] | None
    annotations: Mapping[str, str]
    #: 32-bit programs run natively on a 64-bit machine: uname shows the 32-bit one, as under emulation
    linux32: bool
    #: join this network namespace instead of making one
    network_path: str


def runtime_spec(given: SpecInput) -> dict[str, Any]:
    """Return the ``config.json`` object for one step."""
    insecure = given.security is SecurityMode.INSECURE
    wanted = ALL_CAPABILITIES if insecure else DEFAULT_CAPABILITIES
    capabilities = [name for name in wanted if name in given.capability_bound]
    process: dict[str, Any] = {
        "terminal": False,
        "user": _user(given),
        "args": list(given.args),
        "env": list(given.env),
        "cwd": given.cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": False,
    }
    if given.ulimits:
        process["rlimits"] = [
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": _rlimit(limit.soft), "hard": _rlimit(limit.hard)}
            for limit in given.ulimits
        ]
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": given.rootfs, "readonly": given.readonly_rootfs},
        "hostname": given.hostname,
        "mounts": [_mount(m) for m in (*_base_mounts(given, insecure=insecure), *given.mounts)],
        "linux": _linux(given, insecure=insecure),
    }
    if given.annotations:
        spec["annotations"] = dict(given.annotations)
    return spec


def _user(given: SpecInput) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": given.user.uid, "gid": given.user.gid}
    if given.user.groups and given.may_set_groups:
        user["additionalGids"] = list(given.user.groups)
    return user


def _rlimit(value: int) -> int:
    return value if value >= 0 else (1 << 64) - 1


def _mount(mount: OciMount) -> dict[str, Any]:
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }


def _base_mounts(given: SpecInput, *, insecure: bool) -> Sequence[OciMount]:
    replaced = {mount.destination for mount in given.mounts}
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if given.has_tty_group:
        pts.append(f"gid={_TTY_GROUP}")
    if given.fresh_proc:
        proc = OciMount("/proc", "proc", "proc", _PRIVATE_FLAGS)
    else:
        proc = OciMount("/proc", "bind", "/proc", ("rbind", *_PRIVATE_FLAGS))
    if insecure:
        dev = OciMount("/dev", "bind", "/dev", ("rbind", "nosuid"))
    else:
        dev = OciMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k"))
    base = [
        proc,
        dev,
        OciMount("/dev/pts", "devpts", "devpts", tuple(pts)),
        OciMount("/dev/shm", "tmpfs", "shm", (*_PRIVATE_FLAGS, "mode=1777", "size=65536k")),  # noqa: S108
        OciMount("/dev/mqueue", "mqueue", "mqueue", _PRIVATE_FLAGS),
        _sysfs(given, insecure=insecure),
    ]
    return [mount for mount in base if mount.destination not in replaced]


def _sysfs(given: SpecInput, *, insecure: bool) -> OciMount:
    """A user namespace may mount sysfs only with a network namespace of its own; that one shows no host interface."""
    if (given.network is NetMode.NONE or given.network_path) and not insecure:
        return OciMount("/sys", "sysfs", "sysfs", (*_PRIVATE_FLAGS, "ro"))
    return OciMount("/sys", "bind", "/sys", ("rbind", *_PRIVATE_FLAGS, "rw" if insecure else "rro"))


def _linux(given: SpecInput, *, insecure: bool) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
    if given.pid_namespace:
        namespaces.append({"type": "pid"})
    if given.cgroup_namespace:
        namespaces.append({"type": "cgroup"})
    if given.network is NetMode.NONE:
        namespaces.append({"type": "network"})
    elif given.network_path:
        namespaces.append({"type": "network", "path": given.network_path})
    linux: dict[str, Any] = {"namespaces": namespaces}
    if not insecure:
        linux["maskedPaths"] = list(_MASKED)
        linux["readonlyPaths"] = list(_READONLY)
        if given.seccomp is not None:
            linux["seccomp"] = dict(given.seccomp)
    if given.linux32:
        linux["personality"] = {"domain": "LINUX32"}
    return linux
