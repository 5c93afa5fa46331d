"""How long a frontend is waited for."""

from __future__ import annotations

import pytest

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, SolveError
from crossdock.server.patience import Patience

LONG_S, SHORT_S = 600.0, 0.01


def test_one_that_says_nothing_is_ended() -> None:
    patience = Patience("example.org/sh", CancelToken(), greeting_s=SHORT_S)
    assert patience.cancel.wait(30)
    with pytest.raises(SolveError, match=r"example\.org/sh said nothing in 0\.01 seconds"):
        patience.cancel.check()
    patience.close()


def test_one_that_speaks_may_take_its_time_and_must_end_after_its_result() -> None:
    patience = Patience("x", CancelToken(), greeting_s=LONG_S, grace_s=SHORT_S)
    patience.spoke()
    assert not patience.cancel.cancelled
    patience.answered()
    assert patience.cancel.wait(30)
    with pytest.raises(SolveError, match="did not end after its result"):
        patience.cancel.check()
    patience.close()


def test_nothing_is_ended_after_the_end() -> None:
    patience = Patience("x", CancelToken(), greeting_s=LONG_S, grace_s=SHORT_S)
    patience.close()
    patience.answered()
    assert not patience.cancel.wait(20 * SHORT_S)


def test_it_is_cancelled_with_the_build() -> None:
    build = CancelToken()
    patience = Patience("x", build)
    build.cancel(Cancelled())
    with pytest.raises(Cancelled):
        patience.cancel.check()
    patience.close()
