"""Tables of a TOML file whose errors and notes name file, line and key.

Not for: what the keys mean (``config``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from crossdock.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Section", "TomlFile", "syntax_error"]

_T = TypeVar("_T")


def syntax_error(path: Path, text: str, found: str) -> ConfigError:
    """Return the error about text that is no TOML; ``found`` is what the parser says, which ends in the place."""
    place = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", found, re.DOTALL)
    if place is None:
        return ConfigError(f"{path}: {found}")
    lines = text.splitlines() or [""]
    number = int(place[2] or len(lines))
    line = lines[min(number, len(lines)) - 1].strip()
    key, equals, _ = line.partition("=")
    name = f"{key.strip()}: " if equals and key.strip() else f"{line[:60]}: " if line else ""
    column = f" (column {place[3]})" if place[3] else ""
    return ConfigError(f"{path}:{number}: {name}{place[1][:1].lower()}{place[1][1:]}{column}")


class TomlFile:
    """A file: where its keys are, and what is to be noted about them."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()
        self.notes: list[str] = []

    def section(self, name: str, data: Mapping[str, Any], item: int = 0) -> Section:
        """Return a table; ``item`` counts the tables of that name, from 0."""
        return Section(self, name, data, item)

    def line_of(self, section: str, key: str, item: int = 0) -> int:
        """Return the line a key is on, as well as can be told without a parser that keeps lines."""
        current, found, seen = "", 0, -1
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            if header:
                current = header[1].replace('"', "").replace("'", "")
                seen += current == section
                if current == f"{section}.{key}".lstrip(".") or current.rpartition(".")[2] == key:
                    found = found or number
                elif current == section and seen == item:
                    found = number
            elif re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[.=]""", line) and (
                (current == section and seen in (-1, item))
                or (current != section and section.startswith(current))
            ):
                return number
        return found or 1


class Section:
    """One table of the file, with what is needed to name its keys."""

    def __init__(self, reader: TomlFile, name: str, data: Mapping[str, Any], item: int = 0) -> None:
        self.reader = reader
        self.name = name
        self._item = item
        self._data = data
        self._seen: set[str] = set()

    def get(self, key: str, kind: type[_T], default: _T) -> _T:
        """Return a value of one type."""
        self._seen.add(key)
        value = self._data.get(key, default)
        if type(value) is not kind:
            self.fail(key, f"expected {_KINDS[kind]}, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            self.fail(key, f"expected a list of strings, not {values!r}")
        return tuple(values)

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return key in self._data

    def raw(self, key: str) -> Any:
        """Return a value of any type; ``None`` when it is not there."""
        self._seen.add(key)
        return self._data.get(key)

    def section(self, key: str) -> Section:
        """Return a table below; empty when it is not there."""
        return self.reader.section(self.path(key), self.get(key, dict, {}))

    def checked(self, key: str, convert: Callable[[Any], _T]) -> _T:
        """Return a value that ``convert`` accepts."""
        try:
            return convert(self.raw(key))
        except (ValueError, UsageError) as exc:
            self.fail(key, str(exc))

    def path(self, key: str) -> str:
        """Return the full name of a key."""
        return f"{self.name}.{key}" if self.name else key

    def line(self, key: str) -> int:
        """Return the line a key is on."""
        return self.reader.line_of(self.name, key, self._item)

    def fail(self, key: str, why: str) -> NoReturn:
        """Raise the error about a key."""
        line = self.line(key)
        summary = f"{self.reader.path}:{line}: {self.path(key)}: {why}"
        raise ConfigError(summary)

    def done(self, noted: Mapping[str, type] | None = None) -> None:
        """Note what was not asked for; what has no effect must have its type all the same."""
        noted = noted or {}
        for key in self._data:
            if key in self._seen:
                continue
            if key in noted:
                self.get(key, noted[key], noted[key]())
            self.note(key, "has no effect here" if key in noted else "is not known")

    def note(self, key: str, why: str) -> None:
        """Note something about a key."""
        self.reader.notes.append(f"{self.reader.path}:{self.line(key)}: {self.path(key)} {why}")


_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "a number",
    list: "a list",
    dict: "a table",
}
