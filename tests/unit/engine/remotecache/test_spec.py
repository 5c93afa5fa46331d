"""--cache-from and --cache-to as given."""

from __future__ import annotations

import io

import pytest

from crossdock.engine.remotecache.backend import VerifiedReader
from crossdock.engine.remotecache.durations import parse_duration
from crossdock.engine.remotecache.ghaservice import scopes_of
from crossdock.engine.remotecache.spec import CacheSpec, ExportOptions, active, check_caches, parse_size
from crossdock.errors import CacheError, CrossdockError, DigestMismatch, UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.layers.compression import Compression


def test_options_have_buildkits_defaults() -> None:
    options = ExportOptions.from_attrs({})
    assert (options.max, options.ignore_error, options.merge) == (False, False, True)
    assert options.compression == Compression()


def test_options_are_read() -> None:
    options = ExportOptions.from_attrs(
        {
            "mode": "max",
            "ignore-error": "true",
            "compression": "zstd",
            "compression-level": "3",
            "force-compression": "1",
            "merge": "false",
            "max-results": "7",
            "mounts": "true",
            "mounts-max-size": "1.5GiB",
        }
    )
    assert options == ExportOptions(True, True, Compression("zstd", 3, True), False, 7, True, 3 * (1 << 29))


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("12B", 12), ("1k", 1000), ("1.5MB", 1_500_000), ("2 GiB", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("x", text) == size


@pytest.mark.parametrize("text", ["", "big", "1XB", "-", "1e400"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size("x", text)


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("1m30s", 90), ("500ms", 0.5), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration("x", text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1 h", "-1h"])
def test_wrong_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid duration"):
        parse_duration("x", text)


def test_every_key_of_every_type_is_known() -> None:
    imports = {
        "registry": "ref registry.insecure",
        "local": "src tag digest",
        "gha": "url url_v2 token version scope timeout repository ghtoken",
        "s3": "bucket region prefix blobs_prefix manifests_prefix name endpoint_url use_path_style access_key_id "
        "secret_access_key session_token touch_refresh upload_parallelism disable_accept_encoding retry_mode "
        "retry_max_attempts",
        "azblob": "account_url account_name container prefix blobs_prefix manifests_prefix name secret_access_key",
    }
    exports = {
        "registry": "ref mode image-manifest oci-mediatypes compression compression-level force-compression "
        "ignore-error registry.insecure",
        "local": "dest tag mode image-manifest oci-mediatypes compression force-compression ignore-error reset",
        "inline": "",
        "gha": imports["gha"] + " mode ignore-error",
        "s3": imports["s3"] + " mode ignore-error",
        "azblob": imports["azblob"] + " mode ignore-error",
    }
    values = {"mode": "min", "ref": "x/y", "compression": "gzip", "compression-level": "1"}
    check_caches(
        [CacheSpec(t, {k: values.get(k, "1") for k in keys.split()}) for t, keys in imports.items()], []
    )
    check_caches(
        [], [CacheSpec(t, {k: values.get(k, "1") for k in keys.split()}) for t, keys in exports.items()]
    )


@pytest.mark.parametrize(
    ("imports", "exports", "text"),
    [
        ([("inline", {})], [], "imported as type=registry"),
        ([("registry", {})], [], "needs ref="),
        ([("registry", {"ref": "a", "dest": "b"})], [], "unknown key 'dest'"),
        ([], [("local", {})], "needs dest="),
        ([], [("registry", {"ref": "a"}), ("registry", {"ref": "a"})], "duplicate cache export"),
        ([], [("registry", {"ref": "a", "compression": "lzma"})], "compression"),
        ([], [("inline", {"mode": "max"})], "mode=max"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    imports: list[tuple[str, dict[str, str]]], exports: list[tuple[str, dict[str, str]]], text: str
) -> None:
    with pytest.raises(CrossdockError, match=text):
        check_caches([CacheSpec(*s) for s in imports], [CacheSpec(*s) for s in exports])


def test_gha_is_filled_in_from_the_environment_or_left_out() -> None:
    specs = [CacheSpec("gha", {"scope": "s"}), CacheSpec("registry", {"ref": "a"})]
    assert [spec.type for spec in active(specs, {})] == ["registry"]
    environment = {
        "ACTIONS_RUNTIME_TOKEN": "t",
        "ACTIONS_RESULTS_URL": "https://r/",
        "ACTIONS_CACHE_SERVICE_V2": "1",
    }
    filled = active(specs, environment)[0].attrs
    assert filled == {"scope": "s", "token": "t", "url_v2": "https://r/", "url": "https://r/", "version": "2"}


@pytest.mark.parametrize("token", ["", "a.b", "a.!!.c", "a.e30.c"])
def test_a_token_without_scopes_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(CacheError, match="not a runtime token"):
        scopes_of(token)


class TestVerifiedReader:
    def reader(self, sent: bytes, real: bytes) -> VerifiedReader:
        blob = Descriptor("", sha256_digest(real), len(real))
        source = io.BytesIO(sent)
        return VerifiedReader(source, blob, "place", source.close)

    def test_gives_what_is_right(self) -> None:
        with self.reader(b"content", b"content") as reader:
            assert reader.read(3) + reader.read(100) + reader.read(1) == b"content"

    def test_the_last_bytes_of_something_else_are_not_given(self) -> None:
        with self.reader(b"contend", b"content") as reader:
            assert reader.read(3) == b"con"
            with pytest.raises(DigestMismatch, match="place"):
                reader.read(100)

    def test_too_little_is_an_error(self) -> None:
        with self.reader(b"cont", b"content") as reader, pytest.raises(CacheError, match="3 bytes too short"):
            reader.read()
