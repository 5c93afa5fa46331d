"""Regular expressions of clients, matched in time linear in the text, as Go's are.

A policy comes from whoever asks for a build; Python's own matcher can be made to work for years by a dozen characters, and
holds every other thread meanwhile. The syntax is what Python and RE2 have in common: no look-around, no back-references.

Spec: github.com/google/re2 ``doc/syntax.txt``; Rob Pike's simulation of all threads at once, leftmost-first.
"""

from __future__ import annotations

import re
import warnings
from re import _constants as _c  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["LinearRegex", "expand"]

_MAX_PROGRAM = 4000
_MAX_PATTERN = 2000
_MAX_TEXT = 8192
_MAX_REPEAT = 1000
_Groups: TypeAlias = "tuple[int, ...]"
_END = re.compile(r"\\.|(\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\])|(\$)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")
_WORD = re.compile(r"\w", re.ASCII)
_CATEGORIES = {
    _c.CATEGORY_DIGIT: re.compile(r"\d", re.ASCII),
    _c.CATEGORY_NOT_DIGIT: re.compile(r"\D", re.ASCII),
    _c.CATEGORY_SPACE: re.compile(r"\s", re.ASCII),
    _c.CATEGORY_NOT_SPACE: re.compile(r"\S", re.ASCII),
    _c.CATEGORY_WORD: _WORD,
    _c.CATEGORY_NOT_WORD: re.compile(r"\W", re.ASCII),
}


