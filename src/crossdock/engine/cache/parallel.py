"""Run a function over many items in a few threads: for hashing and copying, which drop the GIL."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.cancel import CancelToken

__all__ = ["for_chunks"]

_T = TypeVar("_T")
_THREADS = 2


def for_chunks(
    items: Sequence[_T], size: int, work: Callable[[Sequence[_T]], None], cancel: CancelToken
) -> None:
    """Call ``work`` with slices of ``items``, in two threads when there is more than one slice.

    Raises the first error; what has not begun by then is left out. The caller's thread takes part.
    """
    starts = iter(range(0, len(items), size))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def take() -> None:
        while not errors:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            try:
                cancel.check()
                work(items[start : start + size])
            except BaseException as exc:  # noqa: BLE001 -- top of a thread; raised below
                errors.append(exc)

    others = (
        [threading.Thread(target=take, daemon=True) for _ in range(_THREADS - 1)] if len(items) > size else []
    )
    for thread in others:
        thread.start()
    take()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
