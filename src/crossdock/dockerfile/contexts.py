"""Build contexts: where files come from, and the LLB source of each kind.

A context is declared as a :data:`ContextSpec`; :func:`parse_context` reads BuildKit's text forms. The caller fetches
nothing here: it solves :func:`context_output` when it needs a Dockerfile from a remote context.

Spec: docker build "Build context"; behaviour of moby/buildkit ``frontend/dockerui``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from crossdock.dockerfile.giturl import GitRef, GitUrlError, parse_git_ref
from crossdock.errors import DigestMismatch, UsageError
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionCopy, FileOp, OpMetadata, SourceOp
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.image.config import ImageConfig

__all__ = [
    "ContextSpec",
    "GitContext",
    "HttpContext",
    "ImageContext",
    "InputContext",
    "LocalContext",
    "OciLayoutContext",
    "context_output",
    "definition_source",
    "git_source",
    "http_source",
    "is_archive",
    "local_source",
    "named",
    "parse_context",
]


class LocalContext(Record):
    """A directory of the client, served under ``name``."""

    name: str = "context"
    #: tells contexts of the same name apart (BuildKit's shared key)
    shared_key: str = ""


class ImageContext(Record):
    """``docker-image://ref``."""

    ref: str


class OciLayoutContext(Record):
    """``oci-layout://store@digest``: an image in a layout that the caller serves under a store name."""

    store: str
    digest: str


class GitContext(Record):
    """A Git repository."""

    git: GitRef
    #: as written, for display
    text: str


class HttpContext(Record):
    """An HTTP(S) URL: an archive that is unpacked, or a single file."""

    url: str
    #: set by the caller after looking at the first bytes (:func:`is_archive`); main contexts only
    archive: bool = False


class InputContext(Record):
    """A result made elsewhere: another target, or a frontend input."""

    output: Output | None
    config: ImageConfig | None = None


ContextSpec = LocalContext | ImageContext | OciLayoutContext | GitContext | HttpContext | InputContext


def parse_context(text: str) -> ContextSpec:
    """Read BuildKit's text form: ``docker-image://…``, ``oci-layout://…``, ``local:name``, a Git or HTTP URL.

    ``target:`` and ``input:`` are the caller's to replace by :class:`InputContext`.
    Raises: UsageError.
    """
    kind, _, rest = text.partition(":")
    try:
        git = parse_git_ref(text)
    except GitUrlError as exc:
        summary = f"invalid git context {text}: {exc}"
        raise UsageError(summary) from exc
    if git is not None:
        return GitContext(git=git, text=text)
    if text.startswith(("http://", "https://")):
        return HttpContext(url=text)
    rest = rest.removeprefix("//")
    if kind == "docker-image" and rest:
        return ImageContext(ref=rest)
    if kind == "local" and rest:
        return LocalContext(name=rest)
    if kind == "oci-layout":
        try:
            ref = parse_reference(rest)
        except DigestMismatch as exc:
            summary = f"invalid context specifier {text}: {exc.summary}"
            raise UsageError(summary, hint=exc.hint) from exc
        if ref.digest is None:
            summary = f'oci-layout reference "{rest}" has no digest'
            raise UsageError(summary, hint="resolve the tag in the layout's index.json first")
        head, slash, last = rest.partition("@")[0].rpartition("/")
        store = head + slash + last.partition(":")[0]
        return OciLayoutContext(store=store, digest=ref.digest)
    summary = f"unsupported context source {kind} for {text}" if rest else f"invalid context specifier {text}"
    raise UsageError(summary, hint="use a directory, docker-image://, oci-layout://, https:// or a Git URL")


def named(name: str, *, command: str = "") -> OpMetadata:
    """Return the metadata of a step shown as ``name``."""
    description = {"llb.customname": name}
    if command:
        description["com.docker.dockerfile.v1.command"] = command
    return OpMetadata(description=description)


