"""What a graph says it was made of."""

from __future__ import annotations

import pytest

from crossdock.builds.attest.capture import capture, materials, redacted
from crossdock.builds.images import ResolvedSource
from crossdock.image.platform import Platform
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    ExecMeta,
    ExecOp,
    MergeOp,
    Mount,
    MountType,
    NetMode,
    SecretEnv,
    SecretOpt,
    SourceOp,
    SshOpt,
)

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
COMMIT = "c" * 40


def source(identifier: str, platform: Platform | None = None, **attrs: str) -> Output:
    named = {key.replace("_", "."): value for key, value in attrs.items()}
    return Output(Node(SourceOp(identifier, named), platform=platform))


def merged(*outputs: Output) -> Output:
    return Output(Node(MergeOp(tuple(range(len(outputs)))), outputs))


def exec_(*mounts: Mount, **fields: object) -> Output:
    meta = ExecMeta(args=("true",))
    return Output(Node(ExecOp(meta=meta, mounts=(Mount(dest="/"), *mounts), **fields)))  # type: ignore[arg-type]


def no_pin(_vertex: str) -> str:
    return ""


def test_each_kind_of_source_is_a_material() -> None:
    graph = merged(
        source(f"docker-image://docker.io/library/alpine:3@{DIGEST}", AMD64),
        source(f"oci-layout://mine@{OTHER}", AMD64),
        source("https://example.org/file"),
        source("git://example.org/app.git#main:sub", git_fullurl="https://user:word@example.org/app.git"),
        source("local://context"),
    )
    pins: dict[str, str] = {
        graph.node.inputs[2].node.digest: DIGEST,
        graph.node.inputs[3].node.digest: COMMIT,
    }
    found = capture([graph], lambda vertex: pins.get(vertex, ""))
    assert [(m.uri, dict(m.digest)) for m in materials(found)] == [
        (f"pkg:docker/alpine@3?digest={DIGEST}&platform=linux%2Famd64", {"sha256": "a" * 64}),
        (f"pkg:oci/mine?digest={OTHER}&platform=linux%2Famd64", {"sha256": "b" * 64}),
        ("https://xxxxx:xxxxx@example.org/app.git#main", {"sha1": COMMIT}),
        ("https://example.org/file", {"sha256": "a" * 64}),
    ]
    assert found.locals == ["context"]
    assert not found.incomplete


def test_an_image_asked_for_by_tag_is_named_by_it() -> None:
    graph = source(f"docker-image://docker.io/library/alpine:3@{DIGEST}", AMD64)
    asked = ResolvedSource("docker.io/library/alpine:3", AMD64, DIGEST)
    found = capture([graph], no_pin, resolved=[asked, asked])
    assert [m.uri for m in materials(found)] == ["pkg:docker/alpine@3?platform=linux%2Famd64"]


def test_images_of_other_targets_are_left_out() -> None:
    both = [ResolvedSource("docker.io/library/a:1", p, DIGEST) for p in (AMD64, ARM64)]
    tool = ResolvedSource("docker.io/library/tool:1", AMD64, DIGEST)
    found = capture([], no_pin, resolved=[*both, tool], platform=ARM64, platforms=[AMD64, ARM64])
    assert [(i.ref, i.platform) for i in found.images] == [
        ("docker.io/library/a:1", ARM64),
        ("docker.io/library/tool:1", AMD64),
    ]


def test_secrets_are_told_by_name_and_are_needed_if_one_step_needs_them() -> None:
    def secret(name: str, *, optional: bool) -> Mount:
        opt = SecretOpt(id=name, optional=optional)
        return Mount(dest="/s", mount_type=MountType.SECRET, secret_opt=opt)

    ssh = Mount(dest="/a", mount_type=MountType.SSH, ssh_opt=SshOpt(id="", optional=True))
    first = exec_(secret("a", optional=True), secret("b", optional=True), ssh)
    second = exec_(secret("a", optional=False), secret_env=(SecretEnv(id="c", name="C"),))
    found = capture([merged(first, second)], no_pin)
    assert found.secrets == {"a": False, "b": True, "c": False}
    assert found.ssh == {"default": True}


def test_a_step_without_a_network_is_hermetic() -> None:
    assert not capture([exec_(network=NetMode.NONE)], no_pin).network
    assert capture([exec_(network=NetMode.NONE), exec_()], no_pin).network


def test_sources_nobody_knows_make_the_list_incomplete() -> None:
    assert capture([source("docker-image+blob://x")], no_pin).incomplete


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/a?b#c", "https://example.org/a?b#c"),
        ("https://user@example.org/a", "https://xxxxx@example.org/a"),
        ("https://user:pass@example.org:8080/a?b#c", "https://xxxxx:xxxxx@example.org:8080/a?b#c"),
        ("https://:pass@example.org/", "https://:xxxxx@example.org/"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("ssh://git@example.org/a", "ssh://xxxxx@example.org/a"),
        ("plain text", "plain text"),
        ("http://[broken", "http://[broken"),
        ("", ""),
    ],
)
def test_logins_are_masked(url: str, expected: str) -> None:
    assert redacted(url) == expected
