"""A store of its own for each case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store, hooks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.engine.store import Lease


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with store.lease() as held:
        yield held


@pytest.fixture
def cancel() -> CancelToken:
    return CancelToken()


@pytest.fixture(autouse=True)
def _no_hooks() -> Iterator[None]:
    yield
    hooks.clear()
