"""The stages of one conversion: how they depend on each other, and what state each has reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.source import pinpoint
from crossdock.dockerfile.text import did_you_mean
from crossdock.errors import DockerfileError
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.dockerfile.contexts import ContextSpec
    from crossdock.dockerfile.convert.vertex import Ref
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.instructions.from_ import From
    from crossdock.errors import SourceRange
    from crossdock.image.config import ImageConfig
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import NetMode

__all__ = ["Capture", "Command", "StageState", "StageTable"]


class Command:
    """An instruction of a stage, with the stages and images it takes files from."""

    __slots__ = ("instruction", "on_build", "sources")

    def __init__(
        self, instruction: Instruction, sources: Sequence[StageState], *, on_build: bool = False
    ) -> None:
        self.instruction = instruction
        self.sources = sources
        #: came from an ONBUILD of the base
        self.on_build = on_build


class Capture:
    """What ``--call=outline`` wants to know of a stage."""

    __slots__ = ("args", "secrets", "ssh", "used")

    def __init__(self) -> None:
        #: name -> (value, description, place, names its default uses)
        self.args: dict[str, tuple[str, str, SourceRange, tuple[str, ...]]] = {}
        self.used: dict[str, None] = {}
        #: id -> (required, place)
        self.secrets: dict[str, tuple[bool, SourceRange]] = {}
        self.ssh: dict[str, tuple[bool, SourceRange]] = {}

    def clone(self) -> Capture:
        """Return an independent copy."""
        out = Capture()
        out.args = dict(self.args)
        out.used = dict(self.used)
        out.secrets = dict(self.secrets)
        out.ssh = dict(self.ssh)
        return out


class StageState:
    """A stage, an image or a named context while it is converted. Owned by one conversion."""

    __slots__ = (
        "base",
        "base_config",
        "base_name",
        "build_args",
        "capture",
        "cmd_place",
        "commands",
        "context",
        "context_paths",
        "deps",
        "directory",
        "dispatched",
        "entrypoint_place",
        "env",
        "head",
        "healthcheck_place",
        "hostname",
        "ignore_cache",
        "image",
        "instructions",
        "network",
        "on_build_now",
        "onbuild_taken",
        "output",
        "paths",
        "platform",
        "resolved",
        "scan_context",
        "scan_stage",
        "shown_name",
        "state_platform",
        "step",
        "steps",
        "unregistered",
        "user",
        "where",
        "workdir_set",
    )

    def __init__(self, base_name: str, where: SourceRange, head: From | None = None) -> None:
        self.head = head
        self.base_name = base_name
        self.where = where
        self.instructions: Sequence[Instruction] = ()
        #: as in progress: the name, or ``stage-2``; "" when it is the only stage
        self.shown_name = head.name if head else ""
        #: replaces the stage
        self.context: ContextSpec | None = None
        self.base: StageState | None = None
        self.base_config: ImageConfig | None = None
        #: an image or context that is no stage of the file
        self.unregistered = head is None
        self.resolved = False
        self.dispatched = False
        self.onbuild_taken = False
        #: stages it takes files from, with the instruction that does
        self.deps: dict[StageState, Instruction] = {}
        self.commands: list[Command] = []
        self.build_args: list[tuple[str, str | None]] = []
        #: paths used of the main context, and of this stage by others
        self.context_paths: set[str] = set()
        self.paths: set[str] = set()
        self.platform: Platform | None = None
        self.image: ImageConfig | None = None
        # File system and process state, as it is after the last dispatched instruction.
        self.output: Ref | None = None
        self.state_platform: Platform | None = None
        self.env: dict[str, str] = {}
        self.directory = "/"
        self.user = ""
        self.hostname = ""
        self.network: NetMode | None = None
        self.ignore_cache = False
        self.workdir_set = False
        self.cmd_place: SourceRange | None = None
        self.entrypoint_place: SourceRange | None = None
        self.healthcheck_place: SourceRange | None = None
        #: number of the last named step, and how many there are
        self.step = 0
        self.steps = 0
        self.on_build_now = False
        self.scan_stage = False
        self.scan_context = False
        self.capture = Capture()

    @property
    def name(self) -> str:
        """Name in the file, "" when unnamed."""
        return self.head.name if self.head else ""

    @property
    def config(self) -> ImageConfig:
        """The image config under construction."""
        if self.image is None:
            msg = f"stage {self.shown_name or self.base_name} has no image yet"
            raise TypeError(msg)
        return self.image

    @property
    def os(self) -> str:
        """Operating system of the stage."""
        return self.platform.os if self.platform else "linux"

    def set_env(self, key: str, value: str) -> None:
        """Set a variable; the latest assignment is last in the environment of steps."""
        self.env.pop(key, None)
        self.env[key] = value

    def expand(self, word: str, escape: str, where: SourceRange) -> tuple[str, tuple[str, ...]]:
        """Expand with the stage's environment; also return the unset names.

        Raises: DockerfileError.
        """
        try:
            result = expand(word, self.env, escape=escape)
        except ExpandError as exc:
            raise DockerfileError(str(exc), source=pinpoint(where, word)) from None
        return result.text, result.unmatched

    def inherit(self) -> None:
        """Take over the state of the base stage."""
        base = self.base
        if base is None:
            return
        self.output = base.output
        self.state_platform = base.state_platform
        self.platform = base.platform
        self.env = dict(base.env)
        self.directory = base.directory
        self.user = base.user
        self.hostname = base.hostname
        self.network = base.network
        self.image = clone_config(base.image) if base.image else None
        if self.image is not None:
            self.image.on_build = None
        self.base_config = base.base_config
        self.paths = base.paths
        self.workdir_set = base.workdir_set
        self.build_args = [*self.build_args, *base.build_args]

    def reachable(self) -> dict[StageState, None]:
        """Return this stage and all it depends on."""
        seen: dict[StageState, None] = {}
        stack = [self]
        while stack:
            stage = stack.pop()
            if stage in seen:
                continue
            seen[stage] = None
            if stage.base is not None:
                stack.append(stage.base)
            stack += stage.deps
        return seen


def clone_config(config: ImageConfig) -> ImageConfig:
    """Return an independent copy."""
    return replace(
        config,
        env=list(config.env),
        exposed_ports=list(config.exposed_ports),
        volumes=list(config.volumes),
        labels=dict(config.labels),
        history=list(config.history),
        on_build=list(config.on_build) if config.on_build is not None else None,
    )


class StageTable:
    """All stages in order, found by name or index."""

    __slots__ = ("_by_name", "states")

    def __init__(self) -> None:
        self.states: list[StageState] = []
        self._by_name: dict[str, StageState] = {}

    def add(self, state: StageState) -> None:
        """Append; a base that names an earlier stage becomes a dependency."""
        self.states.append(state)
        base = self._by_name.get(state.base_name)
        if base is not None:
            state.base = base
            state.capture = base.capture.clone()
        if state.name:
            self._by_name[state.name.lower()] = state

    def by_name(self, name: str) -> StageState | None:
        """Find by name, ignoring case."""
        return self._by_name.get(name.lower())

    def by_index(self, index: int) -> StageState | None:
        """Find by number."""
        return self.states[index] if 0 <= index < len(self.states) else None

    def names(self) -> list[str]:
        """Return the names shown, for suggestions."""
        return [s.shown_name for s in self.states if s.shown_name]

    def target(self, name: str) -> StageState:
        """Return the stage to build; the last for "".

        Raises: DockerfileError.
        """
        if not name:
            return self.states[-1]
        found = self.by_name(name)
        if found is None and name.isascii() and name.isdigit():
            found = self.by_index(int(name[:9]))
        if found is None:
            summary = did_you_mean(f'target stage "{name}" could not be found', name, self.names())
            hint = f"the stages are: {', '.join(self.names())}" if self.names() else None
            raise DockerfileError(summary, hint=hint)
        return found

    def check_circles(self) -> None:
        """Raise DockerfileError when stages depend on each other in a circle."""
        done: set[StageState] = set()
        for start in self.states:
            path: dict[StageState, Instruction | None] = {}
            stack: list[tuple[StageState, Iterator[tuple[StageState, Instruction]]]] = []
            if start in done:
                continue
            path[start] = None
            stack.append((start, iter(start.deps.items())))
            while stack:
                state, edges = stack[-1]
                edge = next(edges, None)
                if edge is None:
                    stack.pop()
                    path.pop(state)
                    done.add(state)
                    continue
                target, instruction = edge
                if target in path:
                    _raise_circle(path, target, instruction)
                if target not in done:
                    path[target] = instruction
                    stack.append((target, iter(target.deps.items())))


def _raise_circle(
    path: Mapping[StageState, Instruction | None], again: StageState, instruction: Instruction
) -> None:
    chain = list(path)
    circle = [*chain[chain.index(again) :], again]
    names = " -> ".join(s.shown_name or s.base_name for s in circle)
    summary = f"circular dependency detected on stage: {again.shown_name}"
    raise DockerfileError(summary, detail=f"{names}", source=instruction.where)
