"""LLB operations as immutable values; field names and defaults follow ``pb.Op``.

An op says *what* to do and nothing of how. Its inputs live in the graph
(:mod:`crossdock.llb.graph`); ``input`` fields here are indexes into them, -1 for none.

Spec: moby/buildkit ``solver/pb/ops.proto``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.llb.graph import Definition

__all__ = [
    "SKIP_OUTPUT",
    "BuildOp",
    "CacheOpt",
    "CacheSharing",
    "CdiDevice",
    "ChownOpt",
    "ContentCache",
    "DiffOp",
    "ExecMeta",
    "ExecOp",
    "FileAction",
    "FileActionCopy",
    "FileActionMkDir",
    "FileActionMkFile",
    "FileActionRm",
    "FileActionSymlink",
    "FileOp",
    "FileOpAction",
    "HostIP",
    "LinuxResources",
    "MergeOp",
    "Mount",
    "MountType",
    "NamedUser",
    "NetMode",
    "Op",
    "OpMetadata",
    "PassthroughOp",
    "ProgressGroup",
    "ProxyEnv",
    "SecretEnv",
    "SecretOpt",
    "SecurityMode",
    "SourceOp",
    "SshOpt",
    "Ulimit",
]

#: ``output`` of a mount or action whose result is not wanted
SKIP_OUTPUT = -1


class NetMode(IntEnum):
    """Network of an exec: the sandbox's own, the host's, or loopback only."""

    UNSET = 0
    HOST = 1
    NONE = 2


class SecurityMode(IntEnum):
    """Privileges of an exec."""

    SANDBOX = 0
    INSECURE = 1


class MountType(IntEnum):
    """Kind of an exec's mount."""

    BIND = 0
    SECRET = 1
    SSH = 2
    CACHE = 3
    TMPFS = 4


class CacheSharing(IntEnum):
    """What concurrent users of one cache mount do."""

    SHARED = 0
    PRIVATE = 1
    LOCKED = 2


class ContentCache(IntEnum):
    """Whether a bind input is keyed by content."""

    DEFAULT = 0
    ON = 1
    OFF = 2


class ProxyEnv(Record, kw_only=False):
    """Proxy variables given to a step but kept out of its cache key."""

    http_proxy: str = ""
    https_proxy: str = ""
    ftp_proxy: str = ""
    no_proxy: str = ""
    all_proxy: str = ""


class HostIP(Record, kw_only=False):
    """An extra ``/etc/hosts`` line."""

    host: str
    ip: str


class Ulimit(Record, kw_only=False):
    """A resource limit by name (``nofile``)."""

    name: str
    soft: int
    hard: int


class ExecMeta(Record):
    """What to run and as whom."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    proxy_env: ProxyEnv | None = None
    extra_hosts: tuple[HostIP, ...] = ()
    hostname: str = ""
    ulimit: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    remove_mount_stubs_recursive: bool = False
    valid_exit_codes: tuple[int, ...] = ()


class CacheOpt(Record):
    """Options of a cache mount."""

    id: str
    sharing: CacheSharing = CacheSharing.SHARED


class SecretOpt(Record):
    """Options of a secret mount; ``mode`` is permission bits."""

    id: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o400
    optional: bool = False


class SshOpt(Record):
    """Options of an ssh agent mount."""

    id: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o600
    optional: bool = False


class Mount(Record):
    """One mount of an exec; ``dest`` ``/`` is the root file system."""

    dest: str
    input: int = -1
    selector: str = ""
    output: int = SKIP_OUTPUT
    readonly: bool = False
    mount_type: MountType = MountType.BIND
    #: bytes, 0 = default; ``None`` when not a tmpfs
    tmpfs_size: int | None = None
    cache_opt: CacheOpt | None = None
    secret_opt: SecretOpt | None = None
    ssh_opt: SshOpt | None = None
    result_id: str = ""
    content_cache: ContentCache = ContentCache.DEFAULT


class SecretEnv(Record):
    """A secret given as an environment variable."""

    id: str
    name: str
    optional: bool = False


class CdiDevice(Record, kw_only=False):
    """A CDI device by qualified name."""

    name: str
    optional: bool = False


class ExecOp(Record):
    """Run a command over mounts."""

    meta: ExecMeta
    mounts: tuple[Mount, ...]
    network: NetMode = NetMode.UNSET
    security: SecurityMode = SecurityMode.SANDBOX
    secret_env: tuple[SecretEnv, ...] = ()
    cdi_devices: tuple[CdiDevice, ...] = ()


class SourceOp(Record, kw_only=False):
    """Where data comes from: ``docker-image://``, ``local://``, ``git://``, ``http(s)://``, ``oci-layout://``."""

    identifier: str
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)


