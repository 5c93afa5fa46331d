"""What a daemon has written into a directory joins what the index of that lists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.remotecache.adopt import AdoptedCache
from crossdock.engine.remotecache.config import CREATED, UNCOMPRESSED, CacheConfig, CacheRecord, CacheResult
from crossdock.engine.remotecache.manifest import ManifestStyle, make_documents
from crossdock.errors import UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.progress.events import Event, VertexWarning

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.image.digest import Digest


class Events(list[Event]):
    def emit(self, event: Event, /) -> None:
        self.append(event)

    def warnings(self) -> list[str]:
        return [event.short for event in self if isinstance(event, VertexWarning)]


def put(root: Path, data: bytes) -> Digest:
    digest = sha256_digest(data)
    path = root / "blobs/sha256" / digest[7:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


def write(root: Path, *names: str, style: ManifestStyle | None = None) -> Descriptor:
    """Write a cache as a daemon does: everything but the index."""
    records, layers = [], {}
    for name in names:
        digest = put(root, name.encode())
        times = {UNCOMPRESSED: str(digest), CREATED: "2026-01-01T00:00:00Z"}
        kind = "application/vnd.oci.image.layer.v1.tar"
        layers[digest] = Descriptor(kind, digest, len(name), times)
        records.append(
            CacheRecord(
                sha256_digest(f"key {name}".encode()), results=(CacheResult((digest,), used="9999-01-01"),)
            )
        )
    documents = make_documents(CacheConfig(records, layers), style or ManifestStyle())
    put(root, documents.config_raw)
    put(root, documents.manifest_raw)
    return documents.manifest


def listed(root: Path, tag: str = "latest") -> dict[str, str]:
    """Of the manifest under a tag: its digest, and which of the layers it lists by their content."""
    entries = json.loads((root / "index.json").read_text())["manifests"]
    (entry,) = [e for e in entries if e["annotations"]["org.opencontainers.image.ref.name"] == tag]
    blobs = root / "blobs/sha256"
    manifest = json.loads((blobs / entry["digest"][7:]).read_text())
    names = sorted((blobs / layer["digest"][7:]).read_text() for layer in manifest["layers"])
    return {"digest": entry["digest"], "names": ",".join(names)}


def adopt(root: Path, written: Descriptor, **attrs: str) -> tuple[Descriptor, Events]:
    events = Events()
    return AdoptedCache({"dest": str(root), **attrs}).adopt(written, events, CancelToken()), events


def test_the_first_is_listed_as_it_is(tmp_path: Path) -> None:
    written = write(tmp_path, "a")
    found, events = adopt(tmp_path, written)
    assert found == written
    assert listed(tmp_path) == {"digest": written.digest, "names": "a"}
    assert events == []


def test_the_second_is_merged_with_the_first(tmp_path: Path) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    found, events = adopt(tmp_path, write(tmp_path, "b"))
    assert listed(tmp_path) == {"digest": found.digest, "names": "a,b"}
    assert any("merging build cache" in getattr(event, "name", "") for event in events)


def test_one_that_holds_all_is_listed_as_it_is(tmp_path: Path) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    whole = write(tmp_path, "b", "a")
    found, _ = adopt(tmp_path, whole)
    assert found == whole
    assert listed(tmp_path)["names"] == "a,b"


@pytest.mark.parametrize(("attrs", "names"), [({"merge": "false"}, "b"), ({"max-results": "0"}, "b")])
def test_how_much_is_kept_can_be_chosen(tmp_path: Path, attrs: dict[str, str], names: str) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    adopt(tmp_path, write(tmp_path, "b"), **attrs)
    assert listed(tmp_path)["names"] == names


def test_another_tag_is_left_alone(tmp_path: Path) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    adopt(tmp_path, write(tmp_path, "b"), tag="other")
    assert listed(tmp_path)["names"] == "a"
    assert listed(tmp_path, "other")["names"] == "b"


def test_reset_removes_what_no_tag_leads_to(tmp_path: Path) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    adopt(tmp_path, write(tmp_path, "b"), merge="false", reset="true")
    assert not (tmp_path / "blobs/sha256" / sha256_digest(b"a")[7:]).exists()
    assert listed(tmp_path)["names"] == "b"


def test_results_whose_layers_are_gone_are_left_out(tmp_path: Path) -> None:
    adopt(tmp_path, write(tmp_path, "a"))
    (tmp_path / "blobs/sha256" / sha256_digest(b"a")[7:]).unlink()
    adopt(tmp_path, write(tmp_path, "b"))
    assert listed(tmp_path)["names"] == "b"


def test_what_cannot_be_read_is_replaced_with_a_warning(tmp_path: Path) -> None:
    old, _ = adopt(tmp_path, write(tmp_path, "a"))
    (tmp_path / "blobs/sha256" / old.digest[7:]).write_bytes(b"{}")
    _, events = adopt(tmp_path, write(tmp_path, "b"))
    assert "is replaced, not merged" in events.warnings()[0]
    assert listed(tmp_path)["names"] == "b"


def test_a_manifest_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    written = write(tmp_path / "other", "a")
    _, events = adopt(tmp_path, written)
    assert "did not tell what cache it wrote" in events.warnings()[0]
    assert not (tmp_path / "index.json").exists()


def test_a_value_that_cannot_be_meant_is_refused_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max-results"):
        AdoptedCache({"dest": str(tmp_path), "max-results": "many"})


def test_a_tag_of_its_own_is_noted_in_the_manifest() -> None:
    plain = make_documents(CacheConfig(), ManifestStyle.from_attrs({"tag": "latest"}))
    assert plain == make_documents(CacheConfig(), ManifestStyle.from_attrs({}))
    tagged = make_documents(CacheConfig(), ManifestStyle.from_attrs({"tag": "x"}))
    assert json.loads(tagged.manifest_raw)["annotations"] == {"org.opencontainers.image.ref.name": "x"}
    assert tagged.config == plain.config
