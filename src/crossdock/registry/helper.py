"""The credential helper protocol: ``docker-credential-NAME get``.

Spec: docker/docker-credential-helpers README "Development".
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from crossdock.errors import ConfigError
from crossdock.registry.credentials import Credential
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.cancel import CancelToken

__all__ = ["ask_helper"]

_TIMEOUT_S = 120.0  # a helper may ask for a passphrase or open a browser
_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
#: what helpers print when they have no login; exit code 1
_NOT_FOUND = ("credentials not found", "no credentials server url", "no credentials found")


def ask_helper(
    helper: str, server: str, *, named_by: str, env: Mapping[str, str], cancel: CancelToken
) -> Credential | None:
    """Ask a helper for the login of ``server``; ``None`` when it has none.

    Raises: ConfigError when the helper is missing, fails or answers nonsense; the token's cause.
    """
    program = f"docker-credential-{helper}"
    path = shutil.which(program, path=env.get("PATH")) if _NAME.match(helper) else None
    if path is None:
        summary = f"credential helper {program!r}, named by {named_by}, is not on PATH"
        raise ConfigError(
            summary,
            hint=f"install it, or remove 'credsStore'/'credHelpers' from {named_by} "
            f"and run `docker login {server}`",
        )
    code, out, err = _run(path, server, env, cancel)
    text = out.decode("utf-8", "replace")
    if code != 0:
        if any(phrase in text.lower() for phrase in _NOT_FOUND):
            return None
        # A failing helper prints its reason, not a login; still only the first line is shown.
        reason = (text.strip() or err.decode("utf-8", "replace").strip() or "no message").splitlines()[0]
        summary = f"credential helper {program!r} failed with exit code {code} for {server}: {reason[:300]}"
        raise ConfigError(summary, hint=f"try it by hand: echo {server} | {program} get")
    return _answer(out, program, server, named_by)


def _answer(out: bytes, program: str, server: str, named_by: str) -> Credential | None:
    try:
        data = json.loads(out)
    except ValueError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("Secret"), str):
        summary = f"credential helper {program!r} gave an answer for {server} that is not its protocol's"
        raise ConfigError(summary, hint=f"try it by hand: echo {server} | {program} get")
    username, secret = str(data.get("Username") or ""), Secret(data["Secret"])
    if not secret:
        return None
    origin = f"{program}, named by {named_by}"
    if username == "<token>":
        return Credential(identity_token=secret, origin=origin)
    return Credential(username, secret, origin=origin)


def _run(path: str, server: str, env: Mapping[str, str], cancel: CancelToken) -> tuple[int, bytes, bytes]:
    cancel.check()
    child = subprocess.Popen(
        [path, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
    )
    deadline = time.monotonic() + _TIMEOUT_S
    out = err = b""
    with child, cancel.waking(child.kill):
        data: bytes | None = server.encode()
        while True:
            try:
                out, err = child.communicate(data, timeout=0.2)
            except subprocess.TimeoutExpired:
                data = None
            else:
                break
            # Not left to communicate(): a killed helper's own children may keep its pipes open.
            cancel.check()
            if time.monotonic() > deadline:
                child.kill()
                summary = f"credential helper {path} did not answer within {_TIMEOUT_S:.0f} s"
                raise ConfigError(summary, hint=f"try it by hand: echo {server} | {path} get")
    cancel.check()
    return child.returncode, out, err
