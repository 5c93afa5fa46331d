"""An OCI layout directory, shared by builds: blobs are added, the index is replaced name by name.

Every file appears whole. The index is changed under a lock that BuildKit's client takes too
(``index.json.lock``), and blobs come before the entry that needs them.

Spec: image-spec 1.1, image-layout.md; BuildKit ``client/ociindex``.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.exporters.archive import LAYOUT, layout_index
from crossdock.engine.exporters.destination import export_error
from crossdock.errors import CrossdockError, ExportError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import digest_hex
from crossdock.wholefile import temporary_name, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.model import BuiltImage, ExportContext

__all__ = ["check_layout", "lock_layout", "put_index", "read_index", "write_layout"]

_CHUNK = 1 << 20
_LOCK_TIMEOUT_S = 30.0
_LAYOUT_NAMES = ("blobs", "index.json", "oci-layout")
_NAME_KEYS = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


def check_layout(dest: str) -> None:
    """Check that a layout can be written to ``dest``: absent, empty, or a layout.

    Raises: ExportError.
    """
    path = Path(dest)
    if not path.exists():
        return
    if not path.is_dir():
        summary = f"cannot write a layout to {dest}: it is a file"
        raise ExportError(summary, hint="give a directory, or leave out tar=false")
    if not os.access(path, os.W_OK):
        summary = f"cannot write a layout to {dest}: Permission denied"
        raise ExportError(summary, hint="write to a directory that you own")
    if not (path / "oci-layout").exists() and any(_is_foreign(name) for name in os.listdir(path)):
        summary = f"cannot write a layout to {dest}: it holds other files"
        raise ExportError(summary, hint="give a new or empty directory, or one with an OCI layout")


def _is_foreign(name: str) -> bool:
    # Another build may be about to make this a layout, blobs first.
    return not name.startswith((*_LAYOUT_NAMES, "."))


def write_layout(context: ExportContext, image: BuiltImage, entries: Sequence[Descriptor], dest: str) -> None:
    """Add the image's blobs and make ``entries`` stand in the index, in place of those of the same name.

    Raises: ExportError, StoreFull; StoreError, DigestMismatch; the token's cause.
    """
    root = Path(dest)
    try:
        folder = root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        wanted: dict[str, Descriptor] = {}
        for one in image.platforms:
            for blob in (*one.manifest.layers, one.manifest.config, one.descriptor):
                wanted[blob.digest] = blob
        for attested in image.attestations:
            for blob in (*attested.blobs, attested.descriptor):
                wanted[blob.digest] = blob
        wanted[image.descriptor.digest] = image.descriptor
        for blob in wanted.values():
            context.cancel.check()
            _copy_blob(context, blob, folder / digest_hex(blob.digest))
        with lock_layout(root, context.cancel):
            put_index(root, entries)
    except CrossdockError:
        raise
    except OSError as exc:
        raise export_error(exc, exc.filename or dest) from exc


def _copy_blob(context: ExportContext, blob: Descriptor, target: Path) -> None:
    if target.exists() and target.stat().st_size == blob.size:
        return
    temporary = target.with_name(temporary_name(target.name))
    try:
        with context.store.content.open(blob.digest) as source, temporary.open("xb") as file:
            while block := source.read(_CHUNK):
                context.cancel.check()
                file.write(block)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_index(root: Path, entries: Sequence[Descriptor]) -> None:
    """Make ``entries`` stand in the index, in place of those of the same name; the caller holds the lock."""
    path = root / "index.json"
    kept = [old for old in read_index(path) if not any(_replaces(new, old) for new in entries)]
    _write(root / "oci-layout", LAYOUT)
    _write(path, layout_index([*kept, *entries]))


def _replaces(new: Descriptor, old: Descriptor) -> bool:
    names = tuple(new.annotations.get(key) for key in _NAME_KEYS)
    if names != tuple(old.annotations.get(key) for key in _NAME_KEYS):
        return False
    # Entries without a name are told apart by what they are.
    return any(names) or new.digest == old.digest


def read_index(path: Path) -> list[Descriptor]:
    """Return the entries of an index, none when it is absent. Raises: ExportError when it is malformed."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        data = json.loads(raw)
        manifests = data["manifests"] or []
    except (ValueError, TypeError, KeyError) as exc:
        summary = f"{path} is not an index of an OCI layout"
        raise ExportError(summary, hint="remove it, or write to another directory") from exc
    return [Descriptor.from_json(entry, f"{path}: manifests[{i}]") for i, entry in enumerate(manifests)]


def _write(path: Path, data: bytes) -> None:
    write_whole(os.fspath(path), data, mode=0o666)


@contextmanager
def lock_layout(root: Path, cancel: CancelToken) -> Iterator[None]:
    """Hold ``index.json.lock``. Its holder removes it at the end, so the lock must be on the file that is there."""
    path = root / "index.json.lock"
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                break
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > deadline:
            summary = f"could not lock {path}"
            raise ExportError(summary, hint="another build writes to this layout; remove a stale lock file")
        cancel.sleep(0.05)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)
