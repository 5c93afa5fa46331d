"""RUN: the command, its here-documents, mounts, network and security.

Spec: Dockerfile reference "RUN".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from crossdock.dockerfile.convert.config import with_shell
from crossdock.dockerfile.convert.history import record, run_text
from crossdock.dockerfile.convert.names import shown_command, step_name, summary_of
from crossdock.dockerfile.convert.vertex import ExecMount, ExecVertex
from crossdock.dockerfile.expand import ExpandError
from crossdock.dockerfile.heredoc import parse_heredoc, strip_tabs
from crossdock.errors import DockerfileError
from crossdock.llb.ops import CdiDevice, ExecMeta, NetMode, OpMetadata, SecurityMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.mounts import Mounts
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.convert.vertex import Ref
    from crossdock.dockerfile.instructions.run import Run

__all__ = ["dispatch_run"]


def dispatch_run(job: Job, state: StageState, command: Command) -> None:
    """RUN."""
    instruction = cast("Run", command.instruction)
    state.paths.add("/")  # a command may read anything
    args, script, shown = _script(state, instruction)
    if not instruction.json:
        args = with_shell(state, args)
    _check_args(instruction, args)
    mounts = _mounts(job, state, command)
    exec_mounts = [ExecMount("/", state.output)]
    if script is not None:
        exec_mounts.append(ExecMount("/dev/pipes/", script, selector="/", readonly=True))
    if mounts is not None:
        exec_mounts += mounts.plain
    if job.options.shm_size:
        exec_mounts.append(ExecMount("/dev/shm", tmpfs_size=job.options.shm_size))  # noqa: S108
    env = _environment(state.env, mounts)
    vertex = ExecVertex(
        ExecMeta(
            args=args,
            env=env,
            cwd=state.directory,
            user=state.user,
            proxy_env=job.proxy,
            extra_hosts=job.options.extra_hosts,
            hostname=state.hostname,
            ulimit=job.options.ulimits,
            cgroup_parent=job.options.cgroup_parent,
            remove_mount_stubs_recursive=True,
        ),
        exec_mounts,
        _metadata(job, state, instruction, shown, mounts),
        platform=state.state_platform or job.target_platform,
        network=_network(state, instruction),
        security=SecurityMode.INSECURE if instruction.security == "insecure" else SecurityMode.SANDBOX,
        secret_env=mounts.secret_env if mounts else (),
        extra_mounts=mounts.without_input if mounts else (),
        devices=(
            *job.options.devices,
            *(CdiDevice(d.name, optional=not d.required) for d in instruction.devices),
        ),
        source=instruction.where,
    )
    state.output = vertex.root
    text = run_text(args, state.build_args, state.env)
    record(state, f"RUN {text} # buildkit", layer=True, created=job.created)


def _mounts(job: Job, state: StageState, command: Command) -> Mounts | None:
    if not cast("Run", command.instruction).mounts:
        return None
    from crossdock.dockerfile.convert.mounts import Mounts

    return Mounts(job, state, command)


def _check_args(instruction: Run, args: tuple[str, ...]) -> None:
    if not args:
        summary = "RUN requires a command"
        raise DockerfileError(summary, source=instruction.where)
    for arg in args:
        if not arg.isascii() and any("\udc80" <= ch <= "\udcff" for ch in arg):
            summary = "the here-document of RUN is not valid UTF-8"
            raise DockerfileError(summary, source=instruction.where, hint="save the file as UTF-8")


def _environment(env: Mapping[str, str], mounts: Mounts | None) -> tuple[str, ...]:
    items = [f"{key}={value}" for key, value in env.items()]
    if mounts is not None and mounts.ssh_socket and "SSH_AUTH_SOCK" not in env:
        items.append(f"SSH_AUTH_SOCK={mounts.ssh_socket}")
    return tuple(items)


def _network(state: StageState, instruction: Run) -> NetMode:
    if instruction.network == "none":
        return NetMode.NONE
    if instruction.network == "host":
        return NetMode.HOST
    return state.network or NetMode.UNSET


def _metadata(job: Job, state: StageState, instruction: Run, shown: str, mounts: Mounts | None) -> OpMetadata:
    env = {**state.env, **mounts.masked} if mounts is not None and mounts.masked else state.env
    name = step_name(
        state,
        shown_command(shown, env, job.escape, for_shell=True),
        platform=state.state_platform,
        env=state.env,
        prefixed=job.options.multi_platform,
    )
    return OpMetadata(
        ignore_cache=state.ignore_cache,
        description={"com.docker.dockerfile.v1.command": instruction.text, "llb.customname": name},
        linux_resources=job.options.resources,
    )


def _script(state: StageState, instruction: Run) -> tuple[tuple[str, ...], Ref | None, str]:
    """Return the arguments, the script file when a here-document has a shebang, and the text shown."""
    args, files, shown = instruction.args, instruction.files, instruction.text
    if not files:
        return args, None, shown
    command = args[0] if args else ""
    try:
        alone = parse_heredoc(command) is not None
    except ExpandError:
        alone = False
    if not alone:
        bodies = (f"\n{file.data}{file.name}" for file in files)
        return ("".join((command, *bodies)),), None, shown
    first = files[0]
    shown += f" ({summary_of(first.data)})"
    body = strip_tabs(first.data) if first.strip else first.data
    if state.config.platform.os == "windows" or not body.startswith("#!"):
        return (body,), None, shown
    return (f"/dev/pipes/{first.name}",), _script_file(first.name, body), shown


def _script_file(name: str, body: str) -> Ref:
    from crossdock.dockerfile.contexts import named
    from crossdock.dockerfile.convert.vertex import FileStep, FileVertex, Ref
    from crossdock.dockerfile.paths import clean
    from crossdock.llb.ops import FileActionMkFile

    data = body.encode("utf-8", "surrogateescape")
    step = FileStep(FileActionMkFile(path=clean(f"/{name}"), data=data, mode=0o755))
    return Ref(FileVertex(None, (step,), named("[internal] preparing inline document")))
