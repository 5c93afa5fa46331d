"""Whom new files belong to: ids, or names looked up in an input's ``/etc/passwd`` and ``/etc/group``.

Spec: moby/buildkit ``solver/llbsolver/ops/user_linux.go``: an unknown name is root, which we say in a warning.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.cache.view import resolve
from crossdock.engine.ops.upper import Owner
from crossdock.errors import SolveError
from crossdock.llb.ops import NamedUser

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.engine.cache.view import View
    from crossdock.llb.ops import ChownOpt

__all__ = ["find_owner"]

_MAX_BYTES = 10 << 20


def find_owner(
    option: ChownOpt | None, view_of: Callable[[int], View], warn: Callable[[str], None]
) -> Owner | None:
    """Return the owner an action asks for, ``None`` when it asks for none.

    ``view_of`` gives the view of an input by its index. Raises: SolveError for a user file that is no file.
    """
    if option is None:
        return None
    uid = gid = 0
    if isinstance(option.user, NamedUser):
        line = _line(view_of(option.user.input), "etc/passwd", option.user.name)
        if line is None:
            warn(f"no user named {option.user.name}: files are owned by root")
        else:
            uid, gid = _number(line, 2), _number(line, 3)
    elif option.user is not None:
        uid = gid = option.user
    if isinstance(option.group, NamedUser):
        line = _line(view_of(option.group.input), "etc/group", option.group.name)
        if line is None:
            warn(f"no group named {option.group.name}: the group stays {gid}")
        else:
            gid = _number(line, 2)
    elif option.group is not None:
        gid = option.group
    return Owner(uid, gid)


def _line(view: View, path: str, name: str) -> list[str] | None:
    node = resolve(view, path, follow=True)
    if node is None:
        return None
    if not node.is_file or node.st.st_size > _MAX_BYTES:
        summary = f"/{path} is not a regular file of at most {_MAX_BYTES >> 20} MiB"
        raise SolveError(summary)
    fd = view.open(node)
    with os.fdopen(fd, "rb") as file:
        for raw in file:
            fields = raw.decode("utf-8", "surrogateescape").rstrip("\n").split(":")
            if fields[0] == name:
                return fields
    return None


def _number(fields: list[str], index: int) -> int:
    text = fields[index] if index < len(fields) else ""
    return int(text) if text.isdecimal() else 0
