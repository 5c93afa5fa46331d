"""Docker Desktop's builds view: bundles of build records are sent to it, and its pages opened.

Spec: docker/buildx ``util/desktop``, ``commands/history/import.go``, ``open.go``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, BinaryIO

from crossdock.errors import BuilderError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["build_url", "import_bundle", "open_url", "server_socket"]

_SOCKET = "docker-desktop-build.sock"
_WSL = f"/mnt/wsl/docker-desktop/shared-sockets/host-services/{_SOCKET}"
_OPENERS = ("xdg-open", "open", "wslview")
_BLOCK = 256 * 1024
_TIMEOUT_S = 120.0


def build_url(ref: str) -> str:
    """Return the address of a build's page; ``ref`` is ``builder/node/ref``."""
    return f"docker-desktop://dashboard/build/{ref}"


def server_socket() -> str:
    """Return the path of the socket at which Docker Desktop takes bundles."""
    if os.environ.get("WSL_DISTRO_NAME"):
        return _WSL
    if sys.platform == "darwin":
        return os.path.expanduser(f"~/Library/Containers/com.docker.docker/Data/{_SOCKET}")
    return os.path.expanduser(f"~/.docker/desktop/{_SOCKET}")


def import_bundle(bundle: BinaryIO) -> list[str]:
    """Send a bundle and return the addresses of the builds in it.

    Raises: BuilderError when Docker Desktop does not answer, or refuses the bundle.
    """
    from http.client import HTTPException

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.dockerengine import connect

    path = server_socket()
    connection = connect(DockerEndpoint("desktop", f"unix://{path}"), timeout_s=_TIMEOUT_S)
    try:
        connection.request("POST", "/upload", body=_blocks(bundle), encode_chunked=True)
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as exc:
        summary = f"cannot reach Docker Desktop at {path}: {exc}"
        raise BuilderError(summary, hint="is Docker Desktop running, and does it show builds?") from exc
    finally:
        connection.close()
    if response.status != 200:
        text = body[:500].decode(errors="replace").strip()
        summary = f"Docker Desktop refused the bundle: {response.status} {text}"
        raise BuilderError(summary)
    try:
        refs = [str(ref) for ref in json.loads(body)]
    except (ValueError, TypeError) as exc:
        summary = "Docker Desktop's answer cannot be read"
        raise BuilderError(summary) from exc
    return [build_url(f".imported/_/{ref}") for ref in refs]


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def open_url(url: str) -> None:
    """Have the desktop open an address: with ``$BROWSER``, else its own opener.

    Raises: NotSupported where there is none; BuilderError when it fails.
    """
    program = os.environ.get("BROWSER") or next(filter(shutil.which, _OPENERS), "")
    if not program:
        summary = f"nothing here can open {url}"
        raise NotSupported(summary, hint="install xdg-utils, or name a program in BROWSER")
    try:
        done = subprocess.run(
            [program, url], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        summary = f"cannot open {url} with {program}: {exc}"
        raise BuilderError(summary) from exc
    if done.returncode != 0:
        summary = f"{program} could not open {url}: {done.stderr.strip() or f'exit code {done.returncode}'}"
        raise BuilderError(summary, hint="is Docker Desktop installed?")
