"""JSON as Go's encoding/json writes it: digests of configs and manifests then equal BuildKit's.

Go escapes ``&``, ``<``, ``>`` and the line separators of JavaScript, and writes U+FFFD for what is not UTF-8.
"""

from __future__ import annotations

import json

__all__ = ["dumps"]

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "&<>\u2028\u2029"}


def dumps(value: object, *, indent: int | None = None) -> bytes:
    """Serialise; without ``indent`` compactly."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False).translate(_ESCAPES)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()
