"""The sandbox: mounted root file systems and steps run in them, inside the worker namespace.

One object per worker process; every method may be called from any thread.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.sandbox import stubs
from crossdock.engine.sandbox.etcfiles import DEFAULT_HOSTNAME, hosts_text, resolv_text
from crossdock.engine.sandbox.hang import HangWatch
from crossdock.engine.sandbox.paths import make_directories, remove_folder, resolve_in_root
from crossdock.engine.sandbox.roots import RootMounts
from crossdock.engine.sandbox.runtime import find_runtime
from crossdock.engine.sandbox.spec import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    OciMount,
    SpecInput,
    runtime_spec,
)
from crossdock.engine.sandbox.step import (
    BindMount,
    SecretMount,
    SshMount,
    StepFailure,
    StepResult,
    TmpfsMount,
)
from crossdock.engine.sandbox.users import StepUser, resolve_user
from crossdock.errors import SandboxError, translate
from crossdock.image.platform import local_platform
from crossdock.llb.ops import NetMode, SecurityMode
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.emulation.emulator import Emulator
    from crossdock.engine.sandbox import cgroups
    from crossdock.engine.sandbox.etcfiles import Dns
    from crossdock.engine.sandbox.network import Helper
    from crossdock.engine.sandbox.runtime import Outcome, Runtime
    from crossdock.engine.sandbox.step import StepMount, StepSpec, StepStdio
    from crossdock.engine.sandbox.worker import WorkerInfo

__all__ = ["Sandbox"]

_FILE_BIND = ("rbind", "ro", "nosuid", "noexec", "nodev")
_TTY_GROUP = 5
#: seconds between looks at a step that is being started
_STARTING_S = 0.02
_TAIL_BYTES = 4096
#: architectures that a 64-bit machine may run natively; with an emulator the personality changes nothing
_NATIVE_32 = frozenset({"386", "arm", "ppc", "mips", "mipsle"})
_SIGNAL_BASE, _LAST_SIGNAL = 128, 64


class Sandbox:
    """Runs steps for one worker; ``runtime`` is looked for when not given.

    ``cache_dir`` is a directory on disk for what is dear to make again and for copies; ``root_mounts`` is where the
    ladder of ways to mount starts. ``network`` is what steps get that ask for none in particular: ``host``, or ``isolated``;
    ``dns`` is their resolver in place of the machine's; ``cgroup_parent`` is for steps that ask for none.

    Raises: SandboxError when there is no runtime.
    """

    def __init__(
        self,
        info: WorkerInfo,
        *,
        runtime: Runtime | None = None,
        cache_dir: Path | None = None,
        root_mounts: str = "overlay",
        network: str = "host",
        dns: Dns | None = None,
        cgroup_parent: str = "",
    ) -> None:
        self.info = info
        self.runtime = runtime if runtime is not None else find_runtime()
        self.roots = RootMounts(
            _made(info.run_dir / "roots"),
            empty=_made(info.run_dir / "empty"),
            scratch_dir=cache_dir,
            way=root_mounts,
        )
        self._cache_dir = cache_dir
        self.network = network
        self._dns = dns
        self._cgroup_parent = cgroup_parent
        self._numbers = itertools.count(1)
        self._steps = _made(info.run_dir / "steps")
        self._state = _made(info.run_dir / "runtime")
        self._bound = _capability_bound()
        self._filter: tuple[dict[str, object] | None, dict[str, str]] | None = None
        # Guards _emulator, two of which would both want the namespace's one binfmt_misc, and _helper.
        self._lock = threading.Lock()
        self._emulator: Emulator | None = None
        self._helper: Helper | None = None

    @property
    def emulator(self) -> Emulator:
        """What decides how foreign programs are run; made at the first use."""
        with self._lock:
            if self._emulator is None:
                from crossdock.emulation.emulator import Emulator

                work_dir = _made(self.info.run_dir / "emulation")
                memory = None if self._cache_dir is None else self._cache_dir / "qemu-version"
                self._emulator = Emulator(work_dir, own_userns=self.info.ids != "none", memory=memory)
            return self._emulator

    @property
    def root_mounts(self) -> str:
        """``overlay``, ``fuse-overlayfs`` or ``native`` (copies): how root file systems are mounted."""
        return self.roots.way

    @property
    def network_helper(self) -> Helper:
        """What connects isolated networks. Raises: SandboxError naming what is missing."""
        with self._lock:
            if self._helper is None:
                from crossdock.engine.sandbox.network import find_helper

                self._helper = find_helper()
            return self._helper

    @contextmanager
    def mounted(self, lowers: Sequence[Path], *, upper: Path | None, work: Path | None) -> Iterator[Path]:
        """Hold a root file system mounted: ``lowers``, bottom first, under ``upper``; read-only without ``upper``.

        ``work`` is an empty directory on the file system of ``upper``.
        Raises: SandboxError when the kernel or a file system refuses the overlay.
        """
        with self.roots.mounted(lowers, upper=upper, work=work) as path:
            yield path

    def run(
        self,
        step: StepSpec,
        *,
        log: Callable[[int, bytes], None],
        cancel: CancelToken,
        stdio: StepStdio | None = None,
        step_id: str = "",
    ) -> StepResult:
        """Run one step to its end; ``log`` gets (1 or 2, bytes) in the calling thread. With ``stdio`` it is interactive.

        Every process of the step is gone when this returns or raises, within a second of a cancellation.
        Raises: SandboxError, EmulationError (nothing runs the platform), UsageError (unknown user, bad host address),
        the token's cause when cancelled.
        """
        step_id = step_id or self.new_id()
        bundle = self._steps / step_id
        with ExitStack() as stack:
            with translate({OSError: _cannot_prepare}):
                bundle.mkdir(mode=0o700)
                stack.callback(remove_folder, bundle)
                network = self._isolated(step, step_id, stack, cancel)
                terminal = stdio is not None and stdio.terminal
                step = self._prepare(step, bundle, stack, network, terminal=terminal)
                group, warnings = self._group(step, step_id, stack)
            output = _Tail(log)
            watch = HangWatch(step.hang_deadline_s) if step.hang_deadline_s else None
            outcome = self.runtime.run(
                state=self._state,
                bundle=bundle,
                step_id=step_id,
                wrap=group.command if group is not None else None,
                log=output,
                cancel=cancel,
                idle=watch,
                stdio=stdio,
            )
            if watch is not None and watch.hung:
                return self._hung(step, outcome.exit_code)
            result = _result(step, outcome, output.tail, oom=group is not None and group.oom_kills() > 0)
            return replace(result, warnings=warnings) if warnings else result

    def new_id(self) -> str:
        """Return a name for a step that is to be run."""
        return f"step{next(self._numbers)}"

    def execute(
        self,
        step_id: str,
        step: StepSpec,
        *,
        log: Callable[[int, bytes], None],
        cancel: CancelToken,
        stdio: StepStdio,
        alive: Callable[[], bool],
    ) -> StepResult:
        """Run a further program in a step that runs: with its namespaces and mounts. ``alive`` says whether it still does.

        Raises: SandboxError when it ends first; as :meth:`run`.
        """
        while not self.runtime.is_running(self._state, step_id):
            if not alive():
                summary = "the container's first process has ended"
                raise SandboxError(summary, missing="container")
            cancel.sleep(_STARTING_S)
        bundle = self._steps / self.new_id()
        with ExitStack() as stack:
            with translate({OSError: _cannot_prepare}):
                bundle.mkdir(mode=0o700)
                stack.callback(remove_folder, bundle)
                step = replace(step, cwd=os.path.normpath(f"/{step.cwd}"))
                user = self._user(str(step.rootfs), step)
                step, _ = self._emulated(step)
                process = runtime_spec(self._spec_input(step, user, (), ""))["process"]
                process["terminal"] = stdio.terminal
                (bundle / "process.json").write_text(json.dumps(process), encoding="utf-8")
            output = _Tail(log)
            outcome = self.runtime.run(
                state=self._state,
                bundle=bundle,
                step_id="",
                log=output,
                cancel=cancel,
                stdio=stdio,
                inside=step_id,
            )
            return _result(step, outcome, output.tail, oom=False)

    def _isolated(self, step: StepSpec, step_id: str, stack: ExitStack, cancel: CancelToken) -> str:
        """Return the path of a network namespace for the step to join, or ``""``."""
        if self.network != "isolated" or step.network is not NetMode.UNSET:
            return ""
        from crossdock.engine.sandbox.network import isolated_network

        helper = self.network_helper
        return str(stack.enter_context(isolated_network(helper, self._steps, step_id, cancel)))

    def _prepare(
        self, step: StepSpec, bundle: Path, stack: ExitStack, network: str, *, terminal: bool = False
    ) -> StepSpec:
        """Write the bundle and make what the step needs in its root; returns the step as it will be run."""
        root = str(step.rootfs)
        step = replace(step, cwd=os.path.normpath(f"/{step.cwd}"))
        user = self._user(root, step)
        step, emulator_mounts = self._emulated(step)
        nameserver = self.network_helper.nameserver if network else ""
        planned = (*self._mounts(step, bundle, stack, nameserver), *emulator_mounts)
        oci_mounts = tuple(_resolved(root, planned))
        make_directories(root, step.cwd, uid=user.uid, gid=user.gid)
        if not step.readonly_rootfs:
            points = [m.destination for m in oci_mounts if not m.destination.startswith("/dev/")]
            stack.enter_context(
                stubs.stubs_removed(root, points, recursive=step.remove_mount_stubs_recursive)
            )
        given = self._spec_input(step, user, oci_mounts, network)
        spec = runtime_spec(given)
        spec["process"]["terminal"] = terminal
        if step.devices:
            from crossdock.engine.sandbox.devices import edit_spec

            edit_spec(spec, step.devices)
        (bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        return step

    def _hung(self, step: StepSpec, exit_code: int) -> StepResult:
        """Say what hung: the error names the emulator, which is the usual culprit."""
        text = f"the step did nothing for {step.hang_deadline_s:g} s: no output and no CPU time"
        here = local_platform().architecture
        if step.platform is not None and step.platform.architecture != here:
            emulator = self.emulator.prepare(step.platform.architecture).emulator
            if emulator is not None:
                text += f"; it runs under {emulator.path} {emulator.version()}".rstrip()
        return StepResult(
            exit_code=exit_code,
            signal=_signal(exit_code),
            failure=StepFailure.HUNG,
            explanation=text,
            hint="try a newer QEMU, or build this platform on a machine of its own",
        )

    def _group(
        self, step: StepSpec, step_id: str, stack: ExitStack
    ) -> tuple[cgroups.Group | None, tuple[str, ...]]:
        parent = step.cgroup_parent or self._cgroup_parent
        if step.resources is None and not parent:
            return None, ()
        from crossdock.engine.sandbox.cgroups import Unavailable, find_limits, hierarchy_of, refusal
        from crossdock.llb.ops import LinuxResources

        hierarchy = hierarchy_of(self.info.cgroups, self.info.run_dir)
        limits = find_limits(self.info.cgroups, hierarchy, parent=parent)
        without = (
            f"the step runs without its {'control group' if step.resources is None else 'resource limits'}"
        )
        if isinstance(limits, Unavailable):
            return None, (f"{without}: {limits.reason}",)
        try:
            group = stack.enter_context(limits.group(step_id, step.resources or LinuxResources()))
        except OSError as exc:
            return None, (f"{without}: {refusal(exc, hierarchy)}",)
        if group.missing:
            return group, (f"{without} of {', '.join(group.missing)}: their controllers are not there",)
        return group, ()

    def _emulated(self, step: StepSpec) -> tuple[StepSpec, tuple[OciMount, ...]]:
        """Make the step's platform runnable; returns the step and mounts it takes. Raises: EmulationError."""
        here = local_platform().architecture
        if step.platform is None or step.platform.architecture == here:
            return step, ()
        running = self.emulator.prepare(step.platform.architecture)
        if running.how.value != "prefixed" or running.emulator is None:
            return step, ()
        from crossdock.engine.sandbox.prefixed import EMULATOR_PATH, prefixed_args

        step = replace(step, args=prefixed_args(step))
        return step, (
            OciMount(EMULATOR_PATH, "bind", running.emulator.path, ("rbind", "ro", "nosuid", "nodev")),
        )

    def _user(self, root: str, step: StepSpec) -> StepUser:
        user = resolve_user(root, step.user)
        if not self.info.has_id(user.uid, user.gid):
            summary = (
                f"user {step.user or user.uid} ({user.uid}:{user.gid}) does not exist in the worker namespace"
            )
            raise SandboxError(summary, missing="id ranges", detail=self.info.note_on("ids") or None)
        return user

    def _mounts(self, step: StepSpec, bundle: Path, stack: ExitStack, nameserver: str) -> Iterator[OciMount]:
        host_network = step.network is NetMode.HOST
        resolv = bundle / "resolv.conf"
        text = resolv_text(host_network=host_network, nameserver=nameserver, dns=self._dns)
        resolv.write_text(text, encoding="utf-8")
        hosts = bundle / "hosts"
        hosts.write_text(hosts_text(step.hostname, step.extra_hosts), encoding="utf-8")
        for path in (resolv, hosts):
            path.chmod(0o644)
        yield OciMount("/etc/resolv.conf", "bind", str(resolv), _FILE_BIND)
        yield OciMount("/etc/hosts", "bind", str(hosts), _FILE_BIND)
        if step.devices:
            from crossdock.engine.sandbox.devices import device_mounts

            yield from device_mounts(step.devices)
        for number, mount in enumerate(step.mounts):
            yield _oci_mount(mount, bundle / f"mount{number}", stack, self.info)

    def _spec_input(
        self, step: StepSpec, user: StepUser, oci_mounts: tuple[OciMount, ...], network: str
    ) -> SpecInput:
        env = step.env
        if not any(entry.startswith("HOME=") for entry in env):
            env = (*env, f"HOME={user.home}")
        seccomp, annotations = self._seccomp()
        return SpecInput(
            rootfs=str(step.rootfs),
            readonly_rootfs=step.readonly_rootfs,
            args=step.args,
            env=env,
            cwd=step.cwd,
            user=user,
            hostname=step.hostname or DEFAULT_HOSTNAME,
            network=step.network,
            security=step.security,
            mounts=oci_mounts,
            ulimits=step.ulimits,
            capability_bound=self._bound,
            pid_namespace=self.info.step_pid_namespaces,
            fresh_proc=self.info.pid_namespace,
            cgroup_namespace=False,
            has_tty_group=self.info.has_id(0, _TTY_GROUP),
            may_set_groups=self.info.ids != "single",
            seccomp=None if step.security is SecurityMode.INSECURE else seccomp,
            annotations={} if step.security is SecurityMode.INSECURE else annotations,
            linux32=step.platform is not None and step.platform.architecture in _NATIVE_32,
            network_path=network,
        )

    def _seccomp(self) -> tuple[dict[str, object] | None, dict[str, str]]:
        """Return the filter: as rules for the runtime, or for crun compiled, as an annotation."""
        if self._filter is None:
            from crossdock.engine.sandbox import bpf, seccomp

            machine = os.uname().machine
            capabilities = self._bound & frozenset(DEFAULT_CAPABILITIES)
            use_code = self.runtime.name == "crun"
            code = bpf.cached_filter(machine, capabilities, self._cache_dir) if use_code else None
            if code is not None:
                self._filter = None, {"run.oci.seccomp_bpf_data": base64.b64encode(code).decode()}
            else:
                self._filter = seccomp.profile(machine, capabilities), {}
        return self._filter


