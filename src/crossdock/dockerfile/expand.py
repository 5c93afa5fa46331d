"""Variable expansion and word splitting: ``$v``, ``${v}`` and every modifier. Pure functions.

Not a shell: no command substitution, no arithmetic, no globbing of paths. Where the semantics coincide, results
equal those of ``/bin/sh`` (a property test compares them).

Spec: Dockerfile reference "Environment replacement"; behaviour of moby/buildkit ``frontend/dockerfile/shell``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.shellpattern import (
    PatternError,
    replace_matches,
    strip_prefix,
    strip_suffix,
)
from crossdock.dockerfile.text import SPACE, quote
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ExpandError", "Expansion", "expand", "expand_words"]

_SPECIAL_PARAMS = "@*#?-$!0"
_END = ""


class ExpandError(ValueError):
    """The word is malformed, or a ``${v:?message}`` failed; the caller adds the position."""


class Expansion(NamedTuple):
    """What a word became, and which variables it named."""

    text: str
    #: names that had a value, in order of use
    matched: tuple[str, ...] = ()
    #: names that had none
    unmatched: tuple[str, ...] = ()


def expand(
    word: str,
    env: Mapping[str, str],
    *,
    escape: str = "\\",
    keep_quotes: bool = False,
    plain_quotes: bool = False,
    keep_unset: bool = False,
) -> Expansion:
    """Expand variables in ``word`` and remove its quotes and escapes.

    ``keep_quotes`` leaves quote characters in the text, ``plain_quotes`` gives them no meaning (here-document
    bodies), ``keep_unset`` leaves references to unset variables as written.
    Raises: ExpandError.
    """
    if "$" not in word and escape not in word and (plain_quotes or ('"' not in word and "'" not in word)):
        return Expansion(word)
    scanner = _Scanner(word, env, escape)
    scanner.keep_quotes = keep_quotes
    scanner.plain_quotes = plain_quotes
    scanner.keep_unset = keep_unset
    text, _ = scanner.run()
    return Expansion(text, tuple(scanner.matched), tuple(scanner.unmatched))


def expand_words(
    text: str,
    env: Mapping[str, str],
    *,
    escape: str = "\\",
    keep_quotes: bool = False,
    keep_escapes: bool = False,
    keep_unset: bool = False,
) -> list[str]:
    """Expand ``text``, then split it at unquoted white space.

    Raises: ExpandError.
    """
    scanner = _Scanner(text, env, escape)
    scanner.keep_quotes = keep_quotes
    scanner.keep_escapes = keep_escapes
    scanner.keep_unset = keep_unset
    _, words = scanner.run()
    return words


class _Words:
    """Collects words while text is produced."""

    __slots__ = ("_buffer", "_in_word", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self._buffer: list[str] = []
        self._in_word = False

    def split(self, text: str) -> None:
        """Add text whose white space separates words."""
        for ch in text:
            if ch not in SPACE:
                self._buffer.append(ch)
                self._in_word = True
            elif self._in_word and self._buffer:
                self._flush()

    def raw(self, text: str) -> None:
        """Add text whose white space is literal."""
        if text:
            self._buffer.append(text)
        self._in_word = True

    def _flush(self) -> None:
        self.words.append("".join(self._buffer))
        self._buffer.clear()
        self._in_word = False

    def finish(self) -> list[str]:
        if "".join(self._buffer):
            self._flush()
        return self.words


class _Scanner:
    """One pass over one word; created per call, so nothing is shared."""

    __slots__ = (
        "env",
        "escape",
        "keep_escapes",
        "keep_quotes",
        "keep_unset",
        "matched",
        "plain_quotes",
        "pos",
        "source",
        "unmatched",
    )

    def __init__(self, source: str, env: Mapping[str, str], escape: str) -> None:
        self.source = source
        self.pos = 0
        self.env = env
        self.escape = escape
        self.keep_quotes = False
        self.plain_quotes = False
        self.keep_escapes = False
        self.keep_unset = False
        self.matched: dict[str, None] = {}
        self.unmatched: dict[str, None] = {}

    def run(self) -> tuple[str, list[str]]:
        try:
            return self._until(_END, keep_escapes=self.keep_escapes)
        except (ExpandError, PatternError) as exc:
            msg = f"failed to process {quote(self.source)}: {exc}"
            raise ExpandError(msg) from None
        except RecursionError:
            msg = f"failed to process {quote(self.source[:40])}: substitutions are nested too deeply"
            raise ExpandError(msg) from None

    def _peek(self) -> str:
        return self.source[self.pos : self.pos + 1]

    def _next(self) -> str:
        ch = self.source[self.pos : self.pos + 1]
        self.pos += 1
        return ch

    def _until(self, stop: str, *, keep_escapes: bool) -> tuple[str, list[str]]:
        outer, self.keep_escapes = self.keep_escapes, keep_escapes
        try:
            return self._scan(stop)
        finally:
            self.keep_escapes = outer

    def _scan(self, stop: str) -> tuple[str, list[str]]:
        out: list[str] = []
        words = _Words()
        while ch := self._peek():
            if stop and ch == stop:
                self.pos += 1
                return "".join(out), words.finish()
            if ch == "$":
                text = self._dollar()
                words.split(text)
            elif ch == "<":
                text = self._maybe_heredoc()
                words.raw(text)
            elif ch in "'\"" and not self.plain_quotes:
                text = self._single() if ch == "'" else self._double()
                words.raw(text)
            elif ch == self.escape:
                text = self._escaped()
                words.raw(text)
            else:
                self.pos += 1
                text = ch
                words.split(ch)
            out.append(text)
        if stop:
            msg = f"unexpected end of statement while looking for matching {stop}"
            raise ExpandError(msg)
        return "".join(out), words.finish()

    def _escaped(self) -> str:
        self.pos += 1
        kept = self.escape if self.keep_escapes else ""
        return kept + self._next()

    def _single(self) -> str:
        end = self.source.find("'", self.pos + 1)
        if end < 0:
            self.pos = len(self.source)
            msg = "unexpected end of statement while looking for matching single-quote"
            raise ExpandError(msg)
        start, self.pos = self.pos, end + 1
        return self.source[start : end + 1] if self.keep_quotes else self.source[start + 1 : end]

    def _double(self) -> str:
        self.pos += 1
        out = ['"'] if self.keep_quotes else []
        while True:
            ch = self._peek()
            if not ch:
                msg = "unexpected end of statement while looking for matching double-quote"
                raise ExpandError(msg)
            if ch == "$":
                out.append(self._dollar())
                continue
            self.pos += 1
            if ch == '"':
                if self.keep_quotes:
                    out.append(ch)
                return "".join(out)
            if ch == self.escape:
                if self.keep_escapes:
                    out.append(ch)
                following = self._peek()
                if not following:
                    continue
                if following in ('"', "$", self.escape):
                    ch = self._next()
            out.append(ch)

    def _maybe_heredoc(self) -> str:
        """Keep ``<<`` and the blanks after it together with the word that follows."""
        self.pos += 1
        if self._peek() != "<":
            return "<"
        start = self.pos = self.pos + 1
        while self._peek() and self._peek() in "\t\r ":
            self.pos += 1
        return "<<" + self.source[start : self.pos]

    def _lookup(self, name: str) -> str | None:
        value = self.env.get(name)
        (self.unmatched if value is None else self.matched).setdefault(name)
        return value

    def _name(self) -> str:
        source, start = self.source, self.pos
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self.pos += 1
        elif first and first in _SPECIAL_PARAMS:
            self.pos += 1
        else:
            while (ch := self._peek()) and (ch == "_" or ch.isalpha() or ch.isdecimal()):
                self.pos += 1
        return source[start : self.pos]

    def _dollar(self) -> str:
        self.pos += 1
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._lookup(name)
            if value is None:
                return f"${name}" if self.keep_unset else ""
            return value
        self.pos += 1
        first = self._peek()
        if not first:
            msg = "syntax error: missing '}'"
            raise ExpandError(msg)
        if first in "{}:":
            msg = "syntax error: bad substitution"
            raise ExpandError(msg)
        return self._braced(self._name())

    def _braced(self, name: str) -> str:
        op = self._next()
        if op == "}":
            value = self._lookup(name)
            if value is None:
                return f"${{{name}}}" if self.keep_unset else ""
            return value
        if op == "/":
            return self._replace(name)
        empty_is_unset = op == ":"
        if empty_is_unset:
            op = self._next()
        written = ":" + op if empty_is_unset else op
        if not op:
            msg = "syntax error: missing '}'"
            raise ExpandError(msg)
        if op not in ("+-?" if empty_is_unset else "+-?#%"):
            msg = f"unsupported modifier ({written}) in substitution"
            raise ExpandError(msg)
        word = self._operand("}", "syntax error: missing '}'", keep_escapes=op in "#%")
        value = self._lookup(name)
        if value is None and self.keep_unset:
            return f"${{{name}{written}{word}}}"
        return _modify(name, op, word, value, empty_is_unset=empty_is_unset)

    def _operand(self, stop: str, missing: str, *, keep_escapes: bool) -> str:
        try:
            return self._until(stop, keep_escapes=keep_escapes)[0]
        except ExpandError:
            if not self._peek():
                raise ExpandError(missing) from None
            raise

    def _replace(self, name: str) -> str:
        every = self._peek() == "/"
        if every:
            self.pos += 1
        pattern = self._operand("/", "syntax error: missing '/' in ${}", keep_escapes=True)
        new = self._operand("}", "syntax error: missing '}'", keep_escapes=True)
        value = self._lookup(name)
        if value is None:
            if self.keep_unset:
                return f"${{{name}/{pattern}/{new}}}"
            value = ""
        return replace_matches(pattern, value, new, every=every)


def _modify(name: str, op: str, word: str, value: str | None, *, empty_is_unset: bool) -> str:
    missing = value is None or (empty_is_unset and value == "")
    match op:
        case "-":
            return word if missing else value or ""
        case "+":
            return "" if missing else word
        case "?":
            if missing:
                what = "unset" if value is None else "empty"
                msg = f"{name}: {word or f'is not allowed to be {what}'}"
                raise ExpandError(msg)
            return value or ""
        case _:
            greedy = word.startswith(op)
            pattern = word[1:] if greedy else word
            text = value or ""
            strip = strip_prefix if op == "#" else strip_suffix
            return strip(pattern, text, greedy=greedy)
