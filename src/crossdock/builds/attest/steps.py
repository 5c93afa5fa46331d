"""The steps of a build as provenance lists them: LLB ops in the JSON that BuildKit's Go types give.

Spec: moby/buildkit ``solver/pb/ops.proto``, ``solver/pb/json.go``, ``solver/llbsolver/provenance/buildconfig.go``;
zero values are left out, numbers are numbers, bytes are base64.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from crossdock.builds.attest.capture import redacted
from crossdock.image.digest import sha256_digest
from crossdock.llb import ops as o
from crossdock.llb.codec import marshal
from crossdock.llb.graph import walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.errors import SourceFile, SourceRange
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Node, Output

__all__ = ["BuildSteps", "layer_chains"]

#: of one session, and so of no interest
_UNSTABLE = frozenset(["local.session", "local.unique"])

_Json = dict[str, object]


class BuildSteps:
    """The steps of one graph, inputs before users, numbered in that order; the last stands for the result."""

    def __init__(self, output: Output) -> None:
        self._nodes = list(walk([output]))
        self._output = output
        #: vertex to number
        self.numbers: dict[str, int] = {node.digest: n for n, node in enumerate(self._nodes)}
        self._last: Digest = sha256_digest(marshal(output).ops[-1])

    def config(self) -> _Json:
        """Return ``buildConfig``."""
        steps = [self._step(n, node) for n, node in enumerate(self._nodes)]
        last = len(self._nodes)
        steps.append({"id": f"step{last}", "op": {"Op": {}}, "inputs": [self._input(self._output)]})
        names = {**self.numbers, self._last: last}
        return {
            "llbDefinition": steps,
            "digestMapping": {digest: f"step{names[digest]}" for digest in sorted(names)},
        }

    def source(self, definition: Output | None = None) -> _Json | None:
        """Return the source files and where in them each step is; ``None`` when nothing is known of that.

        ``definition`` is what the first file was read from.
        """
        files: dict[SourceFile, int] = {}
        locations: _Json = {}
        for n, node in enumerate(self._nodes):
            if node.source is not None:
                index = files.setdefault(node.source.file, len(files))
                locations[f"step{n}"] = {"locations": [_location(node.source, index)]}
        if not files:
            return None
        infos: list[_Json] = [
            {
                "filename": file.name,
                "language": "Dockerfile",
                "data": _base64(file.text.encode("utf-8", "surrogateescape")),
            }
            for file in files
        ]
        if definition is not None:
            infos[0].update(BuildSteps(definition).config())
        return {"locations": dict(sorted(locations.items())), "infos": infos}

    def _step(self, number: int, node: Node) -> _Json:
        step: _Json = {"id": f"step{number}", "op": _op(node)}
        if node.inputs:
            step["inputs"] = [self._input(i) for i in node.inputs]
        return step

    def _input(self, output: Output) -> str:
        return f"step{self.numbers[output.node.digest]}:{output.index}"


def _location(where: SourceRange, index: int) -> _Json:
    def place(line: int, column: int) -> _Json:
        return _full(line=line, character=column)

    span = {"start": place(*where.start), "end": place(*where.end)}
    return {**_full(sourceIndex=index), "ranges": [span]}


def _full(**fields: object) -> _Json:
    """Leave out what Go's ``omitempty`` leaves out."""
    return {k: v for k, v in fields.items() if v not in (None, "", 0, False, (), [], {})}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _op(node: Node) -> _Json:
    out: _Json = {"Op": _kind(node.op)}
    if node.platform is not None:
        out["platform"] = _platform(node.platform)
    out["constraints"] = _full(filter=list(node.constraints))
    return out


def _platform(p: Platform) -> _Json:
    return _full(
        Architecture=p.architecture,
        OS=p.os,
        Variant=p.variant,
        OSVersion=p.os_version,
        OSFeatures=list(p.os_features),
    )


def _kind(op: o.Op) -> _Json:
    match op:
        case o.ExecOp():
            return {"exec": _exec(op)}
        case o.SourceOp():
            return {"source": _source(op)}
        case o.FileOp():
            return {"file": _full(actions=[_action(a) for a in op.actions])}
        case o.BuildOp():
            inputs = {name: _full(input=n) for name, n in sorted(op.inputs.items())}
            return {"build": _full(builder=op.builder, inputs=inputs, attrs=dict(sorted(op.attrs.items())))}
        case o.MergeOp():
            return {"merge": _full(inputs=[_full(input=n) for n in op.inputs])}
        case o.DiffOp():
            return {"diff": {"lower": _full(input=op.lower), "upper": _full(input=op.upper)}}
        case o.PassthroughOp():
            return {"passthrough": _full(id=op.id, outputs=list(op.outputs))}


def _source(op: o.SourceOp) -> _Json:
    attrs = {k: redacted(v) for k, v in sorted(op.attrs.items()) if k not in _UNSTABLE}
    return _full(identifier=redacted(op.identifier), attrs=attrs)


def _exec(op: o.ExecOp) -> _Json:
    return _full(
        meta=_meta(op.meta),
        mounts=[_mount(m) for m in op.mounts],
        network=int(op.network),
        security=int(op.security),
        secretenv=[_full(ID=s.id, name=s.name, optional=s.optional) for s in op.secret_env],
        cdiDevices=[_full(name=d.name, optional=d.optional) for d in op.cdi_devices],
    )


