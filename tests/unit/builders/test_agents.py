"""``--ssh``: sockets, and agents started for key files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.agents import agent_sockets, implied_ssh
from crossdock.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_openssh = pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="needs openssh-client")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def make_key(path: Path, passphrase: str = "") -> str:
    """Make a key; returns its fingerprint."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


def listed(agent: Path) -> str:
    done = subprocess.run(
        ["ssh-add", "-l"],
        env={**os.environ, "SSH_AUTH_SOCK": str(agent)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


class TestSockets:
    def test_a_socket_by_name_and_the_default_one(
        self, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(os.fspath(tmp_path / "a"))
            monkeypatch.setenv("SSH_AUTH_SOCK", os.fspath(tmp_path / "a"))
            found = agent_sockets(("default", f"id={tmp_path}/a", "other"), stack)
        assert found == dict.fromkeys(("default", "id", "other"), tmp_path / "a")

    @pytest.mark.parametrize(
        ("spec", "error"),
        [
            ("default", "SSH_AUTH_SOCK is not set"),
            ("id=absent", "absent does not exist"),
            ("id=.", "neither a socket nor a key file"),
            ("id=a,absent", "only one socket is allowed"),
        ],
    )
    def test_what_cannot_be_used_is_named(
        self, spec: str, error: str, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind("a")
            with pytest.raises(UsageError, match=error):
                agent_sockets((spec,), stack)

    def test_a_name_is_given_once(self, tmp_path: Path, stack: ExitStack) -> None:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(os.fspath(tmp_path / "a"))
            with pytest.raises(UsageError, match="given twice"):
                agent_sockets((f"x={tmp_path}/a", f"x={tmp_path}/a"), stack)


@needs_openssh
class TestKeys:
    def test_an_agent_with_the_keys_lives_as_long_as_the_block(self, tmp_path: Path) -> None:
        prints = [make_key(tmp_path / name) for name in ("k1", "k2")]
        with ExitStack() as stack:
            agent = agent_sockets((f"deploy={tmp_path}/k1,{tmp_path}/k2",), stack)["deploy"]
            shown = listed(agent)
            assert all(text in shown for text in prints)
            assert agent.parent.stat().st_mode & 0o077 == 0
        assert not agent.parent.exists()
        assert listed(agent) == ""

    @pytest.mark.parametrize("kind", ["no key", "passphrase", "open to all"])
    def test_a_key_that_cannot_be_used_is_an_error_and_nothing_stays(
        self, tmp_path: Path, kind: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path / "tmp"))
        key = tmp_path / "key"
        if kind == "no key":
            key.write_text("hello")
            key.chmod(0o600)
        else:
            make_key(key, "secret" if kind == "passphrase" else "")
            key.chmod(0o600 if kind == "passphrase" else 0o644)
        begin = time.monotonic()
        with pytest.raises(UsageError, match=f"cannot use the key {key}: ") as caught:
            agent_sockets((f"id={key}",), stack)
        assert time.monotonic() - begin < 10
        assert "ssh-add" in (caught.value.hint or "")
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_a_long_path_of_temporary_files_does_not_matter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_key(tmp_path / "key")
        folder = tmp_path / ("long" * 25)
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
        with ExitStack() as stack:
            assert listed(agent_sockets((f"id={tmp_path}/key",), stack)["id"])

    def test_without_ssh_agent_the_package_is_named(
        self, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "key").write_text("")
        monkeypatch.setenv("PATH", os.fspath(tmp_path))
        with pytest.raises(SandboxError, match="ssh-agent is not installed"):
            agent_sockets((f"id={tmp_path}/key",), stack)


@pytest.mark.parametrize(
    ("context", "socket_", "expected"),
    [
        ("git@host:repo.git", "/a", ("default",)),
        ("ssh://host/repo.git", "/a", ("default",)),
        ("ssh://host/repo.git", "", ()),
        ("https://host/repo.git", "/a", ()),
        ("dir/with@sign", "/a", ()),
    ],
)
def test_a_git_context_over_ssh_implies_the_default_agent(
    context: str, socket_: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", socket_)
    assert implied_ssh(context, ()) == expected
    assert implied_ssh(context, ("x",)) == ("x",)
