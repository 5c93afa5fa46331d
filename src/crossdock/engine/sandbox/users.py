"""Which ids a step runs with: ``USER`` resolved in the passwd and group files of its root file system.

Spec: moby/buildkit ``executor/oci/user.go``, moby/sys ``user.GetExecUser``.
"""

from __future__ import annotations

from crossdock.engine.sandbox.paths import resolve_in_root
from crossdock.errors import UsageError
from crossdock.record import NamedTuple

__all__ = ["StepUser", "resolve_user"]

_MAX_ID = (1 << 31) - 1
_MAX_FILE_BYTES = 10 << 20


class StepUser(NamedTuple):
    """Ids of a step's process and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


class _Entry(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(rootfs: str, user: str) -> StepUser:
    """Resolve ``user[:group]``; numbers need no files, names do. ``""`` is uid 0.

    Raises: UsageError when a name is unknown or a number out of range.
    """
    wanted_user, _, wanted_group = user.partition(":")
    entries = _read_passwd(rootfs)
    if wanted_user.isdigit() and wanted_group.isdigit():
        uid = _number(wanted_user)
        return StepUser(uid, _number(wanted_group), (), _home(entries, uid))
    groups = _read_group(rootfs)
    found = _find(entries, wanted_user or "0")
    if found is None:
        if wanted_user and not wanted_user.isdigit():
            summary = f"unable to find user {wanted_user}: no matching entries in passwd file"
            raise UsageError(summary, hint="create it first (RUN useradd …) or give the numeric id")
        found = _Entry("", _number(wanted_user or "0"), 0, "/")
    if not wanted_group:
        extra = tuple(g.gid for g in groups if found.name and found.name in g.members)
        return StepUser(found.uid, found.gid, extra, found.home or "/")
    return StepUser(found.uid, _group_id(groups, wanted_group), (), found.home or "/")


def _find(entries: list[_Entry], wanted: str) -> _Entry | None:
    by_name = next((e for e in entries if e.name == wanted), None)
    if by_name is not None or not wanted.isdigit():
        return by_name
    return next((e for e in entries if e.uid == int(wanted)), None)


def _home(entries: list[_Entry], uid: int) -> str:
    return next((e.home for e in entries if e.uid == uid), "") or "/"


def _group_id(groups: list[_Group], wanted: str) -> int:
    for group in groups:
        if group.name == wanted or (wanted.isdigit() and group.gid == int(wanted)):
            return group.gid
    if wanted.isdigit():
        return _number(wanted)
    summary = f"unable to find group {wanted}: no matching entries in group file"
    raise UsageError(summary, hint="create it first (RUN groupadd …) or give the numeric id")


def _number(text: str) -> int:
    value = int(text)
    if value > _MAX_ID:
        summary = f"uids and gids must be in range 0-{_MAX_ID}, not {text}"
        raise UsageError(summary)
    return value


def _read_passwd(rootfs: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for fields in _lines(rootfs, "/etc/passwd", at_least=4):
        if fields[2].isdigit() and fields[3].isdigit():
            home = fields[5] if len(fields) > 5 else ""
            entries.append(_Entry(fields[0], int(fields[2]), int(fields[3]), home))
    return entries


def _read_group(rootfs: str) -> list[_Group]:
    groups: list[_Group] = []
    for fields in _lines(rootfs, "/etc/group", at_least=3):
        if fields[2].isdigit():
            members = tuple(filter(None, fields[3].split(","))) if len(fields) > 3 else ()
            groups.append(_Group(fields[0], int(fields[2]), members))
    return groups


def _lines(rootfs: str, path: str, *, at_least: int) -> list[list[str]]:
    try:
        with open(resolve_in_root(rootfs, path), encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_FILE_BYTES)
    except OSError:
        return []
    rows = (
        line.strip().split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")
    )
    return [fields for fields in rows if len(fields) >= at_least]
