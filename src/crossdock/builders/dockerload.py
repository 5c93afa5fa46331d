"""Images streamed into a Docker Engine as they are exported (``--load``), by builders of every kind.

Spec: docker/buildx ``util/dockerutil`` (LoadImage, Features), ``build/opt.go``.
"""

from __future__ import annotations

import threading
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.progress.events import EventSink

__all__ = ["DockerLoader", "find_loader"]

_POLL_S = 0.1


def find_loader(
    context: str, *, multi_platform: bool, sink: EventSink, cancel: CancelToken
) -> tuple[str, DockerLoader]:
    """Find the Engine of a docker context (the current one when empty).

    Returns what it is to be sent, ``oci`` where it keeps images in containerd and else ``docker``, and what sends it.
    Raises: ExportError when it does not answer, or cannot hold several platforms; BuilderError for an unknown context.
    """
    from crossdock.builders.dockerconfig import current_context, endpoint_of
    from crossdock.builders.dockerengine import has_containerd_store, ping

    endpoint = endpoint_of(context or current_context())
    if ping(endpoint) is None:
        summary = f"cannot load the image: no Docker Engine answers at {endpoint.host}"
        raise ExportError(summary, hint="write an archive instead: -o type=docker,dest=image.tar")
    kind = "docker"
    if has_containerd_store(endpoint):
        kind = "oci"
    elif multi_platform:
        summary = "the Docker Engine's image store holds one platform of an image: it cannot take several"
        raise ExportError(
            summary,
            detail="Turn on its containerd image store, build one platform at a time, push to a registry with --push,\n"
            "or write an OCI archive of all platforms with -o type=oci,dest=image.tar.",
        )
    return kind, DockerLoader(endpoint, sink, cancel)


class DockerLoader:
    """Takes an image archive and streams it into a Docker Engine as it is written."""

    def __init__(self, endpoint: DockerEndpoint, sink: EventSink, cancel: CancelToken) -> None:
        self._endpoint = endpoint
        self._sink = sink
        self._cancel = CancelToken(cancel)
        self._queue: Queue[bytes | None] = Queue(8)
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> int:
        """Take a part of the archive; blocks while the engine is slow.

        Raises: what loading raised; Cancelled.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="docker-load", daemon=True)
            self._thread.start()
        self._put(bytes(data))
        return len(data)

    def finish(self) -> None:
        """Wait until the engine has the image.

        Raises: BuilderError when it refuses.
        """
        if self._thread is None:
            return
        self._put(None)
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
        self._cancel.close()
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Break off, after a failed export; idempotent."""
        self._cancel.cancel()
        if self._thread is not None:
            self._thread.join(1.0)
        self._cancel.close()

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Take several parts; as :meth:`write`."""
        for part in parts:
            self.write(part)

    def _put(self, item: bytes | None) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            self._cancel.check()
            try:
                self._queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return

    def _chunks(self) -> Iterator[bytes]:
        while True:
            self._cancel.check()
            try:
                item = self._queue.get(timeout=_POLL_S)
            except Empty:
                continue
            if item is None:
                return
            yield item

    def _run(self) -> None:
        from crossdock.builders.dockerengine import load_image
        from crossdock.builds.steps import shown

        try:
            with shown(self._sink, "importing to docker") as step:
                load_image(self._endpoint, self._chunks(), on_message=step.log, cancel=self._cancel)
        except BaseException as exc:  # noqa: BLE001 - the top of a thread; finish() and write() raise it again
            self._failure = exc
