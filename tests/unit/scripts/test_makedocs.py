"""The pages say what the code says, and their links lead somewhere."""

from __future__ import annotations

import re

import pytest

import makedocs


@pytest.mark.parametrize("name", makedocs.PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (makedocs.REFERENCE / name).read_text()
    assert written == makedocs.page(name), "run `make docs`"


def test_no_link_is_dead() -> None:
    assert makedocs.dead_links() == []


def test_every_message_of_the_troubleshooting_page_exists() -> None:
    source = "".join(path.read_text() for path in sorted((makedocs.TOP / "src").rglob("*.py")))
    headings = re.findall(
        r"^### (`.*)$", (makedocs.TOP / "docs/troubleshooting.md").read_text(), re.MULTILINE
    )
    messages = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    pieces = [piece.strip(" :,") for message in messages for piece in message.split("…")]
    kernel = {"Operation not permitted", "No space left on device"}
    unknown = [piece for piece in pieces if len(piece) > 8 and piece not in source and piece not in kernel]
    assert len(messages) > 25
    assert unknown == []
