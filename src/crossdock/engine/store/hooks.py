"""Named points in the store where tests may interfere: kill the process, fill the disk, lose a race.

In production nothing is installed and :func:`point` is one truth test of an empty dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["POINTS", "clear", "install", "point"]

#: every point that exists, so that a harness can visit each of them
POINTS = (
    "store.open:before_version",
    "store.lease:after_create",
    "store.blob:before_rename",
    "store.blob:after_rename",
    "store.layer:after_mkdir",
    "store.layer:before_commit",
    "store.layer:after_commit",
    "store.packed:before_commit",
    "store.packed:after_commit",
    "store.materialise:before_rename",
    "store.materialise:after_rename",
    "store.record:before_commit",
    "store.record:after_commit",
    "store.mount:after_mkdir",
    "store.prune:before_batch",
    "store.prune:before_delete",
    "store.prune:after_delete",
    "store.prune:after_rename",
    "store.trash:before_empty",
    "store.recovery:before_unlink",
)

_hooks: dict[str, Callable[[], object]] = {}


def point(name: str) -> None:
    """Run what is installed for ``name``, normally nothing."""
    if _hooks:
        action = _hooks.get(name)
        if action is not None:
            action()


def install(name: str, action: Callable[[], object]) -> None:
    """Run ``action`` whenever ``name`` is passed, in whatever thread passes it.

    Raises: KeyError for a point that does not exist.
    """
    if name not in POINTS:
        raise KeyError(name)
    _hooks[name] = action


def clear() -> None:
    """Remove everything that was installed."""
    _hooks.clear()
