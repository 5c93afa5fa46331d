"""Instructions that change the image config: ENV, ARG, LABEL, WORKDIR, CMD and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from crossdock.dockerfile.contexts import named
from crossdock.dockerfile.convert.args import META_ONLY
from crossdock.dockerfile.convert.history import record
from crossdock.dockerfile.convert.names import shown_command, step_name
from crossdock.dockerfile.convert.owner import owner_of
from crossdock.dockerfile.convert.vertex import FileStep, FileVertex, Ref
from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.paths import PathError, clean, is_absolute, to_slash, workdir
from crossdock.dockerfile.source import pinpoint
from crossdock.dockerfile.text import format_duration, quote_list
from crossdock.errors import DockerfileError
from crossdock.image.config import Healthcheck
from crossdock.llb.ops import FileActionMkDir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.instructions.arg import Arg, ArgItem
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.instructions.command import Cmd, Entrypoint, Shell
    from crossdock.dockerfile.instructions.env import Env, KeyValue, Label
    from crossdock.dockerfile.instructions.healthcheck import HealthcheckInstruction
    from crossdock.dockerfile.instructions.onbuild import OnBuild
    from crossdock.dockerfile.instructions.simple import Maintainer, StopSignal, User, Volume, Workdir
    from crossdock.errors import SourceRange

__all__ = [
    "dispatch_arg",
    "dispatch_cmd",
    "dispatch_entrypoint",
    "dispatch_env",
    "dispatch_healthcheck",
    "dispatch_label",
    "dispatch_maintainer",
    "dispatch_onbuild",
    "dispatch_shell",
    "dispatch_stopsignal",
    "dispatch_user",
    "dispatch_volume",
    "dispatch_workdir",
    "with_shell",
]

_SIGNAL_NAMES = """
ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP
TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX
"""
_SIGNALS = frozenset(
    [
        *_SIGNAL_NAMES.split(),
        *(f"RTMIN+{n}" for n in range(1, 16)),
        *(f"RTMAX-{n}" for n in range(1, 15)),
    ]
)


def dispatch_env(job: Job, state: StageState, command: Command) -> None:
    """ENV: every value sees the environment before the instruction."""
    instruction = cast("Env", command.instruction)
    config = state.config
    pairs = _pairs(job, state, instruction, instruction.pairs)
    for key, value in pairs:
        state.set_env(key, value)
        item = f"{key}={value}"
        for i, known in enumerate(config.env):
            if known.partition("=")[0] == key:
                config.env[i] = item
                break
        else:
            config.env.append(item)
    _report_pairs(job, instruction, instruction.pairs)
    for key, _ in pairs:
        _report_secret(job, instruction, "ENV", key)
    record(state, _joined("ENV", pairs), layer=False, created=job.created)


def dispatch_label(job: Job, state: StageState, command: Command) -> None:
    """LABEL."""
    instruction = cast("Label", command.instruction)
    pairs = _pairs(job, state, instruction, instruction.pairs)
    state.config.labels.update(pairs)
    _report_pairs(job, instruction, instruction.pairs)
    record(state, _joined("LABEL", pairs), layer=False, created=job.created)


def _pairs(
    job: Job, state: StageState, instruction: Instruction, pairs: Sequence[KeyValue]
) -> list[tuple[str, str]]:
    return [(job.word(state, instruction, p.key), job.word(state, instruction, p.value)) for p in pairs]


def _joined(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    return " ".join((name, *(f"{k}={v}" for k, v in pairs)))


def _report_pairs(job: Job, instruction: Instruction, pairs: Sequence[KeyValue]) -> None:
    for pair in pairs:
        if pair.legacy:
            job.linter.report(
                "LegacyKeyValueFormat", instruction.where, instruction.keyword, comments=instruction.comments
            )


def _report_secret(job: Job, instruction: Instruction, kind: str, key: str) -> None:
    if job.linter.active:
        from crossdock.dockerfile.lint.checks import looks_secret

        if looks_secret(key):
            job.linter.report(
                "SecretsUsedInArgOrEnv", instruction.where, kind, key, comments=instruction.comments
            )


def dispatch_arg(job: Job, state: StageState, command: Command) -> None:
    """ARG: a build argument, the global value, or the default."""
    instruction = cast("Arg", command.instruction)
    words: list[str] = []
    for item in instruction.items:
        _report_secret(job, instruction, "ARG", item.name)
        value, inherited = _arg_value(job, state, instruction, item)
        if value is not None and item.name not in META_ONLY:
            state.set_env(item.name, value)
        if not inherited:
            state.capture.args[item.name] = (value or "", item.description, instruction.where, ())
        state.capture.used.setdefault(item.name)
        state.build_args.append((item.name, value))
        words.append(item.name if value is None else f"{item.name}={value}")
    record(state, "ARG " + " ".join(words), layer=False, created=job.created)


def _arg_value(job: Job, state: StageState, instruction: Arg, item: ArgItem) -> tuple[str | None, bool]:
    """Return the value and whether it is that of the global scope."""
    given = job.build_args.get(item.name)
    if given is not None:
        return given, False
    if item.value is None:
        inherited = job.global_args.get(item.name)
        return inherited, inherited is not None
    try:
        result = expand(item.value, state.env, escape=job.escape)
    except ExpandError as exc:
        raise DockerfileError(str(exc), source=instruction.where) from None
    if result.unmatched:
        job.report_unset(state, instruction, result.unmatched)
    return result.text, False


def dispatch_workdir(job: Job, state: StageState, command: Command) -> None:
    """WORKDIR: made at once, owned by the current user."""
    instruction = cast("Workdir", command.instruction)
    path = job.word(state, instruction, instruction.path)
    config = state.config
    if not state.workdir_set and not is_absolute(path, state.os):
        job.linter.report("WorkdirRelativePath", instruction.where, path, comments=instruction.comments)
    state.workdir_set = True
    try:
        config.working_dir = workdir(config.working_dir, path, state.os)
    except PathError as exc:
        summary = f"normalizing workdir: {exc}"
        raise DockerfileError(summary, source=instruction.where) from None
    directory = to_slash(config.working_dir, state.os)
    state.directory = directory
    layer = directory != "/"
    if layer:
        action = FileActionMkDir(
            path=clean(directory),
            mode=0o755,
            make_parents=True,
            owner=owner_of(config.user, state.output) if config.user else None,
            timestamp_ns=-1 if job.epoch is None else job.epoch * 1_000_000_000,
        )
        shown = shown_command(instruction.text, state.env, job.escape)
        name = step_name(
            state, shown, platform=state.platform, env=state.env, prefixed=job.options.multi_platform
        )
        vertex = FileVertex(state.output, (FileStep(action),), named(name), instruction.where)
        state.output = Ref(vertex)
    record(state, f"WORKDIR {directory}", layer=layer, created=job.created)


def with_shell(state: StageState, args: Sequence[str]) -> tuple[str, ...]:
    """Return a shell form as the command that runs it."""
    config = state.config
    shell = config.shell or (["cmd", "/S", "/C"] if config.platform.os == "windows" else ["/bin/sh", "-c"])
    return (*shell, " ".join(args))


def dispatch_cmd(job: Job, state: StageState, command: Command) -> None:
    """CMD."""
    instruction = cast("Cmd", command.instruction)
    state.cmd_place = _once(job, instruction, state.cmd_place)
    args = _command_line(job, state, instruction, instruction.args, json=instruction.json)
    state.config.cmd = list(args) or None
    state.config.args_escaped = True
    record(state, f"CMD {quote_list(args)}", layer=False, created=job.created)


def dispatch_entrypoint(job: Job, state: StageState, command: Command) -> None:
    """ENTRYPOINT: clears a CMD that came with the base."""
    instruction = cast("Entrypoint", command.instruction)
    state.entrypoint_place = _once(job, instruction, state.entrypoint_place)
    args = _command_line(job, state, instruction, instruction.args, json=instruction.json)
    state.config.entrypoint = list(args) or None
    if state.cmd_place is None:
        state.config.cmd = None
    record(state, f"ENTRYPOINT {quote_list(args)}", layer=False, created=job.created)


def _command_line(
    job: Job, state: StageState, instruction: Instruction, args: Sequence[str], *, json: bool
) -> tuple[str, ...]:
    if json:
        return tuple(args)
    if not state.config.shell:
        job.linter.report(
            "JSONArgsRecommended", instruction.where, instruction.keyword, comments=instruction.comments
        )
    return with_shell(state, args)


def _once(job: Job, instruction: Instruction, earlier: SourceRange | None) -> SourceRange:
    if earlier is not None:
        job.linter.report(
            "MultipleInstructionsDisallowed", earlier, instruction.keyword, comments=instruction.comments
        )
    return instruction.where


def dispatch_healthcheck(job: Job, state: StageState, command: Command) -> None:
    """HEALTHCHECK."""
    i = cast("HealthcheckInstruction", command.instruction)
    state.healthcheck_place = _once(job, i, state.healthcheck_place)
    state.config.healthcheck = Healthcheck(
        test=list(i.test),
        interval_ns=i.interval_ns,
        timeout_ns=i.timeout_ns,
        start_period_ns=i.start_period_ns,
        start_interval_ns=i.start_interval_ns,
        retries=i.retries,
    )
    durations = " ".join(
        f"{name}:{format_duration(ns)}"
        for name, ns in (
            ("Interval", i.interval_ns),
            ("Timeout", i.timeout_ns),
            ("StartPeriod", i.start_period_ns),
            ("StartInterval", i.start_interval_ns),
        )
    )
    text = f"HEALTHCHECK {{Test:[{' '.join(i.test)}] {durations} Retries:{i.retries}}}"
    record(state, text, layer=False, created=job.created)


def dispatch_user(job: Job, state: StageState, command: Command) -> None:
    """USER."""
    instruction = cast("User", command.instruction)
    user = job.word(state, instruction, instruction.user)
    state.user = state.config.user = user
    record(state, f"USER {user}", layer=False, created=job.created)


def dispatch_volume(job: Job, state: StageState, command: Command) -> None:
    """VOLUME."""
    instruction = cast("Volume", command.instruction)
    paths = [job.word(state, instruction, path) for path in instruction.paths]
    for path in paths:
        if not path:
            summary = "VOLUME specified can not be an empty string"
            raise DockerfileError(summary, source=instruction.where)
        if path not in state.config.volumes:
            state.config.volumes.append(path)
    record(state, f"VOLUME [{' '.join(paths)}]", layer=False, created=job.created)


def dispatch_stopsignal(job: Job, state: StageState, command: Command) -> None:
    """STOPSIGNAL."""
    instruction = cast("StopSignal", command.instruction)
    signal = job.word(state, instruction, instruction.signal)
    digits = signal.removeprefix("-").removeprefix("+")
    number = digits.isascii() and digits.isdigit()
    if (number and int(digits[:9]) == 0) or (
        not number and signal.upper().removeprefix("SIG") not in _SIGNALS
    ):
        summary = f"invalid signal: {signal}"
        where = pinpoint(instruction.where, instruction.signal)
        raise DockerfileError(summary, source=where, hint="write a name as SIGTERM, or a number")
    state.config.stop_signal = signal
    record(state, f"STOPSIGNAL {signal}", layer=False, created=job.created)


def dispatch_shell(job: Job, state: StageState, command: Command) -> None:
    """SHELL."""
    instruction = cast("Shell", command.instruction)
    state.config.shell = list(instruction.args)
    record(state, f"SHELL [{' '.join(instruction.args)}]", layer=False, created=job.created)


def dispatch_maintainer(job: Job, state: StageState, command: Command) -> None:
    """MAINTAINER."""
    instruction = cast("Maintainer", command.instruction)
    state.config.author = instruction.author
    record(state, f"MAINTAINER {instruction.author}", layer=False, created=job.created)


def dispatch_onbuild(job: Job, state: StageState, command: Command) -> None:
    """ONBUILD: kept in the config, without a history entry."""
    del job
    instruction = cast("OnBuild", command.instruction)
    state.config.on_build = [*(state.config.on_build or ()), instruction.expression]
