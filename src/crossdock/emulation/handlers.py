"""binfmt_misc entries: the line that registers one, and the file that describes one. Pure.

Spec: kernel ``admin-guide/binfmt-misc.rst``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.emulation.architectures import Architecture

__all__ = ["Handler", "parse_handler", "registration"]

_MAX_INTERPRETER = 127


class Handler(NamedTuple):
    """One registered handler, as the kernel shows it."""

    name: str
    enabled: bool
    interpreter: str
    flags: str
    offset: int
    magic: bytes
    mask: bytes
    #: handlers by file extension have no magic
    extension: str = ""

    def accepts(self, architecture: Architecture) -> bool:
        """Whether an executable of this architecture would go to this handler."""
        if self.offset != 0 or not self.magic:
            return False
        mask = self.mask or b"\xff" * len(self.magic)
        head = architecture.magic[: len(self.magic)]
        pairs = zip(head, self.magic, mask, strict=False)
        return len(head) == len(self.magic) and all((a & m) == (b & m) for a, b, m in pairs)


def registration(name: str, architecture: Architecture, interpreter: str, *, flags: str) -> bytes:
    """Return what to write to ``register``. Every byte is escaped, so none of them can be a delimiter.

    Raises: ValueError for a path or name that the kernel would not take.
    """
    if len(interpreter) > _MAX_INTERPRETER or ":" in interpreter or "\n" in interpreter:
        msg = f"the kernel takes no interpreter path like {interpreter!r} (longer than 127 characters, or with ':')"
        raise ValueError(msg)
    if not name or "/" in name or ":" in name:
        msg = f"not a handler name: {name!r}"
        raise ValueError(msg)
    escaped = ["".join(f"\\x{byte:02x}" for byte in data) for data in (architecture.magic, architecture.mask)]
    return f":{name}:M:0:{escaped[0]}:{escaped[1]}:{interpreter}:{flags}".encode()


def parse_handler(name: str, text: str) -> Handler:
    """Read the file that binfmt_misc shows for a handler; unknown lines are passed over."""
    values: dict[str, str] = {}
    enabled = False
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key in ("enabled", "disabled"):
            enabled = key == "enabled"
        else:
            values[key.rstrip(":")] = value.strip()
    return Handler(
        name=name,
        enabled=enabled,
        interpreter=values.get("interpreter", ""),
        flags=values.get("flags", ""),
        offset=int(values.get("offset") or 0),
        magic=bytes.fromhex(values.get("magic", "")),
        mask=bytes.fromhex(values.get("mask", "")),
        extension=values.get("extension", ""),
    )
