"""Images that other tools read: skopeo, umoci, registries, Docker Engines."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from support.httprelay import HttpRelay
from support.servers import skopeo, umoci

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import services
    from support.servers import BaseImages

    Build = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.needs("base", "userns", "crun")

TWO_PLATFORMS = """
def two(engine):
    shared = files(FileActionMkFile(path="/shared", data=b"both"), onto=base())
    outs = [files(FileActionMkFile(path="/arch", data=arch.encode()), onto=shared) for arch in ("amd64", "arm64")]
    refs = solve(engine, *outs)
    return [image(f"linux/{arch}", ref, env=["A=" + arch]) for arch, ref in zip(("amd64", "arm64"), refs)]
"""


def raw(reference: str) -> Any:
    return json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{reference}").stdout)


@pytest.mark.needs("registry", "skopeo")
def test_a_pushed_index_is_what_skopeo_reads(build: Build, repository: str) -> None:
    said = build(
        TWO_PLATFORMS
        + """
with registry_engine() as engine:
    built = two(engine)
    sink = Sink()
    first = export(engine, built, ("registry", {"name": f"{name}:1,{name}:2"}), sink=sink)
    stages = list(dict.fromkeys(e.id for e in sink.of("VertexStatus")))
    say(first=first.merged, stages=stages, vertices=[e.name for e in sink.of("Vertex")])
    again = export(engine, built, ("image", {"name": f"{name}:1", "push": "true"}))
    say(again=again.merged)
""",
        name=repository,
    )
    digest = said["first"]["containerimage.digest"]
    assert said["again"]["containerimage.digest"] == digest
    assert said["vertices"] == ["exporting to image"] * 2
    assert "exporting layers" in said["stages"]
    assert "pushing layers" in said["stages"]
    assert f"pushing manifest for {repository}:2@{digest}" in said["stages"]
    index = raw(f"{repository}:1")
    assert index == raw(f"{repository}:2")
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        shown = json.loads(
            skopeo(
                "inspect",
                "--tls-verify=false",
                f"--override-arch={architecture}",
                f"docker://{repository}:1",
            ).stdout
        )
        assert shown["Digest"] == digest
        assert shown["Architecture"] == architecture
        assert shown["Env"] == [f"A={architecture}"]


@pytest.mark.needs("registry")
def test_a_second_push_asks_one_question(build: Build, fresh_registry: services.Registry) -> None:
    body = (
        TWO_PLATFORMS
        + """
with registry_engine() as engine:
    say(digest=export(engine, two(engine), ("registry", {"name": name})).merged["containerimage.digest"])
"""
    )
    name = f"{fresh_registry.host}/app:1"
    first = build(body, name=name)
    before = fresh_registry.log.read_text().count('"http.request.method"')
    before = before or fresh_registry.log.read_text().count("http.request.method=")
    assert before > 4
    assert build(body, name=name) == first
    text = fresh_registry.log.read_text()
    after = text.count('"http.request.method"') or text.count("http.request.method=")
    assert after - before <= 4  # one request; the registry writes a line or two for each


NEW = """
import os
with registry_engine() as engine:
    content = FileActionMkFile(path="/new", data=os.urandom(int(size)))
    (ref,) = solve(engine, files(content, onto=base()))
    made = image("linux/amd64", ref)
    dates = {"source-date-epoch": output_epoch} if output_epoch else {}
    first = export(engine, [made], ("registry", {"name": name, **dates}), epoch_s=int(epoch) if epoch else None)
    say(digest=first.merged["containerimage.digest"])
"""


def requests(relay: HttpRelay) -> list[str]:
    return [f"{seen.method} {seen.path.partition('?')[0].split('/')[-2]}" for seen in relay.seen]


@pytest.mark.needs("registry", "skopeo")
def test_nobody_is_asked_for_what_is_small_and_was_just_made(
    build: Build, registry: services.Registry, repository: str
) -> None:
    relay = HttpRelay(registry.host)
    try:
        path = repository.partition("/")[2]
        build(NEW, name=f"{relay.host}/{path}:1", size=10, epoch="", output_epoch="")
        small = requests(relay)
        relay.seen.clear()
        build(NEW, name=f"{relay.host}/{path}:2", size=100_000, epoch="", output_epoch="")
        large = requests(relay)
        relay.seen.clear()
        build(NEW, name=f"{relay.host}/{path}:3", size=10, epoch="7", output_epoch="")
        dated = requests(relay)
        relay.seen.clear()
        build(NEW, name=f"{relay.host}/{path}:4", size=10, epoch="", output_epoch="7")
        dated_by_output = requests(relay)
    finally:
        relay.close()
    layers = [len(raw(f"{repository}:{tag}")["layers"]) for tag in "123"]
    assert layers == [layers[0]] * 3
    assert "HEAD manifests" not in small
    assert small.count("HEAD blobs") == 1, "the base is large; what is upon it and the config are small"
    assert "HEAD manifests" not in large
    assert large.count("HEAD blobs") == layers[1], (
        "all but the config: the new layer is large, others were there"
    )
    assert dated_by_output[0] == "HEAD manifests"
    assert dated[0] == "HEAD manifests", "another machine may have pushed the same image"


@pytest.mark.needs("registry", "skopeo")
def test_a_base_image_is_mounted_in_the_registry_not_downloaded(
    build: Build, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    said = build(
        """
