"""The objects of the kubernetes driver: every option, as it reaches the cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crossdock.builders.drivers.kubemanifest import make_workload
from crossdock.builders.drivers.kubeopts import _FIELDS, KubeOptions, workload_name
from crossdock.errors import UsageError
from crossdock.image import parse_platforms

GOLDEN = Path(__file__).parents[3] / "golden/kubernetes"

#: name -> driver options; together they hold all of them
CASES: dict[str, dict[str, str]] = {
    "default": {},
    "resources": {
        "image": "registry.example/buildkit:1",
        "namespace": "builds",
        "replicas": "3",
        "requests.cpu": "500m",
        "requests.memory": "1Gi",
        "requests.ephemeral-storage": "10Gi",
        "limits.cpu": "2",
        "limits.memory": "4Gi",
        "limits.ephemeral-storage": "20Gi",
        "env.HTTP_PROXY": "http://proxy.example",
        "loadbalance": "random",
        "default-load": "true",
        "timeout": "1m30s",
    },
    "placement": {
        "schedulername": "own",
        "serviceaccount": "builder",
        "nodeselector": "disk=fast,zone=a",
        "annotations": "team=a,cost=low",
        "labels": "tier=build",
        "tolerations": "key=dedicated,operator=Equal,value=build,effect=NoSchedule;key=x,operator=Exists,tolerationSeconds=60",
        "qemu.install": "true",
        "qemu.image": "registry.example/binfmt:1",
    },
    "rootless": {"rootless": "true"},
    "rootless-memory": {"rootless": "true", "buildkit-root-volume-memory": "1Gi"},
    "memory": {"buildkit-root-volume-memory": "2Gi"},
    "persistent": {"persistent-volume-claim.requests.storage": "50Gi"},
    "persistent-and-memory": {
        "persistent-volume-claim.requests.storage": "50Gi",
        "buildkit-root-volume-memory": "2Gi",
        "requests.cpu": "",
        "qemu.image": "",
    },
    "rootless-persistent": {"persistent-volume-claim.requests.storage": "50Gi", "rootless": "true"},
}


def objects(options: dict[str, str], **more: Any) -> list[dict[str, Any]]:
    parsed = KubeOptions.parse(options, builder="b")
    workload = make_workload("b0", parsed.namespace or "default", parsed, **more)
    return [*workload.config_maps, workload.body]


def compare(name: str, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_objects(name: str) -> None:
    compare(name, objects(CASES[name]))


@pytest.mark.golden
def test_objects_with_files_flags_and_platforms() -> None:
    files = {
        "buildkitd.toml": b"debug = true\n",
        "certs/a.example/ca.pem": b"CA A",
        "certs/b.example/ca.pem": b"CA B",
    }
    platforms = parse_platforms(["linux/amd64,linux/arm64"])
    flags = ["--allow-insecure-entitlement=network.host"]
    compare("files", objects({}, files=files, flags=flags, platforms=platforms))


@pytest.mark.golden
def test_files_beside_a_persistent_volume() -> None:
    compare("persistent-files", objects(CASES["persistent"], files={"buildkitd.toml": b"debug = true\n"}))


def test_the_cases_hold_every_option() -> None:
    used = {k for options in CASES.values() for k in options if not k.startswith("env.")}
    assert used == set(_FIELDS)
    # buildx counts requests, limits and qemu as the families they are; env.* is one more.
    assert len(_FIELDS) + 1 == 24


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("requests.cpu", "much", "invalid value 'much' of driver option requests.cpu"),
        ("replicas", "three", "invalid value"),
        ("timeout", "soon", "invalid value"),
        ("loadbalance", "fair", "invalid value"),
        ("nodeselector", "disk", "invalid value"),
        ("tolerations", "key=a,colour=red", "invalid value"),
        ("rootless", "maybe", "invalid value"),
        ("annotations", "buildx.docker.com/platform=x", "reserved"),
        ("labels", "app=x", "reserved"),
        ("colour", "red", "invalid driver option colour"),
        ("env.", "x", "invalid driver option"),
    ],
)
def test_options_that_cannot_be(option: str, value: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        KubeOptions.parse({option: value}, builder="b")


@pytest.mark.parametrize(
    ("node", "name"), [("Builder_0", "builder-0"), ("a.b", "a-b"), ("-x-", "x"), ("n" * 80, "n" * 63)]
)
def test_names_fit_kubernetes(node: str, name: str) -> None:
    assert workload_name(node) == name


def test_a_name_of_which_nothing_remains() -> None:
    with pytest.raises(UsageError, match="no valid Kubernetes name"):
        workload_name("___")
