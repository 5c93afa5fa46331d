"""Git repositories as build sources: ``git://HOST/PATH#REF:SUBDIR``.

A source is keyed by the commit the ref means now. Objects are kept in one bare repository per remote, fetched as
shallowly as the server allows; the checkout becomes a layer.

Spec: moby/buildkit ``source/git``; attributes ``git.fullurl``, ``git.keepgitdir``, ``git.authheadersecret``,
``git.authtokensecret``, ``git.knownsshhosts``, ``git.mountsshsock``, ``git.checksum``, ``git.skipsubmodules``, ``git.mtime``,
``git.fetchbycommit``.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crossdock.engine.cache.refs import Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.engine.sources.gitrun import Git, GitFailed, redact
from crossdock.errors import NotSupported, SolveError
from crossdock.llb.ops import SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.llb.graph import Node

__all__ = ["GitFacts", "GitSolverOp"]

_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_HEX = re.compile(r"[0-9a-fA-F]+\Z")
_KNOWN = frozenset(
    f"git.{name}"
    for name in [
        "fullurl",
        "keepgitdir",
        "authheadersecret",
        "authtokensecret",
        "knownsshhosts",
        "mountsshsock",
        "checksum",
        "skipsubmodules",
        "mtime",
        "fetchbycommit",
    ]
)


class GitFacts(NamedTuple):
    """What a ref of a repository is, without a checkout."""

    #: full name, or the commit itself
    ref: str
    #: the commit, or the annotated tag that leads to it
    checksum: str
    #: the commit behind an annotated tag; ``""`` when there is none
    commit: str = ""
    commit_object: bytes = b""
    tag_object: bytes = b""


class _Name(NamedTuple):
    """What a remote says of a ref."""

    commit: str
    #: object of an annotated tag
    tag: str = ""
    ref: str = ""


class GitSolverOp(BaseOp):
    """One ref of one repository."""

    __slots__ = ("_attrs", "_name", "_ref", "_remote", "_subdir")

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, SourceOp):
            summary = "invalid git source"
            raise SolveError(summary, vertex=self.vertex)
        self._attrs = node.op.attrs
        for name in self._attrs:
            if name.startswith("git.sig.") or name in ("git.bundle", "git.checkoutbundle"):
                summary = f"{redact(node.op.identifier)}: {name} is not supported: neither signatures nor bundles are handled here"
                raise NotSupported(summary)
            if name not in _KNOWN:
                msg = f"the attribute {name} is not supported by the embedded engine"
                raise self._error(msg)
        location, _, fragment = node.op.identifier.removeprefix("git://").partition("#")
        self._ref, _, subdir = fragment.partition(":")
        self._subdir = os.path.normpath("/" + subdir).strip("/")
        self._remote = self._attrs.get("git.fullurl") or f"https://{location}"
        if self._remote.startswith("-") or self._ref.startswith("-"):
            msg = "remote and ref must not start with a dash"
            raise self._error(msg)
        self._name: _Name | None = None

    def cache_map(self, ctx: OpContext) -> CacheMap:
        """Key: the commit, and what is taken of it."""
        commit = self._resolve(ctx)
        hasher = KeyHasher("git").text("commit", commit).text("subdir", self._subdir)
        for name in ("keepgitdir", "skipsubmodules", "mtime"):
            hasher.text(name, self._attrs.get(f"git.{name}", ""))
        if self._flag("keepgitdir"):
            # The checkout then tells where it came from.
            hasher.text("remote", redact(self._remote)).text("ref", self._ref)
        return CacheMap(hasher.finish())

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Fetch the commit and check it out into a layer."""
        commit = self._resolve(ctx)
        store, lease = self.env.store, self.env.lease
        description = f"git checkout of {redact(self._remote)}"
        with ExitStack() as stack:
            git = self._git(stack, ctx)
            bare = stack.enter_context(self._repository(ctx))
            self._fetch(git, bare, commit)
            layer = stack.enter_context(store.layers.new(lease, kind="source", description=description))
            self._checkout(git, bare, commit, layer.fs)
            return [Ref((layer.commit(),))]

    def describe(self, ctx: OpContext, *, objects: bool) -> GitFacts:
        """Say what the ref is; with ``objects`` fetch what it leads to, for whoever checks signatures.

        Raises: SolveError; SandboxError without git; the token's cause.
        """
        self._resolve(ctx)
        name = self._name or _Name("")
        keep = self._flag("keepgitdir")
        facts = GitFacts(name.ref or name.commit, name.tag or name.commit)
        if name.tag and not keep:
            facts = facts._replace(commit=name.commit)
        if not objects:
            return facts
        with ExitStack() as stack:
            git = self._git(stack, ctx)
            bare = stack.enter_context(self._repository(ctx))
            self._fetch(git, bare, name.commit)
            at = git.at(bare)
            try:
                if name.tag:
                    if not at.succeeds("cat-file", "-e", name.tag):
                        at.run("fetch", "-q", "--depth=1", "--no-tags", "--", self._remote, name.ref)
                    facts = facts._replace(
                        commit=name.commit, tag_object=at.output("cat-file", "tag", name.tag)
                    )
                return facts._replace(commit_object=at.output("cat-file", "commit", name.commit))
            except GitFailed as exc:
                msg = f"failed to read {name.ref or name.commit}: {exc}"
                raise self._error(msg) from exc

    # steps

    def _repository(self, ctx: OpContext) -> AbstractContextManager[Path]:
        """Return the bare repository in which the remote's objects are kept."""
        return self.env.store.mounts.use(
            self.env.lease,
            name=f"git:{redact(self._remote)}",
            sharing="locked",
            cancel=ctx.cancel,
            namespace="git",
        )

    def _resolve(self, ctx: OpContext) -> str:
        if self._name is None:
            with ExitStack() as stack:
                self._name = self._ask(self._git(stack, ctx))
            self.env.pins[self.vertex] = self._name.commit
        return self._name.commit

    def _ask(self, git: Git) -> _Name:
        wanted = self._attrs.get("git.checksum", "").lower()
        if wanted and not _HEX.match(wanted):
            msg = f"invalid checksum {wanted}: expected a commit hash"
            raise self._error(msg)
        if _SHA.match(self._ref):
            if wanted and not self._ref.startswith(wanted):
                msg = f"expected checksum to match {wanted}, got {self._ref}"
                raise self._error(msg)
            return _Name(self._ref)
        if self._flag("fetchbycommit"):
            if not _SHA.match(wanted):
                msg = f"fetch-by-commit requires a full commit SHA checksum, got {wanted!r}"
                raise self._error(msg)
            return _Name(wanted, ref=self._ref)
        ref = self._ref or "HEAD"
        try:
            listing = git.run("ls-remote", "--symref", "--", self._remote, ref, f"{ref}^{{}}")
        except GitFailed as exc:
            msg = f"failed to fetch remote: {exc}"
            raise self._error(msg) from exc
        found = _choose(listing, ref)
        if not found.commit:
            msg = f"repository does not contain ref {ref}"
            raise self._error(msg)
        if wanted and not found.commit.startswith(wanted) and not found.tag.startswith(wanted):
            msg = f"expected checksum to match {wanted}, got {found.commit}"
            raise self._error(msg)
        return found

    def _fetch(self, git: Git, bare: Path, commit: str) -> None:
        at = git.at(bare)
        if not (bare / "HEAD").exists():
            at.run("-c", "init.defaultBranch=master", "init", "-q", "--bare", *_object_format(commit))
        (bare / "shallow.lock").unlink(missing_ok=True)
        if at.succeeds("cat-file", "-e", f"{commit}^{{commit}}"):
            return
        attempts = (
            ("--depth=1", commit),
            ("--depth=1", self._ref or "HEAD"),
            ("--tags", self._ref or "HEAD"),
        )
        failure: GitFailed | None = None
        for option, what in attempts:
            # Not every server gives out arbitrary commits; the ref that leads to it always works.
            try:
                at.run("fetch", "-q", "--no-tags" if option != "--tags" else option, *_depth(option), "--force",
                       "--update-head-ok", "--", self._remote, what)  # fmt: skip
            except GitFailed as exc:
                failure = exc
                continue
            if at.succeeds("cat-file", "-e", f"{commit}^{{commit}}"):
                return
        text = str(failure) if failure is not None else f"commit {commit} was not found"
        msg = f"failed to fetch: {text}"
        raise self._error(msg)

    def _checkout(self, git: Git, bare: Path, commit: str, target: Path) -> None:
        keep, submodules = self._flag("keepgitdir"), not self._flag("skipsubmodules")
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            work = Path(scratch) / "work"
            work.mkdir()
            at = git.at(work / ".git", work)
            try:
                at.run("-c", "init.defaultBranch=master", "init", "-q", *_object_format(commit))
                at.run("fetch", "-q", "--depth=1", "--", f"file://{bare}", commit)
                at.run("-c", "advice.detachedHead=false", "checkout", "-q", "--force", commit)
                if keep:
                    at.run("remote", "add", "origin", redact(self._remote))
                if submodules and (work / ".gitmodules").exists():
                    self._submodules(at)
            except GitFailed as exc:
                msg = f"failed to check out {commit}: {exc}"
                raise self._error(msg) from exc
            self._take(work, target, keep=keep, mtime=self._commit_time(at, commit))

    def _submodules(self, at: Git) -> None:
        update = (
            *("-c", f"remote.origin.url={self._remote}"),
            *("submodule", "update", "-q", "--init", "--recursive", "--force"),
        )
        # Not every server gives out parts of the history.
        if not at.succeeds(*update, "--depth=1"):
            at.run(*update)

    def _take(self, work: Path, target: Path, *, keep: bool, mtime: int | None) -> None:
        root = work / self._subdir if self._subdir else work
        if not keep:
            shutil.rmtree(work / ".git")
            _drop_links(work)
        inside = root.resolve()
        if not inside.is_dir() or not inside.is_relative_to(work.resolve()):
            msg = f"the subdirectory {self._subdir} is not a directory of the repository"
            raise self._error(msg)
        for entry in inside.iterdir():
            entry.rename(target / entry.name)
        if keep and self._subdir:
            (work / ".git").rename(target / ".git")
        if mtime is not None:
            for folder, names, files in os.walk(target):
                for name in (*names, *files):
                    os.utime(f"{folder}/{name}", ns=(mtime * 10**9,) * 2, follow_symlinks=False)

    def _commit_time(self, at: Git, commit: str) -> int | None:
        if self._attrs.get("git.mtime") != "commit":
            return None
        return int(at.run("show", "-s", "--format=%ct", commit).strip())

    # surroundings

    def _git(self, stack: ExitStack, ctx: OpContext) -> Git:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-git-")))
        git = Git(home, ctx.cancel)
        if header := self._auth_header():
            scheme_host = "{0.scheme}://{0.netloc}/".format(urlsplit(self._remote))
            git.set_header(scheme_host, header)
        if "ssh" in self._remote.partition(":")[0] or "@" in self._remote.partition(":")[0]:
            agent = self.env.ssh(self._attrs.get("git.mountsshsock") or "default")
            git.set_ssh(self._attrs.get("git.knownsshhosts", ""), agent)
        return git

    def _auth_header(self) -> str:
        host = urlsplit(self._remote).hostname or ""
        for name, token in (
            (self._attrs.get("git.authheadersecret"), False),
            (self._attrs.get("git.authtokensecret"), True),
        ):
            for secret_id in (f"{name}.{host}", name) if name else ():
                secret = self.env.secrets(secret_id)
                if secret is None:
                    continue
                value = secret.reveal().strip()
                return (
                    "basic " + base64.b64encode(b"x-access-token:" + value).decode()
                    if token
                    else value.decode()
                )
        return ""

    def _flag(self, name: str) -> bool:
        return self._attrs.get(f"git.{name}", "").lower() in ("true", "1")

    def _error(self, text: str) -> SolveError:
        remote = redact(getattr(self, "_remote", "") or "git source")
        return SolveError(
            f"{remote}: {text}", vertex=self.vertex, vertex_name=self.node.name, source=self.node.source
        )


