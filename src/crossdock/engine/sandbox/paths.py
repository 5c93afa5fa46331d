"""Paths inside a root file system that is not ours: symlinks in it must not lead out of it. And the programs and folders of ours.

Safe while nothing runs in the root; a step that runs at the same time could still exchange a directory.
"""

from __future__ import annotations

import os
import stat

__all__ = ["find_program", "make_directories", "remove_folder", "resolve_in_root"]

_MAX_LINKS = 255


def resolve_in_root(root: str, path: str) -> str:
    """Return where ``path`` leads when ``root`` is ``/``: symlinks followed, absent parts kept as they are.

    Raises: OSError (ELOOP) for a loop of symlinks.
    """
    pending = [part for part in path.split("/") if part not in ("", ".")]
    pending.reverse()
    resolved: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            if resolved:
                resolved.pop()
            continue
        target = _read_link("/".join((root, *resolved, part)))
        if target is None:
            resolved.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            code = 40
            raise OSError(code, os.strerror(code), path)
        if target.startswith("/"):
            resolved.clear()
        pending += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
    return "/".join((root, *resolved))


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def make_directories(root: str, path: str, *, uid: int = 0, gid: int = 0, mode: int = 0o755) -> str:
    """Make the directory ``path`` and its absent parents below ``root``; returns its real path.

    Raises: NotADirectoryError when a part exists as something else.
    """
    target = resolve_in_root(root, path)
    absent: list[str] = []
    at = target
    while len(at) > len(root):
        try:
            found = os.lstat(at)
        except (FileNotFoundError, NotADirectoryError):
            absent.append(at)
            at = os.path.dirname(at)
            continue
        if not stat.S_ISDIR(found.st_mode):
            code = 20
            raise NotADirectoryError(code, os.strerror(code), at[len(root) :])
        break
    for directory in reversed(absent):
        os.mkdir(directory)
        os.chmod(directory, mode)
        os.chown(directory, uid, gid)
    return target


def find_program(name: str, path: str | None = None) -> str | None:
    """Return where a program is, looked for in ``path`` or the environment's; as ``shutil.which``.

    Not that: shutil loads three compression libraries, which takes as long as starting a step.
    """
    folders = [""] if "/" in name else (path or os.environ.get("PATH", os.defpath)).split(os.pathsep)
    for folder in folders:
        file = os.path.join(folder, name)
        if os.path.isfile(file) and os.access(file, os.X_OK):
            return file
    return None


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder of ours and what is in it; links are not followed. Raises: OSError."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_folder(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)
