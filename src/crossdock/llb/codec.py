"""Encode ops and definitions as BuildKit's ``pb.Op`` and ``pb.Definition``, deterministically.

Decoding is in :mod:`crossdock.llb.decode`, which the embedded engine does not need.

Spec: moby/buildkit ``solver/pb/ops.proto``; field order and map order of Go's deterministic marshalling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.image.digest import Digest, sha256_digest
from crossdock.llb import ops as o
from crossdock.llb.graph import Definition, walk
from crossdock.llb.wire import boolean, integer, message, packed, raw, string_map, text, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.errors import SourceFile, SourceRange
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Node, Output

__all__ = ["encode_definition", "encode_op", "marshal"]


def encode_op(node: Node) -> bytes:
    """Return the ``pb.Op`` bytes of a node; its inputs' digests are computed on the way."""
    out = [message(1, text(1, i.node.digest) + integer(2, i.index)) for i in node.inputs]
    if node.platform is not None:
        out.append(message(10, _platform(node.platform)))
    # BuildKit's client always sets constraints, so an empty message is written too.
    out.append(message(11, texts(1, node.constraints)))
    # Go writes the members of a oneof after all other fields, whatever their numbers.
    out.append(_encode_kind(node.op))
    return b"".join(out)


def marshal(output: Output | None, caps: Mapping[str, bool] | None = None) -> Definition:
    """Encode the graph below ``output``; ``None`` (scratch) gives the empty definition."""
    if output is None:
        return Definition()
    encoded: list[bytes] = []
    metadata: dict[Digest, o.OpMetadata] = {}
    sources: dict[Digest, SourceRange] = {}
    for node in walk([output]):
        encoded.append(node.encoded)
        metadata[node.digest] = node.metadata
        if node.source is not None:
            sources[node.digest] = node.source
    last = message(1, text(1, output.node.digest) + integer(2, output.index))
    encoded.append(last)
    metadata[sha256_digest(last)] = o.OpMetadata(caps=dict(caps or {"constraints": True, "platform": True}))
    return Definition(ops=tuple(encoded), metadata=metadata, sources=sources)


def encode_definition(definition: Definition) -> bytes:
    """Return the ``pb.Definition`` bytes."""
    out = [message(1, op) for op in definition.ops]
    out.extend(
        message(2, message(1, digest.encode()) + message(2, _metadata(meta)))
        for digest, meta in sorted(definition.metadata.items())
    )
    if definition.sources:
        out.append(message(3, _sources(definition.sources)))
    return b"".join(out)


def _encode_kind(op: o.Op) -> bytes:
    match op:
        case o.ExecOp():
            return message(2, _exec(op))
        case o.SourceOp():
            return message(3, text(1, op.identifier) + string_map(2, op.attrs))
        case o.FileOp():
            return message(4, b"".join(message(2, _file_action(a)) for a in op.actions))
        case o.BuildOp():
            return message(5, _build(op))
        case o.MergeOp():
            return message(6, b"".join(message(1, integer(1, i)) for i in op.inputs))
        case o.DiffOp():
            return message(7, message(1, integer(1, op.lower)) + message(2, integer(1, op.upper)))
        case o.PassthroughOp():
            return message(8, text(1, op.id) + packed(2, op.outputs))


def _platform(p: Platform) -> bytes:
    return (
        text(1, p.architecture)
        + text(2, p.os)
        + text(3, p.variant)
        + text(4, p.os_version)
        + texts(5, p.os_features)
    )


def _exec(op: o.ExecOp) -> bytes:
    return (
        message(1, _meta(op.meta))
        + b"".join(message(2, _mount(m)) for m in op.mounts)
        + integer(3, op.network)
        + integer(4, op.security)
        + b"".join(
            message(5, text(1, s.id) + text(2, s.name) + boolean(3, s.optional)) for s in op.secret_env
        )
        + b"".join(message(6, text(1, d.name) + boolean(2, d.optional)) for d in op.cdi_devices)
    )


def _meta(m: o.ExecMeta) -> bytes:
    out = texts(1, m.args) + texts(2, m.env) + text(3, m.cwd) + text(4, m.user)
    if m.proxy_env is not None:
        p = m.proxy_env
        values = (p.http_proxy, p.https_proxy, p.ftp_proxy, p.no_proxy, p.all_proxy)
        out += message(5, b"".join(text(n, v) for n, v in enumerate(values, 1)))
    out += b"".join(message(6, text(1, h.host) + text(2, h.ip)) for h in m.extra_hosts)
    out += text(7, m.hostname)
    out += b"".join(message(9, text(1, u.name) + integer(2, u.soft) + integer(3, u.hard)) for u in m.ulimit)
    out += text(10, m.cgroup_parent) + boolean(11, m.remove_mount_stubs_recursive)
    return out + packed(12, m.valid_exit_codes)