def _choose(listing: str, ref: str) -> _Name:
    """Pick the commit a ref means from ``ls-remote`` output, and the tag object that led there."""
    pairs = [(name, sha) for sha, _, name in (line.partition("\t") for line in listing.splitlines())]
    found = {name: sha for name, sha in pairs if not sha.startswith("ref: ")}
    leads = {name: sha.removeprefix("ref: ") for name, sha in pairs if sha.startswith("ref: ")}
    head = f"refs/heads/{ref.removeprefix('refs/heads/')}"
    tag = f"refs/tags/{ref.removeprefix('refs/tags/')}"
    if head in found:
        return _Name(found[head], ref=head)
    if f"{tag}^{{}}" in found:
        return _Name(found[f"{tag}^{{}}"], found.get(tag, ""), tag)
    for name in (tag, f"refs/{ref.removeprefix('refs/')}", ref):
        if name in found:
            return _Name(found[name], ref=leads.get(name, name))
    return _Name("")


def _drop_links(work: Path) -> None:
    """Remove the files that tie submodules to the repository, which is gone."""
    for folder, _, files in os.walk(work):
        if ".git" in files:
            os.unlink(f"{folder}/.git")


def _depth(option: str) -> list[str]:
    return [option] if option.startswith("--depth") else []


def _object_format(commit: str) -> list[str]:
    return ["--object-format=sha256"] if len(commit) == 64 else []
