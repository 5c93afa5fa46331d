"""Turns at what has a name."""

from __future__ import annotations

import threading

import pytest

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled
from crossdock.server.turns import Turns


def test_a_name_is_had_by_one_at_a_time() -> None:
    turns, inside, most = Turns(), [], []

    def work() -> None:
        with turns.taken("a", 30, CancelToken()):
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
    turns = Turns()
    with turns.taken("a", 30, CancelToken()), turns.taken("b", 30, CancelToken()):
        pass


def test_one_that_is_held_too_long_is_passed_by_and_stays_held() -> None:
    turns = Turns()
    with turns.taken("a", 30, CancelToken()):
        with turns.taken("a", 0.01, CancelToken()):
            pass
        cancel = CancelToken()
        threading.Timer(0.05, cancel.cancel).start()
        with pytest.raises(Cancelled), turns.taken("a", 30, cancel):
            pytest.fail("it was free")
    with turns.taken("a", 0, CancelToken()):
        pass
