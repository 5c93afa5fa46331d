"""Remove a tree whose files belong to ids of this user's subordinate range."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path


def subordinate_range(table: str) -> tuple[int, int] | None:
    """This user's first range (start, count) in ``/etc/subuid`` or ``/etc/subgid``, or None."""
    me = {pwd.getpwuid(os.getuid()).pw_name, str(os.getuid())}
    path = Path(table)
    for line in path.read_text().splitlines() if path.exists() else []:
        owner, _, numbers = line.partition(":")
        if owner in me:
            start, _, count = numbers.partition(":")
            return int(start), int(count)
    return None


def remove_tree(path: Path) -> None:
    """Remove ``path``; as an ordinary user from inside a user namespace that maps this user's ranges."""
    if not path.exists():
        return
    if os.geteuid() == 0:
        shutil.rmtree(path)
        return
    uids, gids = subordinate_range("/etc/subuid"), subordinate_range("/etc/subgid")
    if not uids or not gids or not shutil.which("newuidmap"):
        subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True, capture_output=True)
        shutil.rmtree(path)
        return
    script = 'echo ready; read -r mapped; exec rm -rf -- "$1"'
    command = ["unshare", "--user", "sh", "-ec", script, "sh", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for tool, own, (start, count) in (("newuidmap", os.getuid(), uids), ("newgidmap", os.getgid(), gids)):
            numbers = map(str, (child.pid, 0, own, 1, 1, start, count))
            subprocess.run([tool, *numbers], check=True, capture_output=True)
        _, complaint = child.communicate(b"mapped\n", timeout=60)
    assert child.returncode == 0, complaint.decode()
