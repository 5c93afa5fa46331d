"""Conversion in particular: scopes, stages, platforms, bases, contexts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crossdock.dockerfile import (
    ConvertOptions,
    GitContext,
    HttpContext,
    InputContext,
    LocalContext,
    convert,
    parse,
    parse_context,
)
from crossdock.dockerfile.contexts import context_output, definition_source, is_archive
from crossdock.errors import CrossdockError, DockerfileError, NotFoundError, NotSupported, UsageError
from crossdock.image.config import ImageConfig
from crossdock.image.platform import Platform
from crossdock.llb import Node, Output, walk
from crossdock.llb import ops as o
from support.dockerfiles import AMD64, ARM64, DIGEST, Files, Images, build


def nodes(text: str, **kwargs: Any) -> list[Node]:
    """Return the nodes of the first platform."""
    (result, *_) = build(text, **kwargs)
    return [] if result.output is None else list(walk([result.output]))


def execs(text: str, **kwargs: Any) -> list[o.ExecOp]:
    """Return the exec ops."""
    return [n.op for n in nodes(text, **kwargs) if isinstance(n.op, o.ExecOp)]


def copies(text: str, **kwargs: Any) -> list[o.FileActionCopy]:
    """Return the copy actions."""
    ops = [n.op for n in nodes(text, **kwargs) if isinstance(n.op, o.FileOp)]
    return [a.action for op in ops for a in op.actions if isinstance(a.action, o.FileActionCopy)]


def refused(text: str, **kwargs: Any) -> CrossdockError:
    """Return the error."""
    with pytest.raises(CrossdockError) as info:
        build(text, **kwargs)
    return info.value


# --- arguments and variables -----------------------------------------------------------------------------------------

SCOPES = [
    ("ARG V=g\nFROM a\nRUN x", {}, []),
    ("ARG V=g\nFROM a\nARG V\nRUN x", {}, ["V=g"]),
    ("ARG V=g\nFROM a\nARG V=l\nRUN x", {}, ["V=l"]),
    ("ARG V=g\nFROM a\nARG V=l\nRUN x", {"V": "b"}, ["V=b"]),
    ("FROM a\nARG V\nRUN x", {}, []),
    ("FROM a\nARG V\nRUN x", {"V": "b"}, ["V=b"]),
    ("FROM a\nRUN x", {"V": "b"}, []),
    ("FROM a\nARG V=1\nENV V=2\nRUN x", {}, ["V=2"]),
    ("FROM a\nENV V=2\nARG V=1\nRUN x", {}, ["V=1"]),
    ("FROM a\nENV A=1 B=$A\nENV C=$A\nRUN x", {}, ["A=1", "B=", "C=1"]),
    ("ARG V=1\nARG W=${V}2\nFROM a\nARG W\nRUN x", {}, ["W=12"]),
    ("FROM a AS one\nARG V=1\nENV E=$V\nFROM one\nRUN x", {}, ["V=1", "E=1"]),
    ("FROM a AS one\nENV E=1\nFROM a\nRUN x", {}, []),
    ("FROM a\nARG TARGETARCH\nARG BUILDPLATFORM\nARG TARGETSTAGE\nRUN x", {},
     ["TARGETARCH=amd64", "BUILDPLATFORM=linux/amd64", "TARGETSTAGE=default"]),
    ("FROM a\nARG TARGETARCH\nRUN x", {"TARGETARCH": "mine"}, ["TARGETARCH=mine"]),
    ("FROM a\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN x", {}, []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "args", "env"), SCOPES)
def test_the_environment_of_a_step(text: str, args: dict[str, str], env: list[str]) -> None:
    (run,) = execs(text, build_args=args)
    assert [e for e in run.meta.env if not e.startswith("PATH=")] == env


def test_proxies_reach_steps_but_neither_environment_nor_history() -> None:
    (result,) = build("FROM a\nRUN x\n", build_args={"http_proxy": "http://u:p@h", "NO_PROXY": "l"})
    assert result.output is not None
    op = result.output.node.op
    assert isinstance(op, o.ExecOp)
    assert op.meta.proxy_env == o.ProxyEnv(http_proxy="http://u:p@h", no_proxy="l")
    assert "u:p" not in result.config.to_json().decode()
    assert not [e for e in op.meta.env if "roxy" in e]


def test_args_in_scope_are_in_the_history_of_run() -> None:
    (result,) = build("FROM a\nARG A=1\nARG B\nRUN x\n", build_args={"B": "2"})
    assert result.config.history[-1].created_by == "RUN |2 A=1 B=2 /bin/sh -c x # buildkit"


# --- stages ----------------------------------------------------------------------------------------------------------


def test_only_the_images_of_needed_stages_are_asked_for_and_equal_ones_once() -> None:
    images = Images()
    build("FROM one AS a\nFROM two AS b\nFROM one\nCOPY --from=a / /\n", images=images)
    assert [ref for ref, _, _ in images.asked] == ["docker.io/library/one:latest"]


def test_stage_names_beat_image_names_and_ignore_case() -> None:
    found = nodes("FROM alpine AS busybox\nRUN x\nFROM scratch\nCOPY --from=BusyBox / /\n")
    assert not [n for n in found if "busybox:latest" in n.name]


def test_a_later_stage_can_reuse_a_name() -> None:
    found = execs("FROM a AS s\nRUN one\nFROM s AS s\nRUN two\nFROM s\nRUN three\n")
    assert [run.meta.args[-1] for run in found] == ["one", "two", "three"]


def test_a_target_can_be_a_name_or_a_number() -> None:
    text = "FROM a AS one\nRUN 1\nFROM a AS two\nRUN 2\n"
    assert [r.meta.args[-1] for r in execs(text, target="ONE")] == ["1"]
    assert [r.meta.args[-1] for r in execs(text, target="1")] == ["2"]
    assert "could not be found" in str(refused(text, target="2"))


def test_no_cache_filter_names_stages() -> None:
    text = "FROM a AS one\nRUN 1\nFROM one AS two\nRUN 2\n"

    def ignored(no_cache: tuple[str, ...] | None) -> list[bool]:
        return [n.metadata.ignore_cache for n in nodes(text, no_cache=no_cache) if isinstance(n.op, o.ExecOp)]

    assert ignored(None) == [False, False]
    assert ignored(()) == [True, True]
    assert ignored(("One",)) == [True, False]


def test_a_stage_without_instructions_is_its_base() -> None:
    (result,) = build("FROM a\n")
    assert result.output is not None
    assert result.output.node.op == o.SourceOp(f"docker-image://docker.io/library/a:latest@{DIGEST}")
    assert [h.created_by for h in result.config.history] == ["base"]


def test_scratch_alone_is_an_empty_image() -> None:
    (result,) = build("FROM scratch\nENV A=b\n")
    assert result.output is None
    assert result.config.env[1:] == ["A=b"]
    assert result.base_config is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\nCOPY --from=5 / /", "invalid stage index 5"),
        ("FROM a\nCOPY --from=$X / /", "variable expansion is not supported for --from"),
        ("FROM a AS x\nCOPY --from=late / /\nFROM b AS late\nFROM x", "cannot copy from stage"),
        ("FROM a\nRUN --mount=from=late,target=/x y\nFROM b AS late", None),
        ("FROM a@sha256:12", 'failed to parse stage name "a@sha256:12"'),
        ("FROM A:b:c", 'failed to parse stage name "A:b:c"'),
        ("FROM a AS x\nCOPY --from=x / /", "circular dependency detected on stage: x"),
        ("ARG P\nFROM --platform=$P a", "empty platform value from expression $P"),
        ("FROM --platform=foo/bar/baz/q a", "failed to parse platform foo/bar/baz/q"),
        ("FROM ${X?not given}", "FROM requires either one or three arguments"),
        ("ARG X=${Y:?give-Y}\nFROM a", "Y: give-Y"),
    ],
)
def test_what_cannot_be_converted_is_named(text: str, message: str | None) -> None:
    if message is None:
        build(text)  # the later stage is the target, the earlier is not needed
        return
    error = refused(text)
    assert message in str(error)
    assert error.source is not None


def test_a_missing_base_image_points_at_from_and_suggests() -> None:
    error = refused("FROM scratch AS x\nFROM alpin\n", images=Images(strict=True))
    assert isinstance(error, NotFoundError)
    assert error.source is not None
    assert error.source.start.line == 2
    assert error.hint is not None
    assert error.hint.startswith("did you mean alpine?")


# --- platforms -------------------------------------------------------------------------------------------------------


def test_stages_of_the_build_platform_are_shared_between_platforms() -> None:
    text = "FROM --platform=$BUILDPLATFORM go AS b\nRUN x\nFROM scratch\nCOPY --from=b / /\n"
    one, two = build(text, platforms=(AMD64, ARM64), multi_platform=True)
    assert one.output is not None
    assert two.output is not None
    assert one.output.node is two.output.node
    assert (one.config.platform, two.config.platform) == (AMD64, ARM64)
    assert [n.name for n in walk([one.output])][1] == "[linux/amd64 b 2/2] RUN x"


def test_a_cross_compiling_step_names_both_platforms() -> None:
    text = "FROM --platform=$BUILDPLATFORM go AS b\nARG TARGETARCH\nRUN x\n"
    _, two = build(text, platforms=(AMD64, ARM64), multi_platform=True)
    assert two.output is not None
    assert two.output.node.name == "[linux/amd64->arm64 2/2] RUN x"
    assert two.output.node.platform == AMD64


def test_stages_can_be_chosen_by_platform() -> None:
    text = "FROM a AS for-amd64\nRUN one\nFROM a AS for-arm64\nRUN two\nFROM for-$TARGETARCH\n"
    results = build(text, platforms=(AMD64, ARM64))
    ops = [r.output.node.op for r in results if r.output is not None]
    assert [op.meta.args[-1] for op in ops if isinstance(op, o.ExecOp)] == ["one", "two"]


def test_the_platform_comes_from_the_base_when_none_is_asked_for() -> None:
    images = Images({"arm-only": {"architecture": "arm64"}})
    (result,) = build("FROM arm-only\n", images=images, platforms=(), build_platforms=(AMD64, ARM64))
    assert result.platform == ARM64


def test_the_result_has_the_platform_asked_for() -> None:
    (result,) = build("FROM a\n", platforms=(Platform("linux", "arm", "v7"),))
    assert json.loads(result.config.to_json())["variant"] == "v7"


# --- COPY and ADD ----------------------------------------------------------------------------------------------------

DESTINATIONS = [
    ("/", "/x", "/x"),
    ("/", "/x/", "/x/"),
    ("/", "x", "/x"),
    ("/w", "x/", "/w/x/"),
    ("/w", ".", "/w/"),
    ("/w", "./", "/w/"),
    ("/w", "..", "/"),
    ("/w", "/a/../b/", "/b/"),
    ("/w", "/a/.", "/a/."),
    ("/w", "$D", "/dir"),
]


@pytest.mark.parametrize(("workdir", "written", "dest"), DESTINATIONS)
def test_destinations(workdir: str, written: str, dest: str) -> None:
    (copy,) = copies(f"FROM a\nENV D=/dir\nWORKDIR {workdir}\nCOPY f {written}\n")
    assert copy.dest == dest


OWNERS = [
    ("1", o.ChownOpt(1, None)),
    ("1:2", o.ChownOpt(1, 2)),
    ("root", o.ChownOpt(0, None)),
    ("app", o.ChownOpt(o.NamedUser("app", 0), None)),
    ("app:grp", o.ChownOpt(o.NamedUser("app", 0), o.NamedUser("grp", 0))),
    (":5", o.ChownOpt(0, 5)),
    ("$U", o.ChownOpt(7, None)),
]


@pytest.mark.parametrize(("text", "owner"), OWNERS)
def test_owners(text: str, owner: o.ChownOpt) -> None:
    (copy,) = copies(f"FROM a\nARG U=7\nCOPY --chown={text} f /x\n")
    assert copy.owner == owner


def test_names_on_an_empty_image_have_nowhere_to_be_looked_up() -> None:
    (copy,) = copies("FROM a\nCOPY --link --chown=app f /x\n")
    assert copy.owner == o.ChownOpt(o.NamedUser("app", -1), None)


@pytest.mark.parametrize(
    ("text", "mode", "symbolic"),
    [
        ("0644", 0o644, ""),
        ("7777", 0o7777, ""),
        ("u+x,go=rX", 0, "u+x,go=rX"),
        ("a=rw", 0, "a=rw"),
        ("+x", 0, "+x"),
    ],
)
def test_modes(text: str, mode: int, symbolic: str) -> None:
    (copy,) = copies(f"FROM a\nCOPY --chmod={text} f /x\n")
    assert (copy.mode, copy.mode_str) == (mode, symbolic)


@pytest.mark.parametrize("text", ["888", "10000", "u+q", "x", "0x1", "u"])
def test_wrong_modes(text: str) -> None:
    assert "invalid chmod parameter" in str(refused(f"FROM a\nCOPY --chmod={text} f /x\n"))


def test_link_makes_a_layer_of_its_own() -> None:
    *_, base, _, copy, merge = nodes("FROM a\nRUN x\nCOPY --link f /x\n")
    assert isinstance(copy.op, o.FileOp)
    assert copy.op.actions[0].input == -1
    assert isinstance(merge.op, o.MergeOp)
    assert [i.node for i in merge.inputs][1] == copy
    assert base is not copy


def test_link_with_a_mode_is_a_plain_copy() -> None:
    assert not [n for n in nodes("FROM a\nCOPY --link --chmod=0644 f /x\n") if isinstance(n.op, o.MergeOp)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("COPY https://h/x /", "source can't be a URL for COPY"),
        ("COPY https://h/x.git /", "source can't be a git ref for COPY"),
        ("ADD --checksum=sha256:1 a b /", "checksum can't be specified for multiple sources"),
        ("ADD --checksum=sha256:1 a /", "checksum requires HTTP(S) or Git sources"),
        ("ADD --checksum=md5:1 https://h/x /", "invalid checksum"),
        ("ADD https://h/x.git?foo=1 /", 'unexpected query "foo"'),
        ("ADD --keep-git-dir=false https://h/x.git?keep-git-dir=1 /", "inconsistent keep-git-dir"),
        ("RUN --mount=type=bind,target=/ x", 'invalid mount target "/"'),
        ("RUN --mount=type=cache,size=1 x", "unexpected key 'size' for mount type 'cache'"),
        ("RUN --mount=type=secret x", "invalid secret mount. one of source, target required"),
        ("RUN --mount=type=secret,id=a,source=b x", "both source and id can't be set"),
        ("RUN --mount=type=bind,uid=0,target=/x x", 'uid not allowed for "bind" type mounts'),
        ("RUN --mount=type=bind,sharing=locked,target=/x x", "invalid cache sharing set for bind mount"),
        ("RUN --mount=type=cache,sharing=lockd,target=/x x", 'unsupported sharing value "lockd" (did you mean locked?)'),
        ("RUN --mount=type=cache,tagret=/x x", "unexpected key 'tagret' in 'tagret=/x' (did you mean target?)"),
        ("RUN --mount=type=cache,target x", "invalid field 'target' must be a key=value pair"),
        ("RUN --mount=type=tmpfs,size=big,target=/x x", "invalid value for size: big"),
        ("RUN --mount=type=cache,mode=9,target=/x x", "invalid value 9 for mode"),
        ("RUN --mount=type=ssh,source=x x", "ssh does not support source"),
        ('RUN --mount=\'type=cache,"a\' x', "failed to parse csv mounts"),
        ("RUN []", "RUN requires a command"),
        ("EXPOSE 99999", "invalid containerPort: 99999"),
        ("EXPOSE 10-5", "invalid containerPort: 10-5"),
        ("EXPOSE 80/foo", "invalid proto: foo"),
        ("EXPOSE 2-3:4-9", "invalid ranges specified"),
        ("EXPOSE x:1.2:80", "invalid IP address"),
        ("STOPSIGNAL 0", "invalid signal: 0"),
        ("VOLUME $UNSET", "VOLUME specified can not be an empty string"),
        ("ENV A=${B:?give-B}", "failed to process"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_is_refused_at_its_line(text: str, message: str) -> None:
    error = refused(f"FROM a\n{text}\n")
    assert message in str(error)
    assert error.source is not None
    assert error.source.start.line == 2


def test_problems_of_several_steps_are_reported_together() -> None:
    error = refused("FROM a\nCOPY --chmod=9 a /\nRUN ok\nEXPOSE x\n")
    assert isinstance(error, DockerfileError)
    assert [e.source.start.line for e in (error, *error.others) if e.source] == [2, 4]


PORTS = [
    ("80", ["80/tcp"]),
    ("80/UDP", ["80/udp"]),
    ("80-82", ["80/tcp", "81/tcp", "82/tcp"]),
    ("8080:80", ["80/tcp"]),
    ("127.0.0.1:8080:80/sctp", ["80/sctp"]),
    ("[::1]:1:2", ["2/tcp"]),
    ("$P 90", ["70/tcp", "71/tcp", "90/tcp"]),
]


@pytest.mark.parametrize(("text", "ports"), PORTS)
def test_ports(text: str, ports: list[str]) -> None:
    (result,) = build(f'FROM a\nENV P="70 71"\nEXPOSE {text}\n')
    assert result.config.exposed_ports == ports


# --- contexts --------------------------------------------------------------------------------------------------------


def local(found: list[Node], name: str = "local://context") -> dict[str, str]:
    """Return the attributes of a local source."""
    (op,) = [n.op for n in found if isinstance(n.op, o.SourceOp) and n.op.identifier == name]
    return dict(op.attrs)


def test_only_used_paths_of_the_context_are_asked_for() -> None:
    text = "FROM a AS unused\nCOPY u /\nFROM a\nCOPY b/ /x\nRUN --mount=target=/m,source=m x\nADD a*.c /y/\n"
    assert local(nodes(text))["local.followpaths"] == '["a*.c","b","m"]'
    assert "local.followpaths" not in local(nodes("FROM a\nCOPY a /\nCOPY . /\n"))


def test_the_ignore_file_beside_the_dockerfile_comes_first() -> None:
    files = Files({("context", ".dockerignore"): b"a\n", ("dockerfile", "sub/My.dockerignore"): b"b\n!c\n"})
    exclude = local(nodes("FROM a\nCOPY . /\n", files=files, name="sub/My"))["local.excludepatterns"]
    assert exclude == '["b","!c"]'
    assert local(nodes("FROM a\nCOPY . /\n", files=files))["local.excludepatterns"] == '["a"]'


def test_a_malformed_ignore_file_is_named() -> None:
    files = Files({("context", ".dockerignore"): b"[\n"})
    assert "ignore file" in str(refused("FROM a\nCOPY . /\n", files=files))


def test_named_contexts_replace_images_and_stages() -> None:
    given = InputContext(
        output=Output(Node(o.SourceOp("git://x"))), config=ImageConfig(platform=AMD64, env=["E=1"])
    )
    text = "FROM golang:1.22 AS build\nRUN x\nFROM build\nCOPY --from=dir f /\nRUN y\n"
    found = nodes(text, contexts={"golang:1.22": given, "dir": LocalContext(name="d", shared_key="k")})
    assert found[0].op == o.SourceOp("git://x")
    assert local(found, "local://d") == {"local.followpaths": '["f"]', "local.sharedkeyhint": "context:dir-k"}
    (run,) = execs(text, contexts={"build": given})
    assert run.meta.args[-1] == "y"
    assert "E=1" in run.meta.env


def test_a_context_for_the_platform_comes_first() -> None:
    contexts = {
        "a": parse_context("docker-image://one"),
        "a::linux/arm64": parse_context("docker-image://two"),
    }
    images = Images()
    build("FROM a\n", contexts=contexts, platforms=(AMD64, ARM64), images=images)
    assert sorted(ref for ref, _, _ in images.asked) == [
        "docker.io/library/one:latest",
        "docker.io/library/two:latest",
    ]


def test_contexts_are_read_from_text() -> None:
    assert isinstance(parse_context("https://github.com/a/b.git#main:sub"), GitContext)
    assert isinstance(parse_context("git@github.com:a/b"), GitContext)
    assert parse_context("https://example.org/x.tgz") == HttpContext(url="https://example.org/x.tgz")
    assert parse_context("local:src") == LocalContext(name="src")
    for text in ("nonsense", "foo:bar", "oci-layout://a:b", "https://h/x.git?foo=1", "docker-image:"):
        with pytest.raises(UsageError):
            parse_context(text)


def test_a_remote_main_context_is_the_source_of_copy_and_has_no_ignore_file() -> None:
    spec = parse_context("https://github.com/a/b.git#main:sub")
    files = Files({("context", ".dockerignore"): b"*\n"})
    found = nodes("FROM a\nCOPY . /\n", main_context=spec, files=files)
    assert "git://github.com/a/b.git#main:sub" in [
        n.op.identifier for n in found if isinstance(n.op, o.SourceOp)
    ]


def test_an_archive_context_is_unpacked() -> None:
    output = context_output(HttpContext(url="https://h/x.tgz", archive=True))
    assert output is not None
    assert isinstance(output.node.op, o.FileOp)
    (action,) = output.node.op.actions
    assert isinstance(action.action, o.FileActionCopy)
    assert action.action.attempt_unpack


@pytest.mark.parametrize(
    ("header", "archive"),
    [
        (b"\x1f\x8b\x08xx", True),
        (b"BZh9", True),
        (b"\xfd7zXZ\x00", True),
        (b"FROM alpine\n", False),
        (b"", False),
        (b"\x00" * 1024, False),
    ],
)
def test_archives_are_told_by_their_first_bytes(header: bytes, archive: bool) -> None:
    assert is_archive(header) is archive


def test_a_plain_tar_is_an_archive() -> None:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("Dockerfile"))
    assert is_archive(out.getvalue()[:1024])


def test_the_definition_source_asks_for_the_file_and_its_ignore_file() -> None:
    node = definition_source("sub/Dockerfile").node
    assert node.name == "[internal] load build definition from sub/Dockerfile"
    assert isinstance(node.op, o.SourceOp)
    assert node.op.attrs["local.followpaths"] == (
        '["sub/Dockerfile","sub/Dockerfile.dockerignore","sub/dockerfile"]'
    )


# --- epoch -----------------------------------------------------------------------------------------------------------


class Times:
    """Knows one time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def source_time(self, source: Output, *, log_name: str) -> int | None:
        """Answer, and remember the source."""
        assert isinstance(source.node.op, o.SourceOp)
        self.asked.append(source.node.op.identifier)
        return 42


