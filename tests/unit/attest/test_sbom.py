"""Documents of scanners, without running one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from crossdock.builds.attest.sbom import read_documents, with_layers
from crossdock.engine.facade import FileInfo
from crossdock.errors import SolveError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest

if TYPE_CHECKING:
    from pathlib import Path

SPDX = "https://spdx.dev/Document"
DOCUMENT = {"spdxVersion": "SPDX-2.3", "name": "x"}


def entries(files: dict[str, bytes]) -> list[FileInfo]:
    return [FileInfo(name, 0o100644, 0, 0, len(data), 0) for name, data in files.items()]


def test_the_document_about_the_result_comes_first() -> None:
    files = {
        "a.spdx.json": json.dumps(DOCUMENT).encode(),
        "sbom.spdx.json": json.dumps(
            {
                "predicateType": SPDX,
                "predicate": DOCUMENT,
                "subject": [{"name": "n", "digest": {"sha256": "d"}}],
            }
        ).encode(),
    }
    found = read_documents(entries(files), files.get)
    assert [(d.name, d.core) for d in found] == [("sbom.spdx.json", True), ("a.spdx.json", False)]
    assert found[0].subjects == (("n", {"sha256": "d"}),)
    assert found[1].subjects == ()
    assert all(d.predicate == DOCUMENT for d in found)


@pytest.mark.parametrize("subject", [[{"name": "x"}], 5, [5], [{"digest": []}]])
def test_malformed_subjects_are_an_error(subject: object) -> None:
    files = {"a": json.dumps({"predicateType": SPDX, "subject": subject}).encode()}
    with pytest.raises(SolveError, match="malformed subjects"):
        read_documents(entries(files), files.get)


def test_files_are_found_in_the_highest_layer_that_has_them(tmp_path: Path) -> None:
    bottom, top = tmp_path / "bottom", tmp_path / "top"
    for folder, held in ((bottom, ["a", "d/b", "gone"]), (top, ["d/b"])):
        for name in held:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
    (top / "link").symlink_to(tmp_path)
    names = ["a", "./d/b", "/gone", "none", "link/bottom", "../a", "bad\0name"]
    document = {
        "files": [
            *({"fileName": name} for name in names),
            {"fileName": "a", "comment": "mine"},
            {"other": 1},
            "text",
        ],
        "creationInfo": {"creators": ["Tool: own"]},
        "packages": [],
    }
    before = json.dumps(document)
    layers = [
        (folder, Descriptor("x", Digest("sha256:" + letter * 64), 1))
        for folder, letter in ((bottom, "a"), (top, "b"))
    ]
    made = json.loads(with_layers(document, layers, creator="crossdock-1"))
    comments = [f.get("comment") for f in made["files"] if isinstance(f, dict)]
    low, high = ("layerID: sha256:" + letter * 64 for letter in "ab")
    assert comments == [low, high, low, None, None, low, None, "mine", None]
    assert made["creationInfo"]["creators"] == ["Tool: own", "Tool: crossdock-1"]
    assert json.dumps(document) == before, "the scanner's own is left alone"
    assert json.loads(with_layers(document, [], creator="x")) == document


@pytest.mark.needs("root")
def test_a_deleted_file_is_of_the_layer_that_made_it(tmp_path: Path) -> None:
    bottom, top = tmp_path / "bottom", tmp_path / "top"
    bottom.mkdir()
    top.mkdir()
    (bottom / "a").write_text("x")
    os.mknod(top / "a", 0o20000, os.makedev(0, 0))
    layers = [(f, Descriptor("x", Digest("sha256:" + c * 64), 1)) for f, c in ((bottom, "a"), (top, "b"))]
    made = json.loads(with_layers({"files": [{"fileName": "a"}]}, layers, creator="x"))
    assert made["files"][0]["comment"].endswith("a" * 64)
