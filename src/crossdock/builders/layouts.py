"""OCI layouts as named contexts: ``oci-layout://PATH[:TAG][@DIGEST]``.

Spec: docker/buildx ``build/opt.go`` (named contexts); image-spec 1.1 image-layout.md.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from crossdock.errors import ContextError, DigestMismatch, UsageError
from crossdock.image.digest import Digest, parse_digest
from crossdock.record import NamedTuple

__all__ = ["SCHEME", "LayoutContext", "find_layout"]

SCHEME = "oci-layout://"
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"


class LayoutContext(NamedTuple):
    """An image in a layout on this machine."""

    #: name under which the layout is served
    store: str
    root: Path
    digest: Digest

    @property
    def text(self) -> str:
        """The context as the frontend reads it."""
        return f"{SCHEME}{self.store}@{self.digest}"


def find_layout(name: str, value: str) -> LayoutContext:
    """Find the image that the value of a named context means; without a tag ``latest``, or the only image there is.

    Raises: ContextError for a directory that is no layout, and for a tag it does not have; UsageError for a digest.
    """
    path_text, at, digest_text = value.removeprefix(SCHEME).partition("@")
    root, tag = Path(path_text), ""
    if not root.is_dir() and ":" in root.name:
        head, _, tag = path_text.rpartition(":")
        root = Path(head)
    index = _read_index(name, root)
    if at:
        try:
            digest = parse_digest(digest_text)
        except DigestMismatch as exc:
            summary = f"named context {name}: invalid digest {digest_text!r}"
            raise UsageError(summary, hint=exc.hint) from exc
    else:
        digest = _tagged(name, root, index, tag)
    if not (root / "blobs" / digest.replace(":", "/")).is_file():
        summary = f"named context {name}: the layout {root} has no manifest {digest}"
        raise ContextError(summary, hint=f"tags in it: {_tags(index)}")
    return LayoutContext(_store_name(name), root.absolute(), digest)


def _store_name(name: str) -> str:
    """Return a name that is a valid repository; different for every context."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "layout"
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _read_index(name: str, root: Path) -> list[dict[str, object]]:
    import json

    try:
        index = json.loads((root / "index.json").read_bytes())
        entries = index.get("manifests") or []
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(entries)
    except OSError as exc:
        summary = f"named context {name}: {root} is not an OCI layout: index.json: {exc.strerror}"
        raise ContextError(summary, hint="write one with -o type=oci,dest=DIR,tar=false") from exc
    except (ValueError, AttributeError, TypeError) as exc:
        summary = f"named context {name}: {root} is not an OCI layout: index.json is malformed"
        raise ContextError(summary) from exc
    return list(entries)


def _names(entry: dict[str, object]) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    return [str(annotations[key]) for key in (_REF_NAME, _IMAGE_NAME) if annotations.get(key)]


def _tags(entries: list[dict[str, object]]) -> str:
    return ", ".join(dict.fromkeys(n for e in entries for n in _names(e))) or "none"


def _tagged(name: str, root: Path, entries: list[dict[str, object]], tag: str) -> Digest:
    wanted = tag or "latest"
    chosen = [e for e in entries if wanted in _names(e)]
    if not chosen and not tag and len({str(e.get("digest")) for e in entries}) == 1:
        chosen = entries
    if not chosen:
        summary = f"named context {name}: the layout {root} has no tag {wanted!r}"
        raise ContextError(summary, hint=f"tags in it: {_tags(entries)}")
    try:
        return parse_digest(str(chosen[0].get("digest")))
    except DigestMismatch as exc:
        summary = f"named context {name}: {root} is not an OCI layout: index.json is malformed"
        raise ContextError(summary) from exc
