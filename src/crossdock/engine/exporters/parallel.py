"""Run a function over items in a few threads; the first failure stops the rest."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

from crossdock.cancel import CancelToken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["run_parallel"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def run_parallel(
    function: Callable[[_T, CancelToken], _R], items: Iterable[_T], *, workers: int, cancel: CancelToken
) -> list[_R]:
    """Return the results in order. The function gets a token that is cancelled when another call fails.

    Raises: the first failure; the cause when ``cancel`` is cancelled.
    """
    todo = list(enumerate(items))
    results: dict[int, _R] = {}
    if len(todo) <= 1 or workers <= 1:
        return [function(item, cancel) for _, item in todo]
    token = CancelToken(cancel)
    failures: list[BaseException] = []
    lock = threading.Lock()  # guards todo, results and failures
    todo.reverse()

    def work() -> None:
        while True:
            with lock:
                if not todo or failures:
                    return
                number, item = todo.pop()
            try:
                token.check()
                result = function(item, token)
            except BaseException as exc:  # noqa: BLE001  top of a worker thread: raised by the caller
                with lock:
                    failures.append(exc)
                token.cancel()
                return
            with lock:
                results[number] = result

    count = len(todo)
    threads = [
        threading.Thread(target=copy_context().run, args=(work,), name="export", daemon=True)
        for _ in range(min(workers, count))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as exc:  # an interrupt: nobody waits for the threads, so end them
        token.cancel(exc)
        raise
    finally:
        token.close()
    if failures:
        cancel.check()
        raise failures[0]
    return [results[number] for number in range(count)]
