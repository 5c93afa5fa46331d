"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import pytest

import makedocs


@pytest.mark.parametrize("name", makedocs.PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (makedocs.REFERENCE / name).read_text()
    assert written == makedocs.page(name), "run `make docs`"


def test_no_link_is_dead() -> None:
    assert makedocs.dead_links() == []
