"""The conversion for one platform: stages, bases, dispatch, result.

Order of work: build the stage table; find what the target needs; ask for the images of those stages, several rounds
when ONBUILD triggers bring new ones; run the instructions of each stage; finish the graph.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from crossdock.dockerfile.contexts import LocalContext, context_output, local_source
from crossdock.dockerfile.convert.args import META_ONLY, proxy_env
from crossdock.dockerfile.convert.bases import (
    BaseRequest,
    context_image,
    empty_image,
    follow_paths,
    lookup_context,
    use_base,
)
from crossdock.dockerfile.convert.history import timestamp
from crossdock.dockerfile.convert.options import PlatformResult
from crossdock.dockerfile.convert.plan import Plan
from crossdock.dockerfile.convert.vertex import GivenVertex, LocalVertex, Ref, finish
from crossdock.dockerfile.instructions.onbuild import OnBuild
from crossdock.dockerfile.paths import default_path_env, workdir
from crossdock.dockerfile.source import pinpoint
from crossdock.dockerfile.text import did_you_mean, parse_bool
from crossdock.errors import DigestMismatch, DockerfileError, UsageError
from crossdock.image.config import ImageConfig
from crossdock.image.reference import parse_reference
from crossdock.patterns import read_ignore_file
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from crossdock.dockerfile.convert.options import ContextFiles, ConvertOptions, ResolvedImage
    from crossdock.dockerfile.convert.stage import Command, StageState
    from crossdock.dockerfile.convert.vertex import Interned
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.lint import Linter
    from crossdock.dockerfile.tree import Dockerfile
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output
    from crossdock.patterns import PatternMatcher

__all__ = ["Job"]

#: instruction class -> module and function that applies it
_DISPATCH: dict[str, tuple[str, str]] = {
    "Add": ("copy", "dispatch_add"),
    "Arg": ("config", "dispatch_arg"),
    "Cmd": ("config", "dispatch_cmd"),
    "Copy": ("copy", "dispatch_copy"),
    "Entrypoint": ("config", "dispatch_entrypoint"),
    "Env": ("config", "dispatch_env"),
    "Expose": ("expose", "dispatch_expose"),
    "HealthcheckInstruction": ("config", "dispatch_healthcheck"),
    "Label": ("config", "dispatch_label"),
    "Maintainer": ("config", "dispatch_maintainer"),
    "OnBuild": ("config", "dispatch_onbuild"),
    "Run": ("run", "dispatch_run"),
    "Shell": ("config", "dispatch_shell"),
    "StopSignal": ("config", "dispatch_stopsignal"),
    "User": ("config", "dispatch_user"),
    "Volume": ("config", "dispatch_volume"),
    "Workdir": ("config", "dispatch_workdir"),
}
_dispatchers: dict[str, Callable[[Job, StageState, Command], None]] = {}


class Job:
    """One platform's conversion. Not reusable."""

    def __init__(
        self,
        dockerfile: Dockerfile,
        options: ConvertOptions,
        target: Platform | None,
        linter: Linter,
        *,
        epoch: int | None,
        build_args: Mapping[str, str],
        files: ContextFiles,
        ignore: PatternMatcher | None,
        ignore_patterns: Sequence[str],
    ) -> None:
        self.options = options
        self.linter = linter
        self.escape = dockerfile.escape
        self.build_args = build_args
        self.epoch = epoch
        self.created = timestamp(epoch)
        self.files = files
        self.ignore = ignore
        self.ignore_patterns = ignore_patterns
        #: the target is the base image's platform when none was asked for
        self.implicit = target is None
        self.target_platform: Platform = target or options.build_platforms[0]
        self.proxy = proxy_env(build_args)
        self._plan = Plan(dockerfile, options, self.target_platform, linter, build_args)
        self.stages = self._plan.stages
        self.global_args = self._plan.global_args
        self.target = self._plan.target
        self._context: Ref | None = None
        self._context_paths: set[str] = set()
        self._ignores: dict[str, Sequence[str]] = {}

    # --- bases ---------------------------------------------------------------------------------------------------

    def requests(self) -> list[BaseRequest]:
        """Return the images that must be resolved next; stages from scratch and contexts are settled here.

        Raises: DockerfileError.
        """
        reachable = self.target.reachable()
        wanted: list[BaseRequest] = []
        for state in list(self.stages.states):
            if state.base is not None or state.dispatched or state.resolved:
                continue
            needed = state in reachable or self.options.all_stages
            if state.base_name == "scratch" and state.context is None:
                state.resolved = needed
                state.image = empty_image(self.target_platform)
                state.platform = self.target_platform
                state.dispatched = state.unregistered
                continue
            request = self._request(state, needed=needed)
            if request is not None:
                wanted.append(request)
        return wanted

    def _request(self, state: StageState, *, needed: bool) -> BaseRequest | None:
        if not needed:
            self._reference(state)
            return None
        spec = state.context
        if spec is None:
            state.base_name = self._reference(state)
            if self.options.contexts:
                spec = lookup_context(
                    self.options.contexts, state.base_name, state.platform or self.target_platform
                )
        if spec is None:
            return BaseRequest.image(self, state)
        return context_image(self, state, spec)

    def _reference(self, state: StageState) -> str:
        try:
            return str(parse_reference(state.base_name).with_default_tag())
        except (UsageError, DigestMismatch) as exc:
            checksum = isinstance(exc, DigestMismatch)
            problem = "invalid checksum digest length" if checksum else "invalid reference format"
            summary = f'failed to parse stage name "{state.base_name}": {problem}'
            summary = did_you_mean(summary, state.base_name, self.stages.names())
            where = pinpoint(state.where, state.head.base if state.head else state.base_name)
            raise DockerfileError(summary, source=where, hint=exc.hint) from None

    def answer(self, requests: Iterable[BaseRequest], found: Mapping[object, ResolvedImage]) -> None:
        """Take the resolved images."""
        for request in requests:
            use_base(self, request, found[request.key])

    def take_triggers(self) -> bool:
        """Prepend the ONBUILD instructions of the bases; return whether new images may be needed.

        Raises: DockerfileError.
        """
        more = False
        for state in self.target.reachable():
            state.inherit()
            triggers = list(state.image.on_build or ()) if state.image else []
            if state.base is not None and not state.onbuild_taken:
                triggers += [
                    c.instruction.expression
                    for c in state.base.commands
                    if isinstance(c.instruction, OnBuild)
                ]
                state.onbuild_taken = True
            if triggers:
                more = self._take(state, triggers) or more
                if state.image is not None:
                    state.image.on_build = None
        return more

    def _take(self, state: StageState, triggers: Sequence[str]) -> bool:
        from crossdock.dockerfile.parser import parse_trigger

        commands = [
            self._plan.command(state, parse_trigger(text, state.where), on_build=True) for text in triggers
        ]
        state.commands = [*commands, *state.commands]
        state.steps += len(commands)
        return any(c.sources for c in commands)

    # --- dispatch ------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Run the instructions of every needed stage.

        Raises: DockerfileError; the first problem, with the others attached.
        """
        problems: list[DockerfileError] = []
        reachable = self.target.reachable()
        for state in list(self.stages.states):
            if not self.options.all_stages and (state not in reachable or state.dispatched):
                continue
            if state.dispatched and state.unregistered:
                continue
            self._begin(state)
            for command in state.commands:
                try:
                    self._apply(state, command)
                except DockerfileError as exc:
                    problems.append(exc)
            self._context_paths |= state.context_paths
            self._scan_flags(state)
        self.target.paths.add("/")
        if problems:
            first, *rest = problems
            first.others = (*first.others, *rest)
            raise first

    def _begin(self, state: StageState) -> None:
        state.inherit()
        overridden = state.dispatched
        state.dispatched = True
        if state.platform is None:
            state.platform = self.target_platform
        if state.image is None:
            state.image = ImageConfig(platform=state.platform)
        config = state.image
        if "PATH" not in config.env_map():
            path = default_path_env(state.platform.os)
            if path is not None:
                config.env.append(f"PATH={path}")
        for item in config.env:
            key, _, value = item.partition("=")
            state.set_env(key, value)
        if self.options.hostname:
            state.hostname = self.options.hostname
        if config.working_dir:
            config.working_dir = workdir(config.working_dir, config.working_dir, state.os)
            state.directory = (
                config.working_dir.replace("\\", "/") if state.os == "windows" else config.working_dir
            )
        if config.user:
            state.user = config.user
        state.network = self.options.network
        if overridden:
            state.commands = []

    def _apply(self, state: StageState, command: Command) -> None:
        state.on_build_now = command.on_build
        kind = type(command.instruction).__name__
        apply = _dispatchers.get(kind)
        if apply is None:
            module, function = _DISPATCH[kind]
            loaded = import_module(f"crossdock.dockerfile.convert.{module}")
            apply = _dispatchers[kind] = getattr(loaded, function)
        apply(self, state, command)

    def _scan_flags(self, state: StageState) -> None:
        for name in META_ONLY:
            value = self.global_args.get(name)
            for arg, given in state.build_args:
                if arg == name and given is not None:
                    value = given
            if value is None:
                continue
            try:
                on = parse_bool(value)
            except ValueError:
                on = state.shown_name in value.split(",")
            if name.endswith("CONTEXT"):
                state.scan_context = on
            else:
                state.scan_stage = on

    def word(self, state: StageState, instruction: Instruction, text: str) -> str:
        """Expand a word of an instruction; unset variables are reported.

        Raises: DockerfileError.
        """
        expanded, unset = state.expand(text, self.escape, instruction.where)
        if unset:
            self.report_unset(state, instruction, unset)
        return expanded

    def report_unset(self, state: StageState, instruction: Instruction, names: Sequence[str]) -> None:
        """Report variables that are neither set nor declared."""
        if not self.linter.active:
            return
        from crossdock.dockerfile.lint.checks import check_unset

        declared = [name for name, _ in state.build_args]
        check_unset(names, declared, state.env, instruction, self.linter)

    # --- contexts ------------------------------------------------------------------------------------------------

    def context(self) -> Ref | None:
        """Return the main build context."""
        spec = self.options.main_context
        if spec is not None and not isinstance(spec, LocalContext):
            if self._context is None:
                output = self.remote_context()
                if output is None:
                    return None
                self._context = Ref(GivenVertex(output), output.index)
            return self._context
        if self._context is None:
            self._context = Ref(LocalVertex(self._local_context))
        return self._context

    def context_ignores(self, local: str) -> Sequence[str]:
        """Return the patterns of a named local context's own ignore file."""
        if local not in self._ignores:
            data = self.files.read_file(".dockerignore", local=local)
            self._ignores[local] = read_ignore_file(data) if data else ()
        return self._ignores[local]

    def remote_context(self) -> Output | None:
        """Return the source of a main context that is not local."""
        from crossdock.dockerfile.contexts import GitContext, HttpContext, InputContext

        spec = self.options.main_context
        if isinstance(spec, GitContext | HttpContext | InputContext):
            keep = self.options.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "")
            return context_output(
                spec,
                keep_git_dir=keep in ("1", "t", "T", "true", "TRUE", "True"),
                epoch=bool(self.options.build_args.get("SOURCE_DATE_EPOCH")),
            )
        summary = f"a {type(spec).__name__} cannot be the main build context"
        raise UsageError(summary)

    def _local_context(self) -> Output:
        spec = self.options.main_context
        name = spec.name if isinstance(spec, LocalContext) else "context"
        return local_source(
            name,
            title="[internal] load build context",
            hint=name,
            session=self.options.session,
            follow=follow_paths(self._context_paths),
            exclude=self.ignore_patterns,
        )

    # --- result --------------------------------------------------------------------------------------------------

    def result(self, interned: Interned) -> PlatformResult:
        """Finish the graph.

        Raises: DockerfileError when checks are errors and found something.
        """
        target = self.target
        config = target.config
        config.labels.update(self.options.labels)
        self.linter.raise_found()
        if not self.implicit:
            wanted = self.target_platform
            same = (wanted.os, wanted.architecture) == (config.platform.os, config.platform.architecture)
            config.platform = replace(
                config.platform,
                os=wanted.os,
                architecture=wanted.architecture,
                variant=wanted.variant if wanted.variant or not same else config.platform.variant,
                os_version=wanted.os_version if wanted.os_version or not same else config.platform.os_version,
                os_features=wanted.os_features or config.platform.os_features,
            )
        config.platform = config.platform.normalised()
        output = finish(target.output, interned)
        scan: dict[str, Output] = {}
        ignore_cache = target.ignore_cache
        if target.scan_context:
            found = finish(self.context(), interned)
            if found is not None:
                scan["context"] = found
        for state in target.reachable():
            if state is not target and state.scan_stage:
                found = finish(state.output, interned)
                ignore_cache = ignore_cache or state.ignore_cache
                if found is not None:
                    scan[state.shown_name] = found
        return PlatformResult(
            platform=config.platform if self.implicit else self.target_platform,
            output=output,
            config=config,
            base_config=target.base_config,
            epoch=self.epoch,
            ignore_cache=ignore_cache,
            scan=scan,
        )
