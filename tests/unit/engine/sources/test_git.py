"""Git sources, with real repositories on disk, over HTTP and through a program in ssh's place."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.sources.git import GitSolverOp
from crossdock.engine.sources.gitrun import redact, user_home
from crossdock.errors import Cancelled, SandboxError, SolveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unit.engine.sources.conftest import Runner

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

WHO = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
DATE = "1000000000 +0000"


def git(cwd: Path, *args: str) -> str:
    env = {
        **os.environ,
        **WHO,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_COMMITTER_DATE": DATE,
        "GIT_AUTHOR_DATE": DATE,
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, files: dict[str, str], message: str = "m") -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two commits, a tag and a branch."""
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"a": "1", "run": "#!/bin/sh\n", "sub/b": "b"})
    (folder / "run").chmod(0o755)
    commit(folder, {})
    git(folder, "tag", "-a", "v1", "-m", "one")
    git(folder, "checkout", "-q", "-b", "other")
    commit(folder, {"a": "other"})
    git(folder, "checkout", "-q", "main")
    commit(folder, {"a": "2"})
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder served without any understanding of Git."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "www", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def source(runner: Runner, repo: Path | str, fragment: str = "", **attrs: str) -> GitSolverOp:
    url = repo if isinstance(repo, str) else f"file://{repo}"
    named = {f"git.{k}": v for k, v in attrs.items()}
    made: GitSolverOp = runner.op(GitSolverOp, f"git://host/x.git{fragment}", {"git.fullurl": url, **named})
    return made


def tree(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".git/" not in str(p)
    }


class TestRefs:
    @pytest.mark.parametrize(
        ("fragment", "expected"),
        [
            ("", "2"),
            ("#main", "2"),
            ("#refs/heads/main", "2"),
            ("#other", "other"),
            ("#v1", "1"),
            ("#refs/tags/v1", "1"),
        ],
    )
    def test_each_form_gives_its_commit(
        self, runner: Runner, repo: Path, fragment: str, expected: str
    ) -> None:
        folder = runner.folder(source(runner, repo, fragment))
        assert tree(folder) == {"a": expected, "run": "#!/bin/sh\n", "sub/b": "b"}
        assert (folder / "run").stat().st_mode & 0o111

    def test_a_commit_that_no_ref_names_directly(self, runner: Runner, repo: Path) -> None:
        first = git(repo, "rev-list", "--max-parents=0", "HEAD")
        assert tree(runner.folder(source(runner, repo, f"#{first}")))["a"] == "1"

    def test_subdirectories(self, runner: Runner, repo: Path) -> None:
        assert tree(runner.folder(source(runner, repo, "#main:sub"))) == {"b": "b"}
        assert tree(runner.folder(source(runner, repo, "#:/sub/../sub"))) == {"b": "b"}

    @pytest.mark.parametrize(
        ("fragment", "word"),
        [
            ("#nosuch", "does not contain ref nosuch"),
            ("#main:nosuch", "nosuch is not a directory"),
            ("#main:a", "not a directory"),
            ("#" + "0" * 40, "failed to fetch"),
            ("#--upload-pack=x", "must not start with a dash"),
        ],
    )
    def test_what_is_not_there(self, runner: Runner, repo: Path, fragment: str, word: str) -> None:
        with pytest.raises(SolveError, match=word):
            runner.folder(source(runner, repo, fragment))

    def test_a_subdirectory_that_is_a_link_out_is_refused(self, runner: Runner, repo: Path) -> None:
        (repo / "out").symlink_to("/etc")
        commit(repo, {})
        with pytest.raises(SolveError, match="not a directory of the repository"):
            runner.folder(source(runner, repo, "#main:out"))

    def test_checksums(self, runner: Runner, repo: Path) -> None:
        head = git(repo, "rev-parse", "HEAD")
        for ref, checksum in (
            ("#main", head),
            ("#main", head[:9]),
            (f"#{head}", head[:7]),
            ("#v1", git(repo, "rev-parse", "v1")),
        ):
            runner.key(source(runner, repo, ref, checksum=checksum))
        for ref in ("#main", f"#{head}"):
            with pytest.raises(SolveError, match="expected checksum to match 1234567"):
                runner.key(source(runner, repo, ref, checksum="1234567"))
        with pytest.raises(SolveError, match="invalid checksum"):
            runner.key(source(runner, repo, "#main", checksum="xyz"))


