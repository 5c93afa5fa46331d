"""Object stores on loopback for the tests: moto's S3 server and Azurite.

moto comes with the development packages. Azurite is installed once from npm into the developer cache; it needs
``node`` and ``npm``. Both end with the process that started them.

Only the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import privateapt
import services

if TYPE_CHECKING:
    import contextlib

AZURITE = "azurite@3.35.0"
#: Azurite's well-known account
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_INSTALL_TIMEOUT_S = 300


class MissingError(Exception):
    """What a store needs is not there; the text says what."""


def azurite() -> Path:
    """The program ``azurite-blob``, installed when it is not there. Raises: MissingError."""
    found = shutil.which("azurite-blob")
    if found:
        return Path(found)
    if not shutil.which("node") or not shutil.which("npm"):
        msg = "node and npm on PATH, for Azurite"
        raise MissingError(msg)
    folder = privateapt.cache_dir() / AZURITE.replace("@", "-")
    program = folder / "node_modules/.bin/azurite-blob"
    if program.exists():  # perhaps in a cache that only root can write
        return program
    with privateapt.locked(folder.with_name(folder.name + ".lock")):
        if not program.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--no-fund", "--no-audit", "--omit=dev", AZURITE]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S
            )
            if done.returncode != 0 or not program.exists():
                msg = f"Azurite: {' '.join(command)} failed: {done.stderr.strip()[-300:]}"
                raise MissingError(msg)
    return program


def check_moto() -> None:
    """Raise MissingError unless moto's server and boto3 are installed."""
    _check_packages("boto3", "moto", "flask")


def check_azure() -> None:
    """Raise MissingError unless azure-storage-blob is installed."""
    _check_packages("azure", "azure.storage.blob")


def _check_packages(*names: str) -> None:
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            msg = f"the Python package {name}"
            raise MissingError(msg)


class S3Server(services._Service):
    """moto's server; ``.url`` is the endpoint, any keys are good."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""

    def _start(self, stack: contextlib.ExitStack) -> None:
        folder = self._scratch(stack, "crossdock-moto-")
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        process = services.Process(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            log=folder / "log",
            env={**os.environ, "HOME": str(folder)},
        )
        stack.callback(process.stop)
        process.wait_until(lambda: _answers(self.url), what="moto")


class AzureServer(services._Service):
    """Azurite's blob service; ``.url`` is the account's."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""

    def _start(self, stack: contextlib.ExitStack) -> None:
        program = azurite()
        folder = self._scratch(stack, "crossdock-azurite-")
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        options = [
            "--location",
            str(folder / "data"),
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]
        process = services.Process(
            [*command, *options], log=folder / "log", env={**os.environ, "HOME": str(folder)}
        )
        stack.callback(process.stop)
        process.wait_until(lambda: _answers(self.url), what="Azurite")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
