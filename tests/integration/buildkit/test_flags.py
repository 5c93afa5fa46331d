"""The flags of `build` on a BuildKit builder: what each changes in what comes out."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.relays import Relay
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


@pytest.fixture
def builder(relay: Callable[..., Relay], crossdock: Crossdock) -> Crossdock:
    """The command with a builder of the daemon in use."""
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relay().address).ok()
    return crossdock


def image_config(layout: Path) -> dict[str, object]:
    """The config of the only image in an OCI archive."""
    with tarfile.open(layout) as tar:

        def document(name: str) -> dict[str, list[dict[str, str]]]:
            found: dict[str, list[dict[str, str]]] = json.load(tar.extractfile(name) or pytest.fail(name))
            return found

        def blob(digest: str) -> str:
            return f"blobs/{digest.replace(':', '/')}"

        index = document("index.json")
        manifest = document(blob(index["manifests"][0]["digest"]))
        if "manifests" in manifest:
            manifest = document(blob(manifest["manifests"][0]["digest"]))
        return dict(document(blob(manifest["config"]["digest"])))  # type: ignore[call-overload]


def test_flags_that_reach_the_steps(
    builder: Crossdock, context: Path, base: BaseImages, tmp_path: Path
) -> None:
    (context / "Dockerfile").write_text(
        f"""\
FROM {base.amd64} AS first
ARG WORDS=none
RUN echo $WORDS > /words; ulimit -n > /files; df /dev/shm | tail -1 > /shm; cat /etc/hosts > /hosts
RUN --mount=type=secret,id=s,target=/s --mount=type=secret,id=env cp /s /secret; cat /run/secrets/env >> /secret
FROM scratch AS second
COPY --from=first /words /files /shm /hosts /secret /
COPY --from=other o /
FROM scratch
"""
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("named")
    (tmp_path / "secret").write_text("of a file,")
    out = tmp_path / "out"
    builder(
        "build", "--build-arg", "WORDS=some words", "--target", "second", "--network", "none",
        "--ulimit", "nofile=1000:2000", "--shm-size", "128m", "--add-host", "far:10.1.2.3",
        "--secret", f"id=s,src={tmp_path}/secret", "--secret", "id=env,env=HIDDEN", "--no-cache-filter", "first",
        "--build-context", f"other={other}", "-o", out, context, env={"HIDDEN": "of a variable"},
    ).ok()  # fmt: skip
    assert (out / "words").read_text() == "some words\n"
    assert (out / "files").read_text() == "1000\n"
    assert (out / "shm").read_text().split()[1] == "131072"
    assert "10.1.2.3\tfar" in (out / "hosts").read_text()
    assert (out / "secret").read_text() == "of a file,of a variable"
    assert (out / "o").read_text() == "named"


def test_flags_that_reach_the_image(builder: Crossdock, context: Path, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    iid, metadata = tmp_path / "iid", tmp_path / "metadata.json"
    builder(
        "build", "--label", "a=b", "--annotation", "c=d", "--provenance=false", "--iidfile", iid,
        "--metadata-file", metadata, "-t", "case/flags:1", "-o", f"type=oci,dest={archive}", context,
        env={"SOURCE_DATE_EPOCH": "1000000000"},
    ).ok()  # fmt: skip
    config = image_config(archive)
    assert config["config"]["Labels"] == {"a": "b"}  # type: ignore[index]
    assert config["created"] == "2001-09-09T01:46:40Z"
    answer = json.loads(metadata.read_text())
    assert iid.read_text() == answer["containerimage.config.digest"]
    assert answer["image.name"] == "docker.io/case/flags:1"
    with tarfile.open(archive) as tar:
        index = json.load(tar.extractfile("index.json") or pytest.fail("no index"))
        digest = index["manifests"][0]["digest"].replace(":", "/")
        manifest = json.load(tar.extractfile(f"blobs/{digest}") or pytest.fail(digest))
    assert manifest["annotations"] == {"c": "d"}


def test_entitlements_must_be_granted(builder: Crossdock, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN --network=host true\n")
    refused = builder("build", context).failed()
    assert "network.host" in refused.err


def feed(builder: Crossdock, data: bytes, *args: str | Path) -> None:
    done = subprocess.run(
        [str(PROGRAM), *map(str, args)], input=data, env=builder.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_on_standard_input_is_the_context(builder: Crossdock, tmp_path: Path, mode: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, text in (("Dockerfile", "FROM scratch\nCOPY file /got\n"), ("file", mode * 50_000)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    feed(builder, packed.getvalue(), "build", "-o", tmp_path / "out", "-")
    assert (tmp_path / "out/got").read_text() == mode * 50_000


def test_a_dockerfile_on_standard_input(builder: Crossdock, context: Path, tmp_path: Path) -> None:
    feed(builder, b"FROM scratch\nCOPY a /b\n", "build", "-f", "-", "-o", tmp_path / "out", context)
    assert (tmp_path / "out/b").read_text() == "hello"
    feed(builder, b"FROM scratch\nCOPY <<E /c\nalone\nE\n", "build", "-o", tmp_path / "two", "-")
    assert (tmp_path / "two/c").read_text() == "alone\n"


def test_several_outputs_at_once(builder: Crossdock, context: Path, tmp_path: Path, repository: str) -> None:
    outputs = (
        f"type=local,dest={tmp_path}/files",
        f"type=tar,dest={tmp_path}/files.tar",
        f"type=oci,dest={tmp_path}/layout,tar=false",
        f"type=image,name={repository}:1,push=true",
    )
    ran = builder("build", *(part for o in outputs for part in ("-o", o)), context)
    if ran.code != 0:  # BuildKit 0.12, in Engine 26.1
        assert "too old for 4 outputs" in ran.err
        return
    assert (tmp_path / "files/a").read_text() == "hello"
    with tarfile.open(tmp_path / "files.tar") as tar:
        assert "a" in {name.removeprefix("./") for name in tar.getnames()}
    assert json.loads((tmp_path / "layout/index.json").read_text())["manifests"]


def images_of(engine: services.DockerEngine) -> set[str]:
    found = json.loads(engine.request("GET", "/images/json"))
    return {tag for image in found for tag in image["RepoTags"] or ()}


@pytest.mark.parametrize("store", ["docker_engine_26", "docker_engine_containerd"])
def test_images_are_loaded_into_the_engine_of_the_context(
    builder: Crossdock, context: Path, store: str, request: pytest.FixtureRequest,
    docker_engine_26: services.DockerEngine, docker_engine_containerd: services.DockerEngine,
) -> None:  # fmt: skip
    """A store in containerd takes several platforms; the classic one says that it does not."""
    del docker_engine_26, docker_engine_containerd  # started before the case
    engine: services.DockerEngine = request.getfixturevalue(store)
    builder.environment["DOCKER_HOST"] = engine.address
    tag = f"case/loaded-{store.replace('_', '-')}:1"
    ran = builder("build", "--load", "--progress=plain", "-t", tag, context).ok()
    assert "importing to docker" in ran.err
    assert tag in images_of(engine)
    several = builder("build", "--load", "--platform", "linux/amd64,linux/arm64", "-t", f"{tag}-two", context)
    if store == "docker_engine_26":
        assert "holds one platform of an image" in several.failed(1).err
    else:
        several.ok()
        assert f"{tag}-two" in images_of(engine)
