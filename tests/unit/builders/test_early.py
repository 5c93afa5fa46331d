"""Exporting ahead: what goes wrong with it is no concern of the solver that calls it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from crossdock.builders.embedded.early import EarlyExport
from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExporterSpec
from crossdock.errors import StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULT = SimpleNamespace(platform="linux/amd64", config=None, base_config=None, epoch=None)
REF = cast("Any", SimpleNamespace(layers=("a",)))


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


def early(engine: Engine, *, specs: int = 1, platforms: int = 2) -> EarlyExport:
    return EarlyExport(
        cast("Any", engine),
        cast("Any", [RESULT] * platforms),
        [ExporterSpec("oci", {})] * specs,
        multi_platform=True,
        cancel=CancelToken(),
    )


def test_platforms_are_added_and_the_rest_is_loaded_meanwhile() -> None:
    engine = Engine()
    with early(engine) as export:
        export.add(1, REF)
        export.add(0, REF)
        assert [image.ref for image in engine.images] == [("a",), ("a",)]
        assert export.ahead is not None
    assert engine.closed
    assert not [t for t in threading.enumerate() if t.name == "load"]


@pytest.mark.parametrize(("number", "specs"), [(2, 1), (0, 0)])
def test_what_is_no_platform_or_goes_nowhere_is_left_alone(number: int, specs: int) -> None:
    """An SBOM's scan is a result too; a build for the cache alone has no outputs."""
    engine = Engine()
    with early(engine, specs=specs) as export:
        export.add(number, REF)
    assert engine.images == []
    assert export.ahead is None


@pytest.mark.parametrize(
    "failure", [StoreFull("full"), OSError(28, "No space left"), RuntimeError("threads")]
)
def test_a_failure_to_begin_is_left_to_the_export(failure: Exception) -> None:
    with early(Engine(failure)) as export:
        export.add(0, REF)
    assert export.ahead is None
