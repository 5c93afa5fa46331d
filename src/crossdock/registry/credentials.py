"""Registry logins: docker's ``config.json``, podman's ``auth.json``, credential helpers.

Nothing is read before a registry asks for a login. Values are ``Secret``; errors name files and helpers, never
their content.

Spec: docker/cli ``config/configfile``; containers/image ``containers-auth.json(5)``;
docker/docker-credential-helpers "Development".
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.errors import ConfigError
from crossdock.record import NamedTuple
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.cancel import CancelToken

__all__ = ["Credential", "Credentials"]

_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class Credential(NamedTuple):
    """One login; which fields are set says what kind it is."""

    username: str = ""
    password: Secret | None = None
    #: OAuth2 refresh token
    identity_token: Secret | None = None
    #: bearer token to be used as it is
    registry_token: Secret | None = None
    #: file or helper it came from, for messages
    origin: str = ""


class Credentials:
    """Where logins are looked up. Safe from any thread; answers are remembered for the process."""

    def __init__(
        self, *, env: Mapping[str, str] | None = None, logins: Mapping[str, Credential] | None = None
    ) -> None:
        """``logins`` (host -> login) win over every file; ``env`` replaces the process environment."""
        self._env = os.environ if env is None else env
        self._logins = dict(logins or {})
        # Guards _sources; held while the small files are read, once.
        self._lock = threading.Lock()
        self._sources: list[_AuthFile] | None = None

    @classmethod
    def none(cls) -> Credentials:
        """Return a source without any login."""
        return cls(env={})

    def lookup(self, domain: str, repository: str, *, cancel: CancelToken) -> Credential | None:
        """Return the login for ``domain`` (or for a part of ``repository``, as podman allows), if there is one.

        Raises: ConfigError when a file or helper named by it cannot be used; the token's cause when cancelled.
        """
        if domain in self._logins:
            return self._logins[domain]
        for source in self._files():
            found = source.lookup(domain, repository, self._env, cancel)
            if found is not None:
                return found
        return None

    def bearer_token(
        self,
        domain: str,  # noqa: ARG002
        *,
        realm: str,  # noqa: ARG002
        service: str,  # noqa: ARG002
        scopes: Sequence[str],  # noqa: ARG002
        cancel: CancelToken,  # noqa: ARG002
    ) -> tuple[Secret, float] | None:
        """Return a token that somebody else has fetched, and its life in seconds; ``None``: fetch one with the login.

        For classes that stand for logins kept elsewhere. Raises: ContextError and its kin; the token's cause.
        """
        return None

    def places(self) -> str:
        """Name the files looked at, for messages."""
        return ", ".join(source.name for source in self._files()) or "no configuration file found"

    def _files(self) -> list[_AuthFile]:
        with self._lock:
            if self._sources is None:
                self._sources = list(_read_sources(self._env))
            return self._sources


def _read_sources(env: Mapping[str, str]) -> Iterator[_AuthFile]:
    if text := env.get("DOCKER_AUTH_CONFIG"):
        yield _AuthFile("$DOCKER_AUTH_CONFIG", _parse("$DOCKER_AUTH_CONFIG", text))
    for path in _paths(env):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
            summary = f"cannot read {path}: {reason}"
            raise ConfigError(
                summary, hint="registry logins are kept there; correct it or remove it"
            ) from exc
        yield _AuthFile(str(path), _parse(str(path), text))


def _paths(env: Mapping[str, str]) -> Iterator[Path]:
    home = Path(env["HOME"]) if env.get("HOME") else None
    if env.get("DOCKER_CONFIG"):
        yield Path(env["DOCKER_CONFIG"]) / "config.json"
    elif home:
        yield home / ".docker/config.json"
    if env.get("REGISTRY_AUTH_FILE"):
        yield Path(env["REGISTRY_AUTH_FILE"])
        return
    if env.get("XDG_RUNTIME_DIR"):
        yield Path(env["XDG_RUNTIME_DIR"]) / "containers/auth.json"
    if env.get("XDG_CONFIG_HOME"):
        yield Path(env["XDG_CONFIG_HOME"]) / "containers/auth.json"
    elif home:
        yield home / ".config/containers/auth.json"


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text) if text.strip() else {}
    except ValueError as exc:
        line = getattr(exc, "lineno", 0)
        summary = f"{name} is not valid JSON (line {line})"
        raise ConfigError(summary, hint="correct it, or log in again with `docker login`") from None
    if not isinstance(data, dict) or not isinstance(data.get("auths") or {}, dict):
        summary = f"{name} is not a docker configuration: expected an object with 'auths'"
        raise ConfigError(summary)
    return data


class _AuthFile:
    """One configuration file and the helpers it names."""

    def __init__(self, name: str, data: dict[str, Any]) -> None:
        self.name = name
        self._auths: dict[str, Any] = data.get("auths") or {}
        self._helpers = {str(k): str(v) for k, v in (data.get("credHelpers") or {}).items()}
        self._store = str(data.get("credsStore") or "")
        # Guards _from_helper and hands a helper's answer to all who ask meanwhile; helpers may prompt, so one
        # at a time is wanted.
        self._lock = threading.Lock()
        self._from_helper: dict[tuple[str, str], Credential | None] = {}

    def lookup(
        self, domain: str, repository: str, env: Mapping[str, str], cancel: CancelToken
    ) -> Credential | None:
        """Return the login for a domain: the helper's, if one is named, else the file's own."""
        names = list(_keys(domain))
        helper = next((self._helpers[key] for key in names if key in self._helpers), self._store)
        if helper:
            server = _HUB_KEY if domain in _HUB_NAMES else domain
            found = self._ask(helper, server, env, cancel)
            if found is not None:
                return found
        for key in (*_repository_keys(domain, repository), *names):
            entry = self._auths.get(key)
            if isinstance(entry, dict) and (login := self._entry(key, entry)) is not None:
                return login
        return self._loose_match(domain)

    def _ask(
        self, helper: str, server: str, env: Mapping[str, str], cancel: CancelToken
    ) -> Credential | None:
        from crossdock.registry.helper import ask_helper  # subprocess, where helpers are used

        with self._lock:
            key = (helper, server)
            if key not in self._from_helper:
                self._from_helper[key] = ask_helper(
                    helper, server, named_by=self.name, env=env, cancel=cancel
                )
            return self._from_helper[key]

    def _loose_match(self, domain: str) -> Credential | None:
        """Match keys written as URLs (``https://host/v1/``) by their host, as docker does."""
        wanted = _HUB_NAMES if domain in _HUB_NAMES else {domain}
        for key, entry in self._auths.items():
            bare = key.partition("://")[2] or key
            if "://" in key and bare.partition("/")[0] in wanted and isinstance(entry, dict):
                login = self._entry(key, entry)
                if login is not None:
                    return login
        return None

    def _entry(self, key: str, entry: dict[str, Any]) -> Credential | None:
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            username, password = self._decode(key, str(entry["auth"]))
        login = Credential(
            username,
            Secret(password) if password else None,
            Secret(str(entry["identitytoken"])) if entry.get("identitytoken") else None,
            Secret(str(entry["registrytoken"])) if entry.get("registrytoken") else None,
            self.name,
        )
        return login if login.password or login.identity_token or login.registry_token else None

    def _decode(self, key: str, text: str) -> tuple[str, str]:
        import binascii  # only with a login

        try:
            username, colon, password = binascii.a2b_base64(text.encode()).decode().partition(":")
        except (ValueError, UnicodeError):
            colon = username = password = ""
        if not colon:
            summary = f"{self.name}: the 'auth' of {key!r} is not base64 of user:password"
            raise ConfigError(summary, hint=f"log in again: `docker login {key}`")
        return username, password.rstrip("\0")


def _keys(domain: str) -> Iterator[str]:
    if domain in _HUB_NAMES:
        yield _HUB_KEY
        yield from sorted(_HUB_NAMES)
        return
    yield domain
    for scheme in ("https", "http"):
        yield f"{scheme}://{domain}"


def _repository_keys(domain: str, repository: str) -> Iterator[str]:
    """Podman's keys below a host: the longest first, the host itself left out."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((domain, *parts[:count]))