class LinearRegex:
    """A compiled expression. Safe from any thread."""

    def __init__(self, pattern: str) -> None:
        """Compile. Raises: UsageError with what is wrong or not supported."""
        if len(pattern) > _MAX_PATTERN:
            summary = f"a regular expression of {len(pattern)} characters is too long"
            raise UsageError(summary)
        try:
            with warnings.catch_warnings():
                # Of classes that may come to mean something else in Python; RE2 has settled what they mean.
                warnings.simplefilter("ignore", FutureWarning)
                parsed = _parser.parse(_pythonic(pattern))
        except (re.error, OverflowError, RecursionError) as exc:
            summary = f"invalid regular expression {pattern!r}: {exc}"
            raise UsageError(summary) from exc
        self._flags: int = parsed.state.flags
        self.names: Mapping[str, int] = dict(parsed.state.groupdict)
        #: groups, the whole match left out
        self.groups: int = parsed.state.groups - 1
        #: (operation, argument, argument): char and assert test, split and jump lead on, save notes a place
        self._program: list[tuple[str, Any, Any]] = []
        # Repetitions of nothing add no instruction, but take their time.
        self._emitted = 0
        try:
            self._emit_all(parsed, self._flags)
        except RecursionError as exc:
            summary = f"the regular expression {pattern!r} is nested too deeply"
            raise UsageError(summary) from exc
        self._add("match")

    def search(self, text: str) -> Sequence[str] | None:
        """Return the whole match and the groups of the first place that matches; ``None`` when there is none.

        Raises: UsageError for a text of unreasonable length.
        """
        found = self._run(text, 0)
        return None if found is None else self._texts(text, found)

    def replace_all(self, text: str, template: str) -> str:
        """Replace every match by ``template``, in which ``$1`` and ``${name}`` are groups. Raises: as :meth:`search`."""
        out, at, last = [], 0, -1
        while at <= len(text):
            found = self._run(text, at)
            if found is None:
                break
            start, end = found[0], found[1]
            out.append(text[at:start])
            if end > start or start != last:  # nothing is found right behind a match
                out.append(expand(template, self._texts(text, found), self.names))
            last = end
            if end == start:
                out.append(text[end : end + 1])
                end += 1
            at = end
        return "".join([*out, text[at:]])

    @staticmethod
    def _texts(text: str, found: _Groups) -> list[str]:
        pairs = zip(found[::2], found[1::2], strict=True)
        return [text[start:end] if start >= 0 and end >= 0 else "" for start, end in pairs]

    # --- compiling ---

    def _add(self, operation: str, first: Any = None, second: Any = None) -> int:
        if len(self._program) >= _MAX_PROGRAM:
            self._too_large()
        self._program.append((operation, first, second))
        return len(self._program) - 1

    @staticmethod
    def _too_large() -> NoReturn:
        summary = "the regular expression is too large"
        raise UsageError(summary)

    def _emit_all(self, nodes: Any, flags: int) -> None:
        for operation, argument in nodes:
            self._emit(operation, argument, flags)

    def _emit(self, operation: Any, argument: Any, flags: int) -> None:
        self._emitted += 1
        if self._emitted > 4 * _MAX_PROGRAM:
            self._too_large()
        if operation in (_c.LITERAL, _c.NOT_LITERAL, _c.ANY, _c.IN):
            self._add("char", _test(operation, argument, flags))
        elif operation is _c.AT:
            self._add("assert", argument, flags)
        elif operation is _c.SUBPATTERN:
            group, added, removed, nodes = argument
            if group is not None:
                self._add("save", 2 * group)
            self._emit_all(nodes, (flags | added) & ~removed)
            if group is not None:
                self._add("save", 2 * group + 1)
        elif operation is _c.BRANCH:
            self._emit_branches(argument[1], flags)
        elif operation in (_c.MAX_REPEAT, _c.MIN_REPEAT):
            self._emit_repeat(argument, flags, greedy=operation is _c.MAX_REPEAT)
        else:
            summary = f"regular expressions of policies have no {str(operation).lower()}"
            raise UsageError(summary, hint="the syntax is that of RE2: no look-around and no back-references")

    def _emit_branches(self, branches: Sequence[Any], flags: int) -> None:
        ends = []
        for branch in branches[:-1]:
            split = self._add("split")
            self._emit_all(branch, flags)
            ends.append(self._add("jump"))
            self._program[split] = ("split", split + 1, len(self._program))
        self._emit_all(branches[-1], flags)
        for end in ends:
            self._program[end] = ("jump", len(self._program), None)

    def _emit_repeat(self, argument: Any, flags: int, *, greedy: bool) -> None:
        least, most, nodes = argument
        if int(least) > _MAX_REPEAT or (most is not _c.MAXREPEAT and int(most) > _MAX_REPEAT):
            self._too_large()
        for _ in range(int(least)):
            self._emit_all(nodes, flags)
        if most is _c.MAXREPEAT:
            split = self._add("split")
            self._emit_all(nodes, flags)
            self._add("jump", split)
            self._set_split(split, greedy=greedy)
            return
        splits = []
        for _ in range(int(most) - int(least)):
            splits.append(self._add("split"))
            self._emit_all(nodes, flags)
        for split in splits:
            self._set_split(split, greedy=greedy)

    def _set_split(self, at: int, *, greedy: bool) -> None:
        ways = (at + 1, len(self._program))
        self._program[at] = ("split", *(ways if greedy else ways[::-1]))

    # --- matching ---

    def _run(self, text: str, begin: int) -> _Groups | None:
        if len(text) > _MAX_TEXT:
            summary = f"a text of {len(text)} characters is too long for a policy's regular expression"
            raise UsageError(summary)
        nothing = (-1,) * (2 * self.groups + 2)
        threads: list[tuple[int, _Groups]] = []
        matched: _Groups | None = None
        for at in range(begin, len(text) + 1):
            seen = [False] * len(self._program)
            ready: list[tuple[int, _Groups]] = []
            for counter, groups in threads:
                self._follow(counter, groups, text, at, seen, ready)
            if matched is None:
                self._follow(0, (at, *nothing[1:]), text, at, seen, ready)
            threads = []
            for counter, groups in ready:
                operation, test, _ = self._program[counter]
                if operation == "match":
                    matched = (groups[0], at, *groups[2:])
                    break  # what comes after has less right
                if at < len(text) and test(text[at]):
                    threads.append((counter + 1, groups))
            if matched is not None and not threads:
                break
        return matched

    def _follow(
        self,
        counter: int,
        groups: _Groups,
        text: str,
        at: int,
        seen: list[bool],
        ready: list[tuple[int, _Groups]],
    ) -> None:
        """Add all that can be reached without reading, the preferred first."""
        stack = [(counter, groups)]
        while stack:
            counter, groups = stack.pop()
            if seen[counter]:
                continue
            seen[counter] = True
            operation, first, second = self._program[counter]
            if operation == "jump":
                stack.append((first, groups))
            elif operation == "split":
                stack += [(second, groups), (first, groups)]
            elif operation == "save":
                stack.append((counter + 1, (*groups[:first], at, *groups[first + 1 :])))
            elif operation == "assert":
                if _holds(first, second, text, at):
                    stack.append((counter + 1, groups))
            else:
                ready.append((counter, groups))


