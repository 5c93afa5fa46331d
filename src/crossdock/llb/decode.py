"""Decode BuildKit's ``pb.Definition`` into a graph.

Input comes from clients: it is bounded, checked and refused rather than half understood. An unknown field in an op
is refused too, since its digest would promise something the engine does not do.

Spec: moby/buildkit ``solver/pb/ops.proto``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from crossdock.errors import NotSupported, Position, SolveError, SourceFile, SourceRange
from crossdock.image.digest import Digest, parse_digest, sha256_digest
from crossdock.image.platform import Platform
from crossdock.llb import ops as o
from crossdock.llb.graph import Definition, Graph, Node, Output
from crossdock.llb.wire import as_bytes, as_int, as_str, fields, packed_ints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from enum import IntEnum

__all__ = ["decode_definition", "unmarshal"]

#: how a field is read: attribute name and converter; a ``*`` prefix collects a tuple
_Schema: TypeAlias = "Mapping[int, tuple[str, Callable[[Any, str], Any]]]"


def _unknown(where: str, number: int) -> NoReturn:
    summary = f"{where} has field {number}, which this version does not know"
    raise NotSupported(
        summary, hint="upgrade crossdock, or have the client use only the announced capabilities"
    )


def _read(data: bytes, schema: _Schema, where: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, value in fields(data, where):
        entry = schema.get(number)
        if entry is None:
            _unknown(where, number)
        name, convert = entry
        if name[0] == "*":
            out[name[1:]] = (*out.get(name[1:], ()), convert(value, f"{where}.{name[1:]}"))
        elif name[0] == "+":
            out[name[1:]] = (*out.get(name[1:], ()), *convert(value, f"{where}.{name[1:]}"))
        else:
            out[name] = convert(value, f"{where}.{name}")
    return out


def _bool(value: int | bytes, where: str) -> bool:
    return as_int(value, where) != 0


def _enum(kind: type[IntEnum]) -> Callable[[int | bytes, str], IntEnum]:
    def convert(value: int | bytes, where: str) -> IntEnum:
        number = as_int(value, where)
        try:
            return kind(number)
        except ValueError as exc:
            summary = f"{where}: value {number} is not known"
            raise NotSupported(summary) from exc

    return convert


def _record(
    make: Callable[..., Any], schema: _Schema, defaults: Mapping[str, Any]
) -> Callable[[int | bytes, str], Any]:
    def convert(value: int | bytes, where: str) -> Any:
        return make(**{**defaults, **_read(as_bytes(value, where), schema, where)})

    return convert


def _pair(value_of: Callable[[Any, str], Any], empty: Any) -> Callable[[int | bytes, str], tuple[str, Any]]:
    def convert(value: int | bytes, where: str) -> tuple[str, Any]:
        got = _read(as_bytes(value, where), {1: ("key", as_str), 2: ("value", value_of)}, where)
        return got.get("key", ""), got.get("value", empty)

    return convert


_STR_PAIR = _pair(as_str, "")
_INPUT = {1: ("digest", as_str), 2: ("index", as_int)}
_PLATFORM: _Schema = {
    1: ("architecture", as_str),
    2: ("os", as_str),
    3: ("variant", as_str),
    4: ("os_version", as_str),
    5: ("*os_features", as_str),
}
_HOST: _Schema = {1: ("host", as_str), 2: ("ip", as_str)}
_ULIMIT: _Schema = {1: ("name", as_str), 2: ("soft", as_int), 3: ("hard", as_int)}
_PROXY: _Schema = {
    1: ("http_proxy", as_str),
    2: ("https_proxy", as_str),
    3: ("ftp_proxy", as_str),
    4: ("no_proxy", as_str),
    5: ("all_proxy", as_str),
}
_META: _Schema = {
    1: ("*args", as_str),
    2: ("*env", as_str),
    3: ("cwd", as_str),
    4: ("user", as_str),
    5: ("proxy_env", _record(o.ProxyEnv, _PROXY, {})),
    6: ("*extra_hosts", _record(o.HostIP, _HOST, {"host": "", "ip": ""})),
    7: ("hostname", as_str),
    9: ("*ulimit", _record(o.Ulimit, _ULIMIT, {"name": "", "soft": 0, "hard": 0})),
    10: ("cgroup_parent", as_str),
    11: ("remove_mount_stubs_recursive", _bool),
    12: ("+valid_exit_codes", packed_ints),
}
_FILE_OPT: _Schema = {
    1: ("id", as_str),
    2: ("uid", as_int),
    3: ("gid", as_int),
    4: ("mode", as_int),
    5: ("optional", _bool),
}
_OPT_DEFAULTS = {"id": "", "mode": 0}
_MOUNT: _Schema = {
    1: ("input", as_int),
    2: ("selector", as_str),
    3: ("dest", as_str),
    4: ("output", as_int),
    5: ("readonly", _bool),
    6: ("mount_type", _enum(o.MountType)),
    19: ("tmpfs_size", lambda v, w: _read(as_bytes(v, w), {1: ("size", as_int)}, w).get("size", 0)),
    20: (
        "cache_opt",
        _record(o.CacheOpt, {1: ("id", as_str), 2: ("sharing", _enum(o.CacheSharing))}, {"id": ""}),
    ),
    21: ("secret_opt", _record(o.SecretOpt, _FILE_OPT, _OPT_DEFAULTS)),
    22: ("ssh_opt", _record(o.SshOpt, _FILE_OPT, _OPT_DEFAULTS)),
    23: ("result_id", as_str),
    24: ("content_cache", _enum(o.ContentCache)),
}
_SECRET_ENV: _Schema = {1: ("id", as_str), 2: ("name", as_str), 3: ("optional", _bool)}
_EXEC: _Schema = {
    1: ("meta", _record(o.ExecMeta, _META, {"args": (), "cwd": ""})),
    2: ("*mounts", _record(o.Mount, _MOUNT, {"dest": "", "input": 0, "output": 0})),
    3: ("network", _enum(o.NetMode)),
    4: ("security", _enum(o.SecurityMode)),
    5: ("*secret_env", _record(o.SecretEnv, _SECRET_ENV, {"id": "", "name": ""})),
    6: ("*cdi_devices", _record(o.CdiDevice, {1: ("name", as_str), 2: ("optional", _bool)}, {"name": ""})),
}


def _source(value: int | bytes, where: str) -> o.SourceOp:
    got = _read(as_bytes(value, where), {1: ("identifier", as_str), 2: ("*attrs", _STR_PAIR)}, where)
    return o.SourceOp(got.get("identifier", ""), dict(got.get("attrs", ())))


def _who(value: int | bytes, where: str) -> int | o.NamedUser | None:
    named = _record(o.NamedUser, {1: ("name", as_str), 2: ("input", as_int)}, {"name": "", "input": 0})
    got = _read(as_bytes(value, where), {1: ("who", named), 2: ("who", as_int)}, where)
    who: int | o.NamedUser | None = got.get("who")
    return who


_OWNER = _record(o.ChownOpt, {1: ("user", _who), 2: ("group", _who)}, {})
_COPY: _Schema = {
    1: ("src", as_str),
    2: ("dest", as_str),
    3: ("owner", _OWNER),
    4: ("mode", as_int),
    5: ("follow_symlink", _bool),
    6: ("dir_copy_contents", _bool),
    7: ("attempt_unpack", _bool),
    8: ("create_dest_path", _bool),
    9: ("allow_wildcard", _bool),
    10: ("allow_empty_wildcard", _bool),
    11: ("timestamp_ns", as_int),
    12: ("*include_patterns", as_str),
    13: ("*exclude_patterns", as_str),
    14: ("always_replace_existing_dest_paths", _bool),
    15: ("mode_str", as_str),
    16: ("*required_paths", as_str),
}
_MKFILE: _Schema = {
    1: ("path", as_str),
    2: ("mode", as_int),
    3: ("data", as_bytes),
    4: ("owner", _OWNER),
    5: ("timestamp_ns", as_int),
}
_MKDIR: _Schema = {
    1: ("path", as_str),
    2: ("mode", as_int),
    3: ("make_parents", _bool),
    4: ("owner", _OWNER),
    5: ("timestamp_ns", as_int),
}
_RM: _Schema = {1: ("path", as_str), 2: ("allow_not_found", _bool), 3: ("allow_wildcard", _bool)}
_SYMLINK: _Schema = {
    1: ("oldpath", as_str),
    2: ("newpath", as_str),
    3: ("owner", _OWNER),
    4: ("timestamp_ns", as_int),
}
_ACTION: _Schema = {
    1: ("input", as_int),
    2: ("secondary_input", as_int),
    3: ("output", as_int),
    4: ("action", _record(o.FileActionCopy, _COPY, {"src": "", "dest": "", "mode": 0, "timestamp_ns": 0})),
    5: (
        "action",
        _record(o.FileActionMkFile, _MKFILE, {"path": "", "data": b"", "mode": 0, "timestamp_ns": 0}),
    ),
    6: ("action", _record(o.FileActionMkDir, _MKDIR, {"path": "", "mode": 0, "timestamp_ns": 0})),
    7: ("action", _record(o.FileActionRm, _RM, {"path": ""})),
    8: ("action", _record(o.FileActionSymlink, _SYMLINK, {"oldpath": "", "newpath": "", "timestamp_ns": 0})),
}
_FILE_ACTION = _record(o.FileAction, _ACTION, {"input": 0, "secondary_input": 0, "output": 0})


def _index(value: int | bytes, where: str) -> int:
    return int(_read(as_bytes(value, where), {1: ("input", as_int)}, where).get("input", 0))


def _file(value: int | bytes, where: str) -> o.FileOp:
    for number, item in fields(as_bytes(value, where), where):
        if number == 2 and not any(n in (4, 5, 6, 7, 8) for n, _ in fields(as_bytes(item, where), where)):
            summary = f"malformed definition: an action of {where} does nothing"
            raise SolveError(summary)
    return o.FileOp(_read(as_bytes(value, where), {2: ("*actions", _FILE_ACTION)}, where).get("actions", ()))


def _build(value: int | bytes, where: str) -> o.BuildOp:
    schema: _Schema = {
        1: ("builder", as_int),
        2: ("*inputs", _pair(_index, 0)),
        3: ("definition", lambda v, w: decode_definition(as_bytes(v, w))),
        4: ("*attrs", _STR_PAIR),
    }
    got = _read(as_bytes(value, where), schema, where)
    return o.BuildOp(
        builder=got.get("builder", 0),
        inputs=dict(got.get("inputs", ())),
        definition=got.get("definition"),
        attrs=dict(got.get("attrs", ())),
    )


_KINDS: _Schema = {
    2: ("op", _record(o.ExecOp, _EXEC, {"meta": o.ExecMeta(args=(), cwd=""), "mounts": ()})),
    3: ("op", _source),
    4: ("op", _file),
    5: ("op", _build),
    6: ("op", _record(o.MergeOp, {1: ("*inputs", _index)}, {"inputs": ()})),
    7: ("op", _record(o.DiffOp, {1: ("lower", _index), 2: ("upper", _index)}, {})),
    8: ("op", _record(o.PassthroughOp, {1: ("id", as_str), 2: ("+outputs", packed_ints)}, {})),
}
_OP: _Schema = {
    1: ("*inputs", lambda v, w: _read(as_bytes(v, w), _INPUT, w)),
    **_KINDS,
    10: ("platform", _record(Platform, _PLATFORM, {"os": "", "architecture": ""})),
    11: ("*constraints", lambda v, w: _read(as_bytes(v, w), {1: ("*filter", as_str)}, w).get("filter", ())),
}
_GROUP: _Schema = {1: ("id", as_str), 2: ("name", as_str), 3: ("weak", _bool)}
_RESOURCES: _Schema = {
    1: ("memory", as_int),
    2: ("memory_swap", as_int),
    3: ("cpu_shares", as_int),
    4: ("cpu_period", as_int),
    5: ("cpu_quota", as_int),
    6: ("cpuset_cpus", as_str),
    7: ("cpuset_mems", as_str),
}
_METADATA: _Schema = {
    1: ("ignore_cache", _bool),
    2: ("*description", _STR_PAIR),
    4: ("export_cache", lambda v, w: bool(_read(as_bytes(v, w), {1: ("value", _bool)}, w).get("value"))),
    5: ("*caps", _pair(_bool, empty=False)),
    6: ("progress_group", _record(o.ProgressGroup, _GROUP, {"id": "", "name": ""})),
    7: ("linux_resources", _record(o.LinuxResources, _RESOURCES, {})),
}


def _metadata(value: int | bytes, where: str) -> o.OpMetadata:
    got = _read(as_bytes(value, where), _METADATA, where)
    got["description"] = dict(got.get("description", ()))
    got["caps"] = dict(got.get("caps", ()))
    return o.OpMetadata(**got)


_POSITION: _Schema = {1: ("line", as_int), 2: ("column", as_int)}
_RANGE: _Schema = {
    1: ("start", _record(Position, _POSITION, {"line": 0})),
    2: ("end", _record(Position, _POSITION, {"line": 0})),
}
_LOCATION: _Schema = {1: ("file", as_int), 2: ("*ranges", lambda v, w: _read(as_bytes(v, w), _RANGE, w))}
_INFO: _Schema = {
    1: ("name", as_str),
    2: ("text", lambda v, w: as_bytes(v, w).decode("utf-8", "surrogateescape")),
    3: ("definition", as_bytes),
    4: ("language", as_str),
}


def _sources(value: int | bytes, where: str) -> dict[Digest, SourceRange]:
    locations = _pair(
        lambda v, w: _read(as_bytes(v, w), {1: ("*at", lambda x, y: _read(as_bytes(x, y), _LOCATION, y))}, w),
        {},
    )
    got = _read(
        as_bytes(value, where),
        {1: ("*locations", locations), 2: ("*infos", lambda v, w: _read(as_bytes(v, w), _INFO, w))},
        where,
    )
    files = [SourceFile(i.get("name", ""), i.get("text", "")) for i in got.get("infos", ())]
    out: dict[Digest, SourceRange] = {}
    for digest, entry in got.get("locations", ()):
        for location in entry.get("at", ()):
            index = location.get("file", 0)
            if not 0 <= index < len(files):
                summary = f"malformed definition: {where} names source file {index} of {len(files)}"
                raise SolveError(summary)
            for span in location.get("ranges", ()):
                start = span.get("start", Position(0))
                out.setdefault(parse_digest(digest), SourceRange(files[index], start, span.get("end", start)))
    return out


def decode_definition(data: bytes) -> Definition:
    """Read ``pb.Definition`` bytes; the ops stay encoded.

    Raises: SolveError when malformed; NotSupported for unknown fields.
    """
    schema: _Schema = {
        1: ("*ops", as_bytes),
        2: ("*metadata", _pair(_metadata, o.OpMetadata())),
        3: ("sources", _sources),
    }
    got = _read(data, schema, "Definition")
    metadata = {parse_digest(k): v for k, v in got.get("metadata", ())}
    return Definition(ops=got.get("ops", ()), metadata=metadata, sources=got.get("sources", {}))


def unmarshal(definition: Definition) -> Graph:
    """Build the graph of a definition; the last op names the result.

    Raises: SolveError when an input is missing, out of range or refers in a circle; NotSupported.
    """
    if not definition.ops:
        return Graph(None, ())
    raw = {sha256_digest(op): op for op in definition.ops}
    last = _read(definition.ops[-1], _OP, "Op")
    if len(last.get("inputs", ())) != 1 or "op" in last:
        summary = "malformed definition: the last op must only name the result"
        raise SolveError(summary)
    del raw[sha256_digest(definition.ops[-1])]
    nodes: dict[Digest, Node] = {}
    result = last["inputs"][0]
    _build_nodes(parse_digest(result.get("digest", "")), raw, definition, nodes)
    node = nodes[parse_digest(result["digest"])]
    return Graph(Output(node, result.get("index", 0)), tuple(nodes.values()))


def _build_nodes(
    root: Digest, raw: dict[Digest, bytes], definition: Definition, nodes: dict[Digest, Node]
) -> None:
    """Add ``root`` and all below it to ``nodes``, inputs first; iterative, so depth is no limit."""
    decoded: dict[Digest, dict[str, Any]] = {}
    stack = [root]
    while stack:
        digest = stack[-1]
        if digest in nodes:
            stack.pop()
            continue
        if digest not in raw:
            summary = f"malformed definition: input {digest} is missing"
            raise SolveError(summary)
        first_visit = digest not in decoded
        if first_visit:
            decoded[digest] = _read(raw[digest], _OP, "Op")
        got = decoded[digest]
        wanted = [parse_digest(i.get("digest", "")) for i in got.get("inputs", ())]
        missing = [d for d in wanted if d not in nodes]
        if missing and first_visit:
            stack.extend(missing)
            continue
        if missing or "op" not in got:
            summary = (
                f"malformed definition: {digest} has no operation"
                if not missing
                else f"{digest} refers to itself"
            )
            raise SolveError(summary)
        stack.pop()
        inputs = [
            Output(nodes[d], i.get("index", 0)) for d, i in zip(wanted, got.get("inputs", ()), strict=True)
        ]
        nodes[digest] = Node(
            got["op"],
            inputs,
            platform=got.get("platform"),
            constraints=tuple(f for group in got.get("constraints", ()) for f in group),
            metadata=definition.metadata.get(digest, o.OpMetadata()),
            source=definition.sources.get(digest),
            encoded=raw[digest],
        )
