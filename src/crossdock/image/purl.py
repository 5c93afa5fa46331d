"""Package URLs of images, as attestations name them.

Spec: package-url/purl-spec, types ``docker`` and ``oci``; the escaping is that of BuildKit ``util/purl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from crossdock.image.reference import Reference

if TYPE_CHECKING:
    from crossdock.image.platform import Platform

__all__ = ["image_purl"]

#: what Go's ``url.PathEscape`` leaves alone besides letters, digits and ``-_.~``
_PATH_SAFE = "$&+=:@"


def image_purl(ref: Reference, platform: Platform | None = None, *, kind: str = "docker") -> str:
    """Return ``pkg:KIND/NAME@TAG?digest=…&platform=…``; a reference without tag and digest means ``latest``."""
    ref = ref.with_default_tag()
    namespace, _, name = Reference(ref.domain, ref.path).familiar.rpartition("/")
    parts = [quote_plus(part) for part in namespace.split("/")] if namespace else []
    text = f"pkg:{kind}/" + "/".join([*parts, quote_plus(name)])
    if ref.tag:
        text += "@" + quote(ref.tag, safe=_PATH_SAFE)
    qualifiers = []
    if ref.digest:
        qualifiers.append(("digest", str(ref.digest)))
    if platform is not None:
        qualifiers.append(("platform", str(platform.normalised())))
    if qualifiers:
        text += "?" + "&".join(f"{key}={quote(value, safe=_PATH_SAFE)}" for key, value in qualifiers)
    return text
