"""The cache config, our keys in it, inline caches, bounds: pure parts."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.bounds import MAX_BYTES, Bounds, bounded
from crossdock.engine.remotecache.chain import CacheIndex, KnownKey, to_records
from crossdock.engine.remotecache.config import CREATED, UNCOMPRESSED, CacheConfig, CacheRecord, CacheResult
from crossdock.engine.remotecache.inline import encode_inline, parse_inline
from crossdock.engine.remotecache.manifest import ManifestStyle, find_config, make_documents
from crossdock.engine.remotecache.times import parse_time, write_time
from crossdock.errors import CacheError, UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest, sha256_digest
from crossdock.image.manifest import make_manifest, parse_manifest

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def key(name: object) -> str:
    return sha256_digest(f"key {name}".encode())


def blob(name: object) -> Digest:
    return sha256_digest(f"blob {name}".encode())


def layer(name: object) -> Descriptor:
    notes = {
        UNCOMPRESSED: str(sha256_digest(f"diff {name}".encode())),
        CREATED: "2026-01-02T03:04:05.000000006Z",
    }
    return Descriptor(GZIP, blob(name), 7, notes)


def result(*names: object, used: str = "2026-01-31") -> CacheResult:
    return CacheResult(tuple(blob(n) for n in names), "2026-01-02T03:04:05Z", used)


def config(*known: KnownKey) -> CacheConfig:
    records = to_records(known)
    blobs = {b for r in records for x in r.results for b in x.blobs}
    layers = {layer(n).digest: layer(n) for n in range(20)}
    return CacheConfig(records, {b: layers[b] for b in blobs})


SAMPLE = config(
    KnownKey(key("base"), (), (result(0),)),
    KnownKey(key("run"), (key("run by definition"),), (result(0, 1),)),
    KnownKey(key("exec"), (), (result(0, 1, 2), result(3))),
    KnownKey(key("gone"), (key("alias of gone"),), None),
    KnownKey(key("empty"), (), (CacheResult((), "2026-01-02T03:04:05Z"),)),
)


def test_the_document_is_as_buildkit_writes_it() -> None:
    data = json.loads(
        cacheconfig.dump(config(KnownKey(key("a"), (key("b"),), (result(0, 1),))), annotated=False)
    )
    by_blob = {entry["blob"]: entry for entry in data["layers"]}
    assert by_blob[blob(0)]["parent"] == -1
    assert data["layers"][by_blob[blob(1)]["parent"]]["blob"] == blob(0)
    by_digest = {record["digest"]: record for record in data["records"]}
    (entry,) = by_digest[key("a")]["layers"]
    assert data["layers"][entry["layer"]]["blob"] == blob(1)
    assert entry["createdAt"] == "2026-01-02T03:04:05Z"
    ((link,),) = by_digest[key("b")]["inputs"]
    assert data["records"][link["link"]]["digest"] == key("a")
    assert link["selector"] == "crossdock.canonical"


@pytest.mark.parametrize("annotated", [False, True])
def test_what_was_written_is_found_again(annotated: bool) -> None:
    raw = cacheconfig.dump(SAMPLE, annotated=annotated)
    read = cacheconfig.parse(raw, "test", layers=None if annotated else SAMPLE.layers)
    index = CacheIndex(read.records)
    assert index.canonical(key("run by definition")) == key("run")
    assert index.outputs(key("run")) == (result(0, 1),)
    assert index.outputs(key("exec")) == (result(0, 1, 2), result(3))
    assert index.canonical(key("alias of gone")) == key("gone")
    assert index.outputs(key("gone")) is None
    empty = index.outputs(key("empty"))
    assert empty is not None
    assert empty[0].blobs == ()
    assert index.canonical(key("unknown")) is None
    assert cacheconfig.dump(read, annotated=annotated) == raw
    if annotated:
        assert read.layers == SAMPLE.layers


@given(st.randoms(use_true_random=False))
def test_the_bytes_do_not_depend_on_the_order(random: Any) -> None:
    known = [
        KnownKey(key(n), (key(f"{n} alias"),), (result(*range(n + 1)),) if n % 2 else None) for n in range(6)
    ]
    expected = cacheconfig.dump(config(*known), annotated=False)
    random.shuffle(known)
    assert cacheconfig.dump(config(*known), annotated=False) == expected


def test_a_result_with_an_unknown_layer_is_left_out() -> None:
    raw = cacheconfig.dump(SAMPLE, annotated=False)
    some = {digest: layer for digest, layer in SAMPLE.layers.items() if digest != blob(1)}
    index = CacheIndex(cacheconfig.parse(raw, "test", layers=some).records)
    assert index.outputs(key("run")) is None
    assert index.outputs(key("base")) is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"records": 3}',
        b'{"records": [{"digest": "x", "inputs": [[{"link": 5}]]}]}',
        b'{"records": [{"digest": "x", "inputs": [[{"link": 0}]]}]}',
        b'{"records": [{"inputs": [[{"link": 1}]]}, {"inputs": [[{"link": 0}]]}]}',
        b'{"records": [{"layers": [{"layer": 0}]}], "layers": [{"blob": "sha256:short", "parent": -1}]}',
        b'{"records": [{"layers": [{"layer": 0}]}], "layers": []}',
        b'{"records": [{"layers": [{"layer": "0"}]}], "layers": []}',
        b"{}",
        b'{"version": 9, "entries": "elsewhere"}',
        b'{"records": [{"digest": 1}]}',
        b'{"layers": [{"blob": 1, "annotations": {"diffID": "nonsense"}}]}',
    ],
)
def test_nonsense_is_refused_with_the_name_of_its_place(raw: bytes) -> None:
    with pytest.raises(CacheError, match="somewhere: not a build cache"):
        cacheconfig.parse(raw, "somewhere")


def test_layers_that_lead_in_a_circle_are_refused() -> None:
    data = {
        "layers": [{"blob": blob(0), "parent": 1}, {"blob": blob(1), "parent": 0}],
        "records": [{"digest": key(0), "layers": [{"layer": 0, "createdAt": "x"}]}],
    }
    with pytest.raises(CacheError, match="leads to itself"):
        cacheconfig.parse(json.dumps(data).encode(), "x", layers={blob(0): layer(0), blob(1): layer(1)})


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_an_error(raw: bytes) -> None:
    try:
        cacheconfig.parse(raw, "x")
    except CacheError:
        return


def test_a_deep_chain_needs_no_deep_stack() -> None:
    count = 5000
    records: list[dict[str, Any]] = [{"digest": key(0)}]
    records += [{"digest": key(n), "inputs": [[{"link": n - 1}]]} for n in range(1, count)]
    read = cacheconfig.parse(json.dumps({"records": records[::1]}).encode(), "x")
    assert len(read.records) == count
    backwards = [
        {**r, **({"inputs": [[{"link": n + 1}]]} if n < count - 1 else {})} for n, r in enumerate(records)
    ]
    backwards = [
        {k: v for k, v in r.items() if n < count - 1 or k != "inputs"} for n, r in enumerate(backwards)
    ]
    assert len(cacheconfig.parse(json.dumps({"records": backwards}).encode(), "x").records) == count


class TestMerging:
    def test_keys_of_both_are_there_and_equal_ones_once(self) -> None:
        one = to_records([KnownKey(key("a"), (key("x"),), (result(0),)), KnownKey(key("b"), (), None)])
        two = to_records([KnownKey(key("a"), (key("y"),), None), KnownKey(key("b"), (), (result(1),))])
        index = CacheIndex(cacheconfig.merge(one, two))
        assert index.canonical(key("x")) == index.canonical(key("y")) == key("a")
        assert index.outputs(key("a")) == (result(0),)
        assert index.outputs(key("b")) == (result(1),)

    def test_of_two_results_the_one_used_last_stays_then_the_first(self) -> None:
        def merged(first: CacheResult, second: CacheResult) -> tuple[CacheResult, ...]:
            (record,) = cacheconfig.merge(
                [CacheRecord(key(0), (), (first,))], [CacheRecord(key(0), (), (second,))]
            )
            return record.results

        old, new = result(0, used="2026-01-01"), result(1, used="2026-01-02")
        assert merged(old, new) == merged(new, old) == (new,)
        assert merged(result(0), result(1)) == (result(0),)

    def test_records_of_buildkits_keep_their_links(self) -> None:
        theirs: list[dict[str, Any]] = [{"digest": key("source")}]
        theirs.append(
            {
                "digest": key("run"),
                "inputs": [[{"selector": "s", "link": 0}]],
                "layers": [{"layer": 0, "createdAt": "t"}],
            }
        )
        raw = json.dumps({"records": theirs, "layers": [{"blob": blob(0), "parent": -1}]}).encode()
        read = cacheconfig.parse(raw, "x", layers={blob(0): layer(0)})
        both = CacheConfig(
            cacheconfig.merge(SAMPLE.records, read.records), {**SAMPLE.layers, blob(0): layer(0)}
        )
        data = json.loads(cacheconfig.dump(both, annotated=False))
        run = next(
            record for record in data["records"] if record["digest"] == key("run") and "inputs" in record
        )
        ((link,),) = run["inputs"]
        assert (link["selector"], data["records"][link["link"]]["digest"]) == ("s", key("source"))


class TestBounds:
    TODAY = "2026-01-31"

    def kept(self, others: list[KnownKey], layers: int = 200, max_results: int = 400) -> CacheIndex:
        own = to_records([KnownKey(key("own"), (key("own alias"),), (result(0),))])
        described = {layer(n).digest: layer(n) for n in range(layers)}
        records = cacheconfig.merge(own, to_records(others))
        return CacheIndex(bounded(records, own, described, Bounds(max_results, self.TODAY)))

    def test_own_records_are_always_kept(self) -> None:
        index = self.kept([KnownKey(key(n), (), (result(n),)) for n in range(1, 9)], max_results=0)
        assert index.outputs(key("own")) is not None
        assert index.canonical(key("own alias")) == key("own")
        assert index.outputs(key(1)) is None

    def test_those_used_last_are_kept(self) -> None:
        others = [KnownKey(key(n), (), (result(n, used=f"2026-01-{n + 10}"),)) for n in range(9)]
        index = self.kept(others, max_results=2)
        assert [n for n in range(9) if index.outputs(key(n))] == [7, 8]

    def test_what_nobody_used_for_long_goes(self) -> None:
        index = self.kept([KnownKey(key(1), (), (result(1, used="2025-12-31"),))])
        assert index.outputs(key(1)) is None
        index = self.kept([KnownKey(key(1), (), (result(1, used="2026-01-01"),))])
        assert index.outputs(key(1)) is not None

    def test_a_result_without_its_layer_goes(self) -> None:
        assert self.kept([KnownKey(key(1), (), (result(1),))], layers=1).outputs(key(1)) is None

    def test_the_documents_stay_below_a_megabyte(self) -> None:
        count = 5000
        described = {layer(n).digest: layer(n) for n in range(count)}
        others = to_records([KnownKey(key(n), (key(f"a{n}"),), (result(n),)) for n in range(count)])
        kept = bounded(others, [], described, Bounds(count, self.TODAY))
        documents = make_documents(CacheConfig(kept, described), ManifestStyle())
        assert len(documents.config_raw) < MAX_BYTES
        assert len(documents.manifest_raw) < MAX_BYTES
        assert len(CacheIndex(kept)) > 1000


class TestManifest:
    @pytest.mark.parametrize(
        "style", [ManifestStyle(), ManifestStyle(False, True), ManifestStyle(False, False)]
    )
    def test_config_and_layers_are_found_again(self, style: ManifestStyle) -> None:
        documents = make_documents(SAMPLE, style)
        found, layers = find_config(parse_manifest(documents.manifest_raw, "", "x"))
        assert found == documents.config
        read = cacheconfig.parse(documents.config_raw, "x", layers=layers)
        assert CacheIndex(read.records).outputs(key("run")) == (result(0, 1),)

    def test_an_image_has_no_cache_config(self) -> None:
        image = make_manifest(
            Descriptor("application/vnd.oci.image.config.v1+json", blob("c"), 9), [], oci=True
        )
        assert find_config(image)[0] is None

    def test_image_manifests_need_oci_types(self) -> None:
        assert ManifestStyle.from_attrs({"oci-mediatypes": "false"}) == ManifestStyle(False, False)
        with pytest.raises(UsageError, match="OCI media types"):
            ManifestStyle.from_attrs({"oci-mediatypes": "false", "image-manifest": "true"})


class TestInline:
    def manifest(self, *names: object) -> Any:
        layers = [Descriptor(GZIP, blob(n), 7) for n in names]
        return make_manifest(
            Descriptor("application/vnd.oci.image.config.v1+json", blob("c"), 9), layers, oci=True
        )

    def image(self, text: str, *names: object) -> bytes:
        diffs = [str(sha256_digest(f"diff {n}".encode())) for n in names]
        history = [
            {"created": "2026-01-02T03:04:05Z"},
            {"empty_layer": True},
            {"created": "2026-01-03T03:04:05Z"},
        ]
        return json.dumps(
            {"rootfs": {"diff_ids": diffs}, "history": history, "moby.buildkit.cache.v0": text}
        ).encode()

    def test_results_are_positions_in_the_image(self) -> None:
        records = to_records(
            [
                KnownKey(key("a"), (key("x"),), (result(0, 1),)),
                KnownKey(key("linked"), (), (result(1),)),
                KnownKey(key("elsewhere"), (), (result(9),)),
            ]
        )
        text = encode_inline(records, [blob(0), blob(1)])
        data = {record["digest"]: record for record in json.loads(base64.b64decode(text))}
        assert [entry["layer"] for entry in data[key("a")]["layers"]] == [1]
        assert [entry["layers"] for entry in data[key("linked")]["chains"]] == [[1]]
        assert key("elsewhere") not in data
        read = parse_inline(self.manifest(0, 1), self.image(text, 0, 1), "x")
        assert read is not None
        index = CacheIndex(read.records)
        assert index.canonical(key("x")) == key("a")
        assert index.outputs(key("a"))[0].blobs == (blob(0), blob(1))  # type: ignore[index]
        assert index.outputs(key("linked"))[0].blobs == (blob(1),)  # type: ignore[index]
        assert read.layers[blob(1)].annotations[CREATED] == "2026-01-03T03:04:05Z"

    def test_nothing_of_use_is_nothing(self) -> None:
        assert encode_inline(to_records([KnownKey(key("a"), (), (result(9),))]), [blob(0)]) == ""
        assert parse_inline(self.manifest(0), b'{"rootfs": {"diff_ids": []}}', "x") is None

    @pytest.mark.parametrize(
        "text", ["%%%", base64.b64encode(b"{").decode(), base64.b64encode(b"3").decode()]
    )
    def test_damage_is_an_error_of_the_cache(self, text: str) -> None:
        with pytest.raises(CacheError, match=r"^x"):
            parse_inline(self.manifest(0), self.image(text, 0), "x")

    def test_layers_and_diff_ids_must_fit(self) -> None:
        text = encode_inline(to_records([KnownKey(key("a"), (), (result(0),))]), [blob(0)])
        with pytest.raises(CacheError, match="lists 2 diff ids"):
            parse_inline(self.manifest(0), self.image(text, 0, 1), "x")


@given(st.integers(min_value=1, max_value=2**62))
def test_times_survive(time_ns: int) -> None:
    if time_ns >= 10**9:
        assert parse_time(write_time(time_ns)) == time_ns


def test_no_time_is_none() -> None:
    assert parse_time(write_time(0)) is None
    assert parse_time("yesterday") is None
    assert parse_time("2026-01-02T05:04:05.5+02:00") == parse_time("2026-01-02T03:04:05.5Z")
