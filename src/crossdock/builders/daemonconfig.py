"""A buildkitd.toml with the certificate files it names, as a builder node carries them.

The paths in the file are rewritten to where the daemon's container gets the files: ``/etc/buildkit/certs/<registry>/``.

Spec: docker/buildx ``util/confutil/container.go``.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from typing import Any

from crossdock.errors import BuilderError, translate

__all__ = ["load_config_files"]

_CONFIG_DIR = "/etc/buildkit"
_MAX_BYTES = 1 << 20
_UNSAFE = re.compile(r"[^a-zA-Z0-9.-]+")


def load_config_files(path: str) -> dict[str, bytes]:
    """Read the config and what it names; keys are paths below ``/etc/buildkit``.

    Raises: BuilderError when a file is missing or the config is not TOML.
    """
    raw = _read(path, "buildkit configuration file")
    try:
        text = raw.decode()
        config = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        summary = f"failed to parse buildkit configuration file: {path}: {exc}"
        raise BuilderError(summary) from exc
    files: dict[str, bytes] = {}
    for registry, body in (config.get("registry") or {}).items():
        for source, what in _named_files(body):
            name = f"certs/{_UNSAFE.sub('_', registry)}/{os.path.basename(source)}"
            files[name] = _read(source, what)
            for quoted in (json.dumps(source), f"'{source}'"):
                text = text.replace(quoted, json.dumps(f"{_CONFIG_DIR}/{name}"))
    files["buildkitd.toml"] = text.encode()
    return files


def _named_files(body: Any) -> list[tuple[str, str]]:
    if not isinstance(body, dict):
        return []
    found = [(str(ca), "CA file") for ca in body.get("ca") or ()]
    for pair in body.get("keypair") or ():
        found += [(str(pair[k]), f"{k} file") for k in ("key", "cert") if pair.get(k)]
    return found


def _read(path: str, what: str) -> bytes:
    def refuse(exc: BaseException) -> BuilderError:
        return BuilderError(f"failed to read {what}: {path}: {exc}")

    with translate({OSError: refuse}), open(path, "rb") as file:
        return file.read(_MAX_BYTES)
