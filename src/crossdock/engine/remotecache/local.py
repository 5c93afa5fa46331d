"""Caches in a directory: an OCI layout, shared by builds.

Spec: image-spec 1.1, image-layout.md; moby/buildkit ``client/solve.go`` (parseCacheOptions, resetCacheStore), ``client/ociindex``.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.exporters.destination import export_error
from crossdock.engine.exporters.layout import lock_layout, put_index, read_index
from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT, Stored, VerifiedReader
from crossdock.engine.remotecache.manifest import (
    REF_NAME,
    USUAL_TAG,
    ManifestStyle,
    find_config,
    make_documents,
)
from crossdock.errors import CacheError, CrossdockError
from crossdock.image.digest import Digest, digest_hex, parse_digest, sha256_digest
from crossdock.image.manifest import parse_manifest
from crossdock.layers.compression import parse_bool
from crossdock.record import replace
from crossdock.wholefile import temporary_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite, Readable
    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.engine.remotecache.place import Surroundings
    from crossdock.image.descriptor import Descriptor

__all__ = ["LocalBackend"]

_CHUNK = 1 << 20
#: nanoseconds for which what a new manifest no longer lists is left to those who read the old one
_KEPT_NS = 3600 * 10**9
_BLOB_NAME = re.compile("[0-9a-f]{64}")


class LocalBackend:
    """The cache under one tag of a layout."""

    title = "exporting cache to client directory"
    senders = 4
    checks_layers = True
    repositories: tuple[str, ...] = ()

    def __init__(
        self, attrs: Mapping[str, str], around: Surroundings | None = None, *, exported: bool
    ) -> None:
        del around
        self._root = Path(attrs["dest"] if exported else attrs["src"])
        self._tag = attrs.get("tag") or USUAL_TAG
        self._digest = parse_digest(attrs["digest"]) if attrs.get("digest") else None
        self._style = ManifestStyle.from_attrs(attrs) if exported else ManifestStyle()
        self._reset = parse_bool("reset", attrs.get("reset", "false"))
        self.name = f"local:{self._root}"

    def load(self, cancel: CancelToken) -> Stored | None:
        """Read index, manifest and config."""
        del cancel
        try:
            digest = self._digest or self._tagged()
            if digest is None:
                return None
            raw = self._document(digest)
            config, layers = find_config(parse_manifest(raw, "", f"{self.name}@{digest}"))
            if config is None:
                summary = f"{self.name}: {self._tag} is not a build cache"
                raise CacheError(
                    summary, hint="it may be an image: export the cache to a directory of its own"
                )
            text = self._document(config.digest)
        except FileNotFoundError as exc:
            summary = f"{self.name}: {exc.filename} is missing"
            raise CacheError(summary, hint="the cache is damaged: export it anew") from exc
        except OSError as exc:
            summary = f"cannot read {self.name}: {exc.strerror}"
            raise CacheError(summary) from exc
        return Stored(cacheconfig.parse(text, self.name, layers=layers), digest)

    def _tagged(self) -> Digest | None:
        try:
            entries = read_index(self._root / "index.json")
        except CrossdockError as exc:
            raise CacheError(exc.summary, hint=exc.hint) from exc
        return next((e.digest for e in entries if e.annotations.get(REF_NAME) == self._tag), None)

    def _document(self, digest: Digest) -> bytes:
        path = self._path(digest)
        if path.stat().st_size > MAX_DOCUMENT:
            summary = f"{path} is too large for a part of a build cache"
            raise CacheError(summary)
        raw = path.read_bytes()
        if sha256_digest(raw) != digest:
            summary = f"{path} has other content than its name says"
            raise CacheError(summary, hint="the cache is damaged: export it anew")
        return raw

    def _path(self, digest: str) -> Path:
        return self._root / "blobs" / "sha256" / digest_hex(digest)

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[VerifiedReader]:
        """Open a layer's file."""
        del cancel
        try:
            file = self._path(blob.digest).open("rb")
        except OSError as exc:
            summary = f"cannot read layer {blob.digest} of {self.name}: {exc.strerror}"
            raise CacheError(summary) from exc
        return VerifiedReader(file, blob, self.name, file.close)

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Look for a layer of the right size."""
        del cancel
        try:
            return self._path(blob.digest).stat().st_size == blob.size
        except OSError:
            return False

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Take no lock: the index has its own."""
        del cancel
        return nullcontext()

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Copy a layer."""
        del report
        if not self.is_there(layer.descriptor, cancel):
            target = self._path(layer.descriptor.digest)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with layer.open_at(0) as source:
                    _write_from(source, target, cancel)
            except OSError as exc:
                raise export_error(exc, exc.filename or str(target)) from exc

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Write config and manifest, then the index, under its lock; not if a layer that is to be listed is gone by now.

        What only the manifest that is replaced led to is removed, unless it is new.
        """
        import io

        from crossdock.image import gojson

        documents = make_documents(config, self._style)
        title = "cache image manifest" if self._style.image else "cache manifest"

        def write() -> None:
            for what, blob, raw in (
                ("config", documents.config, documents.config_raw),
                (title, documents.manifest, documents.manifest_raw),
            ):
                with report.stage(f"writing {what} {blob.digest}"):
                    if not self.is_there(blob, cancel):
                        _write_from(io.BytesIO(raw), self._path(blob.digest), cancel)

        listed = [config.layers[digest] for digest in cacheconfig.describe_layers(config)]
        if not self._put(documents.manifest, listed, write, previous, cancel):
            return None
        return {"cache.manifest": gojson.dumps(documents.manifest.to_json()).decode()}

    def list_written(self, manifest: Descriptor, previous: str | None, cancel: CancelToken) -> bool:
        """Have the index list a manifest that is there already, if ``previous`` is still the version; whether it did."""
        return self._put(manifest, (manifest,), lambda: None, previous, cancel)

    def _put(
        self,
        manifest: Descriptor,
        needed: Sequence[Descriptor],
        write: Callable[[], None],
        previous: str | None,
        cancel: CancelToken,
    ) -> bool:
        """Call ``write``, then add the entry to the index, unless something that is needed is not there."""
        try:
            self._path(manifest.digest).parent.mkdir(parents=True, exist_ok=True)
            with lock_layout(self._root, cancel):
                before = self._tagged()
                if previous not in (ANY, before):
                    return False
                if not all(self.is_there(blob, cancel) for blob in needed):
                    return False  # somebody reset the layout: write it again
                write()
                put_index(self._root, [replace(manifest, annotations={REF_NAME: self._tag})])
                if self._reset:
                    self._drop_unreferenced(None)
                elif before is not None:
                    self._drop_unreferenced({before, *self._mentioned(before)})
        except OSError as exc:
            raise export_error(exc, exc.filename or str(self._root)) from exc
        return True

    def _drop_unreferenced(self, only: set[str] | None) -> None:
        """Remove the blobs that no entry of the index leads to, with ``only`` old ones among these."""
        todo: list[str] = [entry.digest for entry in read_index(self._root / "index.json")]
        wanted: set[str] = set()
        while todo:
            digest = todo.pop()
            if digest in wanted:
                continue
            wanted.add(digest)
            todo += self._mentioned(digest)
        folder = self._root / "blobs" / "sha256"
        names = os.listdir(folder) if only is None else [digest.removeprefix("sha256:") for digest in only]
        newest_ns = time.time_ns() - _KEPT_NS
        for name in filter(_BLOB_NAME.fullmatch, names):
            path = folder / name
            with suppress(FileNotFoundError):
                if f"sha256:{name}" not in wanted and (only is None or path.stat().st_mtime_ns <= newest_ns):
                    path.unlink()

    def _mentioned(self, digest: str) -> list[str]:
        """Return the digests that a manifest or index lists; nothing for other blobs."""
        try:
            path = self._path(digest)
            if path.stat().st_size > MAX_DOCUMENT:
                return []
            data = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return []
        if not isinstance(data, dict) or "schemaVersion" not in data:
            return []
        entries = [data.get("config"), *(data.get("layers") or ()), *(data.get("manifests") or ())]
        return [str(entry["digest"]) for entry in entries if isinstance(entry, dict) and entry.get("digest")]


def _write_from(source: Readable, target: Path, cancel: CancelToken) -> None:
    temporary = target.with_name(temporary_name(target.name))
    try:
        with temporary.open("xb") as file:
            while block := source.read(_CHUNK):
                cancel.check()
                file.write(block)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
