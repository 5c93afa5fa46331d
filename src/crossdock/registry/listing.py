"""Lists that a registry keeps: tags, and the manifests that refer to another.

Spec: distribution-spec 1.1 "Listing Tags", "Listing Referrers", "Referrers Tag Schema".
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import LayerError, NotFoundError, RegistryError, UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.manifest import Index, parse_manifest
from crossdock.image.mediatypes import OCI_INDEX
from crossdock.record import NamedTuple, replace
from crossdock.registry.exchange import redact
from crossdock.registry.session import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from crossdock.image.reference import Reference
    from crossdock.registry.config import Endpoint
    from crossdock.registry.http1 import Response

    _Send = Callable[[Request, Collection[int]], Response]
    _Fetch = Callable[[Endpoint, Reference], tuple[Descriptor, bytes]]

__all__ = ["Referrers", "list_referrers", "list_tags"]

_MAX_PAGE = 4 * 1024 * 1024
_MAX_PAGES = 1000
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')


class Referrers(NamedTuple):
    """Manifests that name a subject; ``tag`` is the fallback tag they were found under, if one was used."""

    manifests: tuple[Descriptor, ...]
    tag: str = ""


def list_tags(send: _Send, endpoint: Endpoint, ref: Reference) -> list[str]:
    """Return all tags of a repository, page by page.

    Raises: NotFoundError, AuthError, RegistryError; the token's cause.
    """
    tags: list[str] = []
    target = f"{endpoint.prefix}/{ref.path}/tags/list"
    for _ in range(_MAX_PAGES):
        request = _request(endpoint, ref, target, f"the tags of {ref.repository}")
        response = send(request, (200,))
        data = _json(response, endpoint, request.subject)
        page = data.get("tags") or []
        if not isinstance(page, list):
            raise _malformed(response, endpoint, request.subject)
        tags += [str(tag) for tag in page]
        target = _next_page(response, endpoint)
        if not target:
            return tags
    msg = f"{ref.repository}: the registry's list of tags does not end"
    raise RegistryError(msg, host=ref.domain)


def list_referrers(
    send: _Send, fetch: _Fetch, endpoint: Endpoint, ref: Reference, artifact_type: str
) -> Referrers:
    """Return what refers to the reference's digest, by the API or, where it is missing, the fallback tag.

    Raises: UsageError without a digest; AuthError, RegistryError; the token's cause.
    """
    if ref.digest is None:
        msg = f"{ref}: referrers are listed by digest"
        raise UsageError(msg)
    subject = f"the referrers of {ref.repository}@{ref.digest}"
    target = f"{endpoint.prefix}/{ref.path}/referrers/{ref.digest}"
    found: list[Descriptor] = []
    for _ in range(_MAX_PAGES):
        response = send(_request(endpoint, ref, target, subject), (200, 400, 404, 405))
        if response.status != 200 or OCI_INDEX not in response.header("content-type"):
            response.discard()
            return _by_tag(fetch, endpoint, ref, artifact_type)
        data = _json(response, endpoint, subject)
        entries = data.get("manifests") or []
        try:
            found += [Descriptor.from_json(entry, subject) for entry in entries]
        except (LayerError, TypeError) as exc:
            raise _malformed(response, endpoint, subject) from exc
        target = _next_page(response, endpoint)
        if not target:
            break
    return Referrers(_of_type(found, artifact_type))


def _by_tag(fetch: _Fetch, endpoint: Endpoint, ref: Reference, artifact_type: str) -> Referrers:
    tag = (ref.digest or "").replace(":", "-")
    try:
        descriptor, raw = fetch(endpoint, replace(ref, tag=tag, digest=None))
    except NotFoundError:
        return Referrers((), tag)
    index = parse_manifest(raw, descriptor.media_type, f"{ref.repository}:{tag}")
    manifests = index.manifests if isinstance(index, Index) else ()
    return Referrers(_of_type(manifests, artifact_type), tag)


def _of_type(found: Collection[Descriptor], artifact_type: str) -> tuple[Descriptor, ...]:
    return tuple(d for d in found if not artifact_type or d.artifact_type == artifact_type)


def _request(endpoint: Endpoint, ref: Reference, target: str, subject: str) -> Request:
    scopes = (f"repository:{ref.path}:pull",)
    return Request("GET", endpoint, target, subject, scopes, {"Accept": "application/json, " + OCI_INDEX})


def _next_page(response: Response, endpoint: Endpoint) -> str:
    """Return the target of the next page; only the registry itself is followed."""
    match = _NEXT.search(", ".join(response.headers.get("link", ())))
    if match is None:
        return ""
    link = match[1]
    if "://" in link:
        rest = link.partition("://")[2]
        link = "/" + rest.partition("/")[2]
    return link if link.startswith("/") else f"{endpoint.prefix}/{link}"


def _json(response: Response, endpoint: Endpoint, subject: str) -> dict[str, Any]:
    try:
        data = json.loads(response.read_all(_MAX_PAGE))
    except (OSError, ValueError) as exc:
        raise _malformed(response, endpoint, subject) from exc
    if not isinstance(data, dict):
        raise _malformed(response, endpoint, subject)
    return data


def _malformed(response: Response, endpoint: Endpoint, subject: str) -> RegistryError:
    response.close()
    return RegistryError(
        f"{endpoint.domain}: {subject}: the registry's answer is malformed",
        host=endpoint.domain,
        url=redact(response.url),
        status=response.status,
        hint=f"check that {endpoint.address} is a container registry",
    )
