"""Messages between a program and its worker process: length-prefixed pickles over a private socket pair.

Both ends are this package, run by the same user, and nobody else holds the socket; that is why pickle is good enough.
Errors travel as class name and attributes, because their constructors take keyword arguments that pickle forgets;
secrets, which refuse to be pickled, are revealed for this hop only.
"""

from __future__ import annotations

import io
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any

from crossdock import errors
from crossdock.errors import CrossdockError, InternalError
from crossdock.secret import Secret

if TYPE_CHECKING:
    import socket

__all__ = ["Channel", "pack_error", "unpack_error"]

_HEADER = struct.Struct("!Q")
_MAX_BYTES = 1 << 30


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, Secret):
            return Secret, (obj.reveal(),)
        return NotImplemented


class Channel:
    """One end of the pair; :meth:`send` may be called from several threads, :meth:`receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Guards writes, so that messages do not interleave.
        self._lock = threading.Lock()

    def send(self, *message: object) -> None:
        """Send one message; Raises: OSError when the other end is gone."""
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
        data = buffer.getvalue()
        with self._lock:
            self._sock.sendall(_HEADER.pack(len(data)) + data)

    def receive(self) -> tuple[Any, ...] | None:
        """Wait for a message; ``None`` when the other end is gone."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        (size,) = _HEADER.unpack(header)
        if size > _MAX_BYTES:
            summary = f"a message of {size} bytes from the worker"
            raise InternalError(summary)
        data = self._read(size)
        if data is None:
            return None
        message: tuple[Any, ...] = pickle.loads(data)  # noqa: S301 - see the module's text
        return message

    def close(self) -> None:
        """Close this end; a waiting :meth:`receive` of the other returns."""
        self._sock.close()

    def shutdown(self) -> None:
        """End both directions at once, waking a :meth:`receive` of this end."""
        import socket

        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already gone

    def _read(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._sock.recv(min(size - len(parts), 1 << 20))
            except ConnectionResetError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


def pack_error(error: CrossdockError) -> tuple[str, str, dict[str, Any], str]:
    """Return class name, summary, attributes, and the traceback of where it was raised."""
    import traceback

    state = {k: v for k, v in error.__dict__.items() if k != "__notes__"}
    return type(error).__name__, error.summary, state, "".join(traceback.format_exception(error))


def unpack_error(packed: tuple[str, str, dict[str, Any], str]) -> CrossdockError:
    """Make the error again; the worker's traceback is its note."""
    name, summary, state, trace = packed
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, CrossdockError)):
        kind = InternalError
    error: CrossdockError = kind.__new__(kind, summary)
    error.__dict__.update(state)
    error.add_note(f"in the worker process:\n{trace}")
    return error
