"""Caches in the cache service of GitHub Actions.

Layers are entries by digest. The index is a series of entries ``KEY#1``, ``KEY#2``, …, of which the newest counts, since entries
are written once: writing the next number is the compare-and-swap.

Spec: moby/buildkit ``cache/remotecache/gha``.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import nullcontext
from typing import TYPE_CHECKING

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT, Stored, VerifiedReader
from crossdock.engine.remotecache.config import CacheConfig
from crossdock.engine.remotecache.durations import parse_duration
from crossdock.engine.remotecache.ghaservice import ActionsCache, scopes_of
from crossdock.errors import CacheError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite
    from crossdock.engine.remotecache.ghaservice import Scope
    from crossdock.engine.remotecache.place import Surroundings
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest

__all__ = ["GhaBackend"]

_FORMAT = "1"
_BLOB = f"buildkit-blob-{_FORMAT}-"
_HOST_V2 = "results-receiver.actions.githubusercontent.com"
#: seconds after which a number that somebody reserved and did not fill is skipped
_STUCK_S = 15.0
_WAIT_S = 0.5


class GhaBackend:
    """The cache of one scope name, in all branches that the token may read."""

    title = "exporting to GitHub Actions Cache"
    checks_layers = True
    repositories: tuple[str, ...] = ()
    senders = 4

    def __init__(self, attrs: Mapping[str, str], around: Surroundings, *, exported: bool) -> None:
        del around, exported
        self._scope = attrs.get("scope") or "buildkit"
        self.name = f"gha:{self._scope}"
        version = attrs.get("version", "")
        if version and not version.isdecimal():
            summary = f"version of a gha cache must be a number, not {version!r}"
            raise UsageError(summary)
        url = (attrs.get("url_v2") if version != "1" else "") or attrs.get("url") or attrs.get("url_v2") or ""
        v2 = version != "1" and bool(
            attrs.get("url_v2") or _HOST_V2 in url or (version and int(version) >= 2)
        )
        timeout_s = parse_duration("timeout", attrs.get("timeout", "10m"))
        token = attrs.get("token", "")
        if not url or not token:
            summary = "token or url not set for the GitHub Actions cache"
            raise UsageError(summary, hint="they come from ACTIONS_RUNTIME_TOKEN and ACTIONS_RESULTS_URL")
        self._token = token
        self._service = ActionsCache(url, token, v2=v2, timeout_s=timeout_s)

    def load(self, cancel: CancelToken) -> Stored | None:
        """Read the indexes of all branches; the version is that of the branch that is written."""
        found: list[CacheConfig] = []
        scopes = scopes_of(self._token)
        target = self._target(scopes)
        version = "0"
        for scope in scopes:
            key = self._index_key(scope.name)
            entry = self._service.find(key + "#", cancel)
            if entry is None:
                continue
            raw = self._service.read(entry, MAX_DOCUMENT, cancel)
            if key == target:
                version = self._number(entry.key, key)
            found.append(cacheconfig.parse(raw, f"{self.name}: {entry.key}"))
        if not found:
            return None
        layers: dict[Digest, Descriptor] = {}
        for config in found:
            layers.update(config.layers)
        records = cacheconfig.merge(*(config.records for config in found))
        return Stored(CacheConfig(records, layers), version)

    def _index_key(self, branch: str) -> str:
        return f"index-{self._scope}-{_FORMAT}-{hashlib.sha256(branch.encode()).hexdigest()[:8]}"

    def _target(self, scopes: list[Scope]) -> str:
        writable = [scope.name for scope in scopes if scope.writable]
        return self._index_key(writable[-1] if writable else "")

    def _number(self, whole: str, key: str) -> str:
        number = whole.removeprefix(key + "#")
        if not number.isdecimal():
            summary = f"{self.name}: unexpected entry {whole}"
            raise CacheError(summary)
        return number

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[VerifiedReader]:
        """Start a download."""
        entry = self._service.find(_BLOB + blob.digest, cancel)
        if entry is None:
            summary = f"{self.name}: layer {blob.digest} is gone"
            raise CacheError(summary, hint="GitHub removes entries that were not used for a week")
        stream, close = self._service.open(entry, cancel)
        return VerifiedReader(stream, blob, self.name, close)

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Ask for a layer."""
        return self._service.find(_BLOB + blob.digest, cancel) is not None

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Send a layer."""
        blob = layer.descriptor
        if self.is_there(blob, cancel):
            return
        with (
            layer.open_at(0) as source,
            report.transfer(blob.digest, "pushing", blob.size) as progress,
        ):
            # When another build was faster it is the same layer.
            self._service.save(_BLOB + blob.digest, source, blob.size, cancel)
            progress(blob.size)

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Take no lock: numbers are taken by whoever comes first."""
        del cancel
        return nullcontext()

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Write the index under the next number, unless somebody took it."""
        raw = cacheconfig.dump(config, annotated=True)
        key = self._target(scopes_of(self._token))
        with report.stage(f"writing cache index {key}"):
            # Not the latest of now, but the one that was merged: a newer one must be found in the way.
            number = self._latest(key, cancel) if previous == ANY else int(previous or 0)
            waited_s = 0.0
            while True:
                number += 1
                if self._service.save(f"{key}#{number}", io.BytesIO(raw), len(raw), cancel):
                    return {}
                while self._latest(key, cancel) < number:
                    # Reserved: its writer is at work, or has died.
                    if waited_s >= _STUCK_S:
                        break
                    cancel.sleep(_WAIT_S)
                    waited_s += _WAIT_S
                else:
                    if previous != ANY:
                        return None

    def _latest(self, key: str, cancel: CancelToken) -> int:
        entry = self._service.find(key + "#", cancel)
        return 0 if entry is None else int(self._number(entry.key, key))
