"""Files of the web, from a server that answers as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.sources.http import HttpSolverOp
from crossdock.errors import Cancelled, NotSupported, SolveError
from crossdock.progress.events import VertexStatus
from support.scripted import Got, Reply, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from crossdock.errors import CrossdockError
    from crossdock.image.digest import Digest
    from unit.engine.sources.conftest import Runner

DATA = b"content\n" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def url(server: ScriptedServer) -> str:
    return f"http://{server.host}/d/file.txt"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossdock.engine.sources.http.PAUSE_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class TestFiles:
    def test_a_file_has_its_name_mode_and_time(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        headers = {"Last-Modified": "Sun, 09 Sep 2001 01:46:40 GMT"}
        server.on("GET", "/d/file.txt", Reply(200, DATA, headers))
        path = only(runner.folder(runner.op(HttpSolverOp, url)))
        assert path.read_bytes() == DATA
        assert (path.name, path.stat().st_mode & 0o7777, path.stat().st_mtime) == (
            "file.txt",
            0o600,
            1_000_000_000,
        )
        done = [e for e in runner.events if isinstance(e, VertexStatus) and e.completed_ns]
        assert [(e.current, e.total) for e in done] == [(len(DATA), len(DATA))]

    def test_attributes_set_name_and_mode(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        attrs = {"http.filename": "other", "http.perm": "0644"}
        path = only(runner.folder(runner.op(HttpSolverOp, url, attrs)))
        assert (path.name, path.stat().st_mode & 0o7777, path.stat().st_mtime) == ("other", 0o644, 0)

    @pytest.mark.parametrize(
        ("target", "disposition", "name"),
        [
            ("/a%20b", "", "a b"),
            ("/", "", "download"),
            ("/x", 'attachment; filename="given.bin"', "given.bin"),
            ("/x", 'attachment; filename="../../etc/passwd"', "passwd"),
            ("/x", 'attachment; filename=".."', "download"),
            ("/%2e%2e", "", "download"),
        ],
    )
    def test_names_never_leave_the_directory(
        self, runner: Runner, server: ScriptedServer, target: str, disposition: str, name: str
    ) -> None:
        headers = {"Content-Disposition": disposition} if disposition else {}
        for path in (target, "/.."):
            server.on("GET", path, Reply(200, DATA, headers))
        assert only(runner.folder(runner.op(HttpSolverOp, f"http://{server.host}{target}"))).name == name

    @pytest.mark.parametrize("chunk", [0, 777])
    def test_lengths_may_be_unknown(
        self, runner: Runner, server: ScriptedServer, url: str, chunk: int
    ) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA, chunk=chunk))
        assert only(runner.folder(runner.op(HttpSolverOp, url))).read_bytes() == DATA


class TestKeys:
    def test_the_content_is_the_key(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA), Reply(200, DATA), Reply(200, b"new"))
        keys = [runner.key(runner.op(HttpSolverOp, url)) for _ in range(3)]
        assert keys[0] == keys[1] != keys[2]

    def test_what_is_current_is_not_sent_again(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        seen: list[str | None] = []

        def answer(got: Got) -> Reply:
            seen.append(got.headers.get("if-none-match"))
            return Reply(304) if seen[-1] == '"v1"' else Reply(200, DATA, {"ETag": '"v1"'})

        server.on("GET", "/d/file.txt", answer)
        keys = {runner.key(runner.op(HttpSolverOp, url)) for _ in range(2)}
        assert len(keys) == 1
        assert seen == [None, '"v1"']
        assert only(runner.folder(runner.op(HttpSolverOp, url))).read_bytes() == DATA

    def test_a_checksum_and_a_name_ask_nobody_for_the_key(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        attrs = {"http.checksum": DIGEST, "http.filename": "f"}
        runner.key(runner.op(HttpSolverOp, url, attrs))
        assert server.lines() == []
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        runner.folder(runner.op(HttpSolverOp, url, attrs))
        assert server.lines() == ["GET /d/file.txt"]

    def test_name_and_mode_are_part_of_it(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        variants: list[dict[str, str]] = [
            {},
            {"http.perm": "0644"},
            {"http.filename": "x"},
            {"http.uid": "1"},
        ]
        assert len({runner.key(runner.op(HttpSolverOp, url, a)) for a in variants}) == 4


class TestFailures:
    def failure(self, runner: Runner, url: str, attrs: dict[str, str] | None = None) -> str:
        with pytest.raises(SolveError) as caught:
            runner.folder(runner.op(HttpSolverOp, url, attrs))
        return caught.value.summary

    @pytest.mark.parametrize("status", [403, 404, 410, 418])
    def test_the_server_s_no_is_final(
        self, runner: Runner, server: ScriptedServer, url: str, status: int
    ) -> None:
        server.on("GET", "/d/file.txt", Reply(status, b"no"))
        assert f"the server answered {status}" in self.failure(runner, url)
        assert len(server.got) == 1

    @pytest.mark.parametrize(
        "first",
        [
            Reply(503, b""),
            Reply(429, b""),
            Reply(reset=True),
            Reply(200, DATA, cut_after=100),
            Reply(200, DATA, chunk=50, cut_after=100),
        ],
        ids=["503", "429", "reset", "cut", "cut chunks"],
    )
    def test_what_may_pass_is_tried_again(
        self, runner: Runner, server: ScriptedServer, url: str, first: Reply
    ) -> None:
        server.on("GET", "/d/file.txt", first, Reply(200, DATA))
        assert only(runner.folder(runner.op(HttpSolverOp, url))).read_bytes() == DATA

    def test_a_server_that_always_cuts_is_named(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA, cut_after=100))
        text = self.failure(runner, url)
        assert url in text
        assert "failed to load" in text
        assert 2 <= len(server.got) <= 6
        assert not list((runner.store.root / "content").rglob("*file.txt*"))

    def test_a_wrong_checksum_says_what_was_found(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        text = self.failure(runner, url, {"http.checksum": "sha256:" + "0" * 64})
        assert "digest mismatch" in text
        assert DIGEST in text

    def test_nobody_listens(self, runner: Runner) -> None:
        text = self.failure(runner, "http://127.0.0.1:9/x")
        assert "refused" in text
        assert "object at 0x" not in text

    def test_users_and_queries_are_not_shown(self, runner: Runner, server: ScriptedServer) -> None:
        server.on("GET", "/f", Reply(404))
        text = self.failure(runner, f"http://user:hunter2@{server.host}/f?token=abc")
        assert "hunter2" not in text
        assert "abc" not in text

    @pytest.mark.parametrize(
        ("name", "kind"), [("http.nosuch", SolveError), ("http.sig.pubkey", NotSupported)]
    )
    def test_unknown_attributes_are_refused(
        self, runner: Runner, name: str, kind: type[CrossdockError]
    ) -> None:
        with pytest.raises(kind):
            runner.op(HttpSolverOp, "http://x/y", {name: "1"})

    def test_redirects_end(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        server.on("GET", "/d/file.txt", Reply(302, headers={"Location": url}))
        assert "redirect" in self.failure(runner, url)
        server.on("GET", "/d/file.txt", Reply(302, headers={"Location": "file:///etc/passwd"}))
        self.failure(runner, url)

    def test_a_download_ends_when_the_build_does(
        self, runner: Runner, server: ScriptedServer, url: str
    ) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA, delay_s=20))
        cancel = CancelToken()
        threading.Timer(0.3, cancel.cancel).start()
        begin = time.monotonic()
        with pytest.raises(Cancelled):
            runner.op(HttpSolverOp, url).cache_map(runner.context(cancel))
        assert time.monotonic() - begin < 5


class TestAuthentication:
    @pytest.mark.parametrize(
        ("secret", "attrs", "header"),
        [
            ("HTTP_AUTH_HEADER_127.0.0.1", {}, "Basic x"),
            ("HTTP_AUTH_TOKEN_127.0.0.1", {}, "Bearer Basic x"),
            ("mine", {"http.authheadersecret": "mine"}, "Basic x"),
        ],
    )
    def test_secrets_become_a_header(
        self,
        runner: Runner,
        server: ScriptedServer,
        url: str,
        secret: str,
        attrs: dict[str, str],
        header: str,
    ) -> None:
        runner.secrets[secret] = "Basic x\n"
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        runner.key(runner.op(HttpSolverOp, url, attrs))
        assert server.got[0].headers["authorization"] == header

    def test_another_host_does_not_get_it(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        runner.secrets["HTTP_AUTH_HEADER_127.0.0.1"] = "Basic x"
        with ScriptedServer() as other:
            server.on(
                "GET", "/d/file.txt", Reply(302, headers={"Location": f"http://localhost:{other.port}/f"})
            )
            other.on("GET", "/f", Reply(200, DATA))
            runner.key(runner.op(HttpSolverOp, url))
            assert "authorization" not in other.got[0].headers

    def test_given_headers_are_sent(self, runner: Runner, server: ScriptedServer, url: str) -> None:
        server.on("GET", "/d/file.txt", Reply(200, DATA))
        runner.key(runner.op(HttpSolverOp, url, {"http.header.accept": "text/x"}))
        assert server.got[0].headers["accept"] == "text/x"


def test_proxies_of_the_environment_are_used(
    runner: Runner, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{server.host}")
    server.on("CONNECT", "far.example:80", Reply(403))
    with pytest.raises(SolveError, match="refused the tunnel"):
        runner.key(runner.op(HttpSolverOp, "http://far.example/f"))
    assert "CONNECT far.example:80" in server.lines()


class TestUploads:
    """``http://buildkit-session/…`` is no server: the caller uploads."""

    URL = "http://buildkit-session/abc"

    def test_a_file_comes_from_the_caller(self, runner: Runner) -> None:
        asked: list[str] = []

        def uploads(path: str, store: Callable[[Iterable[bytes]], Digest], _cancel: CancelToken) -> Digest:
            asked.append(path)
            return store([DATA[:100], DATA[100:]])

        op = runner.op(HttpSolverOp, self.URL, {"http.filename": "context"}, uploads=uploads)
        path = only(runner.folder(op))
        assert (path.name, path.read_bytes()) == ("context", DATA)
        assert asked == ["/abc"], "once for key and file"

    def test_a_wrong_checksum_is_refused(self, runner: Runner) -> None:
        def uploads(_path: str, store: Callable[[Iterable[bytes]], Digest], _cancel: CancelToken) -> Digest:
            return store([b"something else"])

        op = runner.op(HttpSolverOp, self.URL, {"http.checksum": DIGEST}, uploads=uploads)
        with pytest.raises(SolveError, match="digest mismatch"):
            runner.folder(op)

    def test_without_a_caller_that_uploads_it_fails_with_a_sentence(self, runner: Runner) -> None:
        with pytest.raises(SolveError, match="nothing is uploaded in this build"):
            runner.folder(runner.op(HttpSolverOp, self.URL))
