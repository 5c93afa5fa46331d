"""Mutual exclusion by key among threads, and the patience of those who wait."""

from __future__ import annotations

import threading

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import Cancelled


def test_a_name_is_had_by_one_at_a_time() -> None:
    turns, inside, most = OncePerKey(), [], []

    def work() -> None:
        with turns.holding("a", CancelToken()):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_other_names_do_not_wait() -> None:
    turns = OncePerKey()
    with turns.holding("a", CancelToken()), turns.holding("b", CancelToken()):
        pass


def test_one_that_is_held_too_long_is_passed_by_and_stays_held() -> None:
    turns = OncePerKey()
    with turns.holding("a", CancelToken()):
        with turns.holding("a", CancelToken(), patience_s=0.01):
            pass
        cancel = CancelToken()
        threading.Timer(0.05, cancel.cancel).start()
        with pytest.raises(Cancelled), turns.holding("a", cancel):
            pytest.fail("it was free")
    with turns.holding("a", CancelToken(), patience_s=0):
        pass
