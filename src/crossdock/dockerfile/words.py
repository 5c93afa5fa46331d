"""Split the arguments of an instruction: flags, words with quotes, JSON arrays, comma-separated fields."""

from __future__ import annotations

import json
import re

from crossdock.dockerfile.text import SPACE

__all__ = [
    "NotStrings",
    "csv_fields",
    "json_strings",
    "split_blank",
    "split_flags",
    "split_keyword",
    "split_pair",
    "split_words",
]

#: blanks that separate keyword and arguments
_BLANK = re.compile(r"[\t\v\f\r ]+")


class NotStrings(ValueError):
    """A JSON array holds something else than strings."""


def split_keyword(text: str) -> tuple[str, int]:
    """Return the first word and the offset where the arguments start (the length when there are none)."""
    found = _BLANK.search(text)
    if found is None:
        return text, len(text)
    return text[: found.start()], found.end()


def split_blank(text: str) -> list[str]:
    """Split at blanks; quotes have no meaning."""
    return _BLANK.split(text) if text else []


def split_pair(text: str) -> list[str]:
    """Split at the first run of blanks."""
    return _BLANK.split(text, maxsplit=1)


def split_words(text: str, escape: str) -> list[str]:
    """Split at white space outside quotes; quotes and escapes stay in the words."""
    if '"' not in text and "'" not in text and escape not in text:
        return [w for w in re.split(f"[{SPACE}]+", text) if w]
    words: list[str] = []
    word: list[str] = []
    started = False  # a quote makes even an empty word count
    quote = ""
    i, end = 0, len(text)
    while i < end:
        ch = text[i]
        if not quote and ch in SPACE:
            if started or word:
                words.append("".join(word))
            word, started = [], False
        elif ch == escape and quote != "'":
            if i + 1 < end:  # an escape at the very end is dropped
                word += (ch, text[i + 1])
                i += 1
            elif quote:
                quote = ""
        else:
            if ch == quote:
                quote = ""
            elif not quote and ch in "'\"":
                quote, started = ch, True
            word.append(ch)
        i += 1
    if started or word:
        words.append("".join(word))
    return words


def split_flags(text: str, escape: str) -> tuple[list[str], int]:
    """Take the leading ``--flag`` words; return them and the offset of the rest. ``--`` alone ends them."""
    flags: list[str] = []
    i, end = 0, len(text)
    while True:
        while i < end and text[i] in SPACE:
            i += 1
        if not text.startswith("--", i):
            return flags, i
        word, i, quoted = _flag_word(text, i, escape)
        if word == "--":
            return flags, i
        if word or quoted:
            flags.append(word)


def _flag_word(text: str, i: int, escape: str) -> tuple[str, int, bool]:
    word: list[str] = []
    quote = ""
    quoted = False
    end = len(text)
    while i < end:
        ch = text[i]
        i += 1
        if ch == quote:
            quote = ""
        elif ch == escape:
            if i < end:
                word.append(text[i])
                i += 1
        elif quote:
            word.append(ch)
        elif ch in SPACE:
            return "".join(word), i - 1, quoted
        elif ch in "'\"":
            quote, quoted = ch, True
        else:
            word.append(ch)
    return "".join(word), i, quoted


def json_strings(text: str) -> list[str] | None:
    """Parse a JSON array of strings; ``None`` when the text is not a JSON array (it is then shell form).

    Raises: NotStrings.
    """
    text = text.lstrip(SPACE)
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=lambda _: None, parse_float=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in value):
        msg = "when using JSON array syntax, arrays must be comprised of strings only"
        raise NotStrings(msg)
    return [_scalar_values(item) for item in value]


def _refuse(name: str) -> None:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _scalar_values(text: str) -> str:
    """Replace lone surrogates, as Go's decoder does."""
    if text.isascii():
        return text
    return re.sub("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]", "\ufffd", text)


def csv_fields(text: str) -> list[str]:
    """Split one line of comma-separated values; a field may be quoted, ``""`` inside stands for a quote.

    Raises: ValueError.
    """
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        msg = "EOF"
        raise ValueError(msg)
    if '"' not in text:
        return text.split(",")
    fields: list[str] = []
    i = 0
    while True:
        field, i = _csv_quoted(text, i + 1) if text.startswith('"', i) else _csv_bare(text, i)
        fields.append(field)
        if i >= len(text):
            return fields
        i += 1
        if i == len(text):
            return [*fields, ""]


def _csv_bare(text: str, i: int) -> tuple[str, int]:
    end = text.find(",", i)
    end = len(text) if end < 0 else end
    if '"' in text[i:end]:
        msg = f'parse error on line 1, column {text.index(chr(34), i) + 1}: bare " in non-quoted-field'
        raise ValueError(msg)
    return text[i:end], end


def _csv_quoted(text: str, i: int) -> tuple[str, int]:
    out = ""
    while True:
        end = text.find('"', i)
        if end < 0:
            msg = f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field'
            raise ValueError(msg)
        out += text[i:end]
        i = end + 1
        if text.startswith('"', i):
            out += '"'
            i += 1
        elif i == len(text) or text[i] == ",":
            return out, i
        else:
            msg = f'parse error on line 1, column {i}: extraneous or missing " in quoted-field'
            raise ValueError(msg)
