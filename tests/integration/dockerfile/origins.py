"""What builds take from elsewhere: archives and Git repositories."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def archive(files: dict[str, str], mode: str = "w") -> bytes:
    """A tar of files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o640
            entry.uid, entry.gid = 1000, 50
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def git(*args: str, cwd: Path) -> str:
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(folder: Path, files: dict[str, str], bare: Path) -> str:
    """Commit files and put a bare copy where a plain web server can serve it; returns the commit."""
    folder.mkdir(exist_ok=True)
    git("init", "-q", "-b", "main", cwd=folder)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "-m", "one", cwd=folder)
    git("clone", "-q", "--bare", str(folder), str(bare), cwd=folder)
    git("update-server-info", cwd=bare)
    return git("rev-parse", "HEAD", cwd=folder)
