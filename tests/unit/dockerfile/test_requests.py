"""The sub-requests, frontend attributes, Git URLs and the import budget."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest

from crossdock.dockerfile import ConvertOptions, GitContext, InputContext, LocalContext
from crossdock.dockerfile.attrs import options_from_attrs
from crossdock.dockerfile.giturl import GitUrlError, parse_git_ref
from crossdock.dockerfile.subrequests import SubResult, answer
from crossdock.errors import CrossdockError, NotSupported, UsageError
from crossdock.llb.ops import HostIP, LinuxResources, NetMode, Ulimit
from crossdock.progress.excerpt import render_source
from support.dockerfiles import AMD64, ARM64, Files, Images

TEXT = b"""\
# VERSION what to build
ARG VERSION=1
ARG UNUSED=x
# base where it starts
FROM --platform=$BUILDPLATFORM alpine:$VERSION AS base
# FLAVOUR sweet or sour
ARG FLAVOUR=sweet
RUN --mount=type=secret,id=token,required --mount=type=ssh x
FROM base
ARG LAST
CMD run
"""


def ask(method: str, data: bytes = TEXT, **options: Any) -> SubResult:
    """Ask without network."""
    return answer(method, data, "Dockerfile", ConvertOptions(**options), images=Images(), context=Files())


def test_targets() -> None:
    result = ask("targets")
    assert result.text == "TARGET    DESCRIPTION\nbase      where it starts\n(default) \n"
    value = json.loads(result.json)
    assert value["targets"] == [
        {
            "name": "base",
            "description": "where it starts",
            "base": "alpine:$VERSION",
            "platform": "$BUILDPLATFORM",
            "location": {"ranges": [{"start": {"line": 5}, "end": {"line": 5}}]},
        },
        {
            "default": True,
            "base": "base",
            "location": {"ranges": [{"start": {"line": 9}, "end": {"line": 9}}]},
        },
    ]
    assert base64.b64decode(value["sources"][0]) == TEXT


def test_outline() -> None:
    result = ask("outline", build_args={"FLAVOUR": "sour"})
    assert result.text == (
        "BUILD ARG   VALUE   DESCRIPTION\n"
        "VERSION     1       what to build\n"
        "FLAVOUR     sour    sweet or sour\n"
        "LAST                \n"
        "\n"
        "SECRET   REQUIRED\n"
        "token    true\n"
        "\n"
        "SSH       REQUIRED\n"
        "default   \n"
        "\n"
    )
    assert [a["name"] for a in json.loads(result.json)["args"]] == ["VERSION", "FLAVOUR", "LAST"]
    named = ask("outline", target="base")
    assert named.text.startswith("TARGET:      base\nDESCRIPTION: where it starts\n\n")


def test_check() -> None:
    result = ask("check")
    assert result.status == 1
    value = json.loads(result.json)
    assert [w["ruleName"] for w in value["warnings"]] == ["JSONArgsRecommended"]
    assert value["warnings"][0]["location"] == {"ranges": [{"start": {"line": 11}, "end": {"line": 11}}]}
    assert value["sources"][0]["filename"] == "Dockerfile"
    assert (
        "WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
        in (result.text)
    )
    assert " 11 | >>> CMD run" in result.text
    assert result.metadata()["result.statuscode"] == b"1"
    assert ask("check", b"FROM a\n").status == 0


def test_check_looks_at_every_stage_unless_there_is_a_target() -> None:
    text = b"FROM a AS one\nCMD x\nFROM a AS two\n"
    assert len(json.loads(ask("check", text).json)["warnings"]) == 1
    assert json.loads(ask("check", text, target="two").json)["warnings"] is None


def test_check_tells_the_error_of_the_build() -> None:
    value = json.loads(ask("lint", b"FROM a\nRUNN x\n").json)
    assert value["buildError"] == {
        "message": "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)",
        "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]},
    }


def test_check_tells_when_a_base_image_cannot_be_resolved() -> None:
    images = Images(strict=True)
    result = answer("check", b"FROM nope\n", "Dockerfile", ConvertOptions(), images=images, context=Files())
    assert result.status == 1
    assert "docker.io/library/nope:latest: not found" in json.loads(result.json)["buildError"]["message"]


def test_describe_and_an_unknown_method() -> None:
    names = [m["name"] for m in json.loads(ask("subrequests.describe").json)]
    assert "frontend.outline" in names
    with pytest.raises(UsageError, match="unsupported method"):
        ask("frobnicate")


# --- frontend attributes ---------------------------------------------------------------------------------------------


def test_attributes_become_options() -> None:
    options = options_from_attrs(
        {
            "platform": "linux/amd64,linux/arm64",
            "target": "t",
            "build-arg:A": "b",
            "label:l": "v",
            "context:dir": "local:dir",
            "sharedkey:localdir:dir": "key",
            "context": "https://github.com/o/r.git",
            "no-cache": "a,b",
            "force-network-mode": "host",
            "add-hosts": "h=1.2.3.4,i=::1",
            "ulimit": "nofile=1024:2048,core=-1",
            "shm-size": "100",
            "memory": "1000",
            "memswap": "-1",
            "cpusetcpus": "0-1",
            "image-resolve-mode": "pull",
            "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "box",
        }
    )
    assert options.platforms == (AMD64, ARM64)
    assert options.multi_platform
    assert (options.target, options.build_args["A"], options.labels) == ("t", "b", {"l": "v"})
    assert options.contexts == {"dir": LocalContext(name="dir", shared_key="key")}
    assert isinstance(options.main_context, GitContext)
    assert options.no_cache == ("a", "b")
    assert options.network is NetMode.HOST
    assert options.extra_hosts == (HostIP("h", "1.2.3.4"), HostIP("i", "::1"))
    assert options.ulimits == (Ulimit("nofile", 1024, 2048), Ulimit("core", -1, -1))
    assert options.resources == LinuxResources(memory=1000, memory_swap=-1, cpuset_cpus="0-1")
    assert (options.shm_size, options.image_resolve_mode, options.hostname) == (100, "pull", "box")


def test_few_attributes_give_the_defaults() -> None:
    options = options_from_attrs({"no-cache": "", "filename": "x", "vcs:source": "y"})
    assert options.no_cache == ()
    assert options.main_context is None
    assert options_from_attrs({}).no_cache is None
    given = InputContext(output=None)
    assert options_from_attrs({"context:a": "input:b"}, inputs={"b": given}).contexts == {"a": given}


@pytest.mark.parametrize(
    ("attrs", "error"),
    [
        ({"platform": "what/ever"}, UsageError),
        ({"force-network-mode": "x"}, UsageError),
        ({"add-hosts": "x"}, UsageError),
        ({"add-hosts": "x=y"}, UsageError),
        ({"ulimit": "nofile"}, UsageError),
        ({"ulimit": "nofile=2:1"}, UsageError),
        ({"shm-size": "x"}, UsageError),
        ({"memory": "0"}, UsageError),
        ({"cpusetcpus": "a"}, UsageError),
        ({"image-resolve-mode": "x"}, UsageError),
        ({"multi-platform": "x"}, UsageError),
        ({"multi-platform": "false", "platform": "linux/amd64,linux/arm64"}, UsageError),
        ({"context:a": "input:b"}, UsageError),
        ({"build-arg:BUILDKIT_DISABLE_FILEOP": "1"}, NotSupported),
        ({"override-copy-image": "x"}, NotSupported),
    ],
)
def test_wrong_attributes_are_refused(attrs: dict[str, str], error: type[CrossdockError]) -> None:
    with pytest.raises(error):
        options_from_attrs(attrs)


# --- Git URLs --------------------------------------------------------------------------------------------------------

REFS: list[tuple[str, dict[str, Any] | None]] = [
    ("https://github.com/o/r.git", {"remote": "https://github.com/o/r.git", "ref": "", "host": "github.com"}),
    ("https://github.com/o/r.git#v1:a/b", {"ref": "v1", "subdir": "a/b"}),
    ("https://github.com/o/r.git#:a", {"ref": "", "subdir": "a"}),
    ("https://u:p@h.example:8443/o/r.git", {"remote": "https://u:p@h.example:8443/o/r.git", "host": "h.example:8443"}),
    ("git://h/r", {"scheme": "git"}),
    ("ssh://git@h/r.git", {"scheme": "ssh", "host": "h"}),
    ("git@github.com:o/r.git#main", {"scheme": "ssh", "ref": "main", "path": "o/r.git"}),
    ("github.com/o/r", {"local_looking": True, "remote": "github.com/o/r"}),
    ("https://h/r.git?ref=x&subdir=y", {"ref": "x", "subdir": "y"}),
    ("https://h/r.git?tag=v1", {"ref": "refs/tags/v1"}),
    ("https://h/r.git?branch=b", {"ref": "refs/heads/b"}),
    ("https://h/r.git?commit=abc&submodules=0&keep-git-dir", {"checksum": "abc", "submodules": False,
                                                              "keep_git_dir": True}),
    ("https://h/r.git?mtime=commit&fetch-by-commit=true", {"mtime": "commit", "fetch_by_commit": True}),
    ("https://h/r", None),
    ("https://h/r.tar.gz", None),
    ("./r.git", None),
    ("file", None),
    ("ftp://h/r.git", None),
    ("a@b", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields"), REFS, ids=[r[0] for r in REFS])
def test_git_urls(text: str, fields: dict[str, Any] | None) -> None:
    ref = parse_git_ref(text)
    if fields is None:
        assert ref is None
        return
    assert ref is not None
    assert {name: getattr(ref, name) for name in fields} == fields


@pytest.mark.parametrize(
    "query",
    ["foo=1", "ref=", "ref=a&ref=b", "ref=a&tag=b", "tag=a&branch=b", "mtime=x", "submodules=maybe"],
)
def test_wrong_git_queries(query: str) -> None:
    with pytest.raises(GitUrlError):
        parse_git_ref(f"https://h/r.git?{query}")
    with pytest.raises(GitUrlError):
        parse_git_ref("https://h/r.git?ref=a#b")


# --- excerpts --------------------------------------------------------------------------------------------------------


def test_an_excerpt_is_drawn_as_buildkit_draws_it() -> None:
    from crossdock.dockerfile import parse
    from crossdock.errors import DockerfileError

    with pytest.raises(DockerfileError) as info:
        parse(b"FROM a\nRUN b\nRUNN \x1b[31mx\nRUN c\nRUN d\nRUN e\n")
    assert info.value.source is not None
    assert render_source(info.value.source) == (
        "Dockerfile:3\n"
        "--------------------\n"
        "   1 |     FROM a\n"
        "   2 |     RUN b\n"
        "   3 | >>> RUNN \ufffd[31mx\n"
        "   4 |     RUN c\n"
        "   5 |     RUN d\n"
        "--------------------\n"
    )
    assert "     |     ^^^^\n" in render_source(info.value.source, columns=True)


# --- import budget ---------------------------------------------------------------------------------------------------

_CHILD = """
import dataclasses, json, sys
made = []
real = dataclasses._process_class
def counting(cls, *args, **kwargs):
    made.append(cls.__module__)
    return real(cls, *args, **kwargs)
dataclasses._process_class = counting
from crossdock.dockerfile import ConvertOptions, convert, parse
from crossdock.dockerfile.convert import config, copy, run
parse(b"FROM a\\nARG x\\nENV a=b\\nRUN x\\nCOPY a b\\nWORKDIR /x\\nCMD y\\n")
print(json.dumps([made, sorted(sys.modules)]))
"""


def test_a_plain_file_imports_little() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    made, modules = json.loads(done.stdout)
    assert not [m for m in made if m.startswith("crossdock.dockerfile")]
    heavy = {
        "asyncio", "logging", "urllib.parse", "urllib3", "click", "rich", "grpc", "ipaddress", "concurrent.futures",
        "datetime", "crossdock.dockerfile.lint.rules", "crossdock.dockerfile.subrequests",
        "crossdock.dockerfile.convert.mounts", "crossdock.dockerfile.attrs",
    }  # fmt: skip
    assert not heavy & set(modules)
