"""Hash structured values into cache keys, without ambiguity.

Every field is written as a type letter, its length and its bytes, so two different lists of fields never give the
same bytes. A recorder may be given to learn afterwards which field differed between two keys.

Not for layers or blobs: those are plain sha256 of their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.hashing import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["KEY_VERSION", "KeyHasher"]

#: part of every key; raised whenever the meaning of keys changes, so that old records are never misread
KEY_VERSION = 1


class KeyHasher:
    """Builds one key. Not safe from several threads.

    ``kind`` separates key spaces (``exec``, ``file``, ...). ``recorder`` receives ``(label, value)`` for each field.
    """

    __slots__ = ("_hash", "_recorder")

    def __init__(self, kind: str, recorder: Callable[[str, str], None] | None = None) -> None:
        self._hash = sha256()
        self._recorder = recorder
        self._put(b"k", kind.encode())
        self._put(b"v", b"%d" % KEY_VERSION)

    def _put(self, letter: bytes, data: bytes) -> None:
        self._hash.update(b"%s%d:%s" % (letter, len(data), data))

    def text(self, label: str, value: str) -> KeyHasher:
        """Add a string."""
        self._put(b"l", label.encode())
        self._put(b"s", value.encode("utf-8", "surrogateescape"))
        if self._recorder is not None:
            self._recorder(label, value)
        return self

    def data(self, label: str, value: bytes) -> KeyHasher:
        """Add bytes; the recorder sees their digest only."""
        self._put(b"l", label.encode())
        self._put(b"b", value)
        if self._recorder is not None:
            self._recorder(label, "sha256:" + sha256(value).hexdigest())
        return self

    def number(self, label: str, value: int) -> KeyHasher:
        """Add an integer (booleans too)."""
        self._put(b"l", label.encode())
        self._put(b"i", b"%d" % value)
        if self._recorder is not None:
            self._recorder(label, str(int(value)))
        return self

    def texts(self, label: str, values: Iterable[str]) -> KeyHasher:
        """Add a list of strings, order counted."""
        items = list(values)
        self._put(b"l", label.encode())
        self._put(b"n", b"%d" % len(items))
        for item in items:
            self._put(b"s", item.encode("utf-8", "surrogateescape"))
        if self._recorder is not None:
            self._recorder(label, repr(items))
        return self

    def finish(self) -> str:
        """Return ``sha256:…`` of all fields so far."""
        return "sha256:" + self._hash.hexdigest()
