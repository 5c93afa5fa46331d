"""The suite's own runner: the copied environment works, and processes of the scratch user are found."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import runtests

if TYPE_CHECKING:
    from pathlib import Path


def test_a_copied_environment_works_at_its_new_place(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(old / ".venv")], check=True)
    (old / "src").mkdir()
    (old / "src/project.py").write_text("print('hello')\n")
    (site,) = (old / ".venv/lib").glob("python*/site-packages")
    (site / "project.pth").write_text(f"{old}/src\n")
    script = old / ".venv/bin/tool"
    script.write_text(f"#!{old}/.venv/bin/python\nimport project\n")
    script.chmod(0o755)
    (new / "src").mkdir(parents=True)
    (old / "src/project.py").rename(new / "src/project.py")
    runtests.copy_venv(old / ".venv", new / ".venv")
    done = subprocess.run([str(new / ".venv/bin/tool")], capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"