@pytest.mark.parametrize(
    ("value", "asked"),
    [("context", "git://h/x.git"), ("lib", "https://h/f"), ("when", "https://h/file.txt")],
)
def test_the_epoch_can_be_that_of_a_source(value: str, asked: str) -> None:
    text = "FROM scratch AS when\nARG V=file\nADD https://h/$V.txt /\nFROM a\nWORKDIR /x\n"
    options = ConvertOptions(
        platforms=(AMD64,),
        build_args={"SOURCE_DATE_EPOCH": value},
        main_context=parse_context("https://h/x.git"),
        contexts={"lib": parse_context("https://h/f")},
    )
    times = Times()
    (result,) = convert(parse(text.encode()), options, images=Images(), context=Files(), sources=times)
    assert times.asked == [asked]
    assert result.epoch == 42
    assert result.config.history[-1].created == "1970-01-01T00:00:42Z"
    with pytest.raises(NotSupported, match="needs the time of a remote source"):
        convert(parse(text.encode()), options, images=Images(), context=Files())


@pytest.mark.parametrize("value", ["nonsense", "-1", "9" * 30])
def test_a_wrong_epoch_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        build("FROM a\n", build_args={"SOURCE_DATE_EPOCH": value})


def test_an_empty_epoch_is_none() -> None:
    (result,) = build("FROM a\nARG SOURCE_DATE_EPOCH\n", build_args={"SOURCE_DATE_EPOCH": ""})
    assert result.epoch is None


# --- bulk ------------------------------------------------------------------------------------------------------------


def test_sbom_arguments_choose_what_is_scanned() -> None:
    text = "FROM a AS base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nRUN 1\nFROM a\nARG BUILDKIT_SBOM_SCAN_CONTEXT=1\nCOPY --from=base / /\n"
    (result,) = build(text)
    assert sorted(result.scan) == ["base", "context"]


def test_ten_thousand_steps_need_no_deep_stack() -> None:
    (result,) = build("FROM a\n" + "RUN x\n" * 3_000)
    assert result.output is not None
    assert result.output.node.digest
    assert result.output.node.name == "[3001/3001] RUN x"
