"""Provenance of embedded builds: what goes into indexes, archives and directories, and what real tools read of it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from crossdock import build as crossdock_build
from crossdock.errors import ExportError, SolveError, UsageError
from integration.attest.attestkit import SLSA_02, SLSA_1, Layout, build
from integration.dockerfile.origins import make_repository
from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


def test_nothing_is_attested_unless_asked_for(context: Path, tmp_path: Path) -> None:
    layout = build(context, tmp_path / "out")
    assert "manifests" not in layout.index
    off = build(context, tmp_path / "off", "type=provenance,disabled=true")
    assert off.top["digest"] == layout.top["digest"]


def test_an_image_with_provenance_becomes_an_index(context: Path, tmp_path: Path) -> None:
    plain = build(context, tmp_path / "plain")
    layout = build(context, tmp_path / "out", "type=provenance,mode=min", tags=["example.org/app:1"])
    assert layout.top["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (image,), (attested,) = layout.images, layout.attested
    assert image["digest"] == plain.top["digest"], "the image is the same with and without"
    assert attested["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    }
    assert attested["platform"] == {"architecture": "unknown", "os": "unknown"}
    manifest = layout.blob(attested)
    assert list(manifest) == ["schemaVersion", "mediaType", "artifactType", "config", "layers", "subject"]
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["subject"] == {k: image[k] for k in ("mediaType", "digest", "size")}
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["config"]["data"] == "e30="
    assert layout.blob(manifest["config"]) == {}
    (statement,) = layout.statements()
    assert list(statement) == ["_type", "predicateType", "subject", "predicate"]
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == SLSA_1
    assert statement["subject"] == [
        {
            "name": "pkg:docker/example.org/app@1?platform=linux%2Famd64",
            "digest": {"sha256": image["digest"].removeprefix("sha256:")},
        }
    ]


def test_the_older_form_lists_statements_as_layers_of_an_image(context: Path, tmp_path: Path) -> None:
    layout = build(context, tmp_path / "out", "type=provenance", output=",oci-artifact=false")
    manifest = layout.blob(layout.attested[0])
    assert "artifactType" not in manifest
    assert "subject" not in manifest
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert layout.blob(manifest["config"]) == {
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in manifest["layers"]]},
    }


def test_min_tells_what_it_was_made_of_and_no_values(context: Path, tmp_path: Path, base: BaseImages) -> None:
    layout = build(
        context,
        tmp_path / "out",
        "type=provenance,mode=min,builder-id=https://ci.example.org/1,reproducible=true",
        build_args={"COLOUR": "ultraviolet"},
        labels={"owner": "somebody"},
    )
    (statement,) = layout.statements()
    text = json.dumps(statement)
    assert "ultraviolet" not in text
    assert "somebody" not in text
    assert '"token"' not in text
    predicate = statement["predicate"]
    name, _, tag = base.amd64.partition("/")[2].rpartition(":")
    host = base.amd64.partition("/")[0].replace(":", "%3A")
    (dependency,) = predicate["buildDefinition"]["resolvedDependencies"]
    assert dependency["uri"] == f"pkg:docker/{host}/{name}@{tag}?platform=linux%2Famd64"
    assert re.fullmatch("[0-9a-f]{64}", dependency["digest"]["sha256"])
    external = predicate["buildDefinition"]["externalParameters"]
    assert external == {
        "configSource": {"path": "Dockerfile"},
        "request": {
            "frontend": "dockerfile.v0",
            "locals": [{"name": "context"}, {"name": "dockerfile"}],
        },
    }
    run = predicate["runDetails"]
    assert run["builder"]["id"] == "https://ci.example.org/1"
    metadata = run["metadata"]
    assert re.fullmatch("[0-9a-z]{25}", metadata["invocationId"])
    assert metadata["startedOn"] < metadata["finishedOn"]
    assert metadata["buildkit_completeness"] == {"request": False, "resolvedDependencies": False}
    assert metadata["buildkit_reproducible"] is True
    assert metadata["buildkit_metadata"] == {}
    assert "buildkit_hermetic" not in metadata


def test_max_tells_of_every_step_and_its_place_and_layers(context: Path, tmp_path: Path) -> None:
    layout = build(
        context,
        tmp_path / "out",
        "type=provenance",
        build_args={"COLOUR": "red"},
        secrets=["id=token,env=HOME"],
    )
    (statement,) = layout.statements()
    predicate = statement["predicate"]
    request = predicate["buildDefinition"]["externalParameters"]["request"]
    assert request["args"] == {"build-arg:COLOUR": "red"}
    assert request["secrets"] == [{"id": "token", "optional": True}]
    config = predicate["buildDefinition"]["internalParameters"]["buildConfig"]
    steps = config["llbDefinition"]
    assert [step["id"] for step in steps] == [f"step{n}" for n in range(len(steps))]
    kinds = [next(iter(step["op"]["Op"]), "") for step in steps]
    assert sorted(kinds) == ["", "exec", "file", "source", "source"]
    assert kinds[-1] == ""
    run = steps[kinds.index("exec")]
    assert run["op"]["Op"]["exec"]["meta"]["args"][-1] == "echo $COLOUR > /colour"
    assert run["op"]["platform"] == {"Architecture": "amd64", "OS": "linux"}
    assert set(config["digestMapping"].values()) == {step["id"] for step in steps}
    metadata = predicate["runDetails"]["metadata"]["buildkit_metadata"]
    (info,) = metadata["source"]["infos"]
    assert info["filename"] == "Dockerfile"
    where = metadata["source"]["locations"][run["id"]]
    assert where["locations"][0]["ranges"][0]["start"]["line"] == 4
    manifest = layout.blob(layout.images[0])
    plain = [{k: layer[k] for k in ("mediaType", "digest", "size")} for layer in manifest["layers"]]
    assert metadata["layers"][f"{run['id']}:0"] == [plain]
    base_step = steps[kinds.index("source")]["id"] if kinds[0] == "source" else ""
    assert any(chain == [plain[:1]] for chain in metadata["layers"].values()), base_step


def test_version_02_has_the_same_content(context: Path, tmp_path: Path) -> None:
    layout = build(context, tmp_path / "out", "type=provenance,version=v0.2", build_args={"COLOUR": "red"})
    (statement,) = layout.statements()
    assert statement["predicateType"] == SLSA_02
    predicate = statement["predicate"]
    assert predicate["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert predicate["builder"] == {"id": ""}
    assert len(predicate["materials"]) == 1
    invocation = predicate["invocation"]
    assert invocation["configSource"] == {"entryPoint": "Dockerfile"}
    assert invocation["parameters"]["args"] == {"build-arg:COLOUR": "red"}
    assert invocation["environment"] == {"platform": "linux/amd64"}
    assert predicate["buildConfig"]["llbDefinition"]
    metadata = predicate["metadata"]
    assert metadata["completeness"] == {"parameters": True, "environment": True, "materials": False}
    assert metadata["reproducible"] is False
    assert "layers" in metadata["https://mobyproject.org/buildkit@v1#metadata"]
    assert metadata["buildFinishedOn"] > metadata["buildStartedOn"]


def test_a_build_argument_asks_for_provenance(context: Path, tmp_path: Path) -> None:
    arguments = {"BUILDKIT_ATTEST_PROVENANCE": "mode=min"}
    layout = build(context, tmp_path / "out", build_args=arguments)
    assert len(layout.attested) == 1
    off = build(context, tmp_path / "off", "type=provenance,disabled=true", build_args=arguments)
    assert "manifests" not in off.index


def test_inline_only_is_for_images(context: Path, tmp_path: Path, repository: str) -> None:
    attests = ("type=provenance,mode=min,inline-only=true",)
    assert "manifests" not in build(context, tmp_path / "out", *attests).index
    forced = build(context, tmp_path / "forced", *attests, output=",attestation-inline=true")
    assert len(forced.attested) == 1
    result = crossdock_build(context, tags=[f"{repository}:1"], push=True, attests=attests)
    assert result.index is not None
    files = tmp_path / "files"
    crossdock_build(context, outputs=[f"type=local,dest={files}"], attests=attests)
    assert not (files / "provenance.json").exists()


def test_files_come_with_statements_about_each(context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY file /folder/\nCOPY file /\n")
    dest, archive = tmp_path / "files", tmp_path / "files.tar"
    crossdock_build(
        context,
        outputs=[f"type=local,dest={dest},attestation-prefix=my-", f"type=tar,dest={archive}"],
        attests=["type=provenance,mode=min"],
    )
    statement = json.loads((dest / "my-provenance.json").read_bytes())
    digest = hashlib.sha256(b"x").hexdigest()
    subjects = [{"name": name, "digest": {"sha256": digest}} for name in ("file", "folder/file")]
    assert statement["subject"] == subjects
    assert statement["predicateType"] == SLSA_1
    assert (dest / "my-provenance.json").stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["file", "folder", "folder/file", "provenance.json"]
        member = tar.extractfile("provenance.json")
        assert member is not None
        assert json.load(member)["subject"] == subjects


@pytest.mark.needs("qemu", "binfmt")
def test_every_platform_has_its_own(context: Path, tmp_path: Path, base: BaseImages, repository: str) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.index}\nCOPY file /\n")
    platforms = ["linux/amd64", "linux/arm64"]
    layout = build(context, tmp_path / "out", "type=provenance,mode=min", platforms=platforms)
    assert [m["platform"]["architecture"] for m in layout.index["manifests"]] == [
        "amd64",
        "arm64",
        "unknown",
        "unknown",
    ]
    for number, (image, name) in enumerate(zip(layout.images, ("amd64", "arm64"), strict=True)):
        (statement,) = layout.statements(number)
        assert layout.attested[number]["annotations"]["vnd.docker.reference.digest"] == image["digest"]
        (dependency,) = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert dependency["uri"].endswith(f"?platform=linux%2F{name}")
    files = tmp_path / "files"
    result = crossdock_build(
        context,
        outputs=[
            f"type=local,dest={files},platform-split=false",
            f"type=image,push=true,name={repository}:1",
        ],
        attests=["type=provenance,mode=min"],
        platforms=platforms,
        dockerfile=b"FROM scratch\nARG TARGETARCH\nCOPY file /file-$TARGETARCH\n",
    )
    assert sorted(p.name for p in files.iterdir()) == [
        "file-amd64",
        "file-arm64",
        "provenance.linux_amd64.json",
        "provenance.linux_arm64.json",
    ]
    for name in platforms:
        assert result.metadata[f"buildx.build.provenance/{name}"]["invocation"]


def test_a_context_in_a_work_tree_tells_of_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *args],
            cwd=work,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    git("remote", "add", "origin", "https://user:hunter2@example.org/team/app.git")
    layout = build(work, tmp_path / "out", "type=provenance")
    (statement,) = layout.statements()
    metadata = statement["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]
    assert metadata["vcs"] == {
        "localdir:context": ".",
        "localdir:dockerfile": ".",
        "revision": commit,
        "source": "https://xxxxx:xxxxx@example.org/team/app.git",
    }
    assert "hunter2" not in json.dumps(layout.statements())


def test_what_has_no_digest_fails_a_build_that_wants_all(context: Path, tmp_path: Path) -> None:
    with pytest.raises(SolveError, match="materials are incomplete"):
        build(context, tmp_path / "out", "type=provenance,complete-materials=true")


def test_outputs_that_cannot_hold_attestations_are_refused(context: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="docker exporter does not currently support exporting attestations"
    ):
        crossdock_build(context, outputs=[f"type=docker,dest={tmp_path}/x.tar"], attests=["type=provenance"])
    with pytest.raises(UsageError, match='cannot export attestations with "oci-mediatypes=false"'):
        build(context, tmp_path / "out", "type=provenance", output=",oci-mediatypes=false")


@pytest.mark.needs("skopeo")
def test_real_tools_read_what_was_pushed(
    context: Path, tmp_path: Path, repository: str, crossdock: Crossdock
) -> None:
    metadata_file = tmp_path / "metadata.json"
    name = f"{repository}:1"
    crossdock(
        "build", "--push", "-t", name, "--provenance=max", "--metadata-file", metadata_file, context
    ).ok()
    raw = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout)
    (image,) = [m for m in raw["manifests"] if m["platform"]["os"] == "linux"]
    copy = tmp_path / "copy"
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"oci:{copy}:x")
    attested = [m for m in raw["manifests"] if m["platform"]["os"] == "unknown"]
    assert (copy / "blobs" / attested[0]["digest"].replace(":", "/")).exists()
    config = json.loads(skopeo("inspect", "--config", "--tls-verify=false", f"docker://{name}").stdout)
    assert config["architecture"] == "amd64"
    metadata = json.loads(metadata_file.read_text())
    provenance: dict[str, Any] = metadata["buildx.build.provenance"]
    assert provenance["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert "metadata" not in provenance
    shown = crossdock("imagetools", "inspect", "--format", "{{json .Provenance}}", name).ok()
    slsa = json.loads(shown.out)["SLSA"]
    assert slsa["buildDefinition"]["internalParameters"]["buildConfig"]
    field = crossdock(
        "imagetools", "inspect", "--format", "{{.Provenance.SLSA.runDetails.metadata.invocationId}}", name
    )
    assert field.out.strip() == slsa["runDetails"]["metadata"]["invocationId"]
    nothing = crossdock("imagetools", "inspect", "--format", "{{json .SBOM}}", name)
    assert json.loads(nothing.out) == {}
    assert image["digest"] in raw["manifests"][1]["annotations"].values()


def test_only_the_run_itself_differs_between_equal_builds(context: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "build_args": {"SOURCE_DATE_EPOCH": "1700000000"},
        "tags": ["example.org/app:1"],
    }
    one = build(context, tmp_path / "one", "type=provenance,reproducible=true", **options)
    two = build(context, tmp_path / "two", "type=provenance,reproducible=true", no_cache=True, **options)
    assert one.images == two.images
    assert one.attested[0]["digest"] != two.attested[0]["digest"]
    (first,), (second,) = one.statements(), two.statements()
    for statement in (first, second):
        metadata = statement["predicate"]["runDetails"]["metadata"]
        for key in ("invocationId", "startedOn", "finishedOn"):
            del metadata[key]
        # Ignoring the cache is part of the request.
        statement["predicate"]["buildDefinition"]["externalParameters"]["request"]["args"].pop(
            "no-cache", None
        )
    assert first == second


def test_remote_contexts_and_downloads_are_materials(
    tmp_path: Path, served: tuple[Path, str], crossdock: Crossdock
) -> None:
    www, url = served
    (www / "data").write_text("downloaded")
    text = f"FROM scratch\nADD {url}/data /\nCOPY top /\n"
    commit = make_repository(tmp_path / "repo", {"Dockerfile": text, "top": "1"}, www / "r.git")
    context, archive = f"{url}/r.git#main", tmp_path / "out"
    provenance = "type=provenance,mode=min,complete-materials=true"
    crossdock("build", f"--attest={provenance}", "-o", f"type=oci,tar=false,dest={archive}", context).ok()
    (statement,) = Layout(archive).statements()
    definition = statement["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"] == [
        {"uri": context, "digest": {"sha1": commit}},
        {"uri": f"{url}/data", "digest": {"sha256": hashlib.sha256(b"downloaded").hexdigest()}},
    ]
    assert definition["externalParameters"]["configSource"] == {
        "uri": context,
        "digest": {"sha1": commit},
        "path": "Dockerfile",
    }
    metadata = statement["predicate"]["runDetails"]["metadata"]
    assert metadata["buildkit_completeness"] == {"request": True, "resolvedDependencies": True}
    assert metadata["buildkit_hermetic"] is True, "no step ran"


def test_the_metadata_file_has_it_without_the_image(
    context: Path, tmp_path: Path, crossdock: Crossdock
) -> None:
    def metadata(**env: str) -> dict[str, Any]:
        path = tmp_path / "metadata.json"
        output = f"type=oci,tar=false,dest={tmp_path}/out"
        crossdock("build", "--metadata-file", path, "-o", output, context, env=env).ok()
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    assert "buildx.build.provenance" not in metadata()
    found = metadata(BUILDX_METADATA_PROVENANCE="max")
    assert found["containerimage.descriptor"]["mediaType"].endswith("manifest.v1+json")
    provenance = found["buildx.build.provenance"]
    assert provenance["buildConfig"]["llbDefinition"]
    assert provenance["metadata"]["buildInvocationID"]
    crossdock("build", context, env={"BUILDX_METADATA_PROVENANCE": "sometimes"}).failed(1)
