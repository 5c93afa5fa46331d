"""Driver ``kubernetes``: BuildKit daemons in pods that this driver creates and removes.

Needs the extra ``crossdock[kubernetes]``. Spec: features "kubernetes" driver; docker/buildx ``driver/kubernetes``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from crossdock.builders.drivers.base import NodeInfo
from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
from crossdock.builders.drivers.kubemanifest import CONTAINER, Workload, make_workload
from crossdock.builders.drivers.kubeopts import KubeOptions, workload_name
from crossdock.builders.drivers.steps import Step
from crossdock.buildkit.client import Client
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.model import Node, NodeGroup
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["KubernetesDriver", "make"]

_DIAL_TRIES = 5
_POLL_S = 0.2
_STDIN, _STDOUT, _STDERR = 0, 1, 2
#: seconds after which a silent stream is looked at again
_POLL_WS_S = 1.0
#: bytes of one websocket message
_WS_BLOCK = 64 * 1024
_MISSING, _CONFLICT = 404, 409


def make(group: NodeGroup, node: Node) -> KubernetesDriver:
    """Make the driver of one node.

    Raises: UsageError for an unknown or malformed driver option.
    """
    return KubernetesDriver(group, node, KubeOptions.parse(node.driver_opts or {}, builder=group.name))


class KubernetesDriver(BuildKitDriver):
    """One Deployment or StatefulSet of BuildKit pods."""

    def __init__(self, group: NodeGroup, node: Node, options: KubeOptions) -> None:
        name = workload_name(node.name)
        super().__init__(self._client, name=name, path=node_path(group, node))
        self._options = options
        query = parse_qs(urlsplit(node.endpoint).query)
        self._kubeconfig = query.get("kubeconfig", [""])[0] or None
        self._name = query.get("deployment", [""])[0] or name
        self._node = node
        self._apis: _Apis | None = None
        self._sticky_key = node.name

    @property
    def _api(self) -> _Apis:
        if self._apis is None:
            self._apis = _Apis(self._kubeconfig, self._options.namespace)
            self.workload = make_workload(
                self._name,
                self._apis.namespace,
                self._options,
                flags=self._node.flags or (),
                files=self._node.files,
                platforms=self._node.platforms,
            )
        return self._apis

    # life

    def info(self, cancel: CancelToken, /) -> NodeInfo:
        """Say how many pods are ready, and ask one of them."""
        cancel.check()
        try:
            found = self._api.get(self.workload)
        except BuilderError:
            return NodeInfo(status="inactive")
        if found is None:
            return NodeInfo(status="inactive")
        if not (found.status.ready_replicas or 0):
            return NodeInfo(status="stopped")
        return super().info(cancel)

    def bootstrap(self, sink: EventSink, cancel: CancelToken, /) -> None:
        """Create what is missing and wait until the pods are ready."""
        api = self._api
        with Step(sink, "[internal] booting buildkit") as step:
            if api.get(self.workload) is None:
                with step.part(f"creating {self.workload.kind.lower()} {self.workload.name}"):
                    api.create(self.workload)
            count = self._options.replicas
            text = f"waiting for {count} pods to be ready, timeout: {self._options.timeout_s:g} seconds"
            with step.part(text):
                self._wait(count, cancel)

    def prepare(self, sink: EventSink, cancel: CancelToken) -> None:
        """Create the workload when no pod is running."""
        if not self._api.running_pods(self.workload.selector):
            self.bootstrap(sink, cancel)

    def rm(self, cancel: CancelToken, /, *, keep_state: bool, keep_daemon: bool) -> None:
        """Remove the workload and its ConfigMaps; volume claims stay, as Kubernetes keeps them."""
        del keep_state
        cancel.check()
        if not keep_daemon:
            self._api.delete(self.workload)

    def _wait(self, count: int, cancel: CancelToken) -> None:
        deadline = time.monotonic() + self._options.timeout_s
        while True:
            found = self._api.get(self.workload)
            ready = (found.status.ready_replicas or 0) if found is not None else 0
            if ready >= count:
                return
            if time.monotonic() > deadline:
                summary = f"expected {count} replicas of {self.workload.name} to be ready, got {ready}"
                hint = f"`kubectl describe pods -l app={self.workload.name}` says why"
                raise BuilderError(summary, hint=hint)
            cancel.sleep(_POLL_S)

    # building

    def build(self, request: BuildRequest, sink: EventSink, cancel: CancelToken, /) -> BuildResult:
        """Run a build on one pod; with ``loadbalance=sticky`` the one that built this context before."""
        self._sticky_key = request.context or self._node.name
        return super().build(request, sink, cancel)

    def _client(self) -> Client:
        pod = self._choose()
        return Client(lambda: self._dial(pod), name=f"pod {pod}")

    def _choose(self) -> str:
        pods = self._api.running_pods(self.workload.selector)
        if not pods:
            summary = f"no running pods of builder node {self._node.name!r}"
            raise BuilderError(summary, hint="start them with `inspect --bootstrap`")
        if self._options.load_balance == "random":
            return random.choice(pods)  # noqa: S311 - balances load, guards nothing
        # Highest score wins: when a pod comes or goes only the contexts it wins or held move.
        return max(pods, key=lambda pod: hashlib.sha256(f"{self._sticky_key}\0{pod}".encode()).digest())

    def _dial(self, pod: str) -> PodStream:
        failure: BuilderError | None = None
        for attempt in range(_DIAL_TRIES):
            try:
                return PodStream(self._api.exec(pod, ["buildctl", "dial-stdio"]))
            except BuilderError as exc:
                # A node may be called ready before its certificate is approved.
                failure = exc
                time.sleep(min(0.2 * 2**attempt, 3))
        raise failure or BuilderError(f"cannot reach pod {pod}")


class PodStream:
    """The standard streams of a command in a pod, over its websocket."""

    def __init__(self, websocket: Any) -> None:
        self._ws = websocket
        self._rest = b""
        self._stderr = b""

    @property
    def failure(self) -> str:
        """What the command said on stderr, for error messages."""
        return self._stderr.decode(errors="replace").strip()

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of standard output; empty at the end."""
        while not self._rest:
            try:
                data = self._ws.read_channel(_STDOUT, timeout=_POLL_WS_S)
                self._stderr = (self._stderr + _bytes(self._ws.read_channel(_STDERR)))[-4096:]
            except _socket_errors():
                return b""
            self._rest = _bytes(data)
            if not self._rest and not self._ws.is_open():
                return b""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send to the command's standard input."""
        view = memoryview(data)
        try:
            for at in range(0, len(view), _WS_BLOCK):
                self._ws.write_channel(_STDIN, bytes(view[at : at + _WS_BLOCK]))
        except _socket_errors() as exc:
            raise BrokenPipeError(str(exc)) from exc

    def shutdown_write(self) -> None:
        """Do nothing: the protocol cannot close one direction."""

    def close(self) -> None:
        """End the command; idempotent."""
        import socket

        # Closing alone would not wake a reader.
        sock = getattr(self._ws.sock, "sock", None)
        with contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(*_socket_errors()):
            self._ws.close()


