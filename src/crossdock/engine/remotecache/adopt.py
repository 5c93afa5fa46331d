"""Caches that a daemon has written into a directory of this machine: listed in its index, merged with what that lists already.

A daemon that is BuildKit's knows nothing of what is there, and one of ours sees no index: the last word is the client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.report import reported
from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, Stored
from crossdock.engine.remotecache.local import LocalBackend
from crossdock.engine.remotecache.merging import merged
from crossdock.engine.remotecache.spec import merge_options
from crossdock.errors import CacheError, DigestMismatch, ExportError, LayerError
from crossdock.image.descriptor import Descriptor
from crossdock.progress.events import VertexWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.progress.events import EventSink

__all__ = ["AdoptedCache"]

#: merges when others write at the same time
_ATTEMPTS = 16
_RETRY_S = 0.1
_TITLE = "merging build cache in client directory"


class AdoptedCache:
    """One ``--cache-to type=local`` of a build on a daemon."""

    def __init__(self, attrs: Mapping[str, str]) -> None:
        """Raises: UsageError for a value that cannot be meant."""
        self._dest = attrs["dest"]
        self._merge, self._max_results = merge_options(attrs)
        self._place = LocalBackend(attrs, exported=True)

    def adopt(self, written: Descriptor, sink: EventSink, cancel: CancelToken) -> Descriptor:
        """Have the index list ``written`` or, where something else is listed, both as one; returns what is listed then.

        Nothing but a warning comes of one that is not there: a daemon names one, also when it wrote several caches.
        Raises: ExportError, CacheError when the index or what was written cannot be read; the token's cause.
        """
        if not self._place.is_there(written, cancel):
            short = f"{self._place.name}: the builder did not tell what cache it wrote there"
            detail = ("Export one local cache at a time.",)
            sink.emit(VertexWarning(vertex="", level=1, short=short, detail=detail))
            return written
        for attempt in range(_ATTEMPTS):
            there = self._there(sink, cancel)
            found = written
            if there is None or there.version in (ANY, written.digest):
                listed = self._place.list_written(
                    written, there.version if there is not None else None, cancel
                )
            else:
                listed, found = self._merged(written, there, sink, cancel)
            if listed:
                return found
            cancel.sleep(_RETRY_S * (attempt + 1))
        summary = f"{self._place.name}: other builds kept writing to it"
        raise ExportError(summary, hint="export to a directory of its own", retryable=True)

    def _there(self, sink: EventSink, cancel: CancelToken) -> Stored | None:
        if not self._merge:
            return Stored(cacheconfig.CacheConfig(), ANY)
        try:
            return self._place.load(cancel)
        except (CacheError, LayerError, DigestMismatch) as exc:
            short = f"{self._place.name}: what was there is replaced, not merged: {exc.summary}"
            sink.emit(VertexWarning(vertex="", level=1, short=short))
            return Stored(cacheconfig.CacheConfig(), ANY)

    def _merged(
        self, written: Descriptor, there: Stored, sink: EventSink, cancel: CancelToken
    ) -> tuple[bool, Descriptor]:
        """Return whether the index lists what is given then."""
        own = self._own(written, cancel)
        config = merged(
            self._place, own, there.config, max_results=self._max_results, suspicious=True, cancel=cancel
        )
        if cacheconfig.dump(config, annotated=False) == cacheconfig.dump(own, annotated=False):
            return self._place.list_written(written, there.version, cancel), written
        with reported(sink, _TITLE, self._place.name) as report:
            response = self._place.replace(config, there.version, report, cancel)
        if response is None:
            return False, written
        import json

        listed = Descriptor.from_json(json.loads(response["cache.manifest"]), self._place.name)
        return True, listed

    def _own(self, written: Descriptor, cancel: CancelToken) -> CacheConfig:
        stored = LocalBackend({"src": self._dest, "digest": written.digest}, exported=False).load(cancel)
        if stored is None:
            summary = f"{self._place.name}: {written.digest} is not there"
            raise CacheError(summary)
        return stored.config
