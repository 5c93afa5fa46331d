"""What a daemon is asked: attributes, exporters and the client's side of them, for requests of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from crossdock.builders.drivers.abilities import (
    attestation_attrs,
    check_classic,
    check_frontend,
    explained,
)
from crossdock.builders.drivers.outputs import plan_outputs
from crossdock.builders.drivers.plan import make_plan
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.builders.values import csv_fields
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, CrossdockError, ExportError, RemoteError, UsageError
from crossdock.image.platform import parse_platforms
from crossdock.progress import NullSink

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.builders.drivers.outputs import Outputs
    from crossdock.builders.drivers.plan import Plan


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("BUILDX_SEND_GIT_QUERY_AS_INPUT", raising=False)
    monkeypatch.setenv("BUILDX_GIT_INFO", "false")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    return folder


def plan_of(context: Path | str, **fields: Any) -> Plan:
    request = BuildRequest(context=str(context), **fields)
    plan = make_plan(request, cancel=CancelToken(), on_error=lambda _: None)
    plan.stack.close()
    return plan


def outputs_of(*specs: OutputSpec, engine: bool = False, classic: bool = False, **fields: Any) -> Outputs:
    request = BuildRequest(context=".", outputs=specs, **fields)
    out = plan_outputs(request, engine=engine, classic=classic, sink=NullSink(), cancel=CancelToken())
    out.stack.close()
    return out


GIT = "https://git.example/app.git?ref=main&subdir=x"


def test_git_urls_with_a_query_are_for_frontends_that_read_it() -> None:
    plan = plan_of(GIT, named_contexts={"lib": GIT})
    caps = "moby.buildkit.frontend."
    assert plan.attrs["frontend.caps"].split(",") == [
        f"{caps}contexts+forward", f"{caps}gitquerystring", f"{caps}gitquerystring+forward",
    ]  # fmt: skip
    assert plan.attrs["context"] == plan.attrs["context:lib"] == GIT
    assert "frontend.caps" not in plan_of("https://git.example/app.git#main:x").attrs
    assert "frontend.caps" not in plan_of("https://host.example/context.tar?x=1").attrs


def test_git_urls_with_a_query_are_sent_as_definitions_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDX_SEND_GIT_QUERY_AS_INPUT", "1")
    plan = plan_of(GIT, named_contexts={"lib": GIT})
    assert set(plan.inputs) == {"context", "dockerfile", "git_state_context:lib"}
    assert plan.inputs["context"].ops
    assert "context" not in plan.attrs
    assert plan.attrs["input:context"] == plan.attrs["input:context:lib"] == GIT
    assert plan.attrs["context:lib"] == "input:git_state_context:lib"


def test_named_directories_have_keys_and_do_not_hide_the_main_ones(context: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    plan = plan_of(context, named_contexts={"context": str(other), "lib": str(other)})
    assert plan.attrs["context:context"] == "local:_context"
    assert plan.attrs["context:lib"] == "local:lib"
    assert plan.directories["context"] == context
    assert plan.directories["_context"] == plan.directories["lib"] == other
    assert plan.attrs["sharedkey:localdir:lib"].startswith("other:")


def test_another_frontend_is_called_by_its_image(context: Path) -> None:
    plan = plan_of(context, build_args={"BUILDKIT_SYNTAX": "example/front:1 more"})
    assert plan.options().frontend == "gateway.v0"
    assert (plan.attrs["source"], plan.attrs["cmdline"]) == ("example/front:1", "example/front:1 more")
    with pytest.raises(UsageError, match="BUILDKIT_SYNTAX is empty"):
        plan_of(context, build_args={"BUILDKIT_SYNTAX": " "})


def test_build_arguments_that_are_options(context: Path) -> None:
    plan = plan_of(context, build_args={"BUILDKIT_MULTI_PLATFORM": "1", "BUILDKIT_INLINE_CACHE": "true"})
    assert plan.attrs["multi-platform"] == "true"
    assert [c.type for c in plan.cache_to] == ["inline"]
    assert "multi-platform" not in plan_of(context).attrs
    assert plan_of(context, multi_platform=True).attrs["multi-platform"] == "true"


def test_attestations_with_commas_survive() -> None:
    request = BuildRequest(context=".", attests={"provenance": {"mode": "max", "builder-id": 'a,"b'}})
    text = attestation_attrs(request, classic=False)["attest:provenance"]
    assert csv_fields(text) == ["mode=max", 'builder-id=a,"b']


IMAGE, LOADED = OutputSpec(type="image"), OutputSpec(type="docker")


@pytest.mark.parametrize(
    ("engine", "classic", "attrs"),
    [(False, False, {}), (True, True, {}), (True, False, {"prefer-image-digest": "true"})],
)
def test_an_engine_keeps_images_itself(engine: bool, classic: bool, attrs: dict[str, str]) -> None:
    (export,) = outputs_of(IMAGE, engine=engine, classic=classic, tags=("a/b:1",)).exports
    assert export.type == ("moby" if engine else "image")
    assert export.attrs == {"name": "a/b:1", **attrs}


def test_annotations_are_of_images(tmp_path: Path) -> None:
    files = OutputSpec(type="local", dest=str(tmp_path))
    out = outputs_of(IMAGE, files, annotations=("index,manifest[linux/amd64]:a=b", "c=d"))
    assert out.exports[0].attrs == {
        "annotation-index.a": "b",
        "annotation-manifest[linux/amd64].a": "b",
        "annotation.c": "d",
    }
    assert out.exports[1].attrs == {}


def test_attributes_of_the_environment_and_of_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDX_NO_DEFAULT_OCI_ARTIFACT", "1")
    args = {"BUILDKIT_INLINE_BUILDINFO_ATTRS": "1"}
    (export,) = outputs_of(OutputSpec(type="oci", dest="x.tar"), build_args=args).exports
    assert export.attrs == {"buildinfo-attrs": "1", "oci-artifact": "false"}


@pytest.mark.parametrize(
    ("output", "fields", "text"),
    [
        (OutputSpec(type="docker", dest="x"), {"attests": {"sbom": {}}}, "holds one manifest"),
        (
            OutputSpec(type="docker", dest="x"),
            {"platforms": parse_platforms(["linux/amd64,linux/arm64"])},
            "holds one manifest",
        ),
        (OutputSpec(type="oci", dest="x"), {"engine": True, "classic": True}, "classic image store"),
        (IMAGE, {"engine": True, "classic": True, "annotations": ("index:a=b",)}, "makes no indexes"),
        (
            OutputSpec(type="image", attrs={"push": "true", "push-by-digest": "true"}),
            {"engine": True},
            "cannot push by digest",
        ),
        (OutputSpec(type="local", dest="/", attrs={"mode": "delete"}), {}, "would delete files"),
    ],
)
def test_outputs_that_cannot_be(output: OutputSpec, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(CrossdockError, match=text) as caught:
        outputs_of(output, **fields)
    assert caught.value.hint


def test_loading_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(ExportError, match="no Docker Engine answers"):
        outputs_of(LOADED)


def test_a_classic_store_exports_inline_caches_only() -> None:
    check_classic(BuildRequest(context=".", cache_to=({"type": "inline"},)))
    with pytest.raises(BuilderError, match="cannot export a cache of type registry"):
        check_classic(BuildRequest(context=".", cache_to=({"type": "registry", "ref": "a/b"},)))


def test_a_frontend_that_would_ignore_contexts_is_not_asked(context: Path, tmp_path: Path) -> None:
    plan = plan_of(context, named_contexts={"lib": str(tmp_path)})
    check_frontend(plan, frozenset({"frontend.caps"}), name="d")
    with pytest.raises(BuilderError, match="too old for named contexts") as caught:
        check_frontend(plan, frozenset(), name="d")
    assert "v0.10" in str(caught.value.hint)
    (context / "Dockerfile").write_text("# syntax=docker/dockerfile:1\nFROM scratch\n")
    check_frontend(plan, frozenset(), name="d")


@pytest.mark.parametrize(
    ("said", "what", "version"),
    [
        ('unknown cache exporter: "s3"', "caches of type s3", "v0.11"),
        ("unsupported frontend capability moby.buildkit.frontend.contexts", "named contexts", "v0.10"),
        ("failed to compute cache key", "", ""),
    ],
)
def test_refusals_that_mean_an_old_daemon(said: str, what: str, version: str) -> None:
    clearer = explained(RemoteError(f"solving: {said}", grpc_code="UNKNOWN"), name="d")
    if not what:
        assert clearer is None
        return
    assert clearer is not None
    assert what in clearer.summary
    assert version in str(clearer.hint)
