"""Caches in Amazon S3 and what speaks its protocol, by way of boto3 (extra ``s3``).

Spec: moby/buildkit ``cache/remotecache/s3``.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT
from crossdock.engine.remotecache.durations import parse_duration
from crossdock.engine.remotecache.objects import ObjectBackend
from crossdock.engine.remotecache.place import required, setting
from crossdock.errors import CacheError, UsageError
from crossdock.layers.compression import parse_bool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from crossdock.engine.remotecache.backend import Readable
    from crossdock.engine.remotecache.place import Surroundings

__all__ = ["S3Backend"]

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_UNSUPPORTED = frozenset({"NotImplemented", "501", "InvalidArgument"})
_COPY_LIMIT = 5 << 30


class S3Backend(ObjectBackend):
    """A cache in a bucket."""

    def __init__(self, attrs: Mapping[str, str], around: Surroundings, *, exported: bool) -> None:
        del exported
        bucket = setting(attrs, "bucket", around.environ, "AWS_BUCKET", what="s3 cache")
        prefix = attrs.get("prefix", "")
        folders = {
            "blobs": attrs.get("blobs_prefix", "blobs/"),
            "manifests": attrs.get("manifests_prefix", "manifests/"),
        }
        senders = attrs.get("upload_parallelism", "4")
        if not senders.isdecimal() or int(senders) < 1:
            summary = f"upload_parallelism must be a positive number, not {senders!r}"
            raise UsageError(summary)
        required("boto3", "s3", "an s3 cache")
        refresh_s = parse_duration("touch_refresh", attrs.get("touch_refresh", "24h"))
        region = setting(attrs, "region", around.environ, "AWS_REGION", what="s3 cache")
        super().__init__(
            lambda: _S3(bucket, region, attrs, refresh_s),
            name=f"s3:{bucket}/{prefix}{folders['manifests']}{attrs.get('name', 'buildkit')}",
            title="exporting cache to Amazon S3",
            names=attrs.get("name", "buildkit").split(";"),
            key=lambda kind, name: prefix + folders[kind] + name,
            senders=int(senders),
        )


class _S3:
    """The bucket."""

    def __init__(self, bucket: str, region: str, attrs: Mapping[str, str], refresh_s: float) -> None:
        self._bucket = bucket
        self._refresh_s = refresh_s
        self._exceptions: Any = required("botocore.exceptions", "s3", "an s3 cache")
        with self._translated():
            self._client = _client(region, attrs)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        exceptions = self._exceptions
        try:
            yield
        except exceptions.ClientError as exc:
            code = str(exc.response.get("Error", {}).get("Code", ""))
            text = exc.response.get("Error", {}).get("Message") or code
            status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            summary = f"s3 bucket {self._bucket}: {text} ({code})"
            raise CacheError(summary, retryable=status >= 500 or status == 429) from exc
        except (exceptions.BotoCoreError, OSError) as exc:
            summary = f"s3 bucket {self._bucket}: {exc}"
            raise CacheError(summary, retryable=True) from exc

    def _code(self, exc: Any) -> str:
        return str(exc.response.get("Error", {}).get("Code", ""))

    def get(self, key: str) -> tuple[bytes, str] | None:
        with self._translated():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
                with answer["Body"] as body:
                    data = body.read(MAX_DOCUMENT + 1)
            except self._exceptions.ClientError as exc:
                if self._code(exc) in _MISSING:
                    return None
                raise
        if len(data) > MAX_DOCUMENT:
            summary = f"s3 object {key} is too large for a cache manifest"
            raise CacheError(summary)
        return data, str(answer["ETag"])

    def put(self, key: str, data: bytes, previous: str | None) -> bool:
        condition: dict[str, str] = {}
        if previous is None:
            condition = {"IfNoneMatch": "*"}
        elif previous != ANY:
            condition = {"IfMatch": previous}
        with self._translated():
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **condition)
            except self._exceptions.ClientError as exc:
                code = self._code(exc)
                if condition and code in _CONFLICT | _MISSING - {"NoSuchBucket"}:
                    return False
                if not condition or code not in _UNSUPPORTED:
                    raise
            else:
                return True
        # A server that knows no conditional writes: look, then write.
        there = self.get(key)
        if (None if there is None else there[1]) != previous:
            return False
        return self.put(key, data, ANY)

    def size(self, key: str) -> int | None:
        found = self._head(key)
        return None if found is None else int(found["ContentLength"])

    def _head(self, key: str) -> Any:
        with self._translated():
            try:
                return self._client.head_object(Bucket=self._bucket, Key=key)
            except self._exceptions.ClientError as exc:
                if self._code(exc) in _MISSING:
                    return None
                raise

    def upload(self, key: str, source: BinaryIO, size_bytes: int) -> None:
        del size_bytes
        with self._translated():
            self._client.upload_fileobj(source, self._bucket, key)

    def keep(self, key: str) -> None:
        """Copy an object onto itself when it is old: lifecycle rules go by age."""
        found = self._head(key)
        if found is None or int(found["ContentLength"]) >= _COPY_LIMIT:
            return
        now = datetime.now(UTC)
        if (now - found["LastModified"]).total_seconds() <= self._refresh_s:
            return
        with self._translated():
            self._client.copy_object(
                Bucket=self._bucket,
                Key=key,
                CopySource={"Bucket": self._bucket, "Key": key},
                Metadata={"updated-at": now.isoformat()},
                MetadataDirective="REPLACE",
            )

    def open(self, key: str) -> tuple[Readable, Callable[[], object]]:
        with self._translated():
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
        return _Body(body, self._translated), body.close


class _Body(io.RawIOBase):
    """An object being read; failures become ours."""

    def __init__(self, body: Any, translated: Callable[[], Any]) -> None:
        super().__init__()
        self._body = body
        self._translated = translated

    def read(self, size: int = -1, /) -> bytes:
        with self._translated():
            data: bytes = self._body.read(size if size >= 0 else None)
            return data


def _client(region: str, attrs: Mapping[str, str]) -> Any:
    boto3 = required("boto3", "s3", "an s3 cache")
    config: dict[str, Any] = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connect_timeout": 15,
        "read_timeout": 60,
    }
    if attrs.get("endpoint_url") and parse_bool("use_path_style", attrs.get("use_path_style", "false")):
        config["s3"] = {"addressing_style": "path"}
    retries: dict[str, Any] = {}
    if attrs.get("retry_mode"):
        if attrs["retry_mode"] not in ("standard", "adaptive"):
            summary = f"retry_mode must be standard or adaptive, not {attrs['retry_mode']!r}"
            raise UsageError(summary)
        retries["mode"] = attrs["retry_mode"]
    if attrs.get("retry_max_attempts"):
        if not attrs["retry_max_attempts"].isdecimal() or attrs["retry_max_attempts"] == "0":
            summary = "retry_max_attempts must be a positive number"
            raise UsageError(summary)
        retries["total_max_attempts"] = int(attrs["retry_max_attempts"])
    if retries:
        config["retries"] = retries
    keys: dict[str, Any] = {}
    if attrs.get("access_key_id") and attrs.get("secret_access_key"):
        keys = {
            "aws_access_key_id": attrs["access_key_id"],
            "aws_secret_access_key": attrs["secret_access_key"],
            "aws_session_token": attrs.get("session_token") or None,
        }
    client = boto3.session.Session().client(
        "s3",
        region_name=region,
        endpoint_url=attrs.get("endpoint_url") or None,
        config=required("botocore.config", "s3", "an s3 cache").Config(**config),
        **keys,
    )
    if parse_bool("disable_accept_encoding", attrs.get("disable_accept_encoding", "false")):
        # Some servers change the header after it was signed (https://github.com/moby/buildkit/issues/3749).
        client.meta.events.register("before-sign.s3", _without_accept_encoding)
    return client


def _without_accept_encoding(request: Any, **_: object) -> None:
    request.headers.pop("Accept-Encoding", None)
