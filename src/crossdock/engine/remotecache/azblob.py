"""Caches in Azure Blob Storage, by way of azure-storage-blob (extra ``azblob``).

Spec: moby/buildkit ``cache/remotecache/azblob``.
"""

from __future__ import annotations

import io
import posixpath
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT
from crossdock.engine.remotecache.objects import ObjectBackend
from crossdock.engine.remotecache.place import required, setting
from crossdock.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from crossdock.engine.remotecache.backend import Readable
    from crossdock.engine.remotecache.place import Surroundings

__all__ = ["AzureBackend"]

_WHAT = "an azblob cache"
_JSON = "application/json"


class AzureBackend(ObjectBackend):
    """A cache in a container."""

    def __init__(self, attrs: Mapping[str, str], around: Surroundings, *, exported: bool) -> None:
        del exported
        environ = around.environ
        url = setting(
            attrs, "account_url", environ, "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", what="azblob cache"
        )
        account = attrs.get("account_name") or environ.get("BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", "")
        account = account or (urlsplit(url).hostname or "").partition(".")[0]
        container = attrs.get("container") or environ.get("BUILDKIT_AZURE_STORAGE_CONTAINER", "")
        container = container or "buildkit-cache"
        prefix = attrs.get("prefix") or environ.get("BUILDKIT_AZURE_STORAGE_PREFIX", "")
        folders = {
            "blobs": attrs.get("blobs_prefix", "blobs"),
            "manifests": attrs.get("manifests_prefix", "manifests"),
        }
        required("azure.storage.blob", "azblob", _WHAT)
        secret = attrs.get("secret_access_key", "")
        super().__init__(
            lambda: _Container(url, account, container, secret),
            name=f"azblob:{container}/{posixpath.join(prefix, folders['manifests'], attrs.get('name', 'buildkit'))}",
            title="exporting cache to Azure Blob Storage",
            names=attrs.get("name", "buildkit").split(";"),
            key=lambda kind, name: posixpath.join(prefix, folders[kind], name),
        )


class _Container:
    """The container; made when it is not there."""

    def __init__(self, url: str, account: str, container: str, secret: str) -> None:
        self._name = container
        self._exceptions: Any = required("azure.core.exceptions", "azblob", _WHAT)
        self._conditions: Any = required("azure.core", "azblob", _WHAT).MatchConditions
        blob = required("azure.storage.blob", "azblob", _WHAT)
        credential: Any
        if secret:
            credential = {"account_name": account, "account_key": secret}
        else:
            credential = required("azure.identity", "azblob", _WHAT).DefaultAzureCredential()
        with self._translated():
            service = blob.BlobServiceClient(
                url, credential=credential, connection_timeout=15, read_timeout=60, retry_total=3
            )
            self._container = service.get_container_client(container)
            try:
                self._container.get_container_properties()
            except self._exceptions.ResourceNotFoundError:
                self._create()

    def _create(self) -> None:
        try:
            self._container.create_container()
        except self._exceptions.ResourceExistsError:
            return  # another build was faster

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._exceptions.AzureError as exc:
            status = int(getattr(exc, "status_code", 0) or 0)
            text = (str(getattr(exc, "message", "") or exc) or type(exc).__name__).splitlines()[0]
            summary = f"azblob container {self._name}: {text}"
            raise CacheError(summary, retryable=status == 0 or status >= 500 or status == 429) from exc
        except ValueError as exc:  # a malformed account key or URL
            summary = f"azblob container {self._name}: {type(exc).__name__} in its settings"
            raise CacheError(summary) from None

    def get(self, key: str) -> tuple[bytes, str] | None:
        with self._translated():
            try:
                stream = self._container.download_blob(key)
            except self._exceptions.ResourceNotFoundError:
                return None
            if stream.size > MAX_DOCUMENT:
                summary = f"azure blob {key} is too large for a cache manifest"
                raise CacheError(summary)
            return stream.readall(), str(stream.properties.etag)

    def put(self, key: str, data: bytes, previous: str | None) -> bool:
        condition: dict[str, Any] = {"overwrite": previous is not None}
        if previous not in (None, ANY):
            condition.update(etag=previous, match_condition=self._conditions.IfNotModified)
        with self._translated():
            try:
                self._container.upload_blob(key, data, **condition)
            except (
                self._exceptions.ResourceModifiedError,
                self._exceptions.ResourceExistsError,
                self._exceptions.ResourceNotFoundError,
            ):
                return False
        return True

    def size(self, key: str) -> int | None:
        with self._translated():
            try:
                return int(self._container.get_blob_client(key).get_blob_properties().size)
            except self._exceptions.ResourceNotFoundError:
                return None

    def upload(self, key: str, source: BinaryIO, size_bytes: int) -> None:
        with self._translated():
            try:
                self._container.upload_blob(key, source, length=size_bytes, overwrite=True, max_concurrency=2)
            except self._exceptions.ResourceExistsError:
                return  # another build was faster, with the same bytes

    def keep(self, key: str) -> None:
        """Do nothing: the container's rules are the user's."""

    def open(self, key: str) -> tuple[Readable, Callable[[], object]]:
        with self._translated():
            stream = self._container.download_blob(key)
        return _Download(stream, self._translated), lambda: None


class _Download(io.RawIOBase):
    """A blob being read; failures become ours."""

    def __init__(self, stream: Any, translated: Callable[[], Any]) -> None:
        super().__init__()
        self._stream = stream
        self._translated = translated

    def read(self, size: int = -1, /) -> bytes:
        with self._translated():
            data: bytes = self._stream.read(size)
            return data