with registry_engine() as engine:
    source = Output(Node(SourceOp("docker-image://" + origin, {}), metadata=named("FROM")))
    below, above = solve(engine, source, files(FileActionMkFile(path="/made", data=b"here")))
    built = image(str(engine.platform), below)._replace(ref=below.layers + above.layers)
    export(engine, [built], ("registry", {"name": name}))
    blobs = [b.descriptor.digest for layer in built.ref for b in engine.store.layers.blobs(layer)]
    say(stored=[engine.store.content.has(b) for b in blobs], blobs=blobs)
    export(engine, [built], ("oci", {"dest": dest}))
    say(fetched=[engine.store.content.has(b) for b in blobs])
""",
        origin=base.amd64,
        name=repository,
        dest=tmp_path / "out.tar",
    )
    assert said["stored"] == [False, True]
    assert said["fetched"] == [True, True]
    manifest = raw(repository)
    assert [layer["digest"] for layer in manifest["layers"]] == said["blobs"]


@pytest.mark.needs("registry")
def test_a_registry_that_refuses_is_named(build: Build, registry_auth: services.Registry) -> None:
    said = build(
        TWO_PLATFORMS
        + """
with registry_engine() as engine:
    built = two(engine)
    for key, target in (("auth", name), ("down", "127.0.0.1:1/app:1")):
        say(**{key: failed(lambda: export(engine, built, ("registry", {"name": target})))})
""",
        name=f"{registry_auth.host}/app:1",
    )
    assert said["auth"]["kind"] == "AuthError"
    assert said["auth"]["summary"].startswith(f"failed to push {registry_auth.host}/app:1: ")
    assert said["down"]["kind"] == "RegistryError"
    assert said["down"]["summary"].startswith("failed to push 127.0.0.1:1/app:1: ")


CHANGES = """
def changed():
    out = run(base(), "mkdir -p /keep /opaque/sub; echo 1 > /keep/f; echo 1 > /opaque/sub/f; echo 1 > /gone")
    out = run(out, "rm /gone; rm -r /opaque; mkdir /opaque; echo 2 > /opaque/new; ln /keep/f /keep/g; ln -s f /keep/l;"
        " chown 5:6 /keep/g; chmod 4755 /keep/f")
    return run(out, "rm -r /opaque/new", name="last")
"""


def tree(root: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = stat.filemode(os.lstat(path).st_mode)
    return found


@pytest.mark.needs("umoci", "skopeo")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_a_layout_unpacks_to_the_files_of_the_local_output(
    build: Build, tmp_path: Path, compression: str
) -> None:
    layout, files = tmp_path / "layout", tmp_path / "files"
    build(
        CHANGES
        + """
with open_engine() as engine:
    (ref,) = solve(engine, changed())
    built = [image(str(engine.platform), ref)]
    export(engine, built,
        ("oci", {"dest": layout_dir, "tar": "false", "name": "app:1", "compression": compression}),
        ("local", {"dest": files_dir}))
""",
        layout_dir=layout,
        files_dir=files,
        compression=compression,
    )
    assert not (files / "gone").exists()
    assert os.listdir(files / "opaque") == []
    assert os.readlink(files / "keep/l") == "f"
    assert (files / "keep/f").stat().st_nlink == 2
    assert (files / "keep/f").stat().st_uid == os.getuid()
    assert stat.filemode((files / "keep/f").stat().st_mode) == "-rwsr-xr-x"
    if compression == "zstd":  # umoci 0.4 reads none: skopeo decompresses it
        skopeo("copy", "--dest-decompress", f"oci:{layout}:1", f"dir:{tmp_path}/plain")
        skopeo("copy", f"dir:{tmp_path}/plain", f"oci:{layout}:gz")
    tag = "gz" if compression == "zstd" else "1"
    bundle = tmp_path / "bundle"
    rootless = () if os.geteuid() == 0 else ("--rootless",)
    umoci("unpack", *rootless, "--image", f"{layout}:{tag}", bundle)
    assert tree(bundle / "rootfs") == tree(files)
    assert (bundle / "rootfs/keep/f").read_text() == "1\n"
    if os.geteuid() == 0:
        status = (bundle / "rootfs/keep/f").stat()
        assert (status.st_uid, status.st_gid) == (5, 6)


@pytest.mark.needs("skopeo")
def test_an_oci_archive_of_several_platforms(build: Build, tmp_path: Path) -> None:
    dest = tmp_path / "out.tar"
    said = build(
        TWO_PLATFORMS
        + """
