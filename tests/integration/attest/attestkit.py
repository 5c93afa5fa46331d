"""Layouts with attestations, read with every digest checked."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import crossdock

if TYPE_CHECKING:
    from pathlib import Path

SLSA_1 = "https://slsa.dev/provenance/v1"
SLSA_02 = "https://slsa.dev/provenance/v0.2"
SPDX = "https://spdx.dev/Document"


class Layout:
    """An OCI layout that was written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        entries = json.loads((root / "index.json").read_bytes())["manifests"]
        self.top = entries[0]
        self.index = self.blob(self.top)

    def blob(self, descriptor: dict[str, Any]) -> Any:
        """Read a document, and check its digest and size."""
        data = (self.root / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        assert descriptor["size"] == len(data)
        return json.loads(data)

    @property
    def images(self) -> list[dict[str, Any]]:
        """Entries of images."""
        return [m for m in self.index["manifests"] if m["platform"]["os"] != "unknown"]

    @property
    def attested(self) -> list[dict[str, Any]]:
        """Entries of attestation manifests."""
        return [m for m in self.index["manifests"] if m["platform"]["os"] == "unknown"]

    def statements(self, number: int = 0) -> list[Any]:
        """The statements about one platform."""
        manifest = self.blob(self.attested[number])
        for layer in manifest["layers"]:
            assert layer["mediaType"] == "application/vnd.in-toto+json"
            predicate = self.blob(layer)["predicateType"]
            assert layer["annotations"] == {"in-toto.io/predicate-type": predicate}
        return [self.blob(layer) for layer in manifest["layers"]]


def build(context: Path, dest: Path, *attests: str, output: str = "", **options: Any) -> Layout:
    """Build into a layout."""
    crossdock.build(context, outputs=[f"type=oci,tar=false,dest={dest}{output}"], attests=attests, **options)
    return Layout(dest)