def _bytes(data: bytes | str) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else data


def _socket_errors() -> tuple[type[Exception], ...]:
    from websocket import WebSocketException

    # The client's own code stumbles over the socket that close() has taken from it.
    return (OSError, ValueError, WebSocketException, AttributeError, TypeError)


class _Apis:
    """The parts of the Kubernetes API that are used, with its errors translated."""

    def __init__(self, kubeconfig: str | None, namespace: str) -> None:
        try:
            from kubernetes import client, config
        except ImportError as exc:
            summary = "the kubernetes driver needs the Kubernetes client"
            raise BuilderError(summary, hint="install it: pip install 'crossdock[kubernetes]'") from exc
        try:
            config.load_kube_config(config_file=kubeconfig)
            _, context = config.list_kube_config_contexts(config_file=kubeconfig)
            self.namespace = namespace or context["context"].get("namespace") or "default"
        except config.ConfigException:
            self.namespace = self._load_in_cluster(config, namespace)
        self._apps = client.AppsV1Api()
        self._core = client.CoreV1Api()

    @staticmethod
    def _load_in_cluster(config: Any, namespace: str) -> str:
        try:
            config.load_incluster_config()
            with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
                return namespace or file.read().strip()
        except (config.ConfigException, OSError) as exc:
            summary = "no Kubernetes cluster is configured"
            raise BuilderError(summary, hint="set KUBECONFIG, or choose a context with kubectl") from exc

    def get(self, workload: Workload) -> Any:
        """Return the workload; ``None`` when it does not exist."""
        read = self._apps.read_namespaced_deployment
        if workload.kind == "StatefulSet":
            read = self._apps.read_namespaced_stateful_set
        return _ask(lambda: read(workload.name, self.namespace), accept=_MISSING)

    def create(self, workload: Workload) -> None:
        """Create ConfigMaps first, then the workload; what exists is brought up to date or kept."""
        for config_map in workload.config_maps:
            made = _ask(
                functools.partial(self._core.create_namespaced_config_map, self.namespace, config_map),
                accept=_CONFLICT,
            )
            if made is None:
                name = config_map["metadata"]["name"]
                _ask(
                    functools.partial(
                        self._core.replace_namespaced_config_map, name, self.namespace, config_map
                    )
                )
        create = self._apps.create_namespaced_deployment
        if workload.kind == "StatefulSet":
            create = self._apps.create_namespaced_stateful_set
        _ask(lambda: create(self.namespace, workload.body), accept=_CONFLICT)

    def delete(self, workload: Workload) -> None:
        """Delete everything; what is already gone is fine."""
        delete = self._apps.delete_namespaced_deployment
        if workload.kind == "StatefulSet":
            delete = self._apps.delete_namespaced_stateful_set
        _ask(lambda: delete(workload.name, self.namespace), accept=_MISSING)
        for config_map in workload.config_maps:
            name = config_map["metadata"]["name"]
            _ask(
                functools.partial(self._core.delete_namespaced_config_map, name, self.namespace),
                accept=_MISSING,
            )

    def running_pods(self, selector: str) -> list[str]:
        """Return the names of running pods; those that are going away are left out."""
        found = _ask(lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector)).items
        return sorted(
            p.metadata.name
            for p in found
            if p.status.phase == "Running" and p.metadata.deletion_timestamp is None
        )

    def exec(self, pod: str, argv: list[str]) -> Any:
        """Start a command and return its websocket."""
        from kubernetes import client, stream

        # A client of its own: the stream helper replaces the client's request method.
        core = client.CoreV1Api(client.ApiClient())
        return _ask(
            lambda: stream.stream(
                core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=CONTAINER,
                command=argv,
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )
        )


def _ask(call: Callable[[], Any], *, accept: int = 0) -> Any:
    """Make a call; ``None`` when the API answers with the status ``accept``."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call()
    except ApiException as exc:
        if accept and exc.status == accept:
            return None
        summary = f"the Kubernetes API refused: {exc.status} {exc.reason}"
        raise BuilderError(summary, detail=str(exc.body or "")[:2000]) from exc
    except (HTTPError, OSError) as exc:
        summary = f"cannot reach the Kubernetes API: {exc}"
        hint = "is the cluster up, and the context the right one?"
        raise BuilderError(summary, hint=hint, retryable=True) from exc