with open_engine() as engine:
    say(**export(engine, two(engine), ("oci", {"dest": dest, "name": "app:1"})).merged)
""",
        dest=dest,
    )
    shown = json.loads(skopeo("inspect", "--raw", f"oci-archive:{dest}:1").stdout)
    assert [m["platform"]["architecture"] for m in shown["manifests"]] == ["amd64", "arm64"]
    inspected = skopeo("inspect", "--override-arch=arm64", f"oci-archive:{dest}:1").stdout
    assert json.loads(inspected)["Env"] == ["A=arm64"]
    assert said["containerimage.descriptor"]["mediaType"] == "application/vnd.oci.image.index.v1+json"


def test_archives_of_two_stores_are_equal_with_an_epoch(build: Build, tmp_path: Path, worker: Any) -> None:
    body = (
        CHANGES
        + """
with open_engine() as engine:
    (ref,) = solve(engine, changed())
    built = [image(str(engine.platform), ref, steps=3)]
    attrs = {"dest": dest, "rewrite-timestamp": "true"}
    say(**export(engine, built, ("oci", attrs), epoch_s=1_500_000_000).merged)
"""
    )
    archives = []
    for number in range(2):
        worker.store = tmp_path / f"store{number}"
        dest = tmp_path / f"{number}.tar"
        build(body, dest=dest)
        archives.append(dest.read_bytes())
    assert archives[0] == archives[1]


@pytest.mark.needs("docker")
def test_docker_load_and_run(build: Build, docker_engine: services.DockerEngine, tmp_path: Path) -> None:
    dest = tmp_path / "app.tar"
    said = build(
        CHANGES
        + """
with open_engine() as engine:
    (ref,) = solve(engine, changed())
    built = [image(str(engine.platform), ref, cmd=["/bin/sh", "-c", "ls /keep"], env=["PATH=/bin"])]
    say(**export(engine, built, ("docker", {"dest": dest, "name": "exported:1"})).merged)
""",
        dest=dest,
    )
    answer = docker_engine.request("POST", "/images/load?quiet=1", dest.read_bytes())
    assert b"Loaded image: exported:1" in answer
    shown = json.loads(docker_engine.request("GET", "/images/exported:1/json"))
    assert shown["Id"] == said["containerimage.config.digest"]
    settings = {"Image": "exported:1", "HostConfig": {"NetworkMode": "none"}}
    headers = {"Content-Type": "application/json"}
    made = docker_engine.request("POST", "/containers/create", json.dumps(settings).encode(), headers)
    container = json.loads(made)["Id"]
    try:
        docker_engine.request("POST", f"/containers/{container}/start")
        ended = json.loads(docker_engine.request("POST", f"/containers/{container}/wait"))
        logs = docker_engine.request("GET", f"/containers/{container}/logs?stdout=1&stderr=1")
        assert (ended["StatusCode"], logs.count(b"\n")) == (0, 3), logs
    finally:
        docker_engine.request("DELETE", f"/containers/{container}?force=1")


@pytest.mark.needs("docker26")
def test_an_engine_with_the_containerd_store_loads_several_platforms(
    build: Build, docker_engine_containerd: services.DockerEngine, tmp_path: Path
) -> None:
    dest = tmp_path / "app.tar"
    said = build(
        TWO_PLATFORMS
        + """
with open_engine() as engine:
    say(**export(engine, two(engine), ("oci", {"dest": dest, "name": "exported:multi"})).merged)
""",
        dest=dest,
    )
    docker_engine_containerd.request("POST", "/images/load?quiet=1", dest.read_bytes())
    name = quote("exported:multi", safe="")
    shown = json.loads(docker_engine_containerd.request("GET", f"/images/{name}/json"))
    assert shown["Id"] == said["containerimage.digest"]


@pytest.mark.needs("subids")
def test_a_tarball_keeps_owners_of_the_namespace(build: Build, tmp_path: Path) -> None:
    dest = tmp_path / "files.tar"
    build(
        CHANGES
        + """
