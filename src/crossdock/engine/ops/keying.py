"""Which fields of an op are part of its key, and which are left out.

Spec: moby/buildkit ``CacheMap`` in ``solver/llbsolver/ops/{file,exec}.go``.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from crossdock.llb.ops import (
    FileActionCopy,
    FileActionMkDir,
    FileActionMkFile,
    FileActionRm,
    FileActionSymlink,
    NamedUser,
)

if TYPE_CHECKING:
    from crossdock.engine.solver import KeyHasher
    from crossdock.image.platform import Platform
    from crossdock.llb.ops import CacheOpt, ChownOpt, ExecMeta, ExecOp, FileActionKind, Mount

__all__ = ["action_fields", "exec_fields", "platform_fields"]


def action_fields(hasher: KeyHasher, action: FileActionKind, *, from_input: bool) -> None:
    """Add a file action. With ``from_input`` only the last component of a copied path counts: content covers the rest."""
    match action:
        case FileActionCopy():
            _copy_fields(hasher, action, from_input=from_input)
        case FileActionMkFile(path=path, data=data, mode=mode, timestamp_ns=time):
            hasher.text("mkfile", path).data("data", data).number("mode", mode).number("time", time)
            _owner_fields(hasher, action.owner)
        case FileActionMkDir(path=path, mode=mode, make_parents=parents, timestamp_ns=time):
            hasher.text("mkdir", path).number("mode", mode).number("parents", parents).number("time", time)
            _owner_fields(hasher, action.owner)
        case FileActionRm(path=path, allow_not_found=lenient, allow_wildcard=wildcard):
            hasher.text("rm", path).number("lenient", lenient).number("wildcard", wildcard)
        case FileActionSymlink(oldpath=old, newpath=new, timestamp_ns=time):
            hasher.text("symlink", new).text("target", old).number("time", time)
            _owner_fields(hasher, action.owner)


def _copy_fields(hasher: KeyHasher, action: FileActionCopy, *, from_input: bool) -> None:
    hasher.text("copy", posixpath.basename(action.src.rstrip("/")) if from_input else action.src)
    hasher.text("dest", action.dest).number("mode", action.mode).text("mode string", action.mode_str)
    for label, flag in (
        ("follow", action.follow_symlink),
        ("contents", action.dir_copy_contents),
        ("unpack", action.attempt_unpack),
        ("create dest", action.create_dest_path),
        ("wildcard", action.allow_wildcard),
        ("empty wildcard", action.allow_empty_wildcard),
        ("replace", action.always_replace_existing_dest_paths),
    ):
        hasher.number(label, flag)
    hasher.number("time", action.timestamp_ns)
    hasher.texts("include", action.include_patterns).texts("exclude", action.exclude_patterns)
    hasher.texts("required", action.required_paths)
    _owner_fields(hasher, action.owner)


def _owner_fields(hasher: KeyHasher, owner: ChownOpt | None) -> None:
    if owner is None:
        hasher.number("owner", -1)
        return
    for label, who in (("user", owner.user), ("group", owner.group)):
        if isinstance(who, NamedUser):
            hasher.text(label, who.name).number("of", who.input)
        else:
            hasher.number(label, -1 if who is None else who)


def platform_fields(hasher: KeyHasher, platform: Platform) -> None:
    """Add the platform a program runs on."""
    hasher.text("os", platform.os).text("architecture", platform.architecture).text(
        "variant", platform.variant
    )
    hasher.text("os version", platform.os_version).texts("os features", platform.os_features)


def exec_fields(hasher: KeyHasher, op: ExecOp) -> None:
    """Add a program to run.

    Left out: proxy variables, addresses of extra hosts, mount selectors (they are in the input keys), and the id and
    sharing of a cache mount unless it is the frontend's default one. Resource limits are no part of an op.
    """
    _meta_fields(hasher, op.meta)
    for mount in op.mounts:
        _mount_fields(hasher, mount)
    hasher.number("network", op.network).number("security", op.security)
    for secret in op.secret_env:
        hasher.text("secret variable", secret.name).text("id", secret.id).number("optional", secret.optional)
    for device in op.cdi_devices:
        hasher.text("device", device.name).number("optional", device.optional)


def _meta_fields(hasher: KeyHasher, meta: ExecMeta) -> None:
    hasher.texts("args", meta.args).texts("env", meta.env).text("cwd", meta.cwd).text("user", meta.user)
    hasher.texts("hosts", [extra.host for extra in meta.extra_hosts]).text("hostname", meta.hostname)
    for limit in meta.ulimit:
        hasher.text("ulimit", limit.name).number("soft", limit.soft).number("hard", limit.hard)
    hasher.text("cgroup parent", meta.cgroup_parent).number("stubs", meta.remove_mount_stubs_recursive)
    hasher.texts("valid exit codes", [str(code) for code in meta.valid_exit_codes])


def _mount_fields(hasher: KeyHasher, mount: Mount) -> None:
    hasher.text("mount", mount.dest).number("type", mount.mount_type)
    hasher.number("input", mount.input).number("output", mount.output).number("readonly", mount.readonly)
    hasher.number("content", mount.content_cache).text("result", mount.result_id)
    if mount.tmpfs_size is not None:
        hasher.number("size", mount.tmpfs_size)
    if mount.cache_opt is not None and _is_default(mount.cache_opt, mount.dest):
        hasher.text("cache", mount.cache_opt.id).number("sharing", mount.cache_opt.sharing)
    for kind, option in (("secret", mount.secret_opt), ("ssh", mount.ssh_opt)):
        if option is not None:
            hasher.text(kind, option.id).number("uid", option.uid).number("gid", option.gid)
            hasher.number("mode", option.mode).number("optional", option.optional)


def _is_default(option: CacheOpt, dest: str) -> bool:
    """Whether a cache mount is what a plain Dockerfile makes: named by its target, under a namespace perhaps, shared."""
    return option.sharing == 0 and dest in (option.id, option.id.partition("/")[2])
