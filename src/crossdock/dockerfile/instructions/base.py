"""What every instruction has in common, and how its flags are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.dockerfile.text import did_you_mean
from crossdock.dockerfile.words import NotStrings, json_strings
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.dockerfile.heredoc import Heredoc
    from crossdock.dockerfile.source import LogicalLine
    from crossdock.errors import DockerfileError, SourceRange

__all__ = ["Flags", "InlineFile", "Instruction", "Statement", "doc_comment", "parse_flags"]


class Instruction(Record):
    """Base of all instructions: how it was written and where."""

    #: keyword as written
    keyword: str
    #: the source text, continued lines joined, without here-document bodies
    text: str
    where: SourceRange
    #: texts of the comment lines before it
    comments: tuple[str, ...] = ()


class InlineFile(Record):
    """A here-document as the content of a file or script."""

    name: str
    data: str
    expand: bool = True
    #: ``<<-``: leading tabs are to be removed
    strip: bool = False


class Statement:
    """An instruction split into keyword, flags and arguments: what the parse functions get."""

    __slots__ = ("escape", "flags", "heredocs", "keyword", "line", "rest")

    def __init__(self, line: LogicalLine, keyword: str, flags: Sequence[str], rest: str, escape: str) -> None:
        self.line = line
        self.keyword = keyword
        self.flags = flags
        #: the arguments, verbatim, surrounding white space removed
        self.rest = rest
        self.escape = escape
        self.heredocs: tuple[Heredoc, ...] = ()

    def common(self) -> dict[str, Any]:
        """Return the fields of :class:`Instruction`, to be passed on as keywords."""
        return {
            "keyword": self.keyword,
            "text": self.line.text,
            "where": self.line.whole(),
            "comments": self.line.comments,
        }

    def error(self, message: str, token: str = "", *, hint: str | None = None) -> DockerfileError:
        """Make an error that points at ``token``, or at the whole instruction."""
        return self.line.error(message, self.line.find(token) if token else None, hint=hint)

    def json(self) -> list[str] | None:
        """Return the arguments of the exec form, or ``None`` for the shell form.

        Raises: DockerfileError.
        """
        try:
            return json_strings(self.rest)
        except NotStrings as exc:
            raise self.error(str(exc), self.rest) from None

    def one_argument(self, name: str) -> str:
        """Return the whole argument text of an instruction that takes exactly one.

        Raises: DockerfileError.
        """
        if not self.rest:
            message = f"{name} requires exactly one argument"
            raise self.error(message)
        return self.rest

    def no_flags(self) -> None:
        """Raise DockerfileError when there are flags."""
        parse_flags(self, {})


#: values of the flags that were given; repeatable flags have a list
Flags = dict[str, "str | bool | list[str]"]


def parse_flags(statement: Statement, known: Mapping[str, type]) -> Flags:
    """Read ``--name=value`` flags; ``known`` maps names to ``bool``, ``str`` or ``list`` (repeatable).

    Raises: DockerfileError, with a suggestion when the name is nearly right.
    """
    used: Flags = {}
    for flag in statement.flags:
        written, equals, value = flag.partition("=")
        name = written[2:]
        kind = known.get(name)
        if kind is None:
            message = did_you_mean(f"unknown flag: {written}", name, known)
            hint = (
                "it takes these flags: " + ", ".join(f"--{k}" for k in known)
                if known
                else "it takes no flags"
            )
            raise statement.error(message, written, hint=f"{statement.keyword.upper()}: {hint}")
        if name in used and kind is not list:
            message = f"duplicate flag specified: {written}"
            raise statement.error(message, flag)
        if (kind is bool and equals and not value) or (kind is not bool and not equals):
            message = f"missing a value on flag: {written}"
            raise statement.error(message, written)
        if kind is bool:
            if value.lower() not in ("", "true", "false"):
                message = f"expecting boolean value for flag {written}, not: {value}"
                raise statement.error(message, flag)
            used[name] = value.lower() != "false"
        elif kind is list:
            values = used.setdefault(name, [])
            if isinstance(values, list):
                values.append(value)
        else:
            used[name] = value
    return used


def text_flag(flags: Flags, name: str, default: str = "") -> str:
    """Return a single-valued flag."""
    value = flags.get(name, default)
    return value if isinstance(value, str) else default


def bool_flag(flags: Flags, name: str) -> bool | None:
    """Return a boolean flag; ``None`` when it was not given."""
    value = flags.get(name)
    return value if isinstance(value, bool) else None


def list_flag(flags: Flags, name: str) -> tuple[str, ...]:
    """Return a repeatable flag."""
    value = flags.get(name)
    return tuple(value) if isinstance(value, list) else ()


def doc_comment(comments: Sequence[str], name: str) -> str:
    """Return the description of ``name`` from a comment ``# name description``."""
    if name:
        for comment in comments:
            if comment.startswith(name + " "):
                return comment[len(name) + 1 :]
    return ""