class NamedUser(Record, kw_only=False):
    """A user or group by name, looked up in the ``/etc/passwd`` or ``/etc/group`` of an input."""

    name: str
    input: int


class ChownOpt(Record, kw_only=False):
    """Owner of created files: ids, or names resolved in an input's file system."""

    user: int | NamedUser | None = None
    group: int | NamedUser | None = None


class FileActionCopy(Record):
    """Copy paths of the secondary input into the primary; ``mode`` -1 keeps the source's."""

    src: str
    dest: str
    owner: ChownOpt | None = None
    mode: int = -1
    follow_symlink: bool = False
    dir_copy_contents: bool = False
    attempt_unpack: bool = False
    create_dest_path: bool = False
    allow_wildcard: bool = False
    allow_empty_wildcard: bool = False
    #: nanoseconds since the epoch; -1 keeps the source's
    timestamp_ns: int = -1
    include_patterns: tuple[str, ...] = ()
    exclude_patterns: tuple[str, ...] = ()
    always_replace_existing_dest_paths: bool = False
    #: symbolic mode (``u+x,go=rX``); wins over ``mode``
    mode_str: str = ""
    required_paths: tuple[str, ...] = ()


class FileActionMkFile(Record):
    """Create or replace a file."""

    path: str
    data: bytes
    mode: int = 0o644
    owner: ChownOpt | None = None
    timestamp_ns: int = -1


class FileActionMkDir(Record):
    """Create a directory; an existing one is fine."""

    path: str
    mode: int = 0o755
    make_parents: bool = False
    owner: ChownOpt | None = None
    timestamp_ns: int = -1


class FileActionRm(Record):
    """Remove a path and what is below it."""

    path: str
    allow_not_found: bool = False
    allow_wildcard: bool = False


class FileActionSymlink(Record):
    """Create a symbolic link at ``newpath`` pointing to ``oldpath``."""

    oldpath: str
    newpath: str
    owner: ChownOpt | None = None
    timestamp_ns: int = -1


FileActionKind: TypeAlias = (
    FileActionCopy | FileActionMkFile | FileActionMkDir | FileActionRm | FileActionSymlink
)


class FileAction(Record):
    """One action of a file op.

    ``input`` and ``secondary_input`` index the op's inputs and, after them, the results of earlier
    actions (``len(inputs) + n``); -1 is scratch. ``output`` is the op output the result becomes.
    """

    action: FileActionKind
    input: int = -1
    secondary_input: int = -1
    output: int = SKIP_OUTPUT


#: kept as an alias for readers who know ``pb.FileAction`` by its oneof
FileOpAction: TypeAlias = FileAction


class FileOp(Record, kw_only=False):
    """Change files without running anything."""

    actions: tuple[FileAction, ...]


class MergeOp(Record, kw_only=False):
    """Overlay the inputs, bottom first."""

    inputs: tuple[int, ...]


class DiffOp(Record, kw_only=False):
    """What must be applied to ``lower`` to get ``upper``; -1 is scratch."""

    lower: int = -1
    upper: int = -1


class BuildOp(Record):
    """Solve a nested definition (experimental in BuildKit)."""

    builder: int = -1
    inputs: Mapping[str, int] = field(default_factory=dict, hash=False)
    definition: Definition | None = None
    attrs: Mapping[str, str] = field(default_factory=dict, hash=False)


class PassthroughOp(Record):
    """Forward inputs; groups them under an id."""

    id: str = ""
    outputs: tuple[int, ...] = ()


Op: TypeAlias = ExecOp | SourceOp | FileOp | MergeOp | DiffOp | BuildOp | PassthroughOp


class LinuxResources(Record):
    """cgroup limits of a step; never part of its cache key. Bytes, microseconds, cpu lists."""

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


class ProgressGroup(Record, kw_only=False):
    """Several vertices displayed as one."""

    id: str
    name: str
    weak: bool = False


class OpMetadata(Record):
    """What accompanies an op without being part of its digest.

    ``description`` keys used by BuildKit: ``llb.customname`` (display name), ``com.docker.dockerfile.v1.command``.
    """

    ignore_cache: bool = False
    description: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: ``None`` = unset
    export_cache: bool | None = None
    caps: Mapping[str, bool] = field(default_factory=dict, hash=False)
    progress_group: ProgressGroup | None = None
    linux_resources: LinuxResources | None = None
