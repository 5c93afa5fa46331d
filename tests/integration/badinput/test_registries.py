"""Registries that fail, through the command, with a real one behind: pulls, pushes, caches in and out.

What may pass is tried again; what does not is one error, or for a cache to import one warning; nothing wrong is kept. The client's own
ways with bad peers are tested in ``unit/registry``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from typing import TYPE_CHECKING

import pytest

import baseimage
from idmap import remove_tree
from support.httprelay import Answer, HttpRelay, Seen
from support.scripted import Reply, error_reply
from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import services
    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKERFILE = (
    "FROM {base} AS one\nRUN echo one > /one\nFROM {base}\nCOPY --from=one /one /one\nCOPY file /file\n"
)


def on(method: str, pattern: str, *replies: Reply | None) -> Callable[[Seen], Reply | None]:
    """Answer requests for a path with the replies in turn, the last again and again; ``None`` asks the registry."""
    left = list(replies)

    def answer(seen: Seen) -> Reply | None:
        if seen.method != method or not re.search(pattern, seen.path):
            return None
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def bytes_changed(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[Seen, Answer], Answer]:
    """Change what the registry gives for a path."""

    def changed(seen: Seen, answer: Answer) -> Answer:
        if seen.method != "GET" or answer.status != 200 or not re.search(pattern, seen.path):
            return answer
        headers = {k: v for k, v in answer.headers.items() if k != "docker-content-digest"}
        return Answer(answer.status, headers, change(answer.body))

    return changed


def flip(data: bytes) -> bytes:
    return bytes([*data[:-1], data[-1] ^ 1]) if data else b"x"


class Machine:
    """Builds with stores of their own, through a relay."""

    def __init__(self, crossdock: Crossdock, base: BaseImages, relay: HttpRelay, repository: str) -> None:
        self._crossdock = crossdock
        self.relay = relay
        self.path = repository.partition("/")[2]
        self.direct = repository
        #: the repository, by way of the relay
        self.repository = f"{relay.host}/{self.path}"
        self.base = base.index
        self.folder = crossdock.folder / "context"
        self.folder.mkdir()
        (self.folder / "file").write_text("file")

    def build(self, store: str, *flags: str, base: str = "") -> Ran:
        (self.folder / "Dockerfile").write_text(DOCKERFILE.format(base=base or self.base))
        root = str(self._crossdock.folder / f"store-{store}")
        return self._crossdock("build", "--progress=plain", self.folder, *flags, env={"CROSSDOCK_ROOT": root})

    def check(self, store: str) -> None:
        root = str(self._crossdock.folder / f"store-{store}")
        said = self._crossdock("store", "check", env={"CROSSDOCK_ROOT": root}).ok().out
        assert "no problems found" in said

    def close(self) -> None:
        for store in self._crossdock.folder.glob("store-*"):
            remove_tree(store)


@pytest.fixture
def relay(registry: services.Registry) -> Iterator[HttpRelay]:
    made = HttpRelay(registry.host)
    yield made
    made.close()


@pytest.fixture
def machine(crossdock: Crossdock, base: BaseImages, relay: HttpRelay, repository: str) -> Iterator[Machine]:
    made = Machine(crossdock, base, relay, repository)
    yield made
    made.close()


def one_error(done: Ran, *words: str) -> None:
    done.failed()
    errors = [line for line in done.err.splitlines() if line.startswith("ERROR: ")]
    assert len(errors) == 1, done.err
    for word in words:
        assert word in done.err, done.err


BUSY = error_reply(429, "TOOMANYREQUESTS", **{"retry-after": "0"})
BROKEN = error_reply(503, "UNAVAILABLE")
CUT = Reply(200, b"x" * 1000, {"content-type": "application/octet-stream"}, cut_after=100)
RESET = Reply(reset=True)
PASSING = [
    pytest.param((BUSY, BUSY, None), id="429 twice"),
    pytest.param((BROKEN, error_reply(500, "UNKNOWN"), None), id="503 and 500"),
    pytest.param((RESET, None), id="reset once"),
]


class TestPull:
    @pytest.mark.parametrize("replies", PASSING)
    @pytest.mark.parametrize("path", ["/manifests/sha256", "/blobs/"])
    def test_what_passes_is_tried_again(
        self, machine: Machine, path: str, replies: tuple[Reply | None, ...]
    ) -> None:
        machine.relay.answer = on("GET", path, *replies)
        machine.build("a", base=machine.base.replace(machine.base.split("/")[0], machine.relay.host)).ok()
        machine.check("a")

    def test_a_blob_that_breaks_off_is_gone_on_with(self, machine: Machine) -> None:
        broken: list[str] = []

        def cut(seen: Seen, answer: Answer) -> Answer | Reply:
            if (
                seen.method == "GET"
                and "/blobs/" in seen.path
                and len(answer.body) > 5000
                and len(broken) < 4
            ):
                broken.append(seen.path)
                return Reply(answer.status, answer.body, answer.headers, cut_after=2000)
            return answer

        machine.relay.change = cut
        machine.build("a", base=machine.base.replace(machine.base.split("/")[0], machine.relay.host)).ok()
        assert broken
        machine.check("a")

    @pytest.mark.parametrize(
        ("path", "change"),
        [
            ("/manifests/sha256", flip),
            ("/blobs/", flip),
            ("/blobs/", lambda data: data[:-1]),
            ("/blobs/", lambda data: data + b"more"),
            ("/blobs/", lambda _data: b""),
        ],
        ids=["another manifest", "other bytes", "too short", "too long", "empty"],
    )
    def test_lies_are_refused_and_the_truth_is_taken_afterwards(
        self, machine: Machine, path: str, change: Callable[[bytes], bytes]
    ) -> None:
        image = machine.base.replace(machine.base.split("/")[0], machine.relay.host)
        machine.relay.change = bytes_changed(path, change)
        one_error(machine.build("a", base=image), "sha256:")
        machine.check("a")
        machine.relay.change = None
        machine.build("a", base=image).ok()
        machine.check("a")

    @pytest.mark.slow
    @pytest.mark.parametrize("reply", [BUSY, BROKEN, RESET], ids=["429", "503", "reset"])
    def test_what_does_not_pass_is_one_error(self, machine: Machine, reply: Reply) -> None:
        machine.relay.answer = on("GET", "/blobs/", reply)
        done = machine.build("a", base=machine.base.replace(machine.base.split("/")[0], machine.relay.host))
        one_error(done, machine.relay.host)
        machine.check("a")


class TestPush:
    def push(self, machine: Machine, store: str = "a") -> Ran:
        return machine.build(store, "-t", f"{machine.repository}:v", "--push")

    @pytest.mark.parametrize("replies", PASSING)
    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")]
    )
    def test_what_passes_is_tried_again(
        self, machine: Machine, method: str, path: str, replies: tuple[Reply | None, ...]
    ) -> None:
        machine.relay.answer = on(method, path, *replies)
        self.push(machine).ok()
        skopeo("inspect", "--tls-verify=false", f"docker://{machine.direct}:v")

    @pytest.mark.parametrize(
        ("method", "path", "reply", "words"),
        [
            ("POST", "/uploads/", error_reply(403, "DENIED"), ("403", "docker login")),
            ("PUT", "/manifests/v", error_reply(400, "MANIFEST_INVALID"), ("MANIFEST_INVALID",)),
            ("PUT", "/manifests/v", error_reply(400, "MANIFEST_BLOB_UNKNOWN"), ("MANIFEST_BLOB_UNKNOWN",)),
            ("PUT", "/manifests/v", error_reply(413, "SIZE"), ("413",)),
            (
                "PUT",
                "/manifests/v",
                Reply(201, b"", {"docker-content-digest": "sha256:" + "0" * 64}),
                ("stored something else",),
            ),
        ],
        ids=["refused", "an invalid manifest", "a blob is missing", "too large", "another digest stored"],
    )  # fmt: skip
    def test_a_refusal_is_one_error(
        self, machine: Machine, method: str, path: str, reply: Reply, words: tuple[str, ...]
    ) -> None:
        machine.relay.answer = on(method, path, reply)
        one_error(self.push(machine), *words)
        machine.check("a")
        machine.relay.answer = None
        self.push(machine).ok()

    @pytest.mark.slow
    @pytest.mark.parametrize("reply", [BUSY, BROKEN, RESET], ids=["429", "503", "reset"])
    def test_what_does_not_pass_is_one_error(self, machine: Machine, reply: Reply) -> None:
        machine.relay.answer = on("PUT", "/manifests/v", reply)
        one_error(self.push(machine), machine.relay.host)


@pytest.fixture
def cached(machine: Machine) -> Machine:
    """The cache of a build is in the registry."""
    machine.build("first", "--cache-to", f"type=registry,ref={machine.direct}:cache,mode=max").ok()
    return machine


class TestCacheImport:
    def use(self, machine: Machine, store: str, *flags: str) -> Ran:
        """Build with the cache; whatever is wrong with it, the build works."""
        done = machine.build(
            store, "--cache-from", f"type=registry,ref={machine.repository}:cache", *flags
        ).ok()
        machine.check(store)
        return done

    @pytest.mark.parametrize("replies", PASSING)
    @pytest.mark.parametrize("path", ["/manifests/cache", "/blobs/"])
    def test_what_passes_is_tried_again(
        self, cached: Machine, path: str, replies: tuple[Reply | None, ...]
    ) -> None:
        cached.relay.answer = on("GET", path, *replies)
        assert "CACHED" in self.use(cached, "two").err

    @pytest.mark.parametrize(
        ("method", "path", "reply"),
        [
            ("GET", "/manifests/cache", error_reply(401, "UNAUTHORIZED", **{"www-authenticate": 'Basic realm="r"'})),
            ("GET", "/manifests/cache", error_reply(403, "DENIED")),
            ("GET", "/manifests/cache", error_reply(404, "MANIFEST_UNKNOWN")),
            ("GET", "/manifests/cache", Reply(200, b"<html>", {"content-type": "text/html"})),
            ("GET", "/manifests/cache", Reply(200, b'{"schemaVersion":2', {"content-type": "application/vnd.oci.image.manifest.v1+json"})),
            ("GET", "/blobs/", error_reply(404, "BLOB_UNKNOWN")),
            ("GET", "/blobs/", Reply(200, b"{}", {"content-type": "application/json"})),
        ],
        ids=["401", "403", "404", "HTML", "truncated manifest", "no config", "another config"],
    )  # fmt: skip
    def test_a_cache_that_cannot_be_had_is_a_warning(
        self, cached: Machine, method: str, path: str, reply: Reply
    ) -> None:
        cached.relay.answer = on(method, path, reply)
        done = self.use(cached, "two")
        assert re.search(r"is not used|there is no build cache at", done.err), done.err
        assert "CACHED" not in done.err

    @pytest.mark.slow
    @pytest.mark.parametrize("reply", [BUSY, BROKEN, RESET], ids=["429", "503", "reset"])
    @pytest.mark.parametrize("path", ["/manifests/cache", "/blobs/"])
    def test_what_does_not_pass_is_a_warning(self, cached: Machine, path: str, reply: Reply) -> None:
        cached.relay.answer = on("GET", path, reply)
        assert "is not used" in self.use(cached, "two").err

    @pytest.mark.parametrize(
        "change",
        [flip, lambda data: data[:-9], lambda data: data + b"x", lambda _data: b""],
        ids=["other bytes", "too short", "too long", "empty"],
    )
    def test_layers_that_are_not_what_was_listed_are_not_used(
        self, cached: Machine, tmp_path: Path, change: Callable[[bytes], bytes]
    ) -> None:
        def config_is_true(seen: Seen, answer: Answer) -> Answer:
            if answer.body.startswith(b"{"):
                return answer
            return bytes_changed("/blobs/", change)(seen, answer)

        cached.relay.change = config_is_true
        done = self.use(cached, "two", "-o", f"type=local,dest={tmp_path}/out")
        assert "is given up" in done.err
        assert (tmp_path / "out/one").read_text() == "one\n"

    @pytest.mark.parametrize(
        "reply", [error_reply(404, "BLOB_UNKNOWN"), error_reply(403, "DENIED")], ids=["404", "403"]
    )
    def test_layers_that_are_gone_are_built_again(
        self, cached: Machine, tmp_path: Path, reply: Reply
    ) -> None:
        config = json.loads(
            skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{cached.direct}:cache").stdout
        )["config"]["digest"]

        def layers_gone(seen: Seen) -> Reply | None:
            return (
                reply if seen.method == "GET" and "/blobs/" in seen.path and config not in seen.path else None
            )

        cached.relay.answer = layers_gone
        done = self.use(cached, "two", "-o", f"type=local,dest={tmp_path}/out")
        assert "is given up" in done.err
        assert (tmp_path / "out/one").read_text() == "one\n"

    def test_a_cache_of_another_platform_does_not_fit_and_does_no_harm(self, cached: Machine) -> None:
        """No step of it is taken for one of this platform."""
        done = cached.build(
            "arm", "--platform", "linux/s390x", "--cache-from", f"type=registry,ref={cached.repository}:cache",
            "--target", "one", "-o", "type=cacheonly", "--call", "outline",
        )  # fmt: skip
        done.ok()

    @pytest.mark.parametrize("kind", ["image", "artifact", "config of the future", "config of somebody else"])
    def test_a_foreign_format_is_a_warning(self, cached: Machine, kind: str) -> None:
        put_foreign(cached, kind)
        done = self.use(cached, "two")
        assert re.search(r"is not used: .*", done.err), done.err
        assert "CACHED" not in done.err


def put_foreign(machine: Machine, kind: str) -> None:
    """Put something that is not a cache of ours under the cache's tag."""
    host, path = machine.direct.split("/", 1)
    if kind == "image":
        baseimage.push(baseimage.busybox_image(), host, path, "cache")
        return
    config, media_type = {
        "artifact": (b"{}", "application/vnd.example.thing.v1+json"),
        "config of the future": (b'{"version":9,"entries":"elsewhere"}', _CONFIG),
        "config of somebody else": (b'{"layers":[{"blob":7}],"records":[{"digest":1}]}', _CONFIG),
    }[kind]
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": media_type, "digest": digest, "size": len(config)},
        "layers": [],
    }
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("POST", f"/v2/{path}/blobs/uploads/")
        response = connection.getresponse()
        response.read()
        where = response.headers["location"]
        connection.request("PUT", f"{where}&digest={digest}", config)
        assert connection.getresponse().read() is not None
        headers = {"Content-Type": _MANIFEST}
        connection.request("PUT", f"/v2/{path}/manifests/cache", json.dumps(manifest), headers)
        assert connection.getresponse().status == 201
    finally:
        connection.close()


