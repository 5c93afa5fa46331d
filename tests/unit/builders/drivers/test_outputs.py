"""Files that a daemon's output is written to."""

from __future__ import annotations

import errno
import io
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.drivers.outputs import plan_outputs
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.buildkit.session.targets import StreamTarget
from crossdock.cancel import CancelToken
from crossdock.errors import ExportError
from crossdock.progress.events import NullSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Full(io.BytesIO):
    """A file whose last bytes find no room."""

    def close(self) -> None:
        super().close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[StreamTarget]:
    spec = OutputSpec(type="tar", dest=str(tmp_path / "out.tar"))
    with ExitStack() as stack:
        outputs = plan_outputs(
            BuildRequest(context=".", outputs=(spec,)),
            engine=False,
            classic=False,
            sink=NullSink(),
            cancel=CancelToken(),
        )
        stack.enter_context(outputs.stack)
        (found,) = outputs.targets.values()
        assert isinstance(found, StreamTarget)
        yield found


def test_a_file_appears_when_it_is_complete(target: StreamTarget, tmp_path: Path) -> None:
    stream = target.open({})
    stream.writelines([b"a", b"b"])
    assert not (tmp_path / "out.tar").exists()
    target.finish(stream, True)
    assert (tmp_path / "out.tar").read_bytes() == b"ab"
    assert os.listdir(tmp_path) == ["out.tar"]


def test_nothing_is_left_of_one_that_is_not(target: StreamTarget, tmp_path: Path) -> None:
    stream = target.open({})
    stream.writelines([b"a"])
    target.finish(stream, False)
    assert os.listdir(tmp_path) == []


def test_an_end_that_finds_no_room_is_told(target: StreamTarget, tmp_path: Path) -> None:
    target.finish(target.open({}), False)
    opened = target.open({})
    with pytest.raises(ExportError, match=r"cannot write .*out\.tar: No space left on device"):
        target.finish(Full(), True)
    opened.close()  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == []


def test_what_went_wrong_before_says_more_than_the_end(target: StreamTarget, tmp_path: Path) -> None:
    opened = target.open({})
    target.finish(Full(), False)
    opened.close()  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == []
