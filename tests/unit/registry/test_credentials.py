"""Logins from docker's and podman's files and from helpers."""

from __future__ import annotations

import base64
import json
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, ConfigError
from crossdock.registry import Credential, Credentials

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = CancelToken()


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(folder: Path, data: object, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def lookup(env: dict[str, str], domain: str, repository: str = "team/app") -> tuple[str, str] | None:
    found = Credentials(env=env).lookup(domain, repository, cancel=TOKEN)
    if found is None:
        return None
    secret = found.password or found.identity_token or found.registry_token
    assert secret is not None
    return found.username, secret.reveal_str()


def helper(folder: Path, name: str, script: str) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("example.com", "example.com"),
        ("example.com:5000", "example.com:5000"),
        ("https://example.com", "example.com"),
        ("http://example.com", "example.com"),
        ("https://example.com/v1/", "example.com"),
        ("https://example.com/v2/", "example.com"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://index.docker.io/v2/", "docker.io"),
    ],
)
def test_keys_that_name_a_registry(tmp_path: Path, key: str, domain: str) -> None:
    write(tmp_path, {"auths": {key: auth("me", "pw")}})
    assert lookup({"DOCKER_CONFIG": str(tmp_path)}, domain) == ("me", "pw")


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("example.com", "example.com:5000"),
        ("example.com:5000", "example.com"),
        ("example.com", "sub.example.com"),
        ("https://example.com.evil.org/v1/", "example.com"),
        ("docker.io", "example.com"),
    ],
)
def test_keys_that_name_another_registry(tmp_path: Path, key: str, domain: str) -> None:
    write(tmp_path, {"auths": {key: auth("me", "pw")}})
    assert lookup({"DOCKER_CONFIG": str(tmp_path)}, domain) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": base64.b64encode(b"me:pa:ss:word").decode()}, ("me", "pa:ss:word")),
        ({"auth": base64.b64encode(b"me:pw\0\0").decode()}, ("me", "pw")),
        ({"username": "me", "password": "pw"}, ("me", "pw")),
        ({"identitytoken": "refresh"}, ("", "refresh")),
        ({"registrytoken": "bearer"}, ("", "bearer")),
        ({}, None),
        ({"email": "a@b"}, None),
    ],
    ids=["colons", "padding", "plain", "identity token", "registry token", "empty", "no login"],
)
def test_entries(tmp_path: Path, entry: dict[str, str], expected: tuple[str, str] | None) -> None:
    write(tmp_path, {"auths": {"example.com": entry}})
    assert lookup({"DOCKER_CONFIG": str(tmp_path)}, "example.com") == expected


def test_no_file_is_no_login(tmp_path: Path) -> None:
    assert lookup({"HOME": str(tmp_path)}, "example.com") is None
    assert lookup({}, "example.com") is None


def test_files_are_searched_docker_s_first(tmp_path: Path) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(run)}
    write(
        home / ".config/containers", {"auths": {"a.io": auth("3", "3"), "c.io": auth("3", "3")}}, "auth.json"
    )
    assert lookup(env, "a.io") == ("3", "3")
    write(run / "containers", {"auths": {"a.io": auth("2", "2")}}, "auth.json")
    assert lookup(env, "a.io") == ("2", "2")
    write(home / ".docker", {"auths": {"a.io": auth("1", "1")}})
    assert lookup(env, "a.io") == ("1", "1")
    assert lookup(env, "c.io") == ("3", "3")


