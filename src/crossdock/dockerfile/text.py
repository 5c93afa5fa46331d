"""Text rules of Go that Dockerfiles inherit: white space, quoting, durations, did-you-mean.

Spec: Go ``unicode.IsSpace``, ``strconv.Quote``, ``time.ParseDuration``, ``time.Duration.String``,
``strconv.ParseBool``; moby/buildkit ``util/suggest``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "SPACE",
    "closest",
    "did_you_mean",
    "format_duration",
    "parse_bool",
    "parse_duration",
    "quote",
    "quote_list",
]

#: what Go's ``unicode.IsSpace`` accepts (Python's ``str.isspace`` also takes U+001C to U+001F)
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def quote(text: str) -> str:
    """Quote like Go's ``%q``."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(map(_quote_char, text)) + '"'


def _quote_char(ch: str) -> str:
    if ch in _ESCAPES:
        return _ESCAPES[ch]
    if ch.isprintable():
        return ch
    code = ord(ch)
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote_list(items: Sequence[str]) -> str:
    """Quote a list like Go's ``%q`` of a ``[]string``."""
    return "[" + " ".join(map(quote, items)) + "]"


def parse_bool(text: str) -> bool:
    """Parse like Go's ``strconv.ParseBool``; raises ValueError."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    msg = f"invalid boolean {text!r}"
    raise ValueError(msg)


_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def parse_duration(text: str) -> int:
    """Parse a Go duration (``1m30s``, ``1.5h``) into nanoseconds.

    Raises: ValueError with Go's message.
    """
    bad = f"time: invalid duration {quote(text)}"
    rest = text
    negative = rest.startswith("-")
    if rest[:1] in ("+", "-"):
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(bad)
    total = 0
    while rest:
        number, rest = _span(rest, "0123456789.")
        if not number.replace(".", "", 1).isdigit():
            raise ValueError(bad)
        unit, rest = _span_not(rest, "0123456789.")
        if not unit:
            msg = f"time: missing unit in duration {quote(text)}"
            raise ValueError(msg)
        if unit not in _UNITS_NS:
            msg = f"time: unknown unit {quote(unit)} in duration {quote(text)}"
            raise ValueError(msg)
        whole, _, fraction = number.partition(".")
        scale = _UNITS_NS[unit]
        total += int(whole or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
    if total > (1 << 63) - 1:
        raise ValueError(bad)
    return -total if negative else total


def _span(text: str, chars: str) -> tuple[str, str]:
    end = len(text) - len(text.lstrip(chars))
    return text[:end], text[end:]


def _span_not(text: str, chars: str) -> tuple[str, str]:
    end = next((i for i, ch in enumerate(text) if ch in chars), len(text))
    return text[:end], text[end:]


def format_duration(ns: int) -> str:
    """Write like Go's ``time.Duration.String``: ``1m30s``, ``1.5s``, ``100ms``, ``0s``."""
    if ns == 0:
        return "0s"
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns < 1_000_000_000:
        for unit, scale in (("ms", 1_000_000), ("\u00b5s", 1_000), ("ns", 1)):
            if ns >= scale:
                return f"{sign}{_decimal(ns, scale)}{unit}"
    minutes, rest_ns = divmod(ns, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    out = f"{_decimal(rest_ns, 1_000_000_000)}s"
    if hours:
        out = f"{hours}h{minutes}m{out}"
    elif minutes:
        out = f"{minutes}m{out}"
    return sign + out


def _decimal(value: int, scale: int) -> str:
    whole, fraction = divmod(value, scale)
    if not fraction:
        return str(whole)
    digits = str(fraction).rjust(len(str(scale)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}"


def closest(word: str, options: Iterable[str], *, ignore_case: bool = False) -> str | None:
    """Return the option at edit distance 1 or 2 from ``word``; ``None`` when there is none or one is equal."""
    wanted = word.lower() if ignore_case else word
    best: str | None = None
    best_rank = (3, 0)
    for option in options:
        candidate = option.lower() if ignore_case else option
        if candidate == wanted:
            return None
        if abs(len(candidate) - len(wanted)) > best_rank[0]:
            continue
        # Among equally distant options the one that begins alike is meant.
        alike = next(
            (n for n, (a, b) in enumerate(zip(wanted, candidate, strict=False)) if a != b), len(wanted)
        )
        rank = (_distance(wanted, candidate), -alike)
        if rank[0] < 3 and rank < best_rank:
            best, best_rank = option, rank
    if best is None or not ignore_case:
        return best
    if word == word.lower():
        return best.lower()
    return best.upper() if word == word.upper() else best


def _distance(a: str, b: str) -> int:
    previous = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        current = [i]
        for j, cb in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (ca != cb)))
        previous = current
    return previous[-1]


def did_you_mean(message: str, word: str, options: Iterable[str], *, ignore_case: bool = False) -> str:
    """Append `` (did you mean X?)`` when an option is close to ``word``."""
    match = closest(word, options, ignore_case=ignore_case)
    return message if match is None else f"{message} (did you mean {match}?)"
