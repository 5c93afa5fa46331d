"""The part of Go's text/template that ``--format`` is used with.

Fields (``.Name``, ``.Nodes``, map keys), the functions docker offers (``json``, ``join``, ``upper``, ``lower``,
``title``, ``len``, ``index``, ``split``, ``pad``, ``truncate``, ``println``, ``printf``, ``eq`` ``ne`` ``lt`` ``le``
``gt`` ``ge`` ``and`` ``or`` ``not``), pipes, variables, ``if``/``else``, ``range``, ``with``, trim markers, comments.

Values are plain Python: mappings are Go structs or maps, sequences are slices.

Spec: Go ``text/template``; docker/cli ``templates/templates.go``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Struct", "Template", "to_text"]

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<pipe>\|)|(?P<open>\()|(?P<close>\))
    |(?P<declare>:=|=)|(?P<comma>,)|(?P<chain>\$?[A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)+|\.|\$[A-Za-z0-9_]*)|(?P<word>[A-Za-z_]\w*)""",
    re.VERBOSE,
)


class Struct(dict[str, Any]):
    """A mapping with a fixed set of fields: an unknown one is an error, where a map's gives nothing."""

    __slots__ = ()


class _Text(NamedTuple):
    text: str


class _Print(NamedTuple):
    pipe: list[Any]


class _Assign(NamedTuple):
    name: str
    pipe: list[Any]


class _Block(NamedTuple):
    kind: str
    names: tuple[str, ...]
    pipe: list[Any]
    body: list[Any]
    otherwise: list[Any]


class Template:
    """A parsed template; :meth:`render` may be called many times."""

    def __init__(self, source: str, functions: Mapping[str, Callable[..., Any]] | None = None) -> None:
        """``functions`` go before the built-in ones of the same name."""
        self._source = source
        self._functions = {**_FUNCTIONS, **(functions or {})}
        self._items = list(self._split(source))
        self._at = 0
        self._body = self._parse_body(top=True)

    def render(self, data: Any) -> str:
        """Fill in; Raises: UsageError for an unknown field or function, as Go does."""
        return "".join(self._run(self._body, data, {"$": data}))

    @staticmethod
    def _split(source: str) -> Iterator[tuple[str, str]]:
        at, trim = 0, False
        for match in _ACTION.finditer(source):
            text = source[at : match.start()]
            text = text.lstrip() if trim else text
            yield "text", text.rstrip() if match[1] else text
            body = match[2].strip()
            if not body.startswith("/*"):
                yield "action", body
            at, trim = match.end(), bool(match[3])
        rest = source[at:]
        if "{{" in rest:
            raise _template_error(source, "unclosed action")
        yield "text", rest.lstrip() if trim else rest

    def _parse_body(self, *, top: bool = False) -> list[Any]:
        out: list[Any] = []
        while self._at < len(self._items):
            kind, body = self._items[self._at]
            if kind == "text":
                self._at += 1
                if body:
                    out.append(_Text(body))
                continue
            word = body.split(None, 1)[0] if body else ""
            if word in ("end", "else"):
                if top:
                    raise _template_error(self._source, f"unexpected {{{{{word}}}}}")
                return out
            self._at += 1
            if word in ("if", "range", "with"):
                out.append(self._parse_block(word, body.partition(" ")[2]))
            else:
                out.append(self._statement(body))
        if not top:
            raise _template_error(self._source, "unexpected EOF")
        return out

    def _parse_block(self, kind: str, head: str) -> _Block:
        names, expression = self._declared(head)
        pipe = self._pipe(expression)
        body, otherwise = self._parse_body(), []
        closing = self._items[self._at][1]
        self._at += 1
        if closing.startswith("else"):
            rest = closing[4:].strip()
            if rest:
                word, _, tail = rest.partition(" ")
                otherwise = [self._parse_block(word, tail)]
            else:
                otherwise = self._parse_body()
                self._at += 1
        return _Block(kind, names, pipe, body, otherwise)

    def _statement(self, body: str) -> _Print | _Assign:
        names, expression = self._declared(body)
        return _Assign(names[0], self._pipe(expression)) if names else _Print(self._pipe(expression))

    @staticmethod
    def _declared(text: str) -> tuple[tuple[str, ...], str]:
        match = re.match(r"\s*(\$\w+(?:\s*,\s*\$\w+)?)\s*:?=\s*", text)
        if match is None:
            return (), text
        return tuple(n.strip() for n in match[1].split(",")), text[match.end() :]

    def _pipe(self, text: str) -> list[Any]:
        tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _template_error(self._source, f"unexpected {text[at]!r} in {text!r}")
            if match.lastgroup:
                after_paren = match.lastgroup == "chain" and text[at - 1 : at] == ")"
                tokens.append(("access" if after_paren else match.lastgroup, match[0]))
            at = match.end()
        commands, rest = _parse_commands(tokens, self._source)
        if rest or not all(commands):
            raise _template_error(self._source, f"malformed expression {text!r}")
        return commands

    def _run(self, body: Sequence[Any], dot: Any, names: dict[str, Any]) -> Iterator[str]:
        for item in body:
            if isinstance(item, _Text):
                yield item.text
            elif isinstance(item, _Print):
                yield to_text(self._value(item.pipe, dot, names))
            elif isinstance(item, _Assign):
                names[item.name] = self._value(item.pipe, dot, names)
            else:
                yield from self._run_block(item, dot, names)

    def _run_block(self, block: _Block, dot: Any, names: dict[str, Any]) -> Iterator[str]:
        value = self._value(block.pipe, dot, names)
        if not _truth(value):
            yield from self._run(block.otherwise, dot, dict(names))
        elif block.kind == "range":
            pairs = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
            for key, element in pairs:
                inner = dict(names)
                inner.update(
                    zip(
                        block.names[-2:],
                        (key, element)[-len(block.names) :] if block.names else (),
                        strict=False,
                    )
                )
                yield from self._run(block.body, element, inner)
        else:
            inner = {**names, **dict.fromkeys(block.names, value)}
            yield from self._run(block.body, value if block.kind == "with" else dot, inner)

    def _value(self, commands: list[Any], dot: Any, names: Mapping[str, Any]) -> Any:
        value: Any = None
        for number, operands in enumerate(commands):
            head, *rest = operands
            args = [self._operand(o, dot, names) for o in rest]
            if number:
                args.append(value)
            value = self._call(head, args, dot, names)
        return value

    def _call(self, head: tuple[str, Any], args: list[Any], dot: Any, names: Mapping[str, Any]) -> Any:
        kind, text = head
        if kind == "word" and text not in ("true", "false", "nil"):
            function = self._functions.get(text)
            if function is None:
                raise _template_error(self._source, f'function "{text}" not defined')
            try:
                return function(*args)
            except (TypeError, ValueError, LookupError) as exc:
                raise _template_error(self._source, f"error calling {text}: {exc}") from exc
        if args:
            raise _template_error(self._source, f"{text} is not a function")
        return self._operand(head, dot, names)

    def _operand(self, operand: tuple[str, Any], dot: Any, names: Mapping[str, Any]) -> Any:
        kind, text = operand
        if kind == "pipe":
            return self._value(text, dot, names)
        if kind == "access":
            return self._fields(self._operand(text[0], dot, names), text[1])
        if kind == "string":
            return text[1:-1] if text[0] == "`" else json.loads(text)
        if kind == "number":
            return float(text) if "." in text else int(text)
        if kind == "word":
            return (
                {"true": True, "false": False, "nil": None}.get(text)
                if text in _LITERALS
                else self._call(operand, [], dot, names)
            )
        head, _, rest = text.partition(".")
        if head and head not in names:
            raise _template_error(self._source, f'undefined variable "{head}"')
        return self._fields(names[head] if head else dot, rest)

    def _fields(self, value: Any, path: str) -> Any:
        for field in filter(None, path.split(".")):
            value = self._field(value, field)
        return value

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            if name in value:
                return value[name]
            if not isinstance(value, Struct):
                return None
        raise _template_error(self._source, f"can't evaluate field {name}")