def test_a_named_auth_file_replaces_podman_s(tmp_path: Path) -> None:
    named = write(tmp_path, {"auths": {"a.io": auth("me", "pw")}}, "named.json")
    write(tmp_path / "run/containers", {"auths": {"b.io": auth("x", "x")}}, "auth.json")
    env = {"REGISTRY_AUTH_FILE": str(named), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert lookup(env, "a.io") == ("me", "pw")
    assert lookup(env, "b.io") is None


def test_the_environment_s_own_configuration_wins(tmp_path: Path) -> None:
    write(tmp_path, {"auths": {"a.io": auth("file", "x")}})
    text = json.dumps({"auths": {"a.io": auth("env", "x")}})
    env = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_AUTH_CONFIG": text}
    assert lookup(env, "a.io") == ("env", "x")


def test_podman_s_keys_for_parts_of_a_registry(tmp_path: Path) -> None:
    auths = {
        "a.io": auth("all", "x"),
        "a.io/team": auth("team", "x"),
        "a.io/team/app": auth("app", "x"),
    }
    env = {"REGISTRY_AUTH_FILE": str(write(tmp_path, {"auths": auths}))}
    assert lookup(env, "a.io", "team/app") == ("app", "x")
    assert lookup(env, "a.io", "team/other") == ("team", "x")
    assert lookup(env, "a.io", "teams/app") == ("all", "x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"auths": {"a.io": {"auth": "c2VjcmV0"', "not valid JSON"),
        ("[]", "not a docker configuration"),
        ('{"auths": []}', None),
        ('{"auths": "x"}', "not a docker configuration"),
        ('{"auths": {"a.io": {"auth": "c2VjcmV0"}}}', "not base64 of user:password"),
        ('{"auths": {"a.io": {"auth": "%%%"}}}', "not base64 of user:password"),
        ("", None),
    ],
)
def test_a_wrong_file_is_named_and_not_quoted(tmp_path: Path, text: str, why: str | None) -> None:
    path = write(tmp_path, text)
    env = {"DOCKER_CONFIG": str(tmp_path)}
    if why is None:
        assert lookup(env, "a.io") is None
        return
    with pytest.raises(ConfigError, match=why) as caught:
        lookup(env, "a.io")
    assert str(path) in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_helper_is_asked_by_the_protocol(tmp_path: Path) -> None:
    helper(
        tmp_path,
        "box",
        'read server; echo "$1 $server" >> ' + str(tmp_path / "asked") + "\n"
        'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"me\\",\\"Secret\\":\\"pw\\"}"',
    )
    write(tmp_path, {"credsStore": "box", "auths": {"a.io": {}}})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    credentials = Credentials(env=env)
    for _ in range(2):  # the answer is remembered
        found = credentials.lookup("a.io", "x", cancel=TOKEN)
        assert found is not None
        assert (found.username, found.password and found.password.reveal()) == ("me", b"pw")
    credentials.lookup("docker.io", "x", cancel=TOKEN)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["get a.io", "get https://index.docker.io/v1/"]


def test_a_helper_of_one_registry_leaves_the_others(tmp_path: Path) -> None:
    helper(tmp_path, "box", 'echo \'{"Username":"boxed","Secret":"pw"}\'')
    write(tmp_path, {"credHelpers": {"a.io": "box"}, "auths": {"b.io": auth("filed", "pw")}})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert lookup(env, "a.io") == ("boxed", "pw")
    assert lookup(env, "b.io") == ("filed", "pw")


def test_a_helper_s_token_is_an_identity_token(tmp_path: Path) -> None:
    helper(tmp_path, "box", 'echo \'{"Username":"<token>","Secret":"refresh"}\'')
    write(tmp_path, {"credsStore": "box"})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    found = Credentials(env=env).lookup("a.io", "x", cancel=TOKEN)
    assert found is not None
    assert found.identity_token is not None
    assert found.password is None


def test_a_helper_without_a_login_leaves_the_file_s(tmp_path: Path) -> None:
    helper(tmp_path, "box", "echo credentials not found in native keychain; exit 1")
    write(tmp_path, {"credsStore": "box", "auths": {"a.io": auth("filed", "pw")}})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert lookup(env, "a.io") == ("filed", "pw")
    assert lookup(env, "b.io") is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "'docker-credential-box', named by .*, is not on PATH"),
        (
            "echo 'the keychain is locked' >&2; exit 3",
            "failed with exit code 3 for a.io: the keychain is locked",
        ),
        ("echo nonsense", "not its protocol's"),
        ('echo \'{"Username":"u"}\'', "not its protocol's"),
    ],
    ids=["missing", "failing", "talking nonsense", "giving no secret"],
)
def test_a_helper_that_cannot_be_used_is_an_error(tmp_path: Path, script: str | None, why: str) -> None:
    if script is not None:
        helper(tmp_path, "box", script)
    write(tmp_path, {"credsStore": "box"})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    with pytest.raises(ConfigError, match=why) as caught:
        lookup(env, "a.io")
    assert caught.value.hint


def test_a_helper_s_name_is_no_path(tmp_path: Path) -> None:
    write(tmp_path, {"credsStore": "x/../../bin/sh"})
    with pytest.raises(ConfigError, match="not on PATH"):
        lookup({"DOCKER_CONFIG": str(tmp_path), "PATH": "/bin"}, "a.io")


def test_cancelling_ends_a_waiting_helper(tmp_path: Path) -> None:
    helper(tmp_path, "box", "exec sleep 30")
    write(tmp_path, {"credsStore": "box"})
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    token = CancelToken()
    timer = threading.Timer(0.2, token.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        Credentials(env=env).lookup("a.io", "x", cancel=token)
    timer.join()
    assert time.monotonic() - started < 5


def test_given_logins_win(tmp_path: Path) -> None:
    write(tmp_path, {"auths": {"a.io": auth("file", "x")}})
    given = Credential("given")
    credentials = Credentials(env={"DOCKER_CONFIG": str(tmp_path)}, logins={"a.io": given})
    assert credentials.lookup("a.io", "x", cancel=TOKEN) is given


def test_logins_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path, {"auths": {"a.io": auth("me", "hunter2")}})
    found = Credentials(env={"DOCKER_CONFIG": str(tmp_path)}).lookup("a.io", "x", cancel=TOKEN)
    assert "hunter2" not in repr(found)