def local_source(
    name: str,
    *,
    title: str,
    hint: str,
    session: str = "",
    follow: Sequence[str] = (),
    exclude: Sequence[str] = (),
    differ: str = "",
) -> Output:
    """Return the source of a local directory; ``follow`` empty = everything."""
    attrs: dict[str, str] = {}
    if session:
        attrs["local.session"] = session
    if follow:
        attrs["local.followpaths"] = go_json(follow)
    if exclude:
        attrs["local.excludepatterns"] = go_json(exclude)
    if hint:
        attrs["local.sharedkeyhint"] = hint
    if differ:
        attrs["local.differ"] = differ
    return Output(Node(SourceOp(f"local://{name}", attrs), metadata=named(title)))


def go_json(items: Sequence[str]) -> str:
    """Encode a list of strings as Go's ``json.Marshal`` does, HTML characters escaped."""
    text = json.dumps(list(items), ensure_ascii=False, separators=(",", ":"))
    for ch in "<>&\u2028\u2029":
        if ch in text:
            text = text.replace(ch, f"\\u{ord(ch):04x}")
    return text


def definition_source(filename: str, *, local: str = "dockerfile", session: str = "") -> Output:
    """Return the source that holds the Dockerfile and its ignore file."""
    follow = [filename, filename + ".dockerignore"]
    head, _, base = filename.rpartition("/")
    if base == "Dockerfile":
        follow.append(f"{head}/dockerfile" if head else "dockerfile")
    return local_source(
        local,
        title=f"[internal] load build definition from {filename}",
        hint=local,
        session=session,
        follow=follow,
        differ="none",
    )


def git_source(git: GitRef, *, keep_git_dir: bool = False, checksum: str = "", mtime: str = "") -> SourceOp:
    """Return the source of a Git repository."""
    attrs: dict[str, str] = {}
    if keep_git_dir:
        attrs["git.keepgitdir"] = "true"
    attrs["git.fullurl"] = f"https://{git.remote}" if git.local_looking else git.remote
    attrs["git.authtokensecret"] = "GIT_AUTH_TOKEN"
    attrs["git.authheadersecret"] = "GIT_AUTH_HEADER"
    if git.scheme == "ssh":
        attrs["git.mountsshsock"] = "default"
    if checksum or git.checksum:
        attrs["git.checksum"] = checksum or git.checksum
    if git.submodules is False:
        attrs["git.skipsubmodules"] = "true"
    if git.mtime or mtime:
        attrs["git.mtime"] = git.mtime or mtime
    if git.fetch_by_commit:
        attrs["git.fetchbycommit"] = "true"
    return SourceOp(git.identifier, attrs)


def http_source(url: str, *, filename: str, checksum: str = "") -> SourceOp:
    """Return the source of one remote file."""
    attrs = {"http.checksum": checksum} if checksum else {}
    attrs["http.filename"] = filename
    return SourceOp(url, attrs)


def context_output(
    spec: GitContext | HttpContext | InputContext, *, keep_git_dir: bool = False, epoch: bool = False
) -> Output | None:
    """Return the source of a remote main context, which also holds the Dockerfile.

    ``keep_git_dir`` is ``BUILDKIT_CONTEXT_KEEP_GIT_DIR``; with ``epoch`` files get the commit's time.
    """
    match spec:
        case InputContext():
            return spec.output
        case GitContext(git=git, text=text):
            metadata = named(f"[internal] load git source {text}")
            keep = keep_git_dir or git.keep_git_dir is True
            op = git_source(git, keep_git_dir=keep, mtime="commit" if epoch else "")
            return Output(Node(op, metadata=metadata))
        case HttpContext(url=url, archive=archive):
            metadata = named("[internal] load remote build context")
            file = Output(Node(http_source(url, filename="context"), metadata=metadata))
            return _unpacked(file) if archive else file


def _unpacked(file: Output) -> Output:
    copy = FileActionCopy(src="/context", dest="/", attempt_unpack=True)
    action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
    return Output(Node(FileOp((action,)), [file]))


def is_archive(header: bytes) -> bool:
    """Return whether the first 1024 bytes of a file are those of a tar, possibly compressed."""
    # zstd is not BuildKit's, but no Dockerfile starts like that.
    if header.startswith((b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        return True
    if len(header) < 512:
        return False
    block = header[:512]
    try:
        stored = int(block[148:156].rstrip(b" \x00").lstrip() or b"x", 8)
    except ValueError:
        return False
    return stored == sum(block[:148]) + 8 * 32 + sum(block[156:])
