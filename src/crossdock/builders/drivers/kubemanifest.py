"""The Kubernetes objects of a builder node, as plain values: a Deployment or StatefulSet, and ConfigMaps.

Spec: docker/buildx ``driver/kubernetes/manifest``. Different on purpose: ``requests.ephemeral-storage`` becomes a request
(buildx writes a limit), and a persistent volume is mounted beside the config files (buildx drops their mounts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.builders.drivers.kubeopts import PLATFORM_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.drivers.kubeopts import KubeOptions
    from crossdock.image import Platform

__all__ = ["Workload", "make_workload"]

CONTAINER = "buildkitd"
_STATE_DIR = "/var/lib/buildkit"
_ROOTLESS_STATE_DIR = "/home/user/.local/share/buildkit"
_PROBE = {
    "exec": {"command": ["buildctl", "debug", "workers"]},
    "failureThreshold": 3,
    "initialDelaySeconds": 5,
    "periodSeconds": 30,
    "successThreshold": 1,
    "timeoutSeconds": 60,
}


class Workload:
    """What is created for one node."""

    def __init__(self, body: dict[str, Any], config_maps: list[dict[str, Any]]) -> None:
        #: the Deployment or StatefulSet
        self.body = body
        self.config_maps = config_maps

    @property
    def kind(self) -> str:
        """``Deployment`` or ``StatefulSet``."""
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])

    @property
    def selector(self) -> str:
        """The label selector of its pods."""
        labels: Mapping[str, str] = self.body["spec"]["selector"]["matchLabels"]
        return ",".join(f"{k}={v}" for k, v in labels.items())


def make_workload(
    name: str,
    namespace: str,
    options: KubeOptions,
    *,
    flags: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    platforms: Sequence[Platform] = (),
) -> Workload:
    """Build the objects of one node."""
    labels = {"app": name, **options.labels}
    annotations = {**options.annotations}
    if platforms:
        annotations[PLATFORM_ANNOTATION] = ",".join(map(str, platforms))
    container = _container(options, flags)
    spec: dict[str, Any] = {"containers": [container], "volumes": []}
    config_maps = _add_files(name, namespace, annotations, files or {}, container, spec)
    pod_annotations = dict(annotations)
    if options.rootless:
        _make_rootless(container, spec, pod_annotations, options)
    elif options.root_volume_memory and not options.persistent_storage:
        _mount(container, spec, "buildkit-memory", _STATE_DIR, _memory(options.root_volume_memory))
    _add_placement(spec, options)
    template = {"metadata": {"labels": labels, "annotations": pod_annotations}, "spec": spec}
    metadata = {"namespace": namespace, "name": name, "labels": labels, "annotations": annotations}
    body: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": options.replicas, "selector": {"matchLabels": labels}, "template": template},
    }
    if options.persistent_storage:
        body["kind"] = "StatefulSet"
        body["spec"] |= {
            "serviceName": CONTAINER,
            "podManagementPolicy": "Parallel",
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": CONTAINER},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": options.persistent_storage}},
                    },
                }
            ],
        }
        if not options.rootless:
            container["volumeMounts"].append({"name": CONTAINER, "mountPath": _STATE_DIR})
    return Workload(body, config_maps)


def _container(options: KubeOptions, flags: Sequence[str]) -> dict[str, Any]:
    requests = {
        "cpu": options.requests_cpu,
        "memory": options.requests_memory,
        "ephemeral-storage": options.requests_ephemeral_storage,
    }
    limits = {
        "cpu": options.limits_cpu,
        "memory": options.limits_memory,
        "ephemeral-storage": options.limits_ephemeral_storage,
    }
    return {
        "name": CONTAINER,
        "image": options.daemon_image,
        "args": list(flags),
        "env": [{"name": k, "value": v} for k, v in options.env.items()],
        "securityContext": {"privileged": True},
        "readinessProbe": _PROBE,
        "livenessProbe": _PROBE,
        "resources": {
            "requests": {k: v for k, v in requests.items() if v},
            "limits": {k: v for k, v in limits.items() if v},
        },
        "volumeMounts": [],
    }


def _add_files(
    name: str,
    namespace: str,
    annotations: Mapping[str, str],
    files: Mapping[str, bytes],
    container: dict[str, Any],
    spec: dict[str, Any],
) -> list[dict[str, Any]]:
    """One ConfigMap per directory: a ConfigMap has no directories of its own."""
    folders: dict[str, dict[str, str]] = {}
    for path, content in sorted(files.items()):
        folder, _, base = path.rpartition("/")
        folders.setdefault(folder, {})[base] = content.decode()
    out = []
    for number, (folder, data) in enumerate(folders.items()):
        volume = "config" if not folder else f"config-{number}"
        metadata = {"namespace": namespace, "name": f"{name}-{volume}", "annotations": dict(annotations)}
        out.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        source = {"configMap": {"name": f"{name}-{volume}"}}
        _mount(container, spec, volume, f"/etc/buildkit/{folder}".rstrip("/"), source)
    if "buildkitd.toml" in files and not any(a.startswith("--config") for a in container["args"]):
        container["args"].append("--config=/etc/buildkit/buildkitd.toml")
    return out


def _make_rootless(
    container: dict[str, Any], spec: dict[str, Any], annotations: dict[str, str], options: KubeOptions
) -> None:
    container["args"].append("--oci-worker-no-process-sandbox")
    container["securityContext"] = {"seccompProfile": {"type": "Unconfined"}}
    annotations[f"container.apparmor.security.beta.kubernetes.io/{CONTAINER}"] = "unconfined"
    if options.persistent_storage:
        container["volumeMounts"].append({"name": CONTAINER, "mountPath": _ROOTLESS_STATE_DIR})
        return
    source = _memory(options.root_volume_memory) if options.root_volume_memory else {"emptyDir": {}}
    # The image's own VOLUME is mounted nosuid and nodev on some systems, which rootless builds cannot use.
    _mount(container, spec, CONTAINER, _ROOTLESS_STATE_DIR, source)


def _add_placement(spec: dict[str, Any], options: KubeOptions) -> None:
    if options.qemu_install:
        spec["initContainers"] = [
            {
                "name": "qemu",
                "image": options.qemu_image,
                "args": ["--install", "all"],
                "securityContext": {"privileged": True},
            }
        ]
    pairs: dict[str, Any] = {
        "serviceAccountName": options.service_account,
        "schedulerName": options.scheduler,
        "nodeSelector": dict(options.node_selector),
        "tolerations": [dict(t) for t in options.tolerations],
    }
    spec.update({k: v for k, v in pairs.items() if v})


def _memory(size: str) -> dict[str, Any]:
    return {"emptyDir": {"medium": "Memory", "sizeLimit": size}}


def _mount(
    container: dict[str, Any], spec: dict[str, Any], name: str, path: str, source: Mapping[str, Any]
) -> None:
    container["volumeMounts"].append({"name": name, "mountPath": path})
    spec["volumes"].append({"name": name, **source})
