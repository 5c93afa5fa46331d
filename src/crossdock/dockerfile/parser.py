"""Text to syntax tree. All malformed instructions of a file are reported in one pass.

Spec: Dockerfile reference "Format"; behaviour of moby/buildkit ``frontend/dockerfile/parser``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.dockerfile.directives import Directive, DirectiveReader
from crossdock.dockerfile.expand import ExpandError
from crossdock.dockerfile.heredoc import Heredoc, heredocs_in
from crossdock.dockerfile.instructions import KEYWORDS, parser_of
from crossdock.dockerfile.instructions.arg import Arg
from crossdock.dockerfile.instructions.base import Instruction, Statement
from crossdock.dockerfile.instructions.from_ import From
from crossdock.dockerfile.source import LogicalLine, decode, physical_lines
from crossdock.dockerfile.text import SPACE, did_you_mean
from crossdock.dockerfile.tree import Dockerfile, Stage
from crossdock.dockerfile.words import NotStrings, json_strings, split_flags, split_keyword
from crossdock.errors import DockerfileError, Position, SourceFile, SourceRange
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parse", "parse_trigger"]

#: instructions that may have here-documents
_HEREDOC = frozenset(["ADD", "COPY", "RUN"])
_CONTINUATION = {
    escape: re.compile(rf"(?:(?<=[^{re.escape(escape)}])|^){re.escape(escape)}[ \t]*\Z") for escape in "\\`"
}
#: more problems than this are not listed
_MAX_PROBLEMS = 20


def parse(data: bytes, name: str = "Dockerfile") -> Dockerfile:
    """Parse a Dockerfile.

    Raises: DockerfileError; the first problem, with the others in ``others``.
    """
    return _Parser(SourceFile(name, decode(data))).run()


def parse_trigger(text: str, where: SourceRange) -> Instruction:
    """Parse the expression of an ONBUILD; the instruction gets the place ``where``.

    Raises: DockerfileError.
    """
    parser = _Parser(SourceFile("ONBUILD", text))
    try:
        parser.read()
        parser.raise_problems()
    except DockerfileError as exc:
        raise DockerfileError(exc.summary, hint=exc.hint, source=where) from None
    if len(parser.statements) != 1:
        summary = "onbuild trigger should be a single expression"
        raise DockerfileError(summary, source=where)
    return replace(parser.statements[0][0], where=where)


class _Parser:
    """State of one pass over a file."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.lines = physical_lines(file.text)
        self.at = 0
        self.escape = "\\"
        self.directives: list[Directive] = []
        self.reader = DirectiveReader(file)
        self.comments: list[str] = []
        self.blank_continuations: list[SourceRange] = []
        self.statements: list[tuple[Instruction, tuple[tuple[str, str], ...]]] = []
        self.problems: list[DockerfileError] = []
        self.seen_any = False

    def run(self) -> Dockerfile:
        self.read()
        if not self.seen_any:
            summary = "the Dockerfile cannot be empty" if not self.file.text else "file with no instructions"
            end = Position(max(len(self.lines), 1), 0)
            raise DockerfileError(summary, source=SourceRange(self.file, end, end))
        global_args, stages = self._stages()
        self.raise_problems()
        if not stages:
            summary = "dockerfile contains no stages to build"
            raise DockerfileError(summary, source=self.statements[-1][0].where, hint="add a FROM instruction")
        return Dockerfile(
            file=self.file,
            escape=self.escape,
            directives=tuple(self.directives),
            global_args=tuple(global_args),
            stages=tuple(stages),
            blank_continuations=tuple(self.blank_continuations),
            statements=tuple(self.statements),
        )

    def raise_problems(self) -> None:
        """Raise the first problem with the rest attached, in file order."""
        if not self.problems:
            return
        ordered = sorted(self.problems, key=lambda p: p.source.start if p.source else Position(0))
        first, *rest = ordered[:_MAX_PROBLEMS]
        if not rest:
            raise first
        raise DockerfileError(
            first.summary, detail=first.detail, hint=first.hint, source=first.source, others=tuple(rest)
        )

    def read(self) -> None:
        """Read every instruction; malformed ones go to ``problems``."""
        while self.at < len(self.lines):
            line = self._logical_line()
            if line is None:
                continue
            self.seen_any = True
            try:
                statement = self._statement(line)
                self.statements.append(
                    (self._instruction(statement), tuple((h.content, h.name) for h in statement.heredocs))
                )
            except DockerfileError as exc:
                self.problems.append(exc)

    def _logical_line(self) -> LogicalLine | None:
        raw = self.lines[self.at]
        bare = raw.rstrip("\r\n")
        text = bare.lstrip(SPACE)
        is_comment = text.startswith("#")
        if is_comment:
            self._comment(raw)
        if not self.reader.done:
            self._directive(text)
        self.at += 1
        if is_comment or not text:
            return None
        line = LogicalLine(self.file, tuple(self.comments))
        text, more = self._continued(text)
        line.add(text, self.at, len(bare) - len(bare.lstrip(SPACE)))
        while more and self.at < len(self.lines):
            bare = self.lines[self.at].rstrip("\r\n")
            self.at += 1
            stripped = bare.lstrip(SPACE)
            if stripped.startswith("#"):
                continue
            if not stripped:
                line.blank_continuation = self.at
                continue
            text, more = self._continued(bare)
            line.add(text, self.at, 0)
        line.strip()
        line.end_line = self.at
        self.comments = []
        if line.blank_continuation:
            here = Position(self.at, 0)
            self.blank_continuations.append(SourceRange(self.file, here, here))
        return line

    def _comment(self, raw: str) -> None:
        comment = raw[1:].strip(SPACE)
        if comment:
            self.comments.append(comment)
        else:
            self.comments = []

    def _directive(self, text: str) -> None:
        try:
            directive = self.reader.read(text)
        except DockerfileError as exc:
            self.problems.append(exc)
            return
        if directive is None:
            return
        self.comments.pop()
        self.directives.append(directive)
        if directive.name == "escape":
            if directive.value not in _CONTINUATION:
                summary = f"invalid escape token '{directive.value}' does not match ` or \\"
                self.problems.append(DockerfileError(summary, source=directive.where))
                return
            self.escape = directive.value

    def _continued(self, text: str) -> tuple[str, bool]:
        if self.escape not in text[-40:] and self.escape not in text:
            return text, False
        found = _CONTINUATION[self.escape].search(text)
        return (text, False) if found is None else (text[: found.start()], True)

    def _statement(self, line: LogicalLine) -> Statement:
        statement = split_statement(line, self.escape)
        if "<<" in line.text and _takes_heredocs(statement):
            statement.heredocs = tuple(self._heredocs(line))
        return statement

    def _heredocs(self, line: LogicalLine) -> list[Heredoc]:
        try:
            marks = heredocs_in(line.text)
        except ExpandError as exc:
            raise line.error(str(exc)) from None
        found: list[Heredoc] = []
        for mark in marks:
            body: list[str] = []
            while True:
                if self.at >= len(self.lines):
                    line.end_line = self.at
                    message = "unterminated heredoc"
                    hint = f"end it with a line that is just {mark.name}"
                    raise line.error(message, line.find("<<"), hint=hint)
                raw = self.lines[self.at]
                self.at += 1
                end = raw.rstrip("\r\n")
                if (end.lstrip("\t") if mark.strip else end) == mark.name:
                    break
                body.append(raw)
            found.append(replace(mark, content="".join(body)))
            line.end_line = self.at
        return found

    def _instruction(self, statement: Statement) -> Instruction:
        _check_utf8(statement)
        parse_one = parser_of(statement.keyword.upper())
        if parse_one is None:
            message = did_you_mean(
                f"unknown instruction: {statement.keyword}", statement.keyword, KEYWORDS, ignore_case=True
            )
            raise statement.error(message, statement.keyword)
        return parse_one(statement)

    def _stages(self) -> tuple[list[Arg], list[Stage]]:
        global_args: list[Arg] = []
        stages: list[Stage] = []
        head: From | None = None
        body: list[Instruction] = []
        # A FROM that could not be read also begins a stage: do not complain about what follows it.
        lost_from = min(
            (p.source.start for p in self.problems if p.source is not None), default=Position(1 << 30)
        )
        for instruction, _ in self.statements:
            if isinstance(instruction, From):
                if head is not None:
                    stages.append(Stage(head=head, instructions=tuple(body)))
                head, body = instruction, []
            elif head is not None:
                body.append(instruction)
            elif isinstance(instruction, Arg):
                global_args.append(instruction)
            elif instruction.where.start < lost_from:
                summary = "no build stage in current context"
                hint = f"put a FROM before {instruction.keyword.upper()}"
                self.problems.append(DockerfileError(summary, source=instruction.where, hint=hint))
                break
        if head is not None:
            stages.append(Stage(head=head, instructions=tuple(body)))
        return global_args, stages