_LITERALS = ("true", "false", "nil")


def _parse_commands(tokens: list[tuple[str, str]], source: str) -> tuple[list[Any], list[tuple[str, str]]]:
    commands: list[list[tuple[str, Any]]] = [[]]
    while tokens:
        kind, text = tokens[0]
        tokens = tokens[1:]
        if kind == "pipe":
            commands.append([])
        elif kind == "open":
            inner, tokens = _parse_commands(tokens, source)
            if not tokens or tokens[0][0] != "close":
                raise _template_error(source, "unclosed left paren")
            tokens = tokens[1:]
            commands[-1].append(("pipe", inner))
        elif kind == "access":
            commands[-1].append(("access", (commands[-1].pop(), text)))
        elif kind == "close":
            return commands, [(kind, text), *tokens]
        else:
            commands[-1].append((kind, text))
    return commands, []


def _template_error(source: str, what: str) -> UsageError:
    summary = f"template parsing error: {what}"
    return UsageError(summary, detail=f"in the template: {source[:200]}")


def _truth(value: Any) -> bool:
    return bool(value)


def to_text(value: Any) -> str:
    """Print a value as Go's ``fmt`` would."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{to_text(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(to_text, value)) + "]"
    return str(value)


def _json(value: Any, *more: Any) -> str:
    if more:
        msg = "json takes one argument"
        raise TypeError(msg)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    texts = iter(values)

    def one(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        value = next(texts, None)
        if match[2] == "q":
            return json.dumps(str(value), ensure_ascii=False)
        if match[2] == "d":
            return f"%{match[1]}d" % int(value or 0)
        if match[2] == "f":
            return f"%{match[1]}f" % float(value or 0)
        return f"%{match[1]}s" % to_text(value)

    return re.sub(r"%([-+ 0-9.]*)([vsqdft%])", one, form)


def _and(*values: Any) -> Any:
    return next((v for v in values if not _truth(v)), values[-1])


def _or(*values: Any) -> Any:
    return next((v for v in values if _truth(v)), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": _json,
    "join": lambda items, sep: sep.join(map(to_text, items)),
    "split": lambda text, sep: text.split(sep),
    "upper": lambda text: str(text).upper(),
    "lower": lambda text: str(text).lower(),
    "title": lambda text: str(text).title(),
    "len": len,
    "index": _index,
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "truncate": lambda text, length: str(text)[:length],
    "print": lambda *values: "".join(map(to_text, values)),
    "println": lambda *values: " ".join(map(to_text, values)) + "\n",
    "printf": _printf,
    "and": _and,
    "or": _or,
    "not": lambda value: not _truth(value),
    "eq": lambda first, *others: any(first == o for o in others),
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
