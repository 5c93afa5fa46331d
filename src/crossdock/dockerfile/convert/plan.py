"""The plan of one conversion: which stages there are, what each starts from and takes files from.

Expands what stands in FROM with the global arguments; nothing is resolved and no instruction is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.convert.args import global_args, platform_args
from crossdock.dockerfile.convert.bases import lookup_context
from crossdock.dockerfile.convert.stage import Capture, Command, StageState, StageTable
from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.dockerfile.source import pinpoint
from crossdock.dockerfile.text import did_you_mean
from crossdock.errors import DockerfileError, UsageError
from crossdock.image.platform import parse_platform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.dockerfile.convert.options import ConvertOptions
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.lint import Linter
    from crossdock.dockerfile.tree import Dockerfile, Stage
    from crossdock.errors import SourceRange
    from crossdock.image.platform import Platform

__all__ = ["Plan"]

#: instructions that make a step of their own
_COUNTED = frozenset(["Add", "Copy", "Run", "Workdir"])


class Plan:
    """The stage table of one platform.

    Raises: DockerfileError when a FROM, a ``--from`` or the target is wrong, or stages form a circle.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        options: ConvertOptions,
        target_platform: Platform,
        linter: Linter,
        build_args: Mapping[str, str],
    ) -> None:
        self.dockerfile = dockerfile
        self.options = options
        self.linter = linter
        self.escape = dockerfile.escape
        self.build_args = build_args
        self.build_platform = options.build_platforms[0]
        self.target_platform = target_platform
        self.stages = StageTable()
        self.capture = Capture()
        self.global_args: dict[str, str] = {}
        self.target: StageState
        self._prepare()

    def _prepare(self) -> None:
        """Build the stage table and the dependencies.

        Raises: DockerfileError.
        """
        last = self.dockerfile.stages[-1]
        predefined = platform_args(
            self.build_platform,
            self.target_platform,
            self.build_args,
            self.options.target or last.name,
        )
        declared = self.dockerfile.global_args
        if self.linter.active:
            from crossdock.dockerfile.lint.checks import check_default_bases

            check_default_bases(self.dockerfile, predefined, self.linter)
        self.global_args = global_args(predefined, declared, self.build_args, self.escape, self.capture)
        for index, stage in enumerate(self.dockerfile.stages):
            self._add_stage(index, stage)
        self.target = self.stages.target(self.options.target)
        for state in list(self.stages.states):
            if state.context is None:
                state.commands = [self.command(state, i) for i in state.instructions]
        self.stages.check_circles()
        if len(self.stages.states) == 1:
            self.stages.states[0].shown_name = ""

    def _add_stage(self, index: int, stage: Stage) -> None:
        head = stage.head
        base, matched = self._head_word(head.base, head.where, head.comments)
        if not base:
            summary = f"base name ({head.base}) should not be blank"
            hint = "give its ARG a default value before the first FROM" if "$" in head.base else None
            raise DockerfileError(summary, source=pinpoint(head.where, head.base), hint=hint)
        state = StageState(base, head.where, head)
        state.instructions = stage.instructions
        state.capture = self.capture.clone()
        used = dict.fromkeys(matched)
        if head.platform:
            state.platform = self._head_platform(stage, used)
        if head.name and self.options.contexts:
            state.context = lookup_context(
                self.options.contexts, head.name, state.platform or self.target_platform
            )
        if not head.name:
            state.shown_name = f"stage-{index}"
        self.stages.add(state)
        if state.context is not None:
            state.base = None
            return
        state.capture.used.update(used)
        from_image = state.base is None and base != "scratch"
        state.steps = from_image + sum(type(i).__name__ in _COUNTED for i in stage.instructions)
        no_cache = self.options.no_cache
        state.ignore_cache = no_cache is not None and (
            not no_cache or head.name in (n.lower() for n in no_cache)
        )

    def _head_word(
        self, word: str, where: SourceRange, comments: Sequence[str]
    ) -> tuple[str, tuple[str, ...]]:
        try:
            result = expand(word, self.global_args, escape=self.escape)
        except ExpandError as exc:
            raise DockerfileError(str(exc), source=where) from None
        if result.unmatched and self.linter.active:
            from crossdock.dockerfile.lint.checks import check_from_args

            known = (*self.capture.args, *self.global_args)
            check_from_args(result.unmatched, known, where, comments, self.linter)
        return result.text, result.matched

    def _head_platform(self, stage: Stage, used: dict[str, None]) -> Platform:
        head = stage.head
        text, matched = self._head_word(head.platform, head.where, head.comments)
        if self.linter.active:
            from crossdock.dockerfile.lint.checks import check_platform_flag

            check_platform_flag(head, text, self.global_args, self.escape, self.linter)
        used.update(dict.fromkeys(matched))
        if not text:
            summary = f"empty platform value from expression {head.platform}"
            where = pinpoint(head.where, f"--platform={head.platform}")
            raise DockerfileError(self._suggest_arg(summary, head.platform), source=where)
        try:
            return parse_platform(text)
        except UsageError as exc:
            summary = f"failed to parse platform {head.platform}: {exc.summary}"
            raise DockerfileError(
                self._suggest_arg(summary, head.platform),
                source=pinpoint(head.where, f"--platform={head.platform}"),
                hint=exc.hint,
            ) from None

    def _suggest_arg(self, summary: str, word: str) -> str:
        for name in expand(word, {}, escape=self.escape).unmatched:
            if name not in self.global_args:
                return did_you_mean(summary, name, self.global_args)
        return summary

    def command(self, state: StageState, instruction: Instruction, *, on_build: bool = False) -> Command:
        """Return an instruction with its sources, which become dependencies of ``state``.

        Raises: DockerfileError.
        """
        sources: list[StageState] = []
        kind = type(instruction).__name__
        if kind == "Copy" and instruction.from_:  # type: ignore[attr-defined]
            sources = [self._copy_source(instruction)]
        elif kind == "Run":
            for name in instruction.mount_sources:  # type: ignore[attr-defined]
                sources.append(self._image_or_stage(name or "scratch", instruction.where))
        for source in sources:
            state.deps.setdefault(source, instruction)
            if source.unregistered and source not in self.stages.states:
                self.stages.add(source)
        return Command(instruction, sources, on_build=on_build)

    def _copy_source(self, instruction: Instruction) -> StageState:
        name: str = instruction.from_  # type: ignore[attr-defined]
        try:
            literal = expand(name, {}, escape=self.escape).text == name
        except ExpandError:
            literal = False
        if not literal:
            summary = (
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from "
                "global scope as a workaround"
            )
            raise DockerfileError(summary, source=instruction.where)
        digits = name.removeprefix("+").removeprefix("-")
        if digits.isascii() and digits.isdigit():
            found = self.stages.by_index(int(name[:9]))
            if found is None:
                summary = f"invalid stage index {name}"
                hint = f"the file has {len(self.dockerfile.stages)} stages, numbered from 0"
                where = pinpoint(instruction.where, f"--from={name}")
                raise DockerfileError(summary, source=where, hint=hint)
            return found
        return self._image_or_stage(name, instruction.where)

    def _image_or_stage(self, name: str, where: SourceRange) -> StageState:
        return self.stages.by_name(name) or StageState(name, where)
