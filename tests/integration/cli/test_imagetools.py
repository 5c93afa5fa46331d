"""``imagetools`` on real registries, checked with skopeo."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "skopeo")


def raw(name: str) -> str:
    return skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").stdout


class TestInspect:
    def test_details_list_every_platform(self, crossdock: Crossdock, base: BaseImages) -> None:
        out = crossdock("imagetools", "inspect", base.index).ok().out
        assert out.startswith(
            f"Name:      {base.index}\nMediaType: application/vnd.oci.image.index.v1+json\n"
        )
        assert f"Digest:    {base.digest}\n" in out
        for platform, digest in base.platforms.items():
            assert f"@{digest}\n" in out
            assert f"Platform:  {platform}" in out.replace("arm64/v8", "arm64")

    def test_raw_is_untouched(self, crossdock: Crossdock, base: BaseImages) -> None:
        out = crossdock("imagetools", "inspect", "--raw", base.index).ok().out
        assert "sha256:" + hashlib.sha256(out.encode()).hexdigest() == base.digest

    def test_templates(self, crossdock: Crossdock, base: BaseImages) -> None:
        def run(form: str) -> str:
            return crossdock("imagetools", "inspect", base.index, "--format", form).ok().out.strip()

        assert run("{{.Manifest.Digest}}") == base.digest
        assert json.loads(run("{{json .Manifest}}"))["digest"] == base.digest
        assert '"linux/amd64"' in run("{{json .Image}}")
        assert run('{{(index .Image "linux/amd64").architecture}}') == "amd64"

    def test_an_absent_image(self, crossdock: Crossdock, repository: str) -> None:
        done = crossdock("imagetools", "inspect", f"{repository}:absent").failed(1)
        assert "404" in done.err


class TestCreate:
    def test_images_are_combined_across_repositories(
        self, crossdock: Crossdock, base: BaseImages, repository: str, tmp_path: Path
    ) -> None:
        registry = base.index.partition("/")[0]
        digests = {p: f"{registry}/base/busybox@{base.platforms[p]}" for p in ("linux/amd64", "linux/arm64")}
        meta = tmp_path / "meta.json"
        crossdock(
            "imagetools", "create", "-t", f"{repository}:1", "--metadata-file", meta, *digests.values()
        ).ok()
        index = json.loads(raw(f"{repository}:1"))
        assert [m["digest"] for m in index["manifests"]] == [base.platforms[p] for p in digests]
        assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]
        assert json.loads(meta.read_text())["containerimage.descriptor"]["digest"].startswith("sha256:")
        skopeo("copy", "--src-tls-verify=false", "--all", f"docker://{repository}:1", f"dir:{tmp_path}/copy")

    def test_a_single_index_is_copied_byte_by_byte(
        self, crossdock: Crossdock, base: BaseImages, repository: str
    ) -> None:
        crossdock("imagetools", "create", "-t", f"{repository}:1", base.index).ok()
        assert "sha256:" + hashlib.sha256(raw(f"{repository}:1").encode()).hexdigest() == base.digest

    def test_another_registry_gets_all_blobs(
        self, crossdock: Crossdock, base: BaseImages, fresh_registry: services.Registry, tmp_path: Path
    ) -> None:
        name = f"{fresh_registry.host}/moved/busybox:1"
        crossdock("imagetools", "create", "-t", name, base.index).ok()
        skopeo("copy", "--src-tls-verify=false", "--all", f"docker://{name}", f"dir:{tmp_path}/copy")

    def test_docker_types_stay_docker(self, crossdock: Crossdock, base: BaseImages, repository: str) -> None:
        crossdock("imagetools", "create", "-t", f"{repository}:1", base.docker, base.docker).ok()
        assert json.loads(raw(f"{repository}:1"))["mediaType"].endswith("manifest.list.v2+json")

    def test_platforms_append_and_annotations(
        self, crossdock: Crossdock, base: BaseImages, repository: str
    ) -> None:
        name = f"{repository}:1"
        crossdock("imagetools", "create", "-t", name, "-p", "linux/s390x", base.index).ok()
        digest = base.platforms["linux/arm/v7"]
        source = f"{base.index.rpartition(':')[0]}@{digest}"
        crossdock("imagetools", "create", "-t", name, "--append", "--annotation", "index:a=b", source).ok()
        index = json.loads(raw(name))
        assert [m["platform"]["architecture"] for m in index["manifests"]] == ["s390x", "arm"]
        assert index["annotations"] == {"a": "b"}

    @pytest.mark.parametrize(
        ("args", "error"),
        [
            (["x"], "can't push without specifying tag"),
            (["-t", "a:1"], "no sources specified"),
            (["--dry-run", "sha256:" + "0" * 64], "exactly one repository"),
            (["-t", "a:1", "--annotation", "manifest:a=b", "x"], "'manifest' annotations are not supported"),
        ],
    )
    def test_wrong_use(
        self, crossdock: Crossdock, args: list[str], error: str, registry: services.Registry
    ) -> None:
        env = {"DOCKER_CONFIG": str(crossdock.docker_config)}
        args = [f"{registry.host}/none:1" if a == "x" else a for a in args]
        assert error in crossdock("imagetools", "create", *args, env=env).failed(1).err

    def test_dry_run_pushes_nothing(self, crossdock: Crossdock, base: BaseImages, repository: str) -> None:
        out = crossdock("imagetools", "create", "--dry-run", "-t", f"{repository}:1", base.index).ok().out
        assert json.loads(out)["manifests"]
        assert skopeo(
            "inspect", "--raw", "--tls-verify=false", f"docker://{repository}:1", check=False
        ).returncode
