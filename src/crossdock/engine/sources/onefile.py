"""Sources that are one file: its name, mode and owner, and the layer it becomes."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

from crossdock.engine.sources.transfer import Transfer
from crossdock.image.descriptor import Descriptor
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import KeyHasher, OpContext
    from crossdock.engine.store import LayerId
    from crossdock.image.digest import Digest

__all__ = ["FileShape", "file_layer", "keep_blob", "plain_name", "read_shape"]

_CHUNK = 1 << 20


class FileShape(NamedTuple):
    """What becomes of the bytes of a source."""

    name: str
    mode: int = 0o600
    uid: int = 0
    gid: int = 0

    def add_to(self, hasher: KeyHasher) -> None:
        """Make the shape part of a key."""
        hasher.text("name", self.name).number("mode", self.mode).number("uid", self.uid).number(
            "gid", self.gid
        )


def plain_name(text: str) -> str:
    """Return the last part of a path as a file's name; ``""`` when it is none."""
    name = posixpath.basename(text)
    return "" if name in ("", ".", "..", "/") or "\0" in name else name


def read_shape(attrs: Mapping[str, str], *, default: str) -> FileShape:
    """Read ``http.filename``, ``http.perm``, ``http.uid`` and ``http.gid``. Raises: ValueError naming the attribute."""
    return FileShape(
        plain_name(attrs.get("http.filename", "")) or default,
        (_number(attrs, "http.perm") or 0o600) & 0o7777,
        _number(attrs, "http.uid"),
        _number(attrs, "http.gid"),
    )


def _number(attrs: Mapping[str, str], name: str) -> int:
    """Read a number as Go does with base 0: a leading 0 means octal."""
    text = attrs.get(name, "")
    if not text:
        return 0
    try:
        value = int(text, 8) if text[0] == "0" and text.isdecimal() else int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 32:
        msg = f"{name} {text!r} is not a number"
        raise ValueError(msg)
    return value


def keep_blob(env: OpEnv, blob: Descriptor, stream: BinaryIO, vertex: str, ctx: OpContext) -> None:
    """Copy a stream into the store, verified; a size of -1 is not known. Raises: DigestMismatch, StoreFull; the token's cause."""
    with (
        Transfer(ctx.sink, vertex, blob.digest, total=max(0, blob.size)) as transfer,
        env.store.content.writer(env.lease) as writer,
    ):
        at = 0
        while data := stream.read(_CHUNK):
            ctx.cancel.check()
            writer.write(data)
            at += len(data)
            transfer.at(at)
        writer.commit(blob if blob.size >= 0 else Descriptor(blob.media_type, blob.digest, at))


def file_layer(
    env: OpEnv, digest: Digest, shape: FileShape, *, modified: int, description: str, ctx: OpContext
) -> LayerId:
    """Make a layer of one file, whose bytes are in the store; ``modified`` in seconds since the epoch."""
    with env.store.layers.new(env.lease, kind="source", description=description) as layer:
        path = layer.fs / shape.name
        with env.store.content.open(digest) as source, path.open("xb") as target:
            while data := source.read(_CHUNK):
                ctx.cancel.check()
                target.write(data)
        path.chmod(shape.mode)
        if (shape.uid or shape.gid) and not env.lenient_owner:
            os.chown(path, shape.uid, shape.gid)
        os.utime(path, ns=(modified * 10**9,) * 2)
        return layer.commit()
