"""The hand-written codec against the generated protobuf classes, and against itself."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import CrossdockError, NotSupported, Position, SolveError, SourceFile, SourceRange
from crossdock.image import Platform
from crossdock.llb import Definition, Node, Output, walk
from crossdock.llb import ops as o
from crossdock.llb.codec import encode_definition, encode_op, marshal
from crossdock.llb.decode import decode_definition, unmarshal

pb = pytest.importorskip("crossdock.buildkit.proto.ops_pb2", reason="protobuf is not installed")

AMD64 = Platform("linux", "amd64")
ARM = Platform("linux", "arm", "v7")

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
ints = st.integers(min_value=-(2**31), max_value=2**31 - 1)
uids = st.integers(min_value=0, max_value=2**32 - 1)
who = st.none() | uids | st.builds(o.NamedUser, name=text, input=ints)
owner = st.none() | st.builds(o.ChownOpt, user=who, group=who)
texts = st.lists(text, max_size=3).map(tuple)
actions = st.one_of(
    st.builds(o.FileActionCopy, src=text, dest=text, owner=owner, mode=ints, follow_symlink=st.booleans(),
              dir_copy_contents=st.booleans(), attempt_unpack=st.booleans(), create_dest_path=st.booleans(),
              allow_wildcard=st.booleans(), allow_empty_wildcard=st.booleans(), timestamp_ns=ints,
              include_patterns=texts, exclude_patterns=texts, always_replace_existing_dest_paths=st.booleans(),
              mode_str=text, required_paths=texts),
    st.builds(o.FileActionMkFile, path=text, data=st.binary(max_size=20), mode=ints, owner=owner, timestamp_ns=ints),
    st.builds(o.FileActionMkDir, path=text, mode=ints, make_parents=st.booleans(), owner=owner, timestamp_ns=ints),
    st.builds(o.FileActionRm, path=text, allow_not_found=st.booleans(), allow_wildcard=st.booleans()),
    st.builds(o.FileActionSymlink, oldpath=text, newpath=text, owner=owner, timestamp_ns=ints),
)  # fmt: skip
file_ops = st.builds(
    o.FileOp,
    st.lists(
        st.builds(o.FileAction, action=actions, input=ints, secondary_input=ints, output=ints), max_size=3
    ).map(tuple),
)
file_opts = {"id": text, "uid": uids, "gid": uids, "mode": uids, "optional": st.booleans()}
mounts = st.builds(
    o.Mount, dest=text, input=ints, selector=text, output=ints, readonly=st.booleans(),
    mount_type=st.sampled_from(o.MountType), tmpfs_size=st.none() | ints,
    cache_opt=st.none() | st.builds(o.CacheOpt, id=text, sharing=st.sampled_from(o.CacheSharing)),
    secret_opt=st.none() | st.builds(o.SecretOpt, **file_opts),
    ssh_opt=st.none() | st.builds(o.SshOpt, **file_opts),
    result_id=text, content_cache=st.sampled_from(o.ContentCache),
)  # fmt: skip
metas = st.builds(
    o.ExecMeta, args=texts, env=texts, cwd=text, user=text,
    proxy_env=st.none() | st.builds(o.ProxyEnv, text, text, text, text, text),
    extra_hosts=st.lists(st.builds(o.HostIP, text, text), max_size=2).map(tuple), hostname=text,
    ulimit=st.lists(st.builds(o.Ulimit, text, ints, ints), max_size=2).map(tuple), cgroup_parent=text,
    remove_mount_stubs_recursive=st.booleans(), valid_exit_codes=st.lists(ints, max_size=3).map(tuple),
)  # fmt: skip
exec_ops = st.builds(
    o.ExecOp, meta=metas, mounts=st.lists(mounts, max_size=3).map(tuple), network=st.sampled_from(o.NetMode),
    security=st.sampled_from(o.SecurityMode),
    secret_env=st.lists(st.builds(o.SecretEnv, id=text, name=text, optional=st.booleans()), max_size=2).map(tuple),
    cdi_devices=st.lists(st.builds(o.CdiDevice, text, st.booleans()), max_size=2).map(tuple),
)  # fmt: skip
other_ops = st.one_of(
    st.builds(o.SourceOp, text, st.dictionaries(text, text, max_size=3)),
    st.builds(o.MergeOp, st.lists(ints, max_size=3).map(tuple)),
    st.builds(o.DiffOp, ints, ints),
    st.builds(o.PassthroughOp, id=text, outputs=st.lists(ints, max_size=3).map(tuple)),
    st.builds(o.BuildOp, builder=ints, inputs=st.dictionaries(text, ints, max_size=2),
              attrs=st.dictionaries(text, text, max_size=2)),
)  # fmt: skip
any_op = st.one_of(file_ops, exec_ops, other_ops)


@given(any_op, st.sampled_from([None, AMD64, ARM]))
def test_generated_classes_read_what_we_write_and_write_the_same_bytes(
    op: o.Op, platform: Platform | None
) -> None:
    data = encode_op(Node(op, platform=platform))
    message = pb.Op()
    message.ParseFromString(data)
    # Go writes the members of a oneof after all other fields, upb in the order of their numbers.
    kind = message.WhichOneof("op")
    last = pb.Op()
    getattr(last, kind).CopyFrom(getattr(message, kind))
    getattr(last, kind).SetInParent()
    message.ClearField(kind)
    again = message.SerializeToString(deterministic=True) + last.SerializeToString(deterministic=True)
    # upb and Go order map keys differently where one is a prefix of the other; with at most one key bytes must agree.
    assert len(again) == len(data)
    assert again == data or max(len(getattr(op, "attrs", ())), len(getattr(op, "inputs", ()))) > 1


def test_digests_equal_those_of_buildkit() -> None:
    """The expected digests were read from a BuildKit (frontend.convertllb) for FROM and RUN on it."""
    pin = "sha256:5c9573725b86ac05a8b83fda12a651f6bd9c97f9cb0d279f57f5173872d052f0"
    base = Node(o.SourceOp(f"docker-image://docker.io/library/alpine:latest@{pin}"), platform=AMD64)
    assert base.digest == "sha256:77595941bf422d3c82d0a1da3db39341a4f28c641d9ce36a22e71c483bc90f1b"
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    meta = o.ExecMeta(args=("/bin/sh", "-c", "same"), env=(path,), remove_mount_stubs_recursive=True)
    run = o.ExecOp(meta=meta, mounts=(o.Mount(dest="/", input=0, output=0),))
    step = Node(run, [Output(base)], platform=AMD64)
    assert step.digest == "sha256:111e5e9c41fef5c56d85d910b33d5977ac8b35fd4458c27df561babb8216f4bb"


@given(any_op, st.sampled_from([None, AMD64, ARM]))
def test_decoding_gives_back_the_op(op: o.Op, platform: Platform | None) -> None:
    node = Node(op, platform=platform, constraints=("a==b",))
    graph = unmarshal(marshal(Output(node)))
    assert graph.result is not None
    back = graph.result.node
    if isinstance(op, o.ExecOp) and not op.meta.args and op.meta == o.ExecMeta(args=(), cwd=""):
        return
    assert back.op == op
    assert (back.platform, back.constraints, back.digest) == (platform, ("a==b",), node.digest)


def _chain() -> Output:
    where = SourceRange(SourceFile("Dockerfile", "FROM x\nRUN y\n"), Position(2, 0), Position(2, 5))
    base = Node(o.SourceOp("docker-image://docker.io/library/x@sha256:0"), platform=AMD64)
    group = o.ProgressGroup("g", "group", weak=True)
    meta = o.OpMetadata(
        ignore_cache=True,
        description={"llb.customname": "RUN y"},
        export_cache=False,
        caps={"exec.meta.base": True},
        progress_group=group,
        linux_resources=o.LinuxResources(memory=1 << 30, cpu_quota=-1, cpuset_cpus="0-1"),
    )
    run = o.ExecOp(meta=o.ExecMeta(args=("y",)), mounts=(o.Mount(dest="/", input=0, output=0),))
    step = Node(run, [Output(base)], platform=AMD64, metadata=meta, source=where)
    return Output(Node(o.MergeOp((0, 1)), [Output(step), Output(base)]))


def test_a_definition_survives_the_wire_with_metadata_and_sources() -> None:
    out = _chain()
    data = encode_definition(marshal(out))
    parsed = pb.Definition()
    parsed.ParseFromString(data)
    assert len(parsed.__getattribute__("def")) == 4
    graph = unmarshal(decode_definition(data))
    assert graph.result == out
    ours = {n.digest: n for n in walk([out])}
    for node in graph.nodes:
        assert node.metadata == ours[node.digest].metadata
        assert node.source == ours[node.digest].source


def test_shared_inputs_are_written_once() -> None:
    assert len(marshal(_chain()).ops) == 4


def test_scratch_is_the_empty_definition() -> None:
    assert marshal(None) == Definition()
    assert unmarshal(Definition()).result is None


def test_a_chain_of_20000_vertices_needs_no_deep_stack() -> None:
    node = Node(o.SourceOp("local://x"))
    for _ in range(20_000):
        node = Node(o.MergeOp((0,)), [Output(node)])
    assert len(unmarshal(marshal(Output(node))).nodes) == 20_001


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_typed_error_or_a_definition(data: bytes) -> None:
    with contextlib.suppress(CrossdockError):
        unmarshal(decode_definition(data))


def _field_ends(data: bytes) -> set[int]:
    """Return where the top-level fields end: what is cut there is a shorter message, not a broken one."""
    ends = set()
    at = 0
    while at < len(data):
        at += 1  # field numbers below 16: one byte of tag
        size = shift = 0
        while True:
            byte = data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += size
        ends.add(at)
    return ends


@given(st.data())
def test_a_truncated_definition_is_refused(data: st.DataObject) -> None:
    whole = encode_definition(marshal(_chain()))
    cuts = sorted(set(range(1, len(whole))) - _field_ends(whole))
    cut = data.draw(st.sampled_from(cuts))
    with pytest.raises(CrossdockError):
        unmarshal(decode_definition(whole[:cut]))


@pytest.mark.parametrize(
    ("ops", "error", "text"),
    [
        ((b"\x0a\x49\x0a\x47sha256:" + b"0" * 64,), SolveError, "is missing"),
        ((b"",), SolveError, "must only name the result"),
        ((b"\xff",), SolveError, "truncated"),
        ((b"\xfa\x01\x00",), NotSupported, "field 31"),
    ],
    ids=["missing input", "no result", "cut varint", "unknown field"],
)
def test_malformed_definitions_say_what_is_wrong(
    ops: tuple[bytes, ...], error: type[CrossdockError], text: str
) -> None:
    with pytest.raises(error, match=text):
        unmarshal(Definition(ops=ops))
