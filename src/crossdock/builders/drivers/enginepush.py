"""Push an image through a Docker Engine's API, with the login that the registry needs.

Spec: Docker Engine API, ``POST /images/{name}/push`` and ``X-Registry-Auth``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from crossdock.builders.dockerengine import connect
from crossdock.builders.drivers.engineapi import registry_auth
from crossdock.errors import AuthError, BuilderError, RegistryError
from crossdock.image import parse_reference

if TYPE_CHECKING:
    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.drivers.steps import Step
    from crossdock.cancel import CancelToken

__all__ = ["push_image"]


def push_image(endpoint: DockerEndpoint, name: str, step: Step, cancel: CancelToken) -> None:
    """Have the Engine push one image; its messages are shown in ``step``.

    Raises: AuthError, RegistryError with what the Engine reports; BuilderError when the Engine itself fails.
    """
    from http.client import HTTPException

    ref = parse_reference(name).with_default_tag()
    from crossdock.registry import Credentials

    login = Credentials().lookup(ref.domain, ref.path, cancel=cancel)
    header = registry_auth(login, ref.domain)
    connection = connect(endpoint)
    try:
        with cancel.waking(connection.close):
            path = f"/images/{quote(ref.repository, safe='/:')}/push?tag={quote(ref.tag or 'latest')}"
            connection.request("POST", path, headers={"X-Registry-Auth": header})
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(2000).decode(errors="replace")
                summary = (
                    f"the Docker Engine at {endpoint.host} refused to push {name}: {response.status} {text}"
                )
                raise BuilderError(summary)
            for line in response:
                _message(line, ref.domain, name, step)
    except (OSError, HTTPException) as exc:
        cancel.check()
        summary = (
            f"the connection to the Docker Engine at {endpoint.host} broke while {name} was pushed: {exc}"
        )
        raise BuilderError(summary, retryable=True) from exc
    finally:
        connection.close()


def _message(line: bytes, host: str, name: str, step: Step) -> None:
    try:
        message = json.loads(line)
    except ValueError:
        return  # the Engine separates messages with blank lines
    if error := message.get("error"):
        summary = f"failed to push {name}: {error}"
        if any(word in str(error) for word in ("denied", "unauthorized", "no basic auth")):
            raise AuthError(summary, host=host, hint=f"log in with `docker login {host}`")
        raise RegistryError(summary, host=host)
    if message.get("status") and not message.get("progressDetail"):
        layer = f"{message['id']}: " if message.get("id") else ""
        step.log(f"{layer}{message['status']}\n".encode())
