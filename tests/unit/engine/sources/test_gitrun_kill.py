"""Ending git: it may have ended by itself."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from crossdock.engine.sources import gitrun

if TYPE_CHECKING:
    import pytest


def test_a_process_that_has_just_ended_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between the question and the signal; a callback of a cancellation must not raise."""
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    monkeypatch.setattr(process, "poll", lambda: None)
    gitrun._kill(process)