with open_engine() as engine:
    (ref,) = solve(engine, changed())
    export(engine, [image(str(engine.platform), ref)], ("tar", {"dest": dest}))
""",
        dest=dest,
    )
    with tarfile.open(dest) as archive:
        found = {m.name: (m.uid, m.gid, m.type) for m in archive}
    assert "gone" not in found
    assert found["keep/f"][:2] == (5, 6)
    assert found["keep/g"] == (5, 6, tarfile.LNKTYPE)


@pytest.mark.needs("docker26")
def test_the_bytes_are_those_of_buildkit(
    build: Build, docker_engine_containerd: services.DockerEngine, tmp_path: Path
) -> None:
    """The same files, config and epoch give the same layer, config and manifest digests as a real BuildKit."""
    context = tmp_path / "context"
    tree_of = context / "t"
    deep = tree_of / "/".join(["d" * 40] * 6)
    deep.mkdir(parents=True)
    for name in ("a", "a.b", "a-b", "é", "n" * 120):
        (tree_of / name).write_text(name)
    (deep / "file").write_bytes(bytes(3000))
    (tree_of / "a").chmod(0o4755)
    (tree_of / "link").symlink_to("x" * 140)
    os.link(tree_of / "a", tree_of / "z")
    for folder, folders, names in os.walk(tree_of, topdown=False):
        for name in [*folders, *names]:
            stamp = (10**18, 1_400_000_000_987_654_321)
            os.utime(os.path.join(folder, name), ns=stamp, follow_symlinks=False)
    os.utime(tree_of, (1_400_000_000, 1_400_000_000))
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY t /\nLABEL l="<&>"\nENV B=c\nCMD ["sh", "-c", "a && b"]\nVOLUME /v\n'
    )
    theirs, ours = tmp_path / "theirs.tar", tmp_path / "ours.tar"
    _buildx(docker_engine_containerd, context, tmp_path, f"type=oci,dest={theirs},compression=uncompressed")
    index, manifest, config = _image_of(theirs)
    for entry in config["history"]:
        entry.pop("created")
    said = build(
        """
import shutil
with open_engine() as engine:
    layers = engine.store.layers
    with layers.new(engine.lease, kind="file", description="COPY t /") as new:
        shutil.copytree(tree, new.fs, symlinks=True, dirs_exist_ok=True)
        (new.fs / "z").unlink()
        os.link(new.fs / "a", new.fs / "z")
        for folder, folders, names in os.walk(new.fs, topdown=False):
            for name in [*folders, *names]:
                stamp = (0, 1_400_000_000_987_654_321)
                os.utime(os.path.join(folder, name), ns=stamp, follow_symlinks=False)
        layer = new.commit()
    parsed = ImageConfig.from_json(config.encode(), "config")
    built = [PlatformImage(parsed.platform, [layer], parsed)]
    attrs = {"dest": dest, "compression": "uncompressed"}
    say(**export(engine, built, ("oci", attrs), epoch_s=1_500_000_000).merged)
""",
        tree=tree_of,
        config=json.dumps(config),
        dest=ours,
    )
    our_index, our_manifest, our_config = _image_of(ours)
    assert our_manifest["layers"] == manifest["layers"]
    assert our_config["rootfs"] == _image_of(theirs)[2]["rootfs"]
    assert our_manifest["config"] == manifest["config"]
    assert our_index["manifests"] == index["manifests"]
    assert said["containerimage.digest"] == index["manifests"][0]["digest"]


def _buildx(engine: services.DockerEngine, context: Path, home: Path, output: str) -> None:
    import shutil
    import subprocess

    assert engine.client is not None
    assert engine.plugins is not None
    (home / "config/cli-plugins").mkdir(parents=True)
    shutil.copy(engine.plugins / "docker-buildx", home / "config/cli-plugins/docker-buildx")
    environment = {**os.environ, "DOCKER_HOST": engine.address, "DOCKER_CONFIG": str(home / "config")}
    epoch = "--build-arg=SOURCE_DATE_EPOCH=1500000000"
    command = [str(engine.client), "buildx", "build", "--provenance=false", epoch, "-o", output, str(context)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _image_of(archive: Path) -> tuple[Any, Any, Any]:
    with tarfile.open(archive) as opened:

        def read(name: str) -> Any:
            return json.load(opened.extractfile(name))  # type: ignore[arg-type]

        def blob(digest: str) -> Any:
            return read(f"blobs/sha256/{digest.partition(':')[2]}")

        index = read("index.json")
        manifest = blob(index["manifests"][0]["digest"])
        return index, manifest, blob(manifest["config"]["digest"])
