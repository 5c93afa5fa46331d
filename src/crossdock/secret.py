"""A value that must not be shown: passwords, tokens, build secrets."""

from __future__ import annotations

__all__ = ["Secret"]


class Secret:
    """Bytes whose ``repr`` and ``str`` are ``***``; only :meth:`reveal` gives them out."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes; the caller keeps them out of logs, layers, history and cache."""
        return self._value

    def reveal_str(self) -> str:
        """Return the value as UTF-8 text."""
        return self._value.decode()

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __reduce__(self) -> str:
        msg = "a Secret cannot be serialised"
        raise TypeError(msg)