def _mount(m: o.Mount) -> bytes:
    out = integer(1, m.input) + text(2, m.selector) + text(3, m.dest) + integer(4, m.output)
    out += boolean(5, m.readonly) + integer(6, m.mount_type)
    if m.tmpfs_size is not None:
        out += message(19, integer(1, m.tmpfs_size))
    if m.cache_opt is not None:
        out += message(20, text(1, m.cache_opt.id) + integer(2, m.cache_opt.sharing))
    for number, opt in ((21, m.secret_opt), (22, m.ssh_opt)):
        if opt is not None:
            body = text(1, opt.id) + integer(2, opt.uid) + integer(3, opt.gid)
            out += message(number, body + integer(4, opt.mode) + boolean(5, opt.optional))
    return out + text(23, m.result_id) + integer(24, m.content_cache)


def _file_action(a: o.FileAction) -> bytes:
    out = integer(1, a.input) + integer(2, a.secondary_input) + integer(3, a.output)
    match a.action:
        case o.FileActionCopy():
            return out + message(4, _copy(a.action))
        case o.FileActionMkFile() as f:
            body = text(1, f.path) + integer(2, f.mode) + raw(3, f.data) + _owner(4, f.owner)
            return out + message(5, body + integer(5, f.timestamp_ns))
        case o.FileActionMkDir() as d:
            body = text(1, d.path) + integer(2, d.mode) + boolean(3, d.make_parents) + _owner(4, d.owner)
            return out + message(6, body + integer(5, d.timestamp_ns))
        case o.FileActionRm() as r:
            return out + message(
                7, text(1, r.path) + boolean(2, r.allow_not_found) + boolean(3, r.allow_wildcard)
            )
        case o.FileActionSymlink() as s:
            body = text(1, s.oldpath) + text(2, s.newpath) + _owner(3, s.owner)
            return out + message(8, body + integer(4, s.timestamp_ns))


def _copy(c: o.FileActionCopy) -> bytes:
    flags = (
        c.follow_symlink,
        c.dir_copy_contents,
        c.attempt_unpack,
        c.create_dest_path,
        c.allow_wildcard,
        c.allow_empty_wildcard,
    )
    return (
        text(1, c.src)
        + text(2, c.dest)
        + _owner(3, c.owner)
        + integer(4, c.mode)
        + b"".join(boolean(n, v) for n, v in enumerate(flags, 5))
        + integer(11, c.timestamp_ns)
        + texts(12, c.include_patterns)
        + texts(13, c.exclude_patterns)
        + boolean(14, c.always_replace_existing_dest_paths)
        + text(15, c.mode_str)
        + texts(16, c.required_paths)
    )


def _owner(number: int, owner: o.ChownOpt | None) -> bytes:
    if owner is None:
        return b""
    out = b""
    for n, who in ((1, owner.user), (2, owner.group)):
        match who:
            case None:
                continue
            case int():
                # A set oneof member is written even when zero.
                out += message(n, b"\x10" + _zero_ok(who))
            case o.NamedUser():
                out += message(n, message(1, text(1, who.name) + integer(2, who.input)))
    return message(number, out)


def _zero_ok(value: int) -> bytes:
    return integer(2, value)[1:] if value else b"\x00"


def _build(op: o.BuildOp) -> bytes:
    out = integer(1, op.builder)
    out += b"".join(
        message(2, message(1, k.encode()) + message(2, integer(1, v))) for k, v in sorted(op.inputs.items())
    )
    if op.definition is not None:
        out += message(3, encode_definition(op.definition))
    return out + string_map(4, op.attrs)


def _metadata(m: o.OpMetadata) -> bytes:
    out = boolean(1, m.ignore_cache) + string_map(2, m.description)
    if m.export_cache is not None:
        out += message(4, boolean(1, m.export_cache))
    out += b"".join(
        message(5, message(1, k.encode()) + b"\x10" + (b"\x01" if v else b"\x00"))
        for k, v in sorted(m.caps.items())
    )
    if m.progress_group is not None:
        g = m.progress_group
        out += message(6, text(1, g.id) + text(2, g.name) + boolean(3, g.weak))
    if m.linux_resources is not None:
        r = m.linux_resources
        numbers = (r.memory, r.memory_swap, r.cpu_shares, r.cpu_period, r.cpu_quota)
        body = b"".join(integer(n, v) for n, v in enumerate(numbers, 1))
        out += message(7, body + text(6, r.cpuset_cpus) + text(7, r.cpuset_mems))
    return out


def _sources(sources: Mapping[Digest, SourceRange]) -> bytes:
    files: dict[SourceFile, int] = {}
    locations = b""
    for digest, where in sorted(sources.items()):
        index = files.setdefault(where.file, len(files))
        span = message(1, integer(1, where.start.line) + integer(2, where.start.column))
        span += message(2, integer(1, where.end.line) + integer(2, where.end.column))
        location = message(1, integer(1, index) + message(2, span))
        locations += message(1, message(1, digest.encode()) + message(2, location))
    infos = b"".join(
        message(
            2, text(1, f.name) + raw(2, f.text.encode("utf-8", "surrogateescape")) + text(4, "Dockerfile")
        )
        for f in files
    )
    return locations + infos
