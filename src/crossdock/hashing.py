"""SHA-256 without OpenSSL until there is something to hash: loading it takes longer than a small build hashes.

Python's own implementation is in every interpreter, as a fallback for ``hashlib``, and has a sixth of the speed; so who
hashes much gets OpenSSL. Both give the same, and both are bound to: a build of Python that lacks its own (as some for
FIPS do) has OpenSSL from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Hash(Protocol):
        """A hash being taken."""

        def update(self, data: bytes | bytearray | memoryview, /) -> None:
            """Add data."""

        def digest(self) -> bytes:
            """Return the hash of all data so far."""

        def hexdigest(self) -> str:
            """Return it in hexadecimal digits."""


__all__ = ["new", "sha256", "sha256_stream"]

#: one of more bytes than this, and all after more than this together, are for OpenSSL
_STREAM_BYTES, _ALL_BYTES = 128 << 10, 1 << 20


def _find_own() -> Callable[[bytes | bytearray | memoryview], Hash] | None:
    for name in ("_sha2", "_sha256"):  # from Python 3.12 on, and before
        try:
            return __import__(name).sha256  # type: ignore[no-any-return]
        except ImportError:
            continue
    return None


_own = _find_own()
_left = _ALL_BYTES


def sha256(data: bytes | bytearray | memoryview = b"") -> Hash:
    """Begin a hash of something whole, or of something short: names, keys, definitions."""
    global _left  # noqa: PLW0603 - how much a process has hashed is a fact of the process
    _left -= len(data)
    if _own is None or _left < 0 or len(data) > _STREAM_BYTES:
        return _openssl()(data)
    return _own(data)


def sha256_stream() -> Hash:
    """Begin a hash of something that may be long."""
    if _own is None or _left < 0:
        return _openssl()(b"")
    return _Early()


def new(algorithm: str) -> Hash:
    """Begin a hash of something that may be long, by the name that digests have for it. Raises: ValueError."""
    if algorithm == "sha256":
        return sha256_stream()
    import hashlib

    return hashlib.new(algorithm)


def _openssl() -> Callable[[bytes | bytearray | memoryview], Hash]:
    import hashlib

    return hashlib.sha256


class _Early:
    """A stream of which it is not known yet whether it will be long: it keeps what has come until it is."""

    __slots__ = ("_hash", "_kept", "_size")

    def __init__(self) -> None:
        self._hash: Hash | None = None
        self._kept: list[bytes] = []
        self._size = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        global _left  # noqa: PLW0603
        if self._hash is not None:
            self._hash.update(data)
            return
        self._kept.append(bytes(data))
        self._size += len(data)
        _left -= len(data)
        if self._size > _STREAM_BYTES or _left < 0:
            self._hash = _openssl()(b"".join(self._kept))
            self._kept.clear()

    def digest(self) -> bytes:
        return self._now().digest()

    def hexdigest(self) -> str:
        return self._now().hexdigest()

    def _now(self) -> Hash:
        if self._hash is not None:
            return self._hash
        return _openssl()(b"".join(self._kept)) if _own is None else _own(b"".join(self._kept))