def _meta(m: o.ExecMeta) -> _Json:
    return _full(
        args=list(m.args),
        env=list(m.env),
        cwd=m.cwd,
        user=m.user,
        proxy_env=_proxy(m.proxy_env) if m.proxy_env is not None else None,
        extraHosts=[_full(Host=h.host, IP=h.ip) for h in m.extra_hosts],
        hostname=m.hostname,
        ulimit=[_full(Name=u.name, Soft=u.soft, Hard=u.hard) for u in m.ulimit],
        cgroupParent=m.cgroup_parent,
        removeMountStubsRecursive=m.remove_mount_stubs_recursive,
        validExitCodes=list(m.valid_exit_codes),
    )


def _proxy(p: o.ProxyEnv) -> _Json:
    return _full(
        http_proxy=redacted(p.http_proxy),
        https_proxy=redacted(p.https_proxy),
        ftp_proxy=redacted(p.ftp_proxy),
        no_proxy=p.no_proxy,
        all_proxy=redacted(p.all_proxy),
    )


def _mount(m: o.Mount) -> _Json:
    def owned(opt: o.SecretOpt | o.SshOpt) -> _Json:
        return _full(ID=opt.id, uid=opt.uid, gid=opt.gid, mode=opt.mode, optional=opt.optional)

    out = _full(
        input=m.input,
        selector=m.selector,
        dest=m.dest,
        output=m.output,
        readonly=m.readonly,
        mountType=int(m.mount_type),
    )
    if m.tmpfs_size is not None:
        out["TmpfsOpt"] = _full(size=m.tmpfs_size)
    if m.cache_opt is not None:
        out["cacheOpt"] = _full(ID=m.cache_opt.id, sharing=int(m.cache_opt.sharing))
    if m.secret_opt is not None:
        out["secretOpt"] = owned(m.secret_opt)
    if m.ssh_opt is not None:
        out["SSHOpt"] = owned(m.ssh_opt)
    return {**out, **_full(resultID=m.result_id, contentCache=int(m.content_cache))}


def _action(a: o.FileAction) -> _Json:
    name, body = _file_action(a.action)
    return {
        "input": a.input,
        "secondaryInput": a.secondary_input,
        "output": a.output,
        "Action": {name: body},
    }


def _file_action(action: o.FileActionKind) -> tuple[str, _Json]:
    match action:
        case o.FileActionCopy() as c:
            return "copy", _copy(c)
        case o.FileActionMkFile() as f:
            return "mkfile", _full(
                path=f.path,
                mode=f.mode,
                data=_base64(f.data),
                owner=_owner(f.owner),
                timestamp=f.timestamp_ns,
            )
        case o.FileActionMkDir() as d:
            return "mkdir", _full(
                path=d.path,
                mode=d.mode,
                makeParents=d.make_parents,
                owner=_owner(d.owner),
                timestamp=d.timestamp_ns,
            )
        case o.FileActionRm() as r:
            return "rm", _full(path=r.path, allowNotFound=r.allow_not_found, allowWildcard=r.allow_wildcard)
        case o.FileActionSymlink() as s:
            return "symlink", _full(
                oldpath=s.oldpath, newpath=s.newpath, owner=_owner(s.owner), timestamp=s.timestamp_ns
            )


def _copy(c: o.FileActionCopy) -> _Json:
    return _full(
        src=c.src,
        dest=c.dest,
        owner=_owner(c.owner),
        mode=c.mode,
        followSymlink=c.follow_symlink,
        dirCopyContents=c.dir_copy_contents,
        attemptUnpackDockerCompatibility=c.attempt_unpack,
        createDestPath=c.create_dest_path,
        allowWildcard=c.allow_wildcard,
        allowEmptyWildcard=c.allow_empty_wildcard,
        timestamp=c.timestamp_ns,
        include_patterns=list(c.include_patterns),
        exclude_patterns=list(c.exclude_patterns),
        alwaysReplaceExistingDestPaths=c.always_replace_existing_dest_paths,
        modeStr=c.mode_str,
        required_paths=list(c.required_paths),
    )


def _owner(owner: o.ChownOpt | None) -> _Json | None:
    if owner is None:
        return None

    def who(value: int | o.NamedUser) -> _Json:
        if isinstance(value, int):
            return {"User": _full(byId=value)}
        return {"User": {"byName": _full(name=value.name, input=value.input)}}

    pairs: Mapping[str, int | o.NamedUser | None] = {"user": owner.user, "group": owner.group}
    return {key: who(value) for key, value in pairs.items() if value is not None}


def layer_chains(
    steps: BuildSteps,
    outputs: Mapping[str, Sequence[Sequence[str]]],
    blobs: Mapping[str, object],
) -> _Json:
    """Return by ``stepN:OUTPUT`` the layers of a step's result, for those of which every layer is in ``blobs``."""
    out: _Json = {}
    for vertex, number in steps.numbers.items():
        for index, layers in enumerate(outputs.get(vertex, ())):
            if layers and all(layer in blobs for layer in layers):
                out[f"step{number}:{index}"] = [[blobs[layer] for layer in layers]]
    return dict(sorted(out.items()))
