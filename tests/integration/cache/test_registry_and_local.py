"""``--cache-to`` and ``--cache-from`` between stores: registry, local directory, inline; for real."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from integration.cache.cachekit import Builder, all_at_once, contexts, steps_run, swap_diff_ids
from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture(params=["registry", "local"])
def place(request: pytest.FixtureRequest, repository: str, tmp_path: Path) -> tuple[str, str]:
    """Values of --cache-to and --cache-from for one place."""
    if request.param == "registry":
        return f"type=registry,ref={repository}:cache", f"type=registry,ref={repository}:cache"
    return f"type=local,dest={tmp_path}/exported", f"type=local,src={tmp_path}/exported"


class TestFreshStore:
    def test_everything_is_cached_as_in_a_warm_store(
        self, builder: Builder, place: tuple[str, str], context: Path, tmp_path: Path
    ) -> None:
        to, source = place
        cold = builder("one", context, "--cache-to", f"{to},mode=max", dest=tmp_path / "a.tar")
        assert steps_run(cold.err) == {
            "COPY a.txt",
            "RUN slow",
            "RUN echo built",
            "COPY --from=build",
            "COPY b.txt",
        }
        fresh = builder("two", context, "--cache-from", source, dest=tmp_path / "b.tar")
        assert steps_run(fresh.err) == set()
        assert "importing cache manifest from" in fresh.err
        assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()

    def test_a_changed_file_rebuilds_what_depends_on_it_alone(
        self, builder: Builder, place: tuple[str, str], context: Path
    ) -> None:
        to, source = place
        builder("one", context, "--cache-to", f"{to},mode=max")
        (context / "b.txt").write_text("changed")
        fresh = builder("two", context, "--cache-from", source)
        assert steps_run(fresh.err) == {"COPY b.txt"}

    def test_min_holds_only_layers_of_the_result(
        self, builder: Builder, place: tuple[str, str], context: Path
    ) -> None:
        to, source = place
        builder("one", context, "--cache-to", to)
        assert steps_run(builder("two", context, "--cache-from", source).err) == set()
        # What is not in the result must run again once somebody needs it.
        (context / "a.txt").write_text("changed")
        assert steps_run(builder("three", context, "--cache-from", source).err) >= {"RUN slow"}

    def test_only_what_is_needed_is_fetched(
        self, builder: Builder, place: tuple[str, str], context: Path
    ) -> None:
        to, source = place
        builder("one", context, "--cache-to", f"{to},mode=max")
        builder("two", context, "--cache-from", source)
        layers = builder.root("two") / "layers"
        assert not [path for path in layers.iterdir() if (path / "fs").exists()]


def test_what_was_imported_and_fetched_stays(builder: Builder, context: Path, tmp_path: Path) -> None:
    builder("one", context, "--cache-to", f"type=local,dest={tmp_path}/c,mode=max")
    builder("two", context, "--cache-from", f"type=local,src={tmp_path}/c", dest=tmp_path / "b.tar")
    assert "COPY b.txt" not in steps_run(builder("two", context).err)
    assert "no problems found" in builder.command("two", "store", "check").out


def test_what_was_imported_and_not_fetched_is_no_record_of_the_store(
    builder: Builder, context: Path, tmp_path: Path
) -> None:
    builder("one", context, "--cache-to", f"type=local,dest={tmp_path}/c,mode=max")
    builder("two", context, "--cache-from", f"type=local,src={tmp_path}/c")
    assert steps_run(builder("two", context).err) >= {"RUN slow", "COPY b.txt"}
    assert "no problems found" in builder.command("two", "store", "check").out


class TestInline:
    def test_an_image_is_its_own_cache(self, builder: Builder, context: Path, repository: str) -> None:
        builder("one", context, "-t", f"{repository}:app", "--push", "--cache-to", "type=inline")
        fresh = builder("two", context, "--cache-from", f"{repository}:app")
        assert steps_run(fresh.err) == set()

    def test_the_build_argument_does_the_same(self, builder: Builder, context: Path, repository: str) -> None:
        argument = ("--build-arg", "BUILDKIT_INLINE_CACHE=1")
        builder("one", context, "-t", f"{repository}:app", "--push", *argument)
        fresh = builder("two", context, *argument, "--cache-from", f"{repository}:app")
        assert steps_run(fresh.err) == set()

    def test_an_image_without_one_is_a_warning(
        self, builder: Builder, context: Path, base: BaseImages
    ) -> None:
        done = builder("one", context, "--cache-from", base.index)
        assert "is not a build cache, nor an image with an inline one" in done.err

    def test_the_base_images_inline_cache_is_not_passed_on(
        self, builder: Builder, context: Path, repository: str, tmp_path: Path
    ) -> None:
        builder("one", context, "-t", f"{repository}:app", "--push", "--cache-to", "type=inline")
        derived = tmp_path / "derived"
        derived.mkdir()
        (derived / "Dockerfile").write_text(f"FROM {repository}:app\nLABEL a=b\n")
        builder("one", derived, "-t", f"{repository}:derived", "--push")
        raw = skopeo("inspect", "--tls-verify=false", "--config", "--raw", f"docker://{repository}:derived")
        assert "moby.buildkit.cache.v0" not in json.loads(raw.stdout)


class TestFormat:
    def test_the_manifest_is_an_image_manifest_with_buildkits_config(
        self, builder: Builder, context: Path, repository: str
    ) -> None:
        builder("one", context, "--cache-to", f"type=registry,ref={repository}:c,mode=max")
        raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{repository}:c").stdout
        manifest = json.loads(raw)
        assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert manifest["config"]["mediaType"] == "application/vnd.buildkit.cacheconfig.v0"
        assert all("containerd.io/uncompressed" in layer["annotations"] for layer in manifest["layers"])

    @pytest.mark.parametrize(
        ("options", "media_type", "layer"),
        [
            ("image-manifest=false", "application/vnd.oci.image.index.v1+json", "v1.tar+gzip"),
            (
                "oci-mediatypes=false",
                "application/vnd.docker.distribution.manifest.list.v2+json",
                "diff.tar.gzip",
            ),
            ("compression=zstd", "application/vnd.oci.image.manifest.v1+json", "v1.tar+zstd"),
        ],
    )
    def test_other_forms(
        self, builder: Builder, context: Path, tmp_path: Path, options: str, media_type: str, layer: str
    ) -> None:
        where = tmp_path / "cache"
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max,{options}")
        index = json.loads((where / "index.json").read_text())
        (entry,) = index["manifests"]
        document = json.loads((where / "blobs/sha256" / entry["digest"][7:]).read_text())
        assert document["mediaType"] == media_type
        kinds = [d["mediaType"] for d in document.get("layers") or document["manifests"]]
        assert any(kind.endswith(layer) for kind in kinds)
        fresh = builder("two", context, "--cache-from", f"type=local,src={where}")
        assert steps_run(fresh.err) == set()

    def test_an_unchanged_cache_is_not_written_again(
        self, builder: Builder, context: Path, repository: str
    ) -> None:
        args = ("--cache-to", f"type=registry,ref={repository}:c,mode=max")
        builder("one", context, *args)
        assert "writing cache image manifest" not in builder("one", context, *args).err

    def test_the_response_names_the_manifest(self, builder: Builder, context: Path, tmp_path: Path) -> None:
        builder(
            "one",
            context,
            "--cache-to",
            f"type=local,dest={tmp_path}/c",
            "--metadata-file",
            f"{tmp_path}/meta",
        )
        meta = json.loads((tmp_path / "meta").read_text())
        index = json.loads((tmp_path / "c/index.json").read_text())
        assert json.loads(str(meta["cache.manifest"]))["digest"] == index["manifests"][0]["digest"]


class TestMerging:
    def test_builds_one_after_another_keep_each_others_results(
        self, builder: Builder, context: Path, place: tuple[str, str]
    ) -> None:
        to, source = place
        builder("one", context, "--cache-to", f"{to},mode=max")
        old = (context / "a.txt").read_text()
        (context / "a.txt").write_text("another branch")
        builder("two", context, "--cache-to", f"{to},mode=max")
        assert steps_run(builder("three", context, "--cache-from", source).err) == set()
        (context / "a.txt").write_text(old)
        assert steps_run(builder("four", context, "--cache-from", source).err) == set()

    def test_merge_can_be_switched_off(self, builder: Builder, context: Path, place: tuple[str, str]) -> None:
        to, source = place
        builder("one", context, "--cache-to", f"{to},mode=max")
        old = (context / "a.txt").read_text()
        (context / "a.txt").write_text("another branch")
        builder("two", context, "--cache-to", f"{to},mode=max,merge=false")
        (context / "a.txt").write_text(old)
        assert steps_run(builder("three", context, "--cache-from", source).err) != set()

    def test_builds_at_once_keep_each_others_results(
        self, builder: Builder, base: BaseImages, place: tuple[str, str], tmp_path: Path
    ) -> None:
        to, source = place
        folders = contexts(tmp_path, base.index, "xyzw")
        all_at_once(builder, [(f.name, f, "--cache-to", f"{to},mode=max") for f in folders])
        for number, folder in enumerate(folders):
            assert steps_run(builder(f"fresh{number}", folder, "--cache-from", source).err) == set()

    def test_what_a_local_cache_no_longer_lists_goes_when_it_is_old(
        self, builder: Builder, context: Path, tmp_path: Path
    ) -> None:
        where = tmp_path / "cache"
        blobs = where / "blobs/sha256"

        def export(text: str) -> set[str]:
            (context / "a.txt").write_text(text)
            builder("one", context, "--cache-to", f"type=local,dest={where},mode=max,merge=false")
            return {path.name for path in blobs.iterdir()}

        first = export("one")
        second = export("two")
        assert first < second, "others may still read it"
        for path in blobs.iterdir():
            os.utime(path, ns=(time.time_ns() - 7200 * 10**9,) * 2)
        third = export("three")
        assert (second - first) - third, "what only the second export listed"
        assert first & third, "what all of them list"
        fresh = builder("two", context, "--cache-from", f"type=local,src={where}", dest=tmp_path / "x.tar")
        assert steps_run(fresh.err) == set()

    def test_builds_that_reset_at_once_leave_a_whole_cache(
        self, builder: Builder, base: BaseImages, tmp_path: Path
    ) -> None:
        """Each removes what no index lists: also what another one has just written and not listed yet."""
        where = tmp_path / "cache"
        folders = contexts(tmp_path, base.index, "xyzw")
        option = f"type=local,dest={where},mode=max,reset=true"
        all_at_once(builder, [(f.name, f, "--cache-to", option) for f in folders])
        listed = json.loads((where / "index.json").read_text())["manifests"][0]["digest"]
        manifest = json.loads((where / "blobs/sha256" / listed[7:]).read_text())
        for layer in manifest["layers"]:
            assert (where / "blobs/sha256" / layer["digest"][7:]).stat().st_size == layer["size"]
        for number, folder in enumerate(folders):
            done = builder(f"fresh{number}", folder, "--cache-from", f"type=local,src={where}")
            assert steps_run(done.err) == set()

    def test_reset_drops_what_is_no_longer_listed(
        self, builder: Builder, context: Path, tmp_path: Path
    ) -> None:
        where = tmp_path / "cache"
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max")
        before = {path.name for path in (where / "blobs/sha256").iterdir()}
        (context / "a.txt").write_text("changed")
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max,merge=false,reset=true")
        after = {path.name for path in (where / "blobs/sha256").iterdir()}
        assert before - after
        fresh = builder("two", context, "--cache-from", f"type=local,src={where}")
        assert steps_run(fresh.err) == set()


@pytest.mark.needs("qemu", "binfmt")
def test_two_platforms_share_one_reference(builder: Builder, context: Path, place: tuple[str, str]) -> None:
    to, source = place
    for platform in ("linux/amd64", "linux/arm64"):
        builder("one", context, "--platform", platform, "--cache-to", f"{to},mode=max")
    fresh = builder("two", context, "--platform", "linux/amd64,linux/arm64", "--cache-from", source)
    assert steps_run(fresh.err) == set()


class TestBadCaches:
    def test_a_missing_one_is_a_warning(self, builder: Builder, context: Path, repository: str) -> None:
        done = builder("one", context, "--cache-from", f"{repository}:nothing")
        assert f"there is no build cache at {repository}:nothing" in done.err

    def test_a_registry_that_is_not_there_is_a_warning(self, builder: Builder, context: Path) -> None:
        assert "is not used" in builder("one", context, "--cache-from", "127.0.0.1:1/app:cache").err

    @pytest.mark.parametrize("damage", ["gone", "truncated", "other content", "not JSON"])
    def test_a_damaged_one_is_a_warning(
        self, builder: Builder, context: Path, tmp_path: Path, damage: str
    ) -> None:
        where = tmp_path / "cache"
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max")
        for path in (where / "blobs/sha256").iterdir():
            if damage == "gone":
                path.unlink()
            elif damage == "truncated":
                path.write_bytes(path.read_bytes()[:-3])
            else:
                path.write_bytes(b"x" * path.stat().st_size)
        if damage == "not JSON":
            (where / "index.json").write_text("{")
        done = builder("two", context, "--cache-from", f"type=local,src={where}")
        assert "is not used" in done.err
        assert steps_run(done.err) >= {"RUN slow"}

    @pytest.mark.parametrize("damage", ["gone", "truncated", "other content"])
    def test_damaged_layers_cost_a_warning_and_the_steps_run(
        self, builder: Builder, context: Path, tmp_path: Path, damage: str
    ) -> None:
        where = tmp_path / "cache"
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max")
        for path in (where / "blobs/sha256").iterdir():
            data = path.read_bytes()
            if data.startswith(b"{"):
                continue
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(data[:-9] if damage == "truncated" else b"y" * len(data))
        (context / "b.txt").write_text("changed")
        done = builder("two", context, "--cache-from", f"type=local,src={where}", "-o", f"{tmp_path}/b")
        assert "is given up" in done.err
        assert "no problems found" in builder.command("two", "store", "check").out
        assert (tmp_path / "b/b.txt").read_text() == "changed"
        assert (tmp_path / "b/built").read_text() == "built\n"

    def test_a_lying_config_never_becomes_a_result(
        self, builder: Builder, context: Path, tmp_path: Path
    ) -> None:
        """Two results change places: the layers are whole, their diff ids are not those announced."""
        where = tmp_path / "cache"
        builder("one", context, "--cache-to", f"type=local,dest={where},mode=max")
        swap_diff_ids(where)
        done = builder("two", context, "--cache-from", f"type=local,src={where}", "--target", "check")
        assert "is given up" in done.err

    def test_a_failed_export_fails_the_build_unless_told_otherwise(
        self, builder: Builder, context: Path
    ) -> None:
        to = "type=registry,ref=127.0.0.1:1/app:cache"
        done = builder.try_("one", context, "--cache-to", to)
        done.failed(1)
        assert "failed to export the cache to 127.0.0.1:1/app:cache" in done.err
        assert "was not exported" in builder("one", context, "--cache-to", f"{to},ignore-error=true").err

    def test_what_cannot_be_meant_is_refused_before_the_build(self, builder: Builder, context: Path) -> None:
        for value, text in (
            ("type=registry", "needs ref="),
            ("type=floppy", "unknown cache type 'floppy'"),
            ("type=registry,ref=a/b,mod=max", "did you mean 'mode'?"),
            ("type=inline,mode=max", "mode=max is not possible"),
            ("type=local,dest=x,mode=middle", "unknown cache export mode 'middle'"),
        ):
            assert text in builder.try_("one", context, "--cache-to", value).failed(1).err
