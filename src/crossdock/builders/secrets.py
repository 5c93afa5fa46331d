"""Secrets of a build, read where the client runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.request import SecretSpec
    from crossdock.secret import Secret

__all__ = ["check_secrets", "read_secret", "secret_reader"]

#: BuildKit's limit
_MAX_BYTES = 500 * 1024


def secret_reader(specs: tuple[SecretSpec, ...]) -> Callable[[str], Secret | None]:
    """Return a function that gives a secret by id; sources are read when asked for, and ids not given are ``None``.

    Raises (the function): UsageError naming the file or variable that is not there.
    """
    by_id = {spec.id: spec for spec in specs}

    def read(name: str) -> Secret | None:
        spec = by_id.get(name)
        return None if spec is None else read_secret(spec)

    return read


def read_secret(spec: SecretSpec) -> Secret:
    """Read one secret.

    Raises: UsageError naming the file or variable that is not there, or is too large.
    """
    from crossdock.secret import Secret

    if spec.value is not None:
        return spec.value
    if spec.env:
        if spec.env not in os.environ:
            summary = f"secret {spec.id!r}: the environment variable {spec.env} is not set"
            raise UsageError(summary)
        return Secret(os.environ[spec.env])
    try:
        with open(spec.path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        summary = f"secret {spec.id!r}: cannot read {spec.path}: {exc.strerror}"
        raise UsageError(summary) from exc
    if len(data) > _MAX_BYTES:
        summary = f"secret {spec.id!r}: {spec.path} is larger than 500 KiB"
        raise UsageError(summary)
    return Secret(data)


def check_secrets(specs: tuple[SecretSpec, ...]) -> None:
    """Refuse secrets whose source does not exist, before anything is built.

    Raises: UsageError.
    """
    for spec in specs:
        if spec.value is None and (spec.env not in os.environ if spec.env else not os.path.exists(spec.path)):
            read_secret(spec)
