"""What a step is keyed by: everything that can change its result, nothing that cannot; and hiding secrets."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.engine.ops.execop import ExecSolverOp
from crossdock.engine.ops.masking import LogTail, Masker
from crossdock.errors import SolveError
from crossdock.image.platform import parse_platform
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import (
    CacheOpt,
    CacheSharing,
    CdiDevice,
    ContentCache,
    ExecMeta,
    ExecOp,
    HostIP,
    LinuxResources,
    Mount,
    MountType,
    NetMode,
    OpMetadata,
    ProxyEnv,
    SecretEnv,
    SecretOpt,
    SecurityMode,
    SourceOp,
    Ulimit,
)
from crossdock.record import replace
from crossdock.secret import Secret

ROOT = Mount(dest="/", input=0, output=0)
META = ExecMeta(args=("/bin/sh", "-c", "true"), extra_hosts=(HostIP("h", "1.2.3.4"),))
OP = ExecOp(meta=META, mounts=(ROOT,))


def made(
    op: Any,
    *,
    inputs: Any = 1,
    platform: Any = "linux/amd64",
    allow: Any = ("network.host", "security.insecure"),
    metadata: Any = None,
) -> Any:
    sources = [Output(Node(SourceOp(f"docker-image://x{n}"))) for n in range(inputs)]
    node = Node(op, sources, platform=parse_platform(platform), metadata=metadata or OpMetadata())
    env: Any = SimpleNamespace(allow=frozenset(allow), platform=parse_platform("linux/amd64"), devices=None)
    return ExecSolverOp(node, env)


def digest(op: Any, **more: Any) -> Any:
    return made(op, **more).cache_map(None).digest


def meta(**change: Any) -> Any:
    return replace(OP, meta=replace(META, **change))


CHANGES = {
    "args": meta(args=("true",)),
    "env": meta(env=("A=1",)),
    "cwd": meta(cwd="/x"),
    "user": meta(user="bob"),
    "hostname": meta(hostname="x"),
    "the name of a host": meta(extra_hosts=(HostIP("other", "1.2.3.4"),)),
    "ulimits": meta(ulimit=(Ulimit("nofile", 1, 2),)),
    "valid exit codes": meta(valid_exit_codes=(1,)),
    "network": replace(OP, network=NetMode.NONE),
    "security": replace(OP, security=SecurityMode.INSECURE),
    "a mount": replace(OP, mounts=(ROOT, Mount(dest="/t", mount_type=MountType.TMPFS))),
    "readonly": replace(OP, mounts=(replace(ROOT, readonly=True),)),
    "a secret": replace(OP, secret_env=(SecretEnv(id="s", name="S"),)),
}


@pytest.mark.parametrize("op", CHANGES.values(), ids=CHANGES.keys())
def test_counts(op: Any) -> None:
    assert digest(op) != digest(OP)


def test_the_platform_counts() -> None:
    assert digest(OP) != digest(OP, platform="linux/arm64")


SAME = {
    "proxy variables": meta(proxy_env=ProxyEnv(http_proxy="http://p")),
    "the address of a host": meta(extra_hosts=(HostIP("h", "9.9.9.9"),)),
}


@pytest.mark.parametrize("op", SAME.values(), ids=SAME.keys())
def test_does_not_count(op: Any) -> None:
    assert digest(op) == digest(OP)


def test_resource_limits_and_names_do_not_count() -> None:
    metadata = OpMetadata(linux_resources=LinuxResources(memory=5), description={"llb.customname": "x"})
    assert digest(OP, metadata=metadata) == digest(OP)


def cache(id_: Any, sharing: Any = CacheSharing.SHARED) -> Any:
    option = CacheOpt(id=id_, sharing=sharing)
    return digest(replace(OP, mounts=(ROOT, Mount(dest="/c", mount_type=MountType.CACHE, cache_opt=option))))


def test_a_cache_mounts_own_id_and_sharing_do_not_count() -> None:
    assert cache("mine") == cache("other") == cache("mine", CacheSharing.LOCKED)


def test_a_default_cache_mount_keeps_its_key() -> None:
    assert cache("/c") != cache("mine")
    assert cache("/c") != cache("ns//c")


BINDS = {
    "read only": (Mount(dest="/b", input=1, readonly=True), True),
    "written and thrown away": (Mount(dest="/b", input=1), True),
    "an output of a part": (Mount(dest="/b", input=1, output=1, selector="/part"), False),
    "an output of all of it": (Mount(dest="/b", input=1, output=1), True),
    "switched off": (Mount(dest="/b", input=1, readonly=True, content_cache=ContentCache.OFF), False),
}


@pytest.mark.parametrize(("mount", "content"), BINDS.values(), ids=BINDS.keys())
def test_which_binds_are_keyed_by_content(mount: Any, content: Any) -> None:
    keys = made(replace(OP, mounts=(ROOT, mount)), inputs=2).cache_map(None).inputs
    assert [key.content for key in keys] == [False, content]


def test_the_root_is_keyed_by_content_only_on_demand() -> None:
    on = replace(ROOT, content_cache=ContentCache.ON)
    assert made(replace(OP, mounts=(on,))).cache_map(None).inputs[0].content


def test_content_that_cannot_be_trusted_is_refused() -> None:
    mount = Mount(dest="/b", input=1, output=1, selector="/part", content_cache=ContentCache.ON)
    with pytest.raises(SolveError, match="cannot be keyed by content"):
        made(replace(OP, mounts=(ROOT, mount)), inputs=2).cache_map(None)


def test_selectors_are_in_the_input_key_and_limit_the_content() -> None:
    mount = Mount(dest="/b", input=1, readonly=True, selector="/part")
    op = made(replace(OP, mounts=(ROOT, mount)), inputs=2)
    assert op.cache_map(None).inputs[1].selector
    assert [s.path for s in op.selectors()[1]] == ["/part"]
    other = replace(OP, mounts=(ROOT, replace(mount, selector="/x")))
    assert digest(other, inputs=2) == op.cache_map(None).digest


REFUSED = {
    "no args": (replace(OP, meta=replace(META, args=())), SolveError, "no args"),
    "no root": (replace(OP, mounts=(Mount(dest="/x", input=0),)), SolveError, "no root file system"),
    "host network": (replace(OP, network=NetMode.HOST), SolveError, "network.host is not allowed"),
    "insecure": (replace(OP, security=SecurityMode.INSECURE), SolveError, "security.insecure is not allowed"),
    "devices": (replace(OP, cdi_devices=(CdiDevice("v/c=d"),)), SolveError, 'device "v/c=d" is not'),
}


@pytest.mark.parametrize(("op", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(op: Any, kind: Any, message: Any) -> None:
    with pytest.raises(kind, match=message):
        made(op, allow=())


def test_secret_options_count_but_values_never_do() -> None:
    one = Mount(dest="/s", mount_type=MountType.SECRET, secret_opt=SecretOpt(id="a"))
    two = Mount(dest="/s", mount_type=MountType.SECRET, secret_opt=SecretOpt(id="b"))
    assert digest(replace(OP, mounts=(ROOT, one))) != digest(replace(OP, mounts=(ROOT, two)))


# --- secrets in output -----------------------------------------------------------------------------------------


def masked(secrets: Any, *chunks: Any) -> Any:
    out = []
    masker = Masker([Secret(s) for s in secrets], lambda stream, data: out.append((stream, data)))
    for chunk in chunks:
        masker.write(1, chunk)
    masker.close()
    return b"".join(data for _, data in out)


def test_a_secret_is_hidden_wherever_it_is_cut() -> None:
    for at in range(1, 6):
        assert masked([b"secret"], b"a" + b"secret"[:at], b"secret"[at:] + b"b") == b"a***b"


def test_a_secret_that_begins_a_longer_one_does_not_show_the_rest() -> None:
    assert masked([b"abcd", b"abcdefgh"], b"abcd", b"efgh") == b"***"
    assert masked([b"abcd", b"abcdefgh"], b"abcd", b"zz") == b"***zz"
    assert masked([b"abcd", b"cdef"], b"xabcd", b"zz") == b"x***zz"


def test_each_line_of_a_secret_is_hidden() -> None:
    assert masked([b"first-line\nsecond-line\n"], b"x second-line y") == b"x *** y"


def test_short_values_are_left_alone() -> None:
    assert masked([b"abc"], b"abc") == b"abc"


def test_without_secrets_nothing_is_held_back() -> None:
    out = []
    masker = Masker([], lambda _stream, data: out.append(data))
    masker.write(1, b"par")
    assert out == [b"par"]


@given(
    secrets=st.lists(st.binary(min_size=4, max_size=8), max_size=3),
    data=st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b"abcd", b"bcde"])), max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_cutting_the_output_differently_never_shows_a_secret(secrets: Any, data: Any, cuts: Any) -> None:
    secrets = [*secrets, b"abcd"]
    whole = b"".join(data)
    at = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    chunks = [whole[a:b] for a, b in pairwise(at)]
    assert b"abcd" not in masked(secrets, *chunks)


def test_the_tail_keeps_the_last_lines_and_the_unfinished_one() -> None:
    tail = LogTail(2)
    for chunk in (b"a\nb", b"c\r\nd\n", b"rest \xff"):
        tail.write(chunk)
    assert tail.lines() == ("bc", "d", "rest \N{REPLACEMENT CHARACTER}")
