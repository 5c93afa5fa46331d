"""``user[:group]`` as the owner of files: ids, or names looked up in the file system the step starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.llb.ops import ChownOpt, NamedUser

if TYPE_CHECKING:
    from crossdock.dockerfile.convert.vertex import Ref

__all__ = ["owner_of"]


def owner_of(text: str, base: Ref | None) -> ChownOpt:
    """Read ``user[:group]``; names refer to input 0, which is the base (-1 when that is scratch)."""
    user, colon, group = text.partition(":")
    index = -1 if base is None else 0
    return ChownOpt(_who(user, index), _who(group, index) if colon else None)


def _who(text: str, base: int) -> int | NamedUser | None:
    if text == "root":
        return 0
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) < 1 << 31:
        return int(text) & 0xFFFFFFFF
    return NamedUser(text, base) if text else 0