class TestCacheExport:
    def export(self, machine: Machine, *more: str) -> Ran:
        to = ",".join((f"type=registry,ref={machine.repository}:cache,mode=max", *more))
        return machine.build("a", "--cache-to", to)

    @pytest.mark.parametrize("replies", PASSING)
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/manifests/cache"),
            ("HEAD", "/manifests/cache"),
            ("PUT", "/uploads/"),
            ("PUT", "/manifests/cache"),
        ],
    )
    def test_what_passes_is_tried_again(
        self, machine: Machine, method: str, path: str, replies: tuple[Reply | None, ...]
    ) -> None:
        machine.relay.answer = on(method, path, *replies)
        self.export(machine).ok()
        machine.relay.answer = None
        done = machine.build("two", "--cache-from", f"type=registry,ref={machine.direct}:cache").ok()
        assert "CACHED" in done.err

    @pytest.mark.parametrize(
        ("method", "path", "reply"),
        [
            ("POST", "/uploads/", error_reply(403, "DENIED")),
            ("PUT", "/manifests/cache", error_reply(400, "MANIFEST_INVALID")),
            ("PUT", "/manifests/cache", Reply(201, b"", {"docker-content-digest": "sha256:" + "0" * 64})),
            ("GET", "/manifests/cache", error_reply(403, "DENIED")),
        ],
        ids=["upload refused", "manifest refused", "another digest stored", "what is there cannot be read"],
    )
    def test_a_refusal_fails_the_build_unless_told_otherwise(
        self, machine: Machine, method: str, path: str, reply: Reply
    ) -> None:
        machine.relay.answer = on(method, path, reply)
        one_error(self.export(machine), f"failed to export the cache to {machine.repository}:cache")
        assert "was not exported" in self.export(machine, "ignore-error=true").ok().err
        machine.check("a")

    @pytest.mark.parametrize("kind", ["image", "artifact", "config of the future"])
    def test_a_foreign_format_is_replaced(self, machine: Machine, kind: str) -> None:
        put_foreign(machine, kind)
        done = self.export(machine).ok()
        assert "cannot be merged and is replaced" in done.err
        done = machine.build("two", "--cache-from", f"type=registry,ref={machine.direct}:cache").ok()
        assert "CACHED" in done.err

    def test_a_tampered_cache_is_not_merged(self, machine: Machine) -> None:
        self.export(machine).ok()
        machine.relay.change = bytes_changed("/blobs/", flip)
        (machine.folder / "file").write_text("changed")
        assert "cannot be merged and is replaced" in self.export(machine).ok().err