class TestKeys:
    def test_the_commit_and_what_is_taken_are_the_key(self, runner: Runner, repo: Path) -> None:
        head = git(repo, "rev-parse", "HEAD")
        assert runner.key(source(runner, repo, "#main")) == runner.key(source(runner, repo, f"#{head}"))
        variants = [
            ("#main", {}),
            ("#other", {}),
            ("#main:sub", {}),
            ("#main", {"keepgitdir": "true"}),
            ("#main", {"mtime": "commit"}),
        ]
        keys = {runner.key(source(runner, repo, ref, **attrs)) for ref, attrs in variants}
        assert len(keys) == len(variants)

    def test_a_new_commit_is_seen(self, runner: Runner, repo: Path) -> None:
        before = runner.key(source(runner, repo, "#main"))
        commit(repo, {"a": "3"})
        assert runner.key(source(runner, repo, "#main")) != before
        assert tree(runner.folder(source(runner, repo, "#main")))["a"] == "3"

    def test_what_was_fetched_once_is_there(self, runner: Runner, repo: Path) -> None:
        head = git(repo, "rev-parse", "HEAD")
        runner.folder(source(runner, repo, f"#{head}"))
        repo.rename(repo.with_name("moved"))
        assert tree(runner.folder(source(runner, repo, f"#{head}")))["a"] == "2"


class TestCheckout:
    def test_the_repository_comes_along_when_asked_for(self, runner: Runner, repo: Path) -> None:
        folder = runner.folder(source(runner, repo, "#main", keepgitdir="true"))
        assert git(folder, "-c", f"safe.directory={folder}", "status", "--porcelain") == ""
        assert (
            git(folder, "-c", f"safe.directory={folder}", "remote", "get-url", "origin") == f"file://{repo}"
        )
        assert not (runner.folder(source(runner, repo, "#main")) / ".git").exists()

    def test_times_are_the_commit_s_when_asked_for(self, runner: Runner, repo: Path) -> None:
        folder = runner.folder(source(runner, repo, "#main", mtime="commit"))
        assert {p.stat().st_mtime for p in folder.rglob("*")} == {1_000_000_000}

    def test_a_server_that_only_has_files(self, runner: Runner, repo: Path, web: tuple[Path, str]) -> None:
        www, url = web
        git(www, "clone", "-q", "--bare", str(repo), "r.git")
        git(www / "r.git", "update-server-info")
        first = git(repo, "rev-list", "--max-parents=0", "HEAD")
        assert tree(runner.folder(source(runner, f"{url}/r.git", "#other")))["a"] == "other"
        assert tree(runner.folder(source(runner, f"{url}/r.git", f"#{first}")))["a"] == "1"


class TestSubmodules:
    @pytest.fixture
    def outer(self, tmp_path: Path, repo: Path, web: tuple[Path, str]) -> str:
        www, url = web
        git(www, "clone", "-q", "--bare", str(repo), "inner.git")
        git(www / "inner.git", "update-server-info")
        folder = tmp_path / "outer"
        folder.mkdir()
        git(folder, "init", "-q", "-b", "main")
        git(folder, "submodule", "-q", "add", "--", f"{url}/inner.git", "mod")
        git(folder, "config", "-f", ".gitmodules", "submodule.mod.url", "../inner.git")
        commit(folder, {"top": "top"})
        git(www, "clone", "-q", "--bare", str(folder), "outer.git")
        git(www / "outer.git", "update-server-info")
        return f"{url}/outer.git"

    def test_they_are_checked_out(self, runner: Runner, outer: str) -> None:
        folder = runner.folder(source(runner, outer))
        assert {"top", "mod/a", "mod/sub/b"} <= set(tree(folder))
        assert not (folder / "mod/.git").exists()

    def test_they_can_be_left_out(self, runner: Runner, outer: str) -> None:
        folder = runner.folder(source(runner, outer, skipsubmodules="true"))
        assert set(tree(folder)) == {".gitmodules", "top"}

    def test_a_repository_of_this_machine_is_no_submodule(
        self, runner: Runner, repo: Path, tmp_path: Path
    ) -> None:
        private = tmp_path / "private"
        private.mkdir()
        git(private, "init", "-q", "-b", "main")
        commit(private, {"secret": "s"})
        git(
            repo,
            "-c",
            "protocol.file.allow=always",
            "submodule",
            "-q",
            "add",
            "--",
            f"file://{private}",
            "stolen",
        )
        commit(repo, {})
        with pytest.raises(SolveError, match="transport 'file' not allowed"):
            runner.folder(source(runner, repo, "#main"))


