"""The syntax tree: a Dockerfile is directives, global arguments and stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.dockerfile.directives import Directive
    from crossdock.dockerfile.instructions.arg import Arg
    from crossdock.dockerfile.instructions.base import Instruction
    from crossdock.dockerfile.instructions.from_ import From
    from crossdock.errors import SourceFile, SourceRange

__all__ = ["Dockerfile", "Stage"]


class Stage(Record):
    """One build stage: its FROM and the instructions after it."""

    head: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """Lower-case name, empty when unnamed."""
        return self.head.name


class Dockerfile(Record):
    """A parsed file; nothing is expanded or resolved."""

    file: SourceFile
    #: escape character
    escape: str
    directives: tuple[Directive, ...]
    #: ARG instructions before the first FROM
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    #: places of blank lines inside continued lines
    blank_continuations: tuple[SourceRange, ...] = ()
    #: every instruction with its here-documents, for printing
    statements: tuple[tuple[Instruction, tuple[tuple[str, str], ...]], ...] = ()

    def directive(self, name: str) -> Directive | None:
        """Return a parser directive by its lower-case name."""
        return next((d for d in self.directives if d.name == name), None)
