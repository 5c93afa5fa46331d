"""What went into a build: images, repositories, downloads and local directories; secrets and agents by name.

Taken from the graph itself, so that cached steps count as those that ran.

Spec: moby/buildkit ``solver/llbsolver/provenance`` (Capture), ``solver/llbsolver/provenance.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from crossdock.errors import UsageError
from crossdock.image.purl import image_purl
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import walk
from crossdock.llb.ops import BuildOp, ExecOp, MountType, NetMode, SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from crossdock.builds.images import ResolvedSource
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Node, Output

__all__ = ["Captured", "Material", "capture", "commit_set", "materials", "redacted"]

_MASK = "xxxxx"


class Material(NamedTuple):
    """One thing a build was made of."""

    uri: str
    #: algorithm to hexadecimal digits; empty when unknown
    digest: Mapping[str, str]


class Captured:
    """What was found; each list in order of discovery, without repetitions."""

    def __init__(self) -> None:
        self.images: list[ResolvedSource] = []
        #: URL with ``#ref``, and commit
        self.git: dict[str, str] = {}
        #: URL, and digest
        self.http: dict[str, str] = {}
        self.locals: list[str] = []
        #: id, and whether the build goes on without it
        self.secrets: dict[str, bool] = {}
        self.ssh: dict[str, bool] = {}
        #: whether a step could reach the network
        self.network = False
        #: whether something was used that cannot be listed
        self.incomplete = False

    def add_image(self, image: ResolvedSource) -> None:
        """Note an image, once per reference and platform."""
        if image not in self.images:
            self.images.append(image)

    def add_local(self, name: str) -> None:
        """Note a local directory."""
        if name not in self.locals:
            self.locals.append(name)


def capture(
    outputs: Iterable[Output | None],
    pin: Callable[[str], str],
    *,
    resolved: Sequence[ResolvedSource] = (),
    platform: Platform | None = None,
    platforms: Sequence[Platform] = (),
    locals_: Sequence[str] = (),
) -> Captured:
    """Walk graphs; ``pin`` tells what a source vertex turned out to be.

    ``resolved`` are the images a frontend asked about. One that was resolved for all ``platforms`` counts for
    ``platform`` only where it was resolved for that.
    """
    found = Captured()
    for node in walk([output for output in outputs if output is not None]):
        if isinstance(node.op, SourceOp):
            _source(found, node, node.op, pin(node.digest))
        elif isinstance(node.op, ExecOp):
            _exec(found, node.op)
        elif isinstance(node.op, BuildOp):
            found.incomplete = True
    for name in locals_:
        found.add_local(name)
    for image in _of_platform(resolved, platform, platforms):
        found.add_image(image)
    found.images = _without_pinned_twins(found.images)
    found.images.sort(key=lambda image: (image.ref, str(image.platform or "")))
    found.locals.sort()
    return found


def _source(found: Captured, node: Node, op: SourceOp, pin: str) -> None:
    from crossdock.builds.images import ResolvedSource

    scheme, _, rest = op.identifier.partition("://")
    match scheme:
        case "docker-image" | "oci-layout":
            digest = pin or rest.partition("@")[2]
            found.add_image(ResolvedSource(rest, node.platform, digest, scheme == "oci-layout"))
        case "local":
            found.add_local(rest)
        case "http" | "https":
            found.http.setdefault(redacted(op.identifier), pin or op.attrs.get("http.checksum", ""))
        case "git":
            location, _, fragment = rest.partition("#")
            ref = fragment.partition(":")[0]
            url = redacted(op.attrs.get("git.fullurl") or f"https://{location}")
            found.git.setdefault(url + (f"#{ref}" if ref else ""), pin)
            for name in ("git.authtokensecret", "git.authheadersecret"):
                if op.attrs.get(name):
                    found.secrets.setdefault(op.attrs[name], True)
            if op.attrs.get("git.mountsshsock"):
                found.ssh.setdefault(op.attrs["git.mountsshsock"], True)
        case _:
            found.incomplete = True


def _exec(found: Captured, op: ExecOp) -> None:
    def note(names: dict[str, bool], name: str, *, optional: bool) -> None:
        names[name] = names.get(name, True) and optional

    for mount in op.mounts:
        if mount.mount_type is MountType.SECRET and mount.secret_opt is not None:
            note(found.secrets, mount.secret_opt.id, optional=mount.secret_opt.optional)
        elif mount.mount_type is MountType.SSH and mount.ssh_opt is not None:
            note(found.ssh, mount.ssh_opt.id or "default", optional=mount.ssh_opt.optional)
    for secret in op.secret_env:
        note(found.secrets, secret.id, optional=secret.optional)
    if op.network is not NetMode.NONE:
        found.network = True


def _of_platform(
    resolved: Sequence[ResolvedSource], platform: Platform | None, platforms: Sequence[Platform]
) -> list[ResolvedSource]:
    """Leave out what was resolved for another target platform."""
    if platform is None or len(platforms) < 2:
        return list(resolved)
    have: dict[str, set[tuple[str, str]]] = {}
    for image in resolved:
        if image.platform is not None:
            have.setdefault(image.ref, set()).add((image.platform.os, image.platform.architecture))
    wanted = {(p.os, p.architecture) for p in platforms}
    own = (platform.os, platform.architecture)
    return [
        image
        for image in resolved
        if image.platform is None
        or not wanted <= have[image.ref]
        or (image.platform.os, image.platform.architecture) == own
    ]


def _without_pinned_twins(images: Sequence[ResolvedSource]) -> list[ResolvedSource]:
    """Leave out references by digest of images that are there by tag: graphs have both."""
    parsed = [parse_reference(image.ref) for image in images]
    tags = {(ref.repository, ref.tag or "latest") for ref in parsed if ref.digest is None}
    return [
        image
        for image, ref in zip(images, parsed, strict=True)
        if ref.digest is None or (ref.repository, ref.tag or "latest") not in tags
    ]


def materials(found: Captured) -> list[Material]:
    """List what a build was made of: images, repositories, downloads; each kind in order of its names."""
    out: list[Material] = []
    for image in found.images:
        try:
            uri = image_purl(
                parse_reference(image.ref), image.platform, kind="oci" if image.local else "docker"
            )
        except UsageError:
            uri = image.ref
        out.append(Material(uri, _digest_set(image.digest)))
    out += [Material(url, commit_set(found.git[url])) for url in sorted(found.git)]
    out += [Material(url, _digest_set(found.http[url])) for url in sorted(found.http)]
    return out


def _digest_set(digest: str) -> dict[str, str]:
    algorithm, colon, digits = digest.partition(":")
    return {algorithm: digits} if colon else {}


def commit_set(commit: str) -> dict[str, str]:
    """Return the digest of a commit, by the hash its repository uses."""
    if not commit:
        return {}
    return {"sha256" if len(commit) == 64 else "sha1": commit}


def redacted(url: str) -> str:
    """Return a URL with user name and password masked; other text as it is."""
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        return url
    if not parts.scheme or not parts.netloc or (not user and password is None):
        return url
    host = parts.netloc.rpartition("@")[2]
    login = (_MASK if user else "") + (f":{_MASK}" if password is not None else "")
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))
