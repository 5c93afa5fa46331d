"""Callbacks of a cancellation: each is called, even if another fails."""

from __future__ import annotations

import pytest

from crossdock.cancel import CancelToken


def test_all_are_woken_and_the_first_failure_is_told() -> None:
    woken: list[str] = []
    cancel = CancelToken()

    def broken() -> None:
        woken.append("broken")
        msg = "a defect"
        raise ProcessLookupError(msg)

    cancel.on_cancel(broken)
    cancel.on_cancel(lambda: woken.append("other"))
    with pytest.raises(ProcessLookupError, match="a defect"):
        cancel.cancel()
    assert woken == ["broken", "other"]
    assert cancel.cancelled
