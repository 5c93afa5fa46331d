"""Paths inside images: cleaned and joined as BuildKit does, for Linux and Windows targets.

Spec: moby/buildkit ``util/system`` path rules.
"""

from __future__ import annotations

import posixpath

__all__ = ["PathError", "clean", "default_path_env", "is_absolute", "normalise", "to_slash", "workdir"]

_UNIX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PathError(ValueError):
    """The path cannot be used for the target's operating system."""


def clean(path: str) -> str:
    """Return the shortest equivalent path, ``.`` for the empty one."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def default_path_env(os_name: str) -> str | None:
    """Return the PATH that images without one get; ``None`` where the system decides."""
    return None if os_name == "windows" else _UNIX_PATH


def to_slash(path: str, os_name: str) -> str:
    """Return the path with forward slashes."""
    return path.replace("\\", "/") if os_name == "windows" else path


def is_absolute(path: str, os_name: str) -> bool:
    """Return whether the path is absolute inside the image."""
    try:
        return to_slash(_without_drive(path, os_name, keep_slash=False), os_name).startswith("/")
    except PathError:
        return False


def normalise(parent: str, path: str, os_name: str, *, keep_slash: bool) -> str:
    """Return ``path`` as an absolute path with forward slashes, relative ones taken from ``parent``.

    ``keep_slash`` keeps a trailing ``/`` or ``/.``, which say that the destination is a directory.
    Raises: PathError.
    """
    path = original = to_slash(path, os_name)
    parent = _without_drive(to_slash(parent, os_name) or "/", os_name, keep_slash=keep_slash)
    if not parent.startswith("/"):
        parent = clean("/" + parent)
    path = _without_drive(path or parent, os_name, keep_slash=keep_slash)
    if not path.startswith("/"):
        path = clean(f"{parent}/{path}")
    if keep_slash:
        if original.endswith("/") and not path.endswith("/"):
            path += "/"
        elif original.endswith("/."):
            path = (path if path == "/" else path + "/") + "."
    return path


def workdir(current: str, path: str, os_name: str) -> str:
    """Return the working directory after ``WORKDIR path``, with the target's separators.

    Raises: PathError.
    """
    found = normalise(current, path, os_name, keep_slash=False)
    return found.replace("/", "\\") if os_name == "windows" else found


def _without_drive(path: str, os_name: str, *, keep_slash: bool) -> str:
    if os_name != "windows":
        return path
    if len(path) == 2 and path[1] == ":":
        msg = f'No relative path specified in "{path}"'
        raise PathError(msg)
    path = to_slash(path, os_name)
    if path.startswith("//"):
        msg = "UNC paths are not supported"
        raise PathError(msg)
    drive, colon, rest = path.partition(":")
    if not colon:
        rest = path
    elif drive.lower() != "c":
        msg = "The specified path is not on the system drive (C:)"
        raise PathError(msg)
    cleaned = clean(rest)
    return cleaned + "/" if keep_slash and len(cleaned) > 1 and rest.endswith("/") else cleaned
