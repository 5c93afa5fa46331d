"""Exporting ahead: what goes wrong with it is no concern of the solver that calls it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from crossdock.builds.early import EarlyExport
from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExporterSpec
from crossdock.errors import StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = cast("Any", SimpleNamespace(platform="linux/amd64"))
OTHER = cast("Any", SimpleNamespace(platform="linux/arm64"))


class Engine:
    """Stands for the engine: counts what is begun, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.images: list[Any] = []
        self.closed = False

    @contextmanager
    def exporting_ahead(self, exporters: Any, **options: Any) -> Iterator[Any]:
        if self.failure is not None:
            raise self.failure
        yield SimpleNamespace(add=self.images.append)
        self.closed = True


def early(engine: Engine, *, specs: int = 1) -> EarlyExport:
    return EarlyExport(
        cast("Any", engine),
        [ExporterSpec("oci", {})] * specs,
        multi_platform=True,
        epoch_s=None,
        cancel=CancelToken(),
    )


def test_platforms_are_added_and_the_rest_is_loaded_meanwhile() -> None:
    engine = Engine()
    with early(engine) as export:
        export.add(IMAGE)
        export.add(OTHER)
        assert engine.images == [IMAGE, OTHER]
        assert export.ahead is not None
    assert engine.closed
    assert not [t for t in threading.enumerate() if t.name == "load"]


def test_what_goes_nowhere_is_left_alone() -> None:
    """A build for the cache alone has no outputs."""
    engine = Engine()
    with early(engine, specs=0) as export:
        export.add(IMAGE)
    assert engine.images == []
    assert export.ahead is None


@pytest.mark.parametrize(
    "failure", [StoreFull("full"), OSError(28, "No space left"), RuntimeError("threads")]
)
def test_a_failure_to_begin_is_left_to_the_export(failure: Exception) -> None:
    with early(Engine(failure)) as export:
        export.add(IMAGE)
    assert export.ahead is None
