"""Git URLs in build contexts and ADD: ``https://host/repo.git#ref:subdir`` and ``?ref=…&subdir=…``.

Spec: Dockerfile reference "ADD git"; docker build "Git repositories"; behaviour of moby/buildkit ``dfgitutil``.
"""

from __future__ import annotations

import re

from crossdock.dockerfile.paths import clean
from crossdock.dockerfile.text import parse_bool, quote
from crossdock.record import Record

__all__ = ["GitRef", "GitUrlError", "parse_git_ref"]

# Compiled on first use: most builds have no Git URL.
_SCHEME = r"([a-zA-Z0-9]+)://"
_SCP = r"([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?\Z"
_FLAGS = ("submodules", "keep-git-dir", "fetch-by-commit")


class GitUrlError(ValueError):
    """The text is a Git URL with a wrong query or fragment."""


class GitRef(Record):
    """A repository and what to take from it."""

    #: URL for ``git``, without query and fragment
    remote: str
    #: ``http``, ``https``, ``ssh`` or ``git``
    scheme: str
    host: str
    path: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    #: ``checkout`` or ``commit``, "" when not given
    mtime: str = ""
    fetch_by_commit: bool = False
    #: ``github.com/org/repo``, which could be a local path; only contexts take it
    local_looking: bool = False

    @property
    def identifier(self) -> str:
        """The ``git://`` source identifier; equal for https and ssh URLs of one repository."""
        out = self.host + clean("/" + self.path)
        if self.ref or self.subdir:
            out += f"#{self.ref}" + (f":{self.subdir}" if self.subdir else "")
        return f"git://{out}"


def parse_git_ref(text: str) -> GitRef | None:
    """Read a Git URL; ``None`` when the text is something else (a path, a plain HTTP URL).

    Raises: GitUrlError.
    """
    if text.startswith(("./", "../")):
        return None
    local_looking = text.startswith("github.com/")
    if local_looking:
        text = "https://" + text
    if "://" not in text and "@" not in text:
        return None
    scheme = re.match(_SCHEME, text)
    if scheme is None:
        return _scp_style(text)
    kind = scheme[1].lower()
    if kind not in ("http", "https", "ssh", "git"):
        return None
    from urllib.parse import unquote, urlsplit, urlunsplit

    try:
        url = urlsplit(text)
    except ValueError:
        return None
    path = unquote(url.path)
    if kind in ("http", "https") and not local_looking and not path.endswith(".git"):
        return None
    remote = urlunsplit((kind, url.netloc, url.path, "", ""))
    base = GitRef(
        remote=remote.partition("://")[2] if local_looking else remote,
        scheme=kind,
        host=url.netloc.rpartition("@")[2],
        path=path,
        local_looking=local_looking,
    )
    return _with_options(base, unquote(url.fragment), url.query)


def _scp_style(text: str) -> GitRef | None:
    found = re.match(_SCP, text)
    if found is None:
        return None
    user, host, path, query, fragment = found.groups(default="")
    base = GitRef(remote=f"{user}@{host}:{path}", scheme="ssh", host=host, path=path)
    return _with_options(base, fragment, query)


def _with_options(base: GitRef, fragment: str, query: str) -> GitRef:
    values = {name: getattr(base, name) for name in type(base)._fields}
    ref, _, subdir = fragment.partition(":")
    values["ref"] = ref
    values["subdir"] = clean("/" + subdir)[1:] if subdir else ""
    tag = branch = ""
    for key, value in _query(query).items():
        match key:
            case "ref" | "subdir":
                if values[key] and values[key] != value:
                    msg = f"{key} conflicts: {quote(values[key])} vs {quote(value)}"
                    raise GitUrlError(msg)
                values[key] = value
            case "tag":
                tag = value
            case "branch":
                branch = value
            case "checksum" | "commit":
                values["checksum"] = value
            case "mtime":
                if value not in ("checkout", "commit"):
                    msg = f'invalid mtime value: {quote(value)} (must be "checkout" or "commit")'
                    raise GitUrlError(msg)
                values["mtime"] = value
            case "submodules" | "keep-git-dir" | "fetch-by-commit":
                values[key.replace("-", "_")] = _flag(key, value)
            case _:
                msg = f"unexpected query {quote(key)}"
                raise GitUrlError(msg)
    _apply_names(values, tag, branch)
    return GitRef(**values)


def _query(query: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    out: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in out:
            msg = f"query {quote(key)} has multiple values"
            raise GitUrlError(msg)
        if not value and key not in _FLAGS:
            msg = f"query {quote(key)} has no value"
            raise GitUrlError(msg)
        out[key] = value
    return out


def _flag(key: str, value: str) -> bool:
    if not value:
        return True
    try:
        return parse_bool(value)
    except ValueError:
        msg = f"invalid {key} value: {quote(value)}"
        raise GitUrlError(msg) from None


def _apply_names(values: dict[str, str], tag: str, branch: str) -> None:
    if tag and branch:
        msg = "branch conflicts with tag"
        raise GitUrlError(msg)
    for name, prefix in ((tag, "refs/tags/"), (branch, "refs/heads/")):
        if name:
            full = name if name.startswith(prefix) else prefix + name
            if values["ref"] and values["ref"] != full:
                msg = f"ref conflicts: {quote(values['ref'])} vs {quote(full)}"
                raise GitUrlError(msg)
            values["ref"] = full