def expand(template: str, groups: Sequence[str], names: Mapping[str, int]) -> str:
    """Fill ``$1``, ``${1}`` and ``${name}`` of a template; what names no group becomes nothing, ``$$`` a dollar."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        number = int(name) if name.isascii() and name.isdecimal() else names.get(name, -1)
        return groups[number] if 0 <= number < len(groups) else ""

    return _REFERENCE.sub(value, template)


def _pythonic(pattern: str) -> str:
    r"""Write in Python's way what both have: the end of the text is ``\z``, and ``$`` where lines are not told apart."""
    if re.search(r"\[\[:|\\[pPQCB]", pattern):
        summary = f"the regular expression {pattern!r} uses classes that are not supported here"
        raise UsageError(summary, hint=r"write [a-z] for [[:lower:]], and no \p, \Q, \C or \B")
    multiline = bool(re.match(r"\(\?[a-z]*m[a-z]*\)", pattern))

    def fix(match: re.Match[str]) -> str:
        if match[0] == r"\z":
            return r"\Z"
        return r"\Z" if match[2] and not multiline else match[0]

    return _END.sub(fix, pattern.replace("(?<", "(?P<") if re.search(r"\(\?<[^=!]", pattern) else pattern)


def _test(operation: Any, argument: Any, flags: int) -> Callable[[str], bool]:
    if operation is _c.ANY:
        return (lambda _char: True) if flags & re.DOTALL else (lambda char: char != "\n")
    items = argument if operation is _c.IN else [(_c.LITERAL, argument)]
    negated = operation is _c.NOT_LITERAL
    tests: list[Callable[[str], bool]] = []
    for kind, value in items:
        if kind is _c.NEGATE:
            negated = True
        else:
            tests.append(_one(kind, value))
    fold = bool(flags & re.IGNORECASE)

    def matches(char: str) -> bool:
        forms = (char, char.lower(), char.upper()) if fold else (char,)
        return any(test(form) for test in tests for form in forms) is not negated

    return matches


def _one(kind: Any, value: Any) -> Callable[[str], bool]:
    if kind is _c.LITERAL:
        return lambda char: len(char) == 1 and ord(char) == value
    if kind is _c.RANGE:
        low, high = value
        return lambda char: len(char) == 1 and low <= ord(char) <= high
    found = _CATEGORIES[value]
    return lambda char: found.fullmatch(char) is not None


def _holds(kind: Any, flags: int, text: str, at: int) -> bool:
    if kind in (_c.AT_BEGINNING, _c.AT_BEGINNING_STRING):
        lines = kind is _c.AT_BEGINNING and flags & re.MULTILINE
        return at == 0 or bool(lines and text[at - 1] == "\n")
    if kind in (_c.AT_END, _c.AT_END_STRING):
        lines = kind is _c.AT_END and flags & re.MULTILINE
        return at == len(text) or bool(lines and text[at] == "\n")
    before = at > 0 and _WORD.fullmatch(text[at - 1]) is not None
    after = at < len(text) and _WORD.fullmatch(text[at]) is not None
    return (before != after) is (kind is _c.AT_BOUNDARY)