def _made(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _capability_bound() -> frozenset[str]:
    """Return what the worker may hand on; a capability that it lacks makes a runtime fail."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapBnd:"):
                bits = int(line.split()[1], 16)
                return frozenset(name for bit, name in enumerate(ALL_CAPABILITIES) if bits >> bit & 1)
    return frozenset(DEFAULT_CAPABILITIES)


def _oci_mount(mount: StepMount, private: Path, stack: ExitStack, info: WorkerInfo) -> OciMount:
    match mount:
        case BindMount():
            # crun opens what it makes recursively read-only as a directory.
            mode = ("rro" if mount.source.is_dir() else "ro") if mount.readonly else "rw"
            return OciMount(mount.dest, "bind", str(mount.source), ("rbind", mode))
        case TmpfsMount():
            options = ["nosuid", "noexec", "nodev"] if mount.dest == "/dev/shm" else ["nosuid"]  # noqa: S108
            options.append(f"mode={mount.mode:o}")
            if mount.size_bytes:
                options.append(f"size={mount.size_bytes}")
            return OciMount(mount.dest, "tmpfs", "tmpfs", tuple(options))
        case SecretMount():
            _require_ids(info, mount)
            private.touch(mode=0o600)
            private.write_bytes(mount.data.reveal())
            os.chown(private, mount.uid, mount.gid)
            private.chmod(mount.mode)
            return OciMount(mount.dest, "bind", str(private), _FILE_BIND)
        case SshMount():
            _require_ids(info, mount)
            from crossdock.engine.sandbox.agent import forwarded_agent

            stack.enter_context(
                forwarded_agent(private, mount.agent, uid=mount.uid, gid=mount.gid, mode=mount.mode)
            )
            return OciMount(mount.dest, "bind", str(private), _FILE_BIND)


def _require_ids(info: WorkerInfo, mount: SecretMount | SshMount) -> None:
    if not info.has_id(mount.uid, mount.gid):
        summary = f"the owner {mount.uid}:{mount.gid} of {mount.dest} does not exist in the worker namespace"
        raise SandboxError(summary, missing="id ranges", detail=info.note_on("ids") or None)


def _resolved(root: str, planned: Sequence[OciMount]) -> Iterator[OciMount]:
    """Follow symlinks of the image in mount points, within the image; a runtime refuses one that leads nowhere."""
    covered: list[str] = []
    for mount in planned:
        destination = "/" + mount.destination.strip("/")
        # Below another mount the image's own symlinks do not count.
        if not any(destination.startswith(f"{above}/") for above in (*covered, "/dev", "/proc", "/sys")):
            destination = resolve_in_root(root, destination)[len(root) :] or "/"
        covered.append("/" + mount.destination.strip("/"))
        yield mount._replace(destination=destination)


def _cannot_prepare(exc: BaseException) -> SandboxError:
    where = f"{exc.filename}: " if isinstance(exc, OSError) and exc.filename else ""
    reason = exc.strerror if isinstance(exc, OSError) else str(exc)
    return SandboxError(f"cannot prepare the step: {where}{reason}", missing="sandbox")


class _Tail:
    """Passes output on and keeps the end of it, for :func:`execfail.explain_output`."""

    __slots__ = ("_log", "tail")

    def __init__(self, log: Callable[[int, bytes], None]) -> None:
        self._log = log
        self.tail = b""

    def __call__(self, stream: int, data: bytes) -> None:
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        self._log(stream, data)


def _result(step: StepSpec, outcome: Outcome, tail: bytes, *, oom: bool) -> StepResult:
    code = outcome.exit_code
    if code == 0:
        return StepResult(exit_code=0)
    from crossdock.engine.sandbox import execfail

    if outcome.error:
        return execfail.explain(step, outcome.error)
    if oom:
        limit_mib = (step.resources.memory if step.resources is not None else 0) / (1 << 20)
        return StepResult(
            exit_code=code,
            signal=_signal(code),
            failure=StepFailure.OUT_OF_MEMORY,
            explanation=f"a process of the step was killed because it used more than {limit_mib:.4g} MiB of memory",
            hint="raise --resource memory=…",
        )
    explained = execfail.explain_output(step, code, tail)
    return explained or StepResult(exit_code=code, signal=_signal(code))


def _signal(code: int) -> int | None:
    return code - _SIGNAL_BASE if _SIGNAL_BASE < code <= _SIGNAL_BASE + _LAST_SIGNAL else None
