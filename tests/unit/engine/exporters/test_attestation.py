"""Statements among files, and which outputs can hold them."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters.attestation import (
    Attestation,
    Subject,
    check_attested,
    write_statements,
)
from crossdock.engine.exporters.model import PlatformImage
from crossdock.errors import Cancelled, ExportError, UsageError
from crossdock.image.platform import Platform

if TYPE_CHECKING:
    from pathlib import Path


def attestation(path: str, **fields: object) -> Attestation:
    return Attestation("https://example.org/kind", path, lambda _layers: b'{"a": 1}', **fields)  # type: ignore[arg-type]


def image(*attestations: Attestation) -> PlatformImage:
    return PlatformImage(Platform("linux", "arm64"), (), attestations=attestations)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "b/c").mkdir(parents=True)
    (folder / "b/c/file").write_text("1")
    (folder / "a").write_text("2")
    (folder / "link").symlink_to("a")
    return folder


def write(root: Path, one: PlatformImage, *, prefix: str = "", suffix: str = "") -> Path:
    target = root.parent / "statements"
    target.mkdir()
    write_statements(
        one, root, target, prefix=prefix, suffix=suffix, fixed_ns=5_000_000_000, cancel=CancelToken()
    )
    return target


def test_every_regular_file_is_a_subject(root: Path) -> None:
    target = write(root, image(attestation("x.json"), attestation("y.json", inline_only=True)))
    assert [p.name for p in target.iterdir()] == ["x.json"]
    statement = json.loads((target / "x.json").read_bytes())
    assert statement["predicate"] == {"a": 1}
    assert statement["subject"] == [
        {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
        for name, data in (("a", b"2"), ("b/c/file", b"1"))
    ]
    assert (target / "x.json").stat().st_mtime == 5


def test_a_statement_may_name_its_own_subjects(root: Path) -> None:
    own = attestation("x.json", subjects=(Subject("n", {"sha256": "d"}),))
    target = write(root, image(own))
    statement = json.loads((target / "x.json").read_bytes())
    assert statement["subject"] == [{"name": "n", "digest": {"sha256": "d"}}]


def test_names_have_prefix_and_platform(root: Path) -> None:
    target = write(root, image(attestation("deep/x.spdx.json")), prefix="my-", suffix="linux_arm64")
    assert os.listdir(target) == ["my-x.spdx.linux_arm64.json"]


def test_two_of_one_name_are_an_error(root: Path) -> None:
    with pytest.raises(ExportError, match="two have this name"):
        write(root, image(attestation("x.json"), attestation("x.json")))


@pytest.mark.parametrize("prefix", ["../", "folder/"])
def test_a_prefix_leads_nowhere_else(root: Path, prefix: str) -> None:
    with pytest.raises(ExportError, match="a prefix cannot name a directory"):
        write(root, image(attestation("x.json")), prefix=prefix)


def test_hashing_can_be_cancelled(root: Path) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        write_statements(
            image(attestation("x")), root, root.parent, prefix="", suffix="", fixed_ns=None, cancel=cancel
        )


@pytest.mark.parametrize("inline_only", [False, True])
@pytest.mark.parametrize("kind", ["image", "registry", "oci", "docker", "local", "tar", "cacheonly"])
def test_outputs_that_hold_none_are_refused_before_the_build(kind: str, *, inline_only: bool) -> None:
    if kind == "docker" and not inline_only:
        with pytest.raises(ExportError, match="exporting attestations"):
            check_attested(kind, {}, inline_only=inline_only)
    else:
        check_attested(kind, {}, inline_only=inline_only)
    if kind in ("image", "registry") or (kind == "oci" and not inline_only):
        with pytest.raises(UsageError, match="oci-mediatypes=false"):
            check_attested(kind, {"oci-mediatypes": "false"}, inline_only=inline_only)
