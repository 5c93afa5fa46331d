"""Caches in S3 (moto's server), Azure Blob Storage (Azurite), and the Actions cache service (a stand-in of ours)."""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest

import objectstores
from integration.cache.cachekit import Builder, all_at_once, contexts, steps_run
from integration.cache.ghaserver import SECRET, ActionsCacheServer, runtime_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")
_numbers = itertools.count(1)
_S3_KEYS = "access_key_id=test,secret_access_key=hidden-key"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[objectstores.S3Server]:
    with objectstores.S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def azure_server() -> Iterator[objectstores.AzureServer]:
    with objectstores.AzureServer() as server:
        yield server


@pytest.fixture
def gha_server() -> Iterator[ActionsCacheServer]:
    with ActionsCacheServer() as server:
        yield server


@pytest.fixture
def bucket(s3_server: objectstores.S3Server) -> tuple[Any, str]:
    """A client and an empty bucket."""
    boto3 = importlib.import_module("boto3")  # it has no types

    client = boto3.client(
        "s3",
        endpoint_url=s3_server.url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="x",
    )
    name = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("s3", marks=pytest.mark.needs("moto")),
        pytest.param("azblob", marks=pytest.mark.needs("azurite")),
        "gha-v1",
        "gha-v2",
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of store; its server runs."""
    name: str = request.param
    if name in ("s3", "azblob"):
        request.getfixturevalue({"s3": "s3_server", "azblob": "azure_server"}[name])
    return name


@pytest.fixture
def cache(kind: str, request: pytest.FixtureRequest) -> str:
    """The value of --cache-from, and of --cache-to, for one place."""
    if kind == "s3":
        _, name = request.getfixturevalue("bucket")
        url = request.getfixturevalue("s3_server").url
        return f"type=s3,bucket={name},region=us-east-1,endpoint_url={url},use_path_style=true,{_S3_KEYS}"
    if kind == "azblob":
        url = request.getfixturevalue("azure_server").url
        key = f"account_name={objectstores.AZURE_ACCOUNT},secret_access_key={objectstores.AZURE_KEY}"
        return f"type=azblob,account_url={url},container=cache-{next(_numbers)},{key}"
    url = request.getfixturevalue("gha_server").url
    token = runtime_token(("refs/heads/main", 3))
    urls = f"url={url},version=1" if kind == "gha-v1" else f"url_v2={url}"
    return f"type=gha,{urls},token={token}"


def test_a_fresh_store_finds_everything_and_fetches_what_it_needs(
    builder: Builder, context: Path, cache: str, tmp_path: Path
) -> None:
    cold = builder("one", context, "--cache-to", f"{cache},mode=max", dest=tmp_path / "a.tar")
    assert "RUN slow" in steps_run(cold.err)
    fresh = builder("two", context, "--cache-from", cache)
    assert steps_run(fresh.err) == set()
    assert not [path for path in (builder.root("two") / "layers").iterdir() if (path / "fs").exists()]
    builder("two", context, "--cache-from", cache, dest=tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    for done in (cold, fresh):
        assert "hidden-key" not in done.err
        assert objectstores.AZURE_KEY not in done.err
        assert SECRET not in done.err


def test_a_place_with_nothing_in_it_is_a_warning(builder: Builder, context: Path, cache: str) -> None:
    assert "there is no build cache at" in builder("one", context, "--cache-from", cache).err


def test_builds_at_once_keep_each_others_results(
    builder: Builder, base: BaseImages, cache: str, tmp_path: Path
) -> None:
    folders = contexts(tmp_path, base.index, "xyz")
    all_at_once(builder, [(f.name, f, "--cache-to", f"{cache},mode=max") for f in folders])
    for number, folder in enumerate(folders):
        assert steps_run(builder(f"fresh{number}", folder, "--cache-from", cache).err) == set()


@pytest.mark.needs("moto")
class TestS3:
    def args(self, name: str, server: objectstores.S3Server) -> str:
        return (
            f"type=s3,bucket={name},region=us-east-1,endpoint_url={server.url},use_path_style=true,{_S3_KEYS}"
        )

    def test_keys_are_where_buildkit_has_them(
        self,
        builder: Builder,
        context: Path,
        bucket: tuple[Any, str],
        s3_server: objectstores.S3Server,
    ) -> None:
        client, name = bucket
        builder("one", context, "--cache-to", f"{self.args(name, s3_server)},prefix=p/,name=main;feature")
        keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=name)["Contents"]}
        assert {"p/manifests/main", "p/manifests/feature"} <= keys
        assert any(key.startswith("p/blobs/sha256:") for key in keys)

    def test_layers_that_are_gone_are_no_longer_listed(
        self,
        builder: Builder,
        context: Path,
        bucket: tuple[Any, str],
        s3_server: objectstores.S3Server,
    ) -> None:
        client, name = bucket
        args = self.args(name, s3_server)
        builder("one", context, "--cache-to", f"{args},mode=max")
        for entry in client.list_objects_v2(Bucket=name)["Contents"]:
            if entry["Key"].startswith("blobs/"):
                client.delete_object(Bucket=name, Key=entry["Key"])
        (context / "b.txt").write_text("changed")
        builder("two", context, "--cache-to", f"{args},mode=max")
        done = builder("three", context, "--cache-from", args)
        assert steps_run(done.err) == set()
        (context / "b.txt").write_text("b")
        done = builder("four", context, "--cache-from", args)
        assert "is given up" not in done.err
        assert steps_run(done.err) == {"COPY b.txt"}

    def test_old_layers_are_touched(
        self,
        builder: Builder,
        context: Path,
        bucket: tuple[Any, str],
        s3_server: objectstores.S3Server,
    ) -> None:
        client, name = bucket
        args = f"{self.args(name, s3_server)},touch_refresh=0s"
        for _ in range(2):
            builder("one", context, "--cache-to", args)
        blobs = [e["Key"] for e in client.list_objects_v2(Bucket=name, Prefix="blobs/")["Contents"]]
        assert all("updated-at" in client.head_object(Bucket=name, Key=key)["Metadata"] for key in blobs)

    def test_a_missing_bucket_fails_an_export_and_warns_an_import(
        self, builder: Builder, context: Path, s3_server: objectstores.S3Server
    ) -> None:
        args = self.args("nowhere", s3_server)
        done = builder.try_("one", context, "--cache-to", args).failed(1)
        assert "failed to export the cache to s3:nowhere/" in done.err
        assert "hidden-key" not in done.err
        assert "is not used" in builder("one", context, "--cache-from", args).err

    def test_wrong_values_are_named(self, builder: Builder, context: Path) -> None:
        for args, text in (
            ("type=s3,region=r", "bucket is not set"),
            ("type=s3,bucket=b", "region is not set"),
            ("type=s3,bucket=b,region=r,upload_parallelism=0", "upload_parallelism must be"),
            ("type=s3,bucket=b,region=r,touch_refresh=soon", "invalid duration 'soon'"),
        ):
            assert text in builder.try_("one", context, "--cache-to", args).failed(1).err


class TestGha:
    def test_outside_of_actions_it_is_left_out(self, builder: Builder, context: Path) -> None:
        done = builder("one", context, "--cache-to", "type=gha,mode=max", "--cache-from", "type=gha")
        assert "GitHub" not in done.err

    def test_the_environment_tells(
        self, builder: Builder, context: Path, gha_server: ActionsCacheServer
    ) -> None:
        environment = {
            "ACTIONS_RUNTIME_TOKEN": runtime_token(("refs/heads/main", 3)),
            "ACTIONS_RESULTS_URL": gha_server.url,
            "ACTIONS_CACHE_SERVICE_V2": "true",
        }
        builder("one", context, "--cache-to", "type=gha,mode=max", env=environment)
        done = builder("two", context, "--cache-from", "type=gha", env=environment)
        assert steps_run(done.err) == set()
        assert not [line for line in gha_server.requests if "/_apis/" in line]

    def test_a_branch_reads_the_default_branch_and_writes_its_own(
        self, builder: Builder, context: Path, gha_server: ActionsCacheServer
    ) -> None:
        main = f"type=gha,url_v2={gha_server.url},token={runtime_token(('refs/heads/main', 3))}"
        both = runtime_token(("refs/heads/feature", 3), ("refs/heads/main", 1))
        feature = f"type=gha,url_v2={gha_server.url},token={both}"
        builder("one", context, "--cache-to", f"{main},mode=max")
        indexes = {key for key in gha_server.order if key.startswith("index-")}
        builder("two", context, "--cache-from", feature, "--cache-to", f"{feature},mode=max")
        written = {key for key in gha_server.order if key.startswith("index-")} - indexes
        assert len(written) == 1
        assert all(key.startswith("index-buildkit-1-") and key.endswith("#1") for key in indexes | written)

    def test_too_many_requests_are_sent_again(
        self, builder: Builder, context: Path, gha_server: ActionsCacheServer
    ) -> None:
        args = f"type=gha,url_v2={gha_server.url},token={runtime_token(('refs/heads/main', 3))}"
        gha_server.failures["/twirp/"] = [429, 503]
        builder("one", context, "--cache-to", f"{args},mode=max")
        assert steps_run(builder("two", context, "--cache-from", args).err) == set()

    def test_a_token_that_is_none_is_a_warning(
        self, builder: Builder, context: Path, gha_server: ActionsCacheServer
    ) -> None:
        args = f"type=gha,url_v2={gha_server.url},token=sesame"
        done = builder("one", context, "--cache-from", args)
        assert "not a runtime token" in done.err
        assert "sesame" not in done.err
