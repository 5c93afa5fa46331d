"""Keys by which a session proves to a daemon that it has a login, without telling it.

A key is derived from a salt of the daemon's and a random seed kept for each registry in docker's configuration
directory: sessions of the same client get the same key, nobody else does.

Spec: moby/buildkit ``session/auth/authprovider`` (getAuthorityKey, tokenseed.go); NaCl ``crypto_sign``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from typing import TYPE_CHECKING

from crossdock.errors import ConfigError
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AuthorityKey", "TokenSeeds"]

_SEED_BYTES = 16


class AuthorityKey:
    """An ed25519 key pair; needs the package ``cryptography``."""

    def __init__(self, salt: bytes, seed: bytes) -> None:
        """``seed`` is empty for sessions without a login, which all share."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        mac = hmac.new(salt, digestmod=hashlib.sha256)
        if seed:
            mac.update(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(mac.digest())

    @property
    def public(self) -> bytes:
        """The public key's 32 bytes."""
        return bytes(self._key.public_key().public_bytes_raw())

    def sign(self, payload: bytes) -> bytes:
        """Return the signature, followed by what was signed."""
        return bytes(self._key.sign(payload)) + payload


class TokenSeeds:
    """The file of seeds, shared with buildx and buildctl."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def get(self, host: str) -> bytes:
        """Return the seed of a registry, made and kept when there is none; where it cannot be kept, it is made anew.

        Raises: ConfigError when the file cannot be read.
        """
        path = os.path.join(self._folder, ".token_seed")
        with self._locked():
            seeds = self._read(path)
            found = seeds.get(host)
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if found is not None and (seed := base64.b64decode(found["Seed"], validate=True)):
                    return seed
            seed = os.urandom(_SEED_BYTES)
            seeds[host] = {"Seed": base64.b64encode(seed).decode()}
            with contextlib.suppress(OSError):
                write_whole(path, json.dumps(seeds, indent=2).encode())
            return seed

    def _read(self, path: str) -> dict[str, dict[str, str]]:
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
        except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
            return {}
        except OSError as exc:
            summary = f"cannot read {path}: {exc.strerror}"
            raise ConfigError(summary) from exc
        return data if isinstance(data, dict) else {}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; where no file can be made there is nothing to guard."""
        try:
            os.makedirs(self._folder, exist_ok=True)
            fd = os.open(
                os.path.join(self._folder, ".token_seed.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError:
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