class TestCredentials:
    def test_a_token_is_sent_to_the_host_and_nowhere_shown(
        self, runner: Runner, web: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str | None] = []

        def do_get(self: http.server.SimpleHTTPRequestHandler) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_error(403)

        monkeypatch.setattr(_Quiet, "do_GET", do_get)
        runner.secrets["GIT_AUTH_TOKEN"] = "hunter2"
        with pytest.raises(SolveError) as caught:
            runner.key(source(runner, f"{web[1]}/r.git", authtokensecret="GIT_AUTH_TOKEN"))
        assert "403" in caught.value.summary
        assert "hunter2" not in str(caught.value)
        assert seen[0] == "basic eC1hY2Nlc3MtdG9rZW46aHVudGVyMg=="

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://user:pw@h/x", "https://h/x"),
            ("ssh://git@h/x", "ssh://git@h/x"),
            ("git@h:x", "git@h:x"),
        ],
    )
    def test_passwords_are_left_out_of_messages(self, url: str, shown: str) -> None:
        assert redact(url) == shown


class TestSsh:
    @pytest.fixture
    def calls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Record how ssh is called, then refuse as it does."""
        (tmp_path / "bin").mkdir()
        log = tmp_path / "calls"
        script = tmp_path / "bin/ssh"
        script.write_text(
            f'#!/bin/sh\necho "$SSH_AUTH_SOCK $*" >> {log}\n'
            "echo 'Warning: Permanently added' >&2\necho 'git@h: Permission denied (publickey).' >&2\nexit 255\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home/.ssh").mkdir(parents=True)
        return log

    def test_hosts_known_to_the_user_must_be_as_known(
        self, runner: Runner, calls: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "home/.ssh/known_hosts").write_text("h ssh-ed25519 AAAA\n")
        with pytest.raises(SolveError, match=r"Permission denied \(publickey\)"):
            runner.key(source(runner, "git@h:x.git"))
        line = calls.read_text()
        assert f"{tmp_path}/home/.ssh/known_hosts -o StrictHostKeyChecking=accept-new" in line
        assert "-F /dev/null -o BatchMode=yes" in line

    def test_given_hosts_are_the_only_ones(self, runner: Runner, calls: Path) -> None:
        with pytest.raises(SolveError):
            runner.key(source(runner, "ssh://git@h/x.git", knownsshhosts="h ssh-ed25519 AAAA"))
        assert "StrictHostKeyChecking=yes" in calls.read_text()
        assert "home/.ssh" not in calls.read_text()


class TestProcess:
    def test_git_ends_with_the_build(
        self, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "git").write_text("#!/bin/sh\nsleep 60 & wait\n")
        (tmp_path / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        cancel = CancelToken()
        threading.Timer(0.2, cancel.cancel).start()
        begin = time.monotonic()
        with pytest.raises(Cancelled):
            source(runner, "https://h/x.git").cache_map(runner.context(cancel))
        assert time.monotonic() - begin < 5

    def test_without_git_the_package_is_named(
        self, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(SandboxError, match="git is not installed"):
            runner.key(source(runner, "https://h/x.git"))

    def test_the_user_s_configuration_is_not_read(
        self, runner: Runner, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home/.gitconfig").write_text(
            "[core]\n\tautocrlf = true\n[alias]\n\tls-remote = !false\n"
        )
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        commit(repo, {"lines": "a\nb\n"})
        assert (runner.folder(source(runner, repo, "#main")) / "lines").read_bytes() == b"a\nb\n"

    def test_home_without_a_variable_is_that_of_the_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pwd

        monkeypatch.delenv("HOME")
        assert str(user_home()) == pwd.getpwuid(os.getuid()).pw_dir

    def test_unknown_attributes_are_refused(self, runner: Runner) -> None:
        with pytest.raises(SolveError, match=r"git\.nosuch"):
            runner.op(GitSolverOp, "git://h/x", {"git.nosuch": "1"})
