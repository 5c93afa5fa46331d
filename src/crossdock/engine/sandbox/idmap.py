"""Which ids exist inside the worker namespace: maps planned as values, applied by ``worker``.

Pure but for :func:`read_id_map`. Three kinds of map, best first: *identity* (root keeps every id it has), *ranges*
(an ordinary user is 0 and owns its subordinate ids from 1 on), *single* (an ordinary user is 0, nothing else exists).

Spec: user_namespaces(7), subuid(5).
"""

from __future__ import annotations

from crossdock.record import NamedTuple

__all__ = [
    "IdRange",
    "contains",
    "format_map",
    "identity_map",
    "parse_id_map",
    "parse_subids",
    "ranges_map",
    "read_id_map",
]

#: crun takes a map of exactly this size for the initial namespace and then fails at mknod, so one id is left out
_ALL_IDS = 4294967295
#: lines a kernel accepts in one map (Linux ≥ 4.15)
_MAX_LINES = 340


class IdRange(NamedTuple):
    """``size`` ids from ``inside`` on are the ids from ``outside`` on of the parent namespace."""

    inside: int
    outside: int
    size: int


def parse_id_map(text: str) -> tuple[IdRange, ...]:
    """Read the text of ``/proc/PID/uid_map``."""
    return tuple(IdRange(*map(int, line.split())) for line in text.splitlines() if line.strip())


def read_id_map(kind: str) -> tuple[IdRange, ...]:
    """Return this process's ``uid`` or ``gid`` map; empty where the kernel has no user namespaces."""
    try:
        with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
            return parse_id_map(file.read())
    except FileNotFoundError:
        return ()


def identity_map(current: tuple[IdRange, ...]) -> tuple[IdRange, ...]:
    """Return the map that gives a child namespace every id of this one, under the same number."""
    ranges = [IdRange(r.inside, r.inside, r.size) for r in current[:_MAX_LINES]]
    if ranges == [IdRange(0, 0, _ALL_IDS)]:
        ranges = [IdRange(0, 0, _ALL_IDS - 1)]
    return tuple(ranges)


def parse_subids(text: str, *, name: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the (start, count) pairs that ``/etc/subuid`` or ``/etc/subgid`` grants a user, by name or uid.

    Malformed lines are passed over, as shadow does.
    """
    granted: list[tuple[int, int]] = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in (name, str(uid)):
            continue
        if fields[1].isdigit() and fields[2].isdigit() and int(fields[2]) > 0:
            granted.append((int(fields[1]), int(fields[2])))
    return tuple(granted)


def ranges_map(own_id: int, granted: tuple[tuple[int, int], ...]) -> tuple[IdRange, ...]:
    """Map 0 to the user and the ids from 1 on to the granted ranges, in their order."""
    ranges = [IdRange(0, own_id, 1)]
    inside = 1
    for start, count in granted[: _MAX_LINES - 1]:
        ranges.append(IdRange(inside, start, count))
        inside += count
    return tuple(ranges)


def contains(ranges: tuple[IdRange, ...], number: int) -> bool:
    """Whether an id exists inside."""
    return any(r.inside <= number < r.inside + r.size for r in ranges)


def format_map(ranges: tuple[IdRange, ...]) -> str:
    """Return the text to write to ``/proc/PID/uid_map``."""
    return "".join(f"{r.inside} {r.outside} {r.size}\n" for r in ranges)
