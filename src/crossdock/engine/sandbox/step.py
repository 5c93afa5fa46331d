"""What a step is: the values that ops give to the sandbox and get back. No behaviour."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from crossdock.llb.ops import NetMode, SecurityMode
from crossdock.record import NamedTuple, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.engine.sandbox.cdi import ContainerEdits
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import HostIP, LinuxResources, Ulimit
    from crossdock.secret import Secret

__all__ = [
    "BindMount",
    "SecretMount",
    "SshMount",
    "StepFailure",
    "StepMount",
    "StepResult",
    "StepSpec",
    "StepStdio",
    "TmpfsMount",
]


class BindMount(Record):
    """A directory or file of the worker shown at ``dest``; with ``readonly``, it and all mounts below it."""

    source: Path
    dest: str
    readonly: bool = False


class TmpfsMount(Record):
    """An empty tmpfs at ``dest``; at ``/dev/shm`` it replaces the default one. Size in bytes, 0 = kernel default."""

    dest: str
    size_bytes: int = 0
    mode: int = 0o1777


class SecretMount(Record):
    """A file at ``dest`` that lives in memory for the length of the step; read-only there."""

    dest: str
    data: Secret
    uid: int = 0
    gid: int = 0
    mode: int = 0o400


class SshMount(Record):
    """A socket at ``dest`` whose connections are passed to the agent listening at ``agent``."""

    dest: str
    agent: Path
    uid: int = 0
    gid: int = 0
    mode: int = 0o600


StepMount: TypeAlias = BindMount | TmpfsMount | SecretMount | SshMount


class StepSpec(Record):
    """One process to run in a root file system (a mounted directory of the worker)."""

    rootfs: Path
    args: tuple[str, ...]
    #: ``KEY=value``, given as it is; only ``HOME`` is added when absent
    env: tuple[str, ...] = ()
    #: made when absent, owned by the step's user
    cwd: str = "/"
    #: ``user[:group]`` by name or number, looked up in ``rootfs``; ``""`` is root
    user: str = ""
    #: what the file system was built for; ``None`` is the machine's own
    platform: Platform | None = None
    readonly_rootfs: bool = False
    mounts: tuple[StepMount, ...] = ()
    network: NetMode = NetMode.UNSET
    security: SecurityMode = SecurityMode.SANDBOX
    #: ``""`` is ``buildkitsandbox``
    hostname: str = ""
    #: an ``ip`` of ``host-gateway`` means this machine
    extra_hosts: tuple[HostIP, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    resources: LinuxResources | None = None
    cgroup_parent: str = ""
    #: remove made mount points with their made parents (BuildKit's ``removeMountStubsRecursive``)
    remove_mount_stubs_recursive: bool = False
    #: what devices change of the container
    devices: tuple[ContainerEdits, ...] = ()
    #: seconds without output and without CPU use after which an emulated step is ended; ``None`` never
    hang_deadline_s: float | None = None


class StepStdio(NamedTuple):
    """What an interactive step reads and writes, instead of nothing and a log. The caller closes the descriptors."""

    #: descriptor it reads from
    stdin: int
    #: it writes there too, as to a terminal; otherwise what it writes goes to the log
    terminal: bool = False
    #: told the PID of the runtime, below which the step's processes are
    started: Callable[[int], object] = lambda _pid: None
    #: given the terminal that the runtime made for the step, where it does so; ``stdin`` is not used then
    console: Callable[[int], object] | None = None


class StepFailure(Enum):
    """Why a program did not start or end by itself, where that is known."""

    NOT_FOUND = "not-found"
    NOT_EXECUTABLE = "not-executable"
    WRONG_FORMAT = "wrong-format"
    MISSING_INTERPRETER = "missing-interpreter"
    OUT_OF_MEMORY = "out-of-memory"
    HUNG = "hung"


class StepResult(Record):
    """How a step ended."""

    #: the program's own code; 128+n for signal n; 127/126 when it was not found or not executable
    exit_code: int
    signal: int | None = None
    failure: StepFailure | None = None
    #: what happened, where the exit code alone does not say; ``""`` otherwise
    explanation: str = ""
    #: what to do about it; ``""`` otherwise
    hint: str = ""
    #: what was asked for and could not be given, e.g. limits where no control group can be made
    warnings: tuple[str, ...] = ()
