"""Manifests through the client, against a server that does as it is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.errors import DigestMismatch, NotFoundError, RegistryError, UsageError
from crossdock.image import Descriptor, parse_reference, sha256_digest
from crossdock.image.mediatypes import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from crossdock.registry import HostConfig
from support.scripted import Got, Reply, ScriptedServer, error_reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.registry import RegistryClient

    Make = Callable[..., RegistryClient]

RAW = b'{"schemaVersion":2}'
DIGEST = sha256_digest(RAW)
GOOD = Reply(200, RAW, {"content-type": OCI_MANIFEST, "docker-content-digest": DIGEST})
PATH = "/v2/team/app/manifests/1"


def ref(server: ScriptedServer, text: str = "team/app:1") -> str:
    return f"{server.host}/{text}"


def test_resolving_takes_one_request(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, GOOD)
    found = make_client().resolve(parse_reference(ref(server)))
    assert found == Descriptor(OCI_MANIFEST, DIGEST, len(RAW))
    assert server.lines() == [f"HEAD {PATH}"]
    accept = server.got[0].headers["accept"]
    assert all(kind in accept for kind in (OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST))


def test_the_tag_is_latest_by_default(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", "/v2/app/manifests/latest", GOOD)
    assert make_client().resolve(parse_reference(ref(server, "app"))).digest == DIGEST


@pytest.mark.parametrize(
    "head",
    [
        Reply(405),
        Reply(404),
        Reply(200, RAW, {"content-type": OCI_MANIFEST}),
        Reply(200, b"", {"docker-content-digest": DIGEST, "content-type": OCI_MANIFEST}),
        Reply(200, RAW, {"docker-content-digest": DIGEST}),
    ],
    ids=["not allowed", "404 to HEAD alone", "no digest", "no size", "no media type"],
)
def test_a_useless_head_is_followed_by_a_get(server: ScriptedServer, make_client: Make, head: Reply) -> None:
    server.on("HEAD", PATH, head).on("GET", PATH, GOOD)
    assert make_client().resolve(parse_reference(ref(server))).digest == DIGEST
    assert server.lines() == [f"HEAD {PATH}", f"GET {PATH}"]


def test_the_error_of_a_missing_tag_has_the_registry_s_code(
    server: ScriptedServer, make_client: Make
) -> None:
    server.on("HEAD", PATH, Reply(404)).on("GET", PATH, error_reply(404, "MANIFEST_UNKNOWN"))
    with pytest.raises(NotFoundError) as caught:
        make_client().resolve(parse_reference(ref(server)))
    assert caught.value.codes == ("MANIFEST_UNKNOWN",)
    assert caught.value.status == 404


@pytest.mark.parametrize("chunk", [0, 7], ids=["announced length", "chunked"])
def test_a_manifest_is_fetched_with_its_type(server: ScriptedServer, make_client: Make, chunk: int) -> None:
    headers = {"content-type": f"{OCI_MANIFEST}; charset=utf-8"}
    server.on("GET", PATH, Reply(200, RAW, headers, chunk=chunk))
    assert make_client().fetch_manifest(parse_reference(ref(server))) == (
        Descriptor(OCI_MANIFEST, DIGEST, len(RAW)),
        RAW,
    )


@pytest.mark.parametrize("method", ["fetch_manifest", "resolve"])
def test_a_manifest_that_is_not_its_digest_is_refused(
    server: ScriptedServer, make_client: Make, method: str
) -> None:
    wanted = sha256_digest(b"something else")
    path = f"/v2/team/app/manifests/{wanted}"
    server.on("HEAD", path, Reply(405)).on("GET", path, Reply(200, RAW, {"content-type": OCI_MANIFEST}))
    with pytest.raises(DigestMismatch) as caught:
        getattr(make_client(), method)(parse_reference(ref(server, f"team/app@{wanted}")))
    assert wanted in (caught.value.detail or "")
    assert DIGEST in (caught.value.detail or "")


def test_a_manifest_that_is_not_what_the_header_says_is_refused(
    server: ScriptedServer, make_client: Make
) -> None:
    headers = {"content-type": OCI_MANIFEST, "docker-content-digest": sha256_digest(b"x")}
    server.on("GET", PATH, Reply(200, RAW, headers))
    with pytest.raises(DigestMismatch):
        make_client().fetch_manifest(parse_reference(ref(server)))


def test_a_head_with_another_digest_than_asked_is_refused(server: ScriptedServer, make_client: Make) -> None:
    wanted = sha256_digest(b"x")
    server.on("HEAD", f"/v2/team/app/manifests/{wanted}", GOOD)
    with pytest.raises(DigestMismatch):
        make_client().resolve(parse_reference(ref(server, f"team/app@{wanted}")))


def test_a_manifest_of_other_algorithm_is_verified_with_it(server: ScriptedServer, make_client: Make) -> None:
    import hashlib

    digest = "sha512:" + hashlib.sha512(RAW).hexdigest()
    server.on("GET", f"/v2/team/app/manifests/{digest}", Reply(200, RAW, {"content-type": OCI_MANIFEST}))
    found, _ = make_client().fetch_manifest(parse_reference(ref(server, f"team/app@{digest}")))
    assert found.digest == digest


def test_a_manifest_without_end_is_refused(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, b" " * (4 * 1024 * 1024 + 1), {"content-type": OCI_MANIFEST}))
    with pytest.raises(RegistryError, match="more than 4194304 bytes"):
        make_client().fetch_manifest(parse_reference(ref(server)))


def test_an_empty_manifest_is_refused(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, b"", {"content-type": OCI_MANIFEST}))
    with pytest.raises(RegistryError, match="empty manifest"):
        make_client().fetch_manifest(parse_reference(ref(server)))


def test_a_cut_manifest_is_asked_for_again(server: ScriptedServer, make_client: Make) -> None:
    cut = Reply(200, RAW, {"content-type": OCI_MANIFEST}, cut_after=4)
    server.on("GET", PATH, cut, cut, GOOD)
    assert make_client().fetch_manifest(parse_reference(ref(server)))[1] == RAW


def test_a_manifest_always_cut_is_an_error(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, RAW, {"content-type": OCI_MANIFEST}, cut_after=4))
    with pytest.raises(RegistryError, match="broke off its answer"):
        make_client().fetch_manifest(parse_reference(ref(server)))


def test_pushing_is_one_request_that_carries_the_exact_bytes(
    server: ScriptedServer, make_client: Make
) -> None:
    server.on("PUT", PATH, Reply(201, b"", {"docker-content-digest": DIGEST}))
    make_client().push_manifest(parse_reference(ref(server)), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW)
    (got,) = server.got
    assert (got.body, got.headers["content-type"]) == (RAW, OCI_INDEX)


@pytest.mark.parametrize(
    ("etag", "sent"), [('"v1"', '"v1"'), ('W/"v1"', None), ("", None)], ids=["strong", "weak", "none"]
)
def test_a_tag_is_replaced_only_if_it_still_leads_there(
    server: ScriptedServer, make_client: Make, etag: str, sent: str | None
) -> None:
    there = Reply(200, RAW, {**GOOD.headers, **({"etag": etag} if etag else {})})
    server.on("GET", PATH, there).on("PUT", PATH, Reply(201))
    client, name = make_client(), parse_reference(ref(server))
    found = client.read_tag(name)
    assert found is not None
    assert (found.descriptor.digest, found.raw) == (DIGEST, RAW)
    client.push_manifest(name, Descriptor(OCI_MANIFEST, DIGEST, len(RAW)), RAW, instead_of=found)
    assert server.got[-1].headers.get("if-match") == sent


def test_a_tag_that_leads_elsewhere_by_now_is_left_alone(server: ScriptedServer, make_client: Make) -> None:
    server.on("GET", PATH, Reply(200, RAW, {**GOOD.headers, "etag": '"v1"'}))
    server.on("PUT", PATH, error_reply(412, "PRECONDITION"))
    client, name = make_client(), parse_reference(ref(server))
    found = client.read_tag(name)
    with pytest.raises(RegistryError) as caught:
        client.push_manifest(name, Descriptor(OCI_MANIFEST, DIGEST, len(RAW)), RAW, instead_of=found)
    assert caught.value.status == 412
    assert server.lines() == [f"GET {PATH}", f"PUT {PATH}"], "it is not tried again"


def test_a_tag_to_be_replaced_is_read_from_the_registry_itself(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    other.on("GET", PATH, GOOD)
    server.on("GET", PATH, error_reply(404, "MANIFEST_UNKNOWN"))
    hosts = {server.host: HostConfig(mirrors=(other.host,))}
    assert make_client(hosts=hosts).read_tag(parse_reference(ref(server))) is None
    assert other.lines() == []


def test_a_manifest_stored_as_something_else_is_an_error(server: ScriptedServer, make_client: Make) -> None:
    server.on("PUT", PATH, Reply(201, b"", {"docker-content-digest": sha256_digest(b"x")}))
    with pytest.raises(DigestMismatch):
        make_client().push_manifest(
            parse_reference(ref(server)), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW
        )


def test_a_push_whose_parts_are_missing_says_so(server: ScriptedServer, make_client: Make) -> None:
    server.on("PUT", PATH, error_reply(400, "MANIFEST_BLOB_UNKNOWN"))
    with pytest.raises(RegistryError) as caught:
        make_client().push_manifest(
            parse_reference(ref(server)), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW
        )
    assert caught.value.codes == ("MANIFEST_BLOB_UNKNOWN",)


def test_heading_a_manifest_is_one_request_whatever_comes(server: ScriptedServer, make_client: Make) -> None:
    server.on("HEAD", PATH, Reply(404), GOOD)
    client = make_client()
    assert client.head_manifest(parse_reference(ref(server))) is None
    assert client.head_manifest(parse_reference(ref(server))) == Descriptor(OCI_MANIFEST, DIGEST, len(RAW))
    assert server.lines() == [f"HEAD {PATH}"] * 2
    assert server.connections == 1


def test_tags_are_listed_page_by_page(server: ScriptedServer, make_client: Make) -> None:
    def page(got: Got) -> Reply:
        if "last=b" in got.target:
            return json_reply({"tags": ["c"]})
        link = '</v2/team/app/tags/list?last=b&n=2>; rel="next"'
        return json_reply({"tags": ["a", "b"]}, headers={"link": link})

    server.on("GET", "/v2/team/app/tags/list", page)
    assert make_client().list_tags(parse_reference(ref(server))) == ["a", "b", "c"]


@pytest.mark.parametrize("body", [b"[]", b"no", b'{"tags": 1}'])
def test_a_malformed_list_of_tags_is_an_error(server: ScriptedServer, make_client: Make, body: bytes) -> None:
    server.on("GET", "/v2/team/app/tags/list", Reply(200, body))
    with pytest.raises(RegistryError, match="malformed"):
        make_client().list_tags(parse_reference(ref(server)))


ENTRY = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 2, "artifactType": "application/x"}


def test_referrers_come_from_the_api(server: ScriptedServer, make_client: Make) -> None:
    other = {**ENTRY, "artifactType": "application/y"}
    index = json_reply({"manifests": [ENTRY, other]}, headers={"content-type": OCI_INDEX})
    server.on("GET", f"/v2/team/app/referrers/{DIGEST}", index)
    target = parse_reference(ref(server, f"team/app@{DIGEST}"))
    found = make_client().referrers(target, artifact_type="application/x")
    assert [d.artifact_type for d in found.manifests] == ["application/x"]
    assert found.tag == ""


def test_referrers_come_from_the_tag_where_there_is_no_api(server: ScriptedServer, make_client: Make) -> None:
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [ENTRY]}).encode()
    tag = DIGEST.replace(":", "-")
    server.on("GET", f"/v2/team/app/manifests/{tag}", Reply(200, raw, {"content-type": OCI_INDEX}))
    found = make_client().referrers(parse_reference(ref(server, f"team/app@{DIGEST}")))
    assert (len(found.manifests), found.tag) == (1, tag)


def test_no_referrers_is_no_error(server: ScriptedServer, make_client: Make) -> None:
    found = make_client().referrers(parse_reference(ref(server, f"team/app@{DIGEST}")))
    assert found.manifests == ()


def test_referrers_need_a_digest(server: ScriptedServer, make_client: Make) -> None:
    with pytest.raises(UsageError):
        make_client().referrers(parse_reference(ref(server)))


def test_deleting(server: ScriptedServer, make_client: Make) -> None:
    path = f"/v2/team/app/manifests/{DIGEST}"
    server.on("DELETE", path, Reply(202))
    make_client().delete_manifest(parse_reference(ref(server, f"team/app@{DIGEST}")))
    assert server.lines() == [f"DELETE {path}"]


def test_mirrors_are_asked_first_and_the_registry_last(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    other.on("HEAD", "/v2/proxy/team/app/manifests/1", Reply(404), GOOD)
    other.on("GET", "/v2/proxy/team/app/manifests/1", Reply(404))
    server.on("HEAD", PATH, GOOD)
    hosts = {server.host: HostConfig(mirrors=(f"{other.host}/proxy",))}
    client = make_client(hosts=hosts)
    assert client.resolve(parse_reference(ref(server))).digest == DIGEST
    assert server.lines() == [f"HEAD {PATH}"]
    assert client.resolve(parse_reference(ref(server))).digest == DIGEST
    assert server.lines() == [f"HEAD {PATH}"]  # the mirror had it this time


def test_a_dead_mirror_is_told_of_when_the_registry_fails_too(
    server: ScriptedServer, make_client: Make
) -> None:
    hosts = {server.host: HostConfig(mirrors=("127.0.0.1:1",))}
    with pytest.raises(NotFoundError) as caught:
        make_client(hosts=hosts).resolve(parse_reference(ref(server)))
    assert "mirror 127.0.0.1:1: cannot connect" in (caught.value.detail or "")


def test_pushes_do_not_go_to_mirrors(
    server: ScriptedServer, other: ScriptedServer, make_client: Make
) -> None:
    server.on("PUT", PATH, Reply(201))
    client = make_client(hosts={server.host: HostConfig(mirrors=(other.host,))})
    client.push_manifest(parse_reference(ref(server)), Descriptor(OCI_INDEX, DIGEST, len(RAW)), RAW)
    assert other.lines() == []
