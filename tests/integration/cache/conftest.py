"""Fixtures of the cache cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from idmap import remove_tree
from integration.cache.cachekit import CONTEXT, Builder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages


@pytest.fixture
def builder(crossdock: Crossdock) -> Iterator[Builder]:
    """Builds with any number of stores."""
    yield Builder(crossdock, crossdock.folder)
    for store in crossdock.folder.glob("store-*"):
        remove_tree(store)


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    """Two stages: what the first one builds is copied into the second."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(CONTEXT.format(base=base.index))
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    return folder
