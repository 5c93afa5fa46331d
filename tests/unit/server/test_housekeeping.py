"""What is written to disk after builds, and when the server ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from crossdock.server.housekeeping import Housekeeper

if TYPE_CHECKING:
    from crossdock.engine.store import Store

#: seconds of a build after which writing is cheap whatever there is to write
LONG_S = 1e9


class Disk:
    """A store whose writing takes until it is told to end."""

    def __init__(self) -> None:
        self.writing, self.may_end = threading.Event(), threading.Event()
        self.written = 0

    def sync(self) -> None:
        self.writing.set()
        assert self.may_end.wait(20)
        self.written += 1


def test_the_end_waits_for_what_is_written_after_a_build() -> None:
    disk = Disk()
    keeper = Housekeeper(cast("Store", disk), ())
    keeper.start()
    build = threading.Thread(target=keeper.built, args=(LONG_S,))
    build.start()
    assert disk.writing.wait(20)
    written: list[int] = []

    def stop() -> None:
        keeper.close()
        written.append(disk.written)

    end = threading.Thread(target=stop)
    end.start()
    end.join(0.05)
    assert not written
    disk.may_end.set()
    end.join(20)
    build.join(20)
    assert written == [1]


def test_a_build_that_ends_after_the_server_writes_nothing() -> None:
    disk = Disk()
    disk.may_end.set()
    keeper = Housekeeper(cast("Store", disk), ())
    keeper.start()
    keeper.close()
    keeper.built(LONG_S)
    assert disk.written == 0