def split_statement(line: LogicalLine, escape: str) -> Statement:
    """Split a logical line into keyword, flags and arguments."""
    text = line.text
    keyword, start = split_keyword(text)
    flags: Sequence[str] = ()
    rest = text[start:]
    if rest.lstrip(SPACE).startswith("--"):
        flags, offset = split_flags(rest, escape)
        rest = rest[offset:]
    return Statement(line, keyword, flags, rest.strip(SPACE), escape)


def _takes_heredocs(statement: Statement) -> bool:
    keyword, rest = statement.keyword.upper(), statement.rest
    if keyword == "ONBUILD":
        keyword, start = split_keyword(rest)
        keyword, rest = keyword.upper(), rest[start:]
        if rest.lstrip(SPACE).startswith("--"):
            rest = rest[split_flags(rest, statement.escape)[1] :]
    if keyword not in _HEREDOC:
        return False
    try:
        return json_strings(rest) is None
    except NotStrings:
        return False


def _check_utf8(statement: Statement) -> None:
    text = statement.line.text
    if text.isascii():
        return
    for i, ch in enumerate(text):
        if "\udc80" <= ch <= "\udcff":
            message = f"byte 0x{ord(ch) - 0xDC00:02x} is not valid UTF-8"
            raise statement.line.error(message, statement.line.span(i, i + 1), hint="save the file as UTF-8")
