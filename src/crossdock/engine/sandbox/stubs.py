"""Mount points that the runtime makes in a root file system: found before a step, removed after it.

Otherwise every ``--mount`` would leave an empty file or directory in the layer. What the step itself filled stays.

Spec: moby/buildkit ``executor/stubs.go``.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.paths import resolve_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["stubs_removed"]


#: a directory changed this shortly after its stub was made was changed by making it
_SAME_MOMENT_NS = 20_000_000


@contextmanager
def stubs_removed(root: str, destinations: Sequence[str], *, recursive: bool) -> Iterator[None]:
    """Remove, at the end, those of ``destinations`` that are absent now and empty then."""
    absent = _absent(root, destinations, recursive=recursive)
    try:
        yield
    finally:
        for path, parent_mtime_ns in absent.items():
            _remove_if_empty(root, path, parent_mtime_ns)


def _absent(root: str, destinations: Sequence[str], *, recursive: bool) -> dict[str, int | None]:
    """Return the absent paths, deepest first, with the time of their parent where that exists."""
    absent: dict[str, int | None] = {}
    for destination in destinations:
        try:
            path = resolve_in_root(root, destination)
        except OSError:
            continue
        while len(path) > len(root) and not os.path.lexists(path):
            parent = os.path.dirname(path)
            absent[path] = os.lstat(parent).st_mtime_ns if os.path.lexists(parent) else None
            if not recursive:
                break
            path = parent
    return dict(sorted(absent.items(), key=lambda item: -len(item[0])))


def _remove_if_empty(root: str, path: str, parent_mtime_ns: int | None) -> None:
    parent = os.path.dirname(path)
    try:
        if resolve_in_root(root, path[len(root) :]) != path:
            return
        found = os.lstat(path)
        times = os.lstat(parent)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(path)
        elif found.st_size == 0 and stat.S_ISREG(found.st_mode):
            os.unlink(path)
        else:
            return
        # The directory's own time must not tell of the stub: layers are compared by digest.
        mtime_ns = times.st_mtime_ns
        if parent_mtime_ns is not None and abs(mtime_ns - found.st_mtime_ns) < _SAME_MOMENT_NS:
            mtime_ns = parent_mtime_ns
        os.utime(parent, ns=(times.st_atime_ns, mtime_ns))
    except OSError:
        return
