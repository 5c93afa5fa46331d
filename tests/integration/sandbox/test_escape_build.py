"""What a Dockerfile must not be able to do, tried through ``crossdock build``.

``test_escape.py`` tries the same on the sandbox alone, and in more of its variants.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from crossdock.image.platform import local_platform
from support.escapes import ATTEMPTS
from support.needs import missing

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

SECRET = "leak-me-if-you-can"


def context(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(text)
    return folder


def lines_of(log: str, step: str) -> list[str]:
    """What a step printed, without the numbers and times of the plain log."""
    number = re.search(rf"^#(\d+) \[.*\] {step}", log, re.MULTILINE)
    assert number, log
    return re.findall(rf"^#{number[1]} [\d.]+ ?(.*)$", log, re.MULTILINE)


@pytest.fixture(scope="module")
def answers(
    shared_crossdock: Crossdock, base: BaseImages, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What each attempt printed: all in one step, each in a shell of its own."""
    marker = tmp_path_factory.mktemp("host") / "marker"
    marker.write_text("OUT")
    folder = tmp_path_factory.mktemp("context")
    script = ""
    for number, (attempt, _) in enumerate(ATTEMPTS.values()):
        encoded = base64.b64encode(attempt.format(marker=marker).encode()).decode()
        script += f'echo ATTEMPT {number}; (sh -c "$(echo {encoded} | base64 -d)") 2>&1\n'
    (folder / "try.sh").write_text(script)
    context(folder, f"FROM {base.index}\nCOPY try.sh /\nRUN sh /try.sh; true\n")
    done = shared_crossdock("build", folder, "--progress=plain").ok()
    said = "\n".join(lines_of(done.err, "RUN sh"))
    parts = re.split(r"^ATTEMPT \d+$", said, flags=re.MULTILINE)[1:]
    assert len(parts) == len(ATTEMPTS)
    return dict(zip(ATTEMPTS, parts, strict=True))


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in ATTEMPTS])
def test_escape(name: str, answers: dict[str, str]) -> None:
    said = answers[name]
    if name == "its init is itself":
        assert re.search("busybox|sh", said), said
        return
    assert "OUT" not in said, said
    assert re.search(ATTEMPTS[name][1], said, re.MULTILINE), said


def test_a_build_sees_neither_another_build_nor_the_store_nor_what_the_command_knows(
    crossdock: Crossdock, base: BaseImages
) -> None:
    (crossdock.docker_config / "config.json").write_text(
        json.dumps({"auths": {"registry.invalid": {"auth": base64.b64encode(SECRET.encode()).decode()}}})
    )
    other = context(
        crossdock.folder / "other",
        f"FROM {base.index}\nRUN echo {SECRET} > /theirs && echo started && sleep 30\n",
    )
    look = f"""
ls -d {crossdock.root} {crossdock.docker_config} {crossdock.folder} /run/crossdock /tmp/crossdock-*
cat {crossdock.docker_config}/config.json
find / -xdev -name theirs
env
cat /proc/[0-9]*/environ | tr '\\0' '\\n'
grep -rl {SECRET[:7]} / --exclude-dir=proc --exclude-dir=sys --exclude=look.sh
"""
    text = f"FROM {base.index}\nCOPY look.sh /\nRUN sh /look.sh 2>&1; true\nRUN kill -9 -1; echo alive\n"
    mine = context(crossdock.folder / "mine", text)
    (mine / "look.sh").write_text(look)
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "DOCKER_AUTH_CONFIG": "{}"}
    running = crossdock.start("build", other, "--progress=plain", env=environment)
    assert running.stderr is not None
    for line in running.stderr:
        if line.rstrip().endswith(" started"):
            break
    victim = subprocess.Popen(["sleep", "60"])
    try:
        done = crossdock("build", mine, "--progress=plain", env=environment).ok()
        assert "alive" in lines_of(done.err, "RUN kill")
        said = lines_of(done.err, "RUN sh")
        assert any(line.startswith("PATH=") for line in said), said
        text = "\n".join(line for line in said if "No such file" not in line)
        assert SECRET not in text
        for private in (crossdock.root, crossdock.docker_config, "theirs", "AWS_SECRET", "DOCKER_CONFIG"):
            assert str(private) not in text, text
        assert running.poll() is None, "the other build is still at work"
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


#: programs that do exit(geteuid())
EUID = {
    "amd64": bytes.fromhex("b86b000000 0f05 89c7 b83c000000 0f05"),
    "arm64": bytes.fromhex("e81580d2 010000d4 a80b80d2 010000d4"),
}


@pytest.mark.needs("subids")
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_setuid_programs_of_an_image_work(crossdock: Crossdock, base: BaseImages, architecture: str) -> None:
    from crossdock.emulation.architectures import by_name
    from crossdock.emulation.probes import small_elf

    if architecture != local_platform().architecture:
        for need in ("qemu", "binfmt"):
            if lack := missing(need):
                pytest.skip(lack.reason)
    arch = by_name(architecture)
    assert arch is not None
    text = (
        f"FROM {base.index}\nCOPY --chmod=4755 euid /setuid\nCOPY --chmod=755 euid /plain\nUSER 1000:1000\n"
        'RUN /plain; test $? = 232\nRUN ["/setuid"]\n'
    )
    folder = context(crossdock.folder / "context", text)
    (folder / "euid").write_bytes(small_elf(arch, EUID[architecture]))
    crossdock("build", folder, "--platform", f"linux/{architecture}", "--progress=plain").ok()


def test_entitlements_are_refused_unless_given(crossdock: Crossdock, base: BaseImages) -> None:
    for flag, name in (("--security=insecure", "security.insecure"), ("--network=host", "network.host")):
        folder = context(crossdock.folder / "context", f"FROM {base.index}\nRUN {flag} true\n")
        done = crossdock("build", folder).failed(1)
        assert f"{name} is not allowed" in done.err
        assert f"--allow {name}" in done.err


def test_an_insecure_step_has_more_and_still_not_the_store(crossdock: Crossdock, base: BaseImages) -> None:
    look = f"mount -t tmpfs none /mnt && echo mounted; ls {crossdock.root} || echo no store"
    folder = context(
        crossdock.folder / "context",
        f"FROM {base.index}\nRUN mkdir -p /mnt\nRUN --security=insecure {look}\n",
    )
    done = crossdock("build", folder, "--allow", "security.insecure", "--progress=plain").ok()
    said = lines_of(done.err, "RUN --security")
    assert "mounted" in said
    assert "no store" in said
    assert os.path.isdir(crossdock.root)
