"""SBOMs: a scanner image of our own, run as BuildKit runs scanners."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock import build as crossdock_build
from crossdock.errors import SolveError, StepFailed
from integration.attest.attestkit import SLSA_1, SPDX, Layout, build

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

#: writes a document that lists the files of the source and what it was told, one per extra source, in BuildKit's form
SCANNER = r"""#!/bin/sh
set -e
scan() {
  name=$(basename "$1")
  {
    printf '{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","name":"%s",' "$name"
    printf '"creationInfo":{"creators":["Tool: own"]},"comment":"%s","files":[' "$BUILDKIT_SCAN_greeting"
    separator=
    for path in $(cd "$1" && find . -type f | sort); do
      printf '%s{"fileName":"%s"}' "$separator" "${path#./}"
      separator=,
    done
    printf ']}'
  } > /tmp/document
  if [ "$name" = sbom ]; then
    cp /tmp/document "$BUILDKIT_SCAN_DESTINATION/$name.spdx.json"
  else
    { printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":null,'
      printf '"predicate":'; cat /tmp/document; printf '}'; } > "$BUILDKIT_SCAN_DESTINATION/$name.spdx.json"
  fi
}
if touch "$BUILDKIT_SCAN_SOURCE/written" 2>/dev/null; then exit 9; fi
scan "$BUILDKIT_SCAN_SOURCE"
if [ -n "$BUILDKIT_SCAN_SOURCE_EXTRAS" ]; then
  for extra in "$BUILDKIT_SCAN_SOURCE_EXTRAS"/*; do scan "$extra"; done
fi
"""


def make_scanner(folder: Path, base: BaseImages, name: str, script: str = SCANNER) -> str:
    """Build a scanner image and push it."""
    folder.mkdir()
    (folder / "scan").write_text(script)
    (folder / "scan").chmod(0o755)
    (folder / "Dockerfile").write_text(f'FROM {base.amd64}\nCOPY scan /scan\nENTRYPOINT ["/scan"]\n')
    crossdock_build(folder, tags=[name], push=True)
    return name


@pytest.fixture
def scanner(tmp_path: Path, base: BaseImages, repository: str) -> str:
    return make_scanner(tmp_path / "scanner", base, f"{repository}-scanner:1")


@pytest.fixture
def small(context: Path) -> Path:
    """A context whose image has three files in two layers."""
    (context / "Dockerfile").write_text(
        "ARG BUILDKIT_SBOM_SCAN_CONTEXT\n"
        "FROM scratch AS tools\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY file /tool\n"
        "FROM scratch\nCOPY file /first\nCOPY --from=tools /tool /bin/second\n"
    )
    return context


def names(document: dict[str, list[dict[str, str]]]) -> list[str]:
    return [file["fileName"] for file in document["files"]]


def test_a_scanner_is_run_over_the_result(small: Path, tmp_path: Path, scanner: str) -> None:
    layout = build(small, tmp_path / "out", f"type=sbom,generator={scanner},greeting=hello")
    core, extra = layout.statements()
    assert core["predicateType"] == extra["predicateType"] == SPDX
    digest = layout.images[0]["digest"].removeprefix("sha256:")
    assert core["subject"] == [{"name": "_", "digest": {"sha256": digest}}]
    document = core["predicate"]
    assert document["name"] == "sbom"
    assert document["comment"] == "hello"
    assert names(document) == ["bin/second", "first"]
    layers = [layer["digest"] for layer in layout.blob(layout.images[0])["layers"]]
    assert [file["comment"] for file in document["files"]] == [
        f"layerID: {layers[1]}",
        f"layerID: {layers[0]}",
    ]
    assert document["creationInfo"]["creators"][0] == "Tool: own"
    assert document["creationInfo"]["creators"][1].startswith("Tool: crossdock-")
    assert extra["predicate"]["name"] == "sbom-tools"
    assert names(extra["predicate"]) == ["tool"]


def test_the_context_is_scanned_on_request(small: Path, tmp_path: Path, scanner: str) -> None:
    text = (small / "Dockerfile").read_text()
    (small / "Dockerfile").write_text(text + "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n")
    layout = build(small, tmp_path / "out", f"type=sbom,generator={scanner}", "type=provenance,mode=min")
    statements = layout.statements()
    assert [s["predicateType"] for s in statements] == [SPDX, SPDX, SPDX, SLSA_1]
    assert [s["predicate"]["name"] for s in statements[:3]] == ["sbom", "sbom-context", "sbom-tools"]
    assert sorted(names(statements[1]["predicate"])) == ["Dockerfile", "file"]
    dependencies = statements[3]["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert len(dependencies) == 1, "the scanner"
    assert "scanner@1" in dependencies[0]["uri"]


def test_files_get_the_documents_too(small: Path, tmp_path: Path, scanner: str) -> None:
    dest = tmp_path / "files"
    crossdock_build(small, outputs=[str(dest)], attests=[f"type=sbom,generator={scanner}"])
    assert sorted(p.name for p in dest.iterdir()) == [
        "bin",
        "first",
        "sbom-tools.spdx.json",
        "sbom.spdx.json",
    ]
    statement = json.loads((dest / "sbom.spdx.json").read_bytes())
    assert [s["name"] for s in statement["subject"]] == ["bin/second", "first"]
    assert "comment" not in statement["predicate"]["files"][0]


def test_a_scan_is_cached_with_what_it_scanned(
    small: Path, tmp_path: Path, scanner: str, crossdock: Crossdock
) -> None:
    def run(name: str) -> str:
        output = f"type=oci,tar=false,dest={tmp_path / name}"
        sbom = f"--sbom=generator={scanner}"
        return crossdock("build", "--progress=plain", sbom, "-o", output, small).ok().err

    assert "generating sbom using" in run("one")
    second = run("two")
    assert "CACHED" in second.partition("generating sbom")[2]
    assert Layout(tmp_path / "one").top["digest"] == Layout(tmp_path / "two").top["digest"]


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("exit 3", StepFailed, "exit code: 3"),
        ("true", SolveError, "wrote no document"),
        ("echo text > $BUILDKIT_SCAN_DESTINATION/a.spdx.json", SolveError, "not JSON"),
        ("echo '{}' > $BUILDKIT_SCAN_DESTINATION/a.spdx.json", SolveError, "neither an SPDX document"),
        ("mkdir $BUILDKIT_SCAN_DESTINATION/folder", SolveError, "not a regular file"),
        ("ln -s /etc/passwd $BUILDKIT_SCAN_DESTINATION/link", SolveError, "not a regular file"),
        (
            "dd if=/dev/zero of=$BUILDKIT_SCAN_DESTINATION/a.spdx.json bs=1M count=41 2>/dev/null",
            SolveError,
            "exceeds 41943040 bytes",
        ),
        (
            """echo '{"predicateType":"https://slsa.dev/provenance/v1"}' > $BUILDKIT_SCAN_DESTINATION/a.json""",
            SolveError,
            "does not match required predicate type",
        ),
    ],
    ids=[
        "it fails",
        "it writes nothing",
        "text",
        "another document",
        "a directory",
        "a link",
        "too large",
        "provenance",
    ],
)
def test_a_scanner_that_misbehaves_fails_the_build(
    small: Path,
    tmp_path: Path,
    base: BaseImages,
    repository: str,
    script: str,
    error: type[Exception],
    message: str,
) -> None:
    name = make_scanner(tmp_path / "scanner", base, f"{repository}:1", f"#!/bin/sh\n{script}\n")
    with pytest.raises(error, match=message):
        build(small, tmp_path / "out", f"type=sbom,generator={name}")
    assert not (tmp_path / "out").exists()


def test_an_image_that_runs_nothing_is_no_scanner(small: Path, tmp_path: Path, repository: str) -> None:
    crossdock_build(small, tags=[f"{repository}:1"], push=True)
    with pytest.raises(SolveError, match="does not have cmd"):
        build(small, tmp_path / "out", f"type=sbom,generator={repository}:1")


def test_inspect_shows_the_documents(
    small: Path, scanner: str, repository: str, crossdock: Crossdock
) -> None:
    name = f"{repository}:1"
    crossdock_build(small, tags=[name], push=True, attests=[f"type=sbom,generator={scanner}"])
    shown = json.loads(crossdock("imagetools", "inspect", "--format", "{{json .SBOM}}", name).ok().out)
    assert shown["SPDX"]["name"] == "sbom"
    assert [document["name"] for document in shown["AdditionalSPDXs"]] == ["sbom-tools"]
