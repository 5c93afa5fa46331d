"""OCI layouts as named contexts: which image is meant."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.layouts import find_layout
from crossdock.errors import ContextError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def digest(tag: str) -> str:
    return f"sha256:{hashlib.sha256(tag.encode()).hexdigest()}"


def layout(root: Path, *tags: str) -> Path:
    (root / "blobs/sha256").mkdir(parents=True)
    entries = []
    for tag in tags:
        (root / "blobs" / digest(tag).replace(":", "/")).write_text(tag)
        annotations = {"org.opencontainers.image.ref.name": tag} if tag else {}
        entries.append({"digest": digest(tag), "annotations": annotations})
    (root / "index.json").write_text(json.dumps({"manifests": entries}))
    return root


@pytest.mark.parametrize(
    ("tags", "suffix", "expected"),
    [
        (("latest", "v1"), "", "latest"),
        (("latest", "v1"), ":v1", "v1"),
        (("v1",), "", "v1"),
        (("",), "", ""),
        (("v1", "v2"), f"@{digest('v2')}", "v2"),
        (("v1", "v2"), f":v1@{digest('v2')}", "v2"),
    ],
)
def test_the_image_that_is_meant(tmp_path: Path, tags: tuple[str, ...], suffix: str, expected: str) -> None:
    root = layout(tmp_path / "l", *tags)
    found = find_layout("name", f"oci-layout://{root}{suffix}")
    assert (found.root, found.digest) == (root, digest(expected))
    assert found.text == f"oci-layout://{found.store}@{digest(expected)}"


def test_a_directory_with_a_colon_is_a_directory(tmp_path: Path) -> None:
    assert find_layout("n", f"oci-layout://{layout(tmp_path / 'a:b', 'x')}").root == tmp_path / "a:b"


def test_names_that_look_alike_are_different_stores(tmp_path: Path) -> None:
    value = f"oci-layout://{layout(tmp_path / 'l', 'x')}"
    stores = {
        find_layout(name, value).store for name in ("a.b", "a-b", "a::linux/arm64", "a-linux-arm64", "A_B")
    }
    assert len(stores) == 5


@pytest.mark.parametrize(
    ("make", "suffix", "error", "message"),
    [
        (lambda root: None, "", ContextError, "index.json: No such file"),
        (lambda root: layout(root, "v1", "v2"), "", ContextError, "has no tag 'latest'"),
        (lambda root: layout(root, "v1"), ":v2", ContextError, "has no tag 'v2'"),
        (lambda root: layout(root, "v1"), "@sha256:12", UsageError, "invalid digest"),
        (lambda root: layout(root, "v1"), f"@{digest('v2')}", ContextError, "has no manifest"),
        (lambda root: layout(root, "v1") / "index.json", "", ContextError, "malformed"),
    ],
    ids=["no layout", "no latest", "no such tag", "no digest", "no such digest", "broken index"],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, make: object, suffix: str, error: type[Exception], message: str
) -> None:
    made = make(tmp_path / "l")  # type: ignore[operator]
    if made is not None and made.name == "index.json":
        made.write_text("[]")
    with pytest.raises(error, match=message):
        find_layout("name", f"oci-layout://{tmp_path / 'l'}{suffix}")
