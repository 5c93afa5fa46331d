"""``RUN --mount``, ``--network`` and ``--security``: every type and option, on real builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.dockerfile.conftest import Project

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt")]


@contextmanager
def ssh_agent(folder: Path) -> Iterator[str]:
    """A real agent with one key."""
    key, sock = folder / "id", folder / "agent.sock"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        while not sock.exists():
            time.sleep(0.02)
        subprocess.run(
            ["ssh-add", "-q", str(key)],
            env={**os.environ, "SSH_AUTH_SOCK": str(sock)},
            check=True,
            capture_output=True,
        )
        yield str(sock)
    finally:
        agent.terminate()
        agent.wait()


def copy_with_libraries(program: str, target: Path) -> None:
    """Put a dynamic program of this machine, and the libraries it loads, where an image would have them."""
    path = shutil.which(program)
    assert path
    listed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    for file in [path, *re.findall(r"(/\S+) \(0x", listed)]:
        copy = target / (f"bin/{program}" if file == path else file.lstrip("/"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def test_bind_mounts_from_stage_image_and_context(project: Project) -> None:
    project.both(
        """
        FROM $base AS other
        RUN mkdir -p /d/sub && echo other > /d/sub/file
        FROM $base
        RUN --mount=target=/mnt [ "$(cat /mnt/data/a)" = a ] && ! touch /mnt/x
        RUN --mount=type=bind,source=data,target=/in,rw echo more > /in/new && [ "$(cat /in/new)" = more ]
        RUN --mount=type=bind,src=data,dst=/in,readwrite=true [ ! -e /in/new ]
        RUN --mount=type=bind,from=other,source=/d,target=/mnt [ "$(cat /mnt/sub/file)" = other ]
        RUN --mount=from=other,source=d/sub/file,destination=/f,ro [ "$(cat /f)" = other ]
        RUN --mount=from=$base,target=/img [ -x /img/bin/busybox ]
        RUN --mount=from=named,target=/named [ "$(cat /named/n)" = n ]
        WORKDIR /work
        RUN --mount=source=data,target=rel [ "$(cat /work/rel/a)" = a ]
        RUN [ ! -e /mnt/data ] && [ ! -e /in/a ] && echo done > /done
        """,
        "--build-context",
        f"named={project.folder}/more",
        files={"data/a": "a", "more/n": "n"},
    )
    assert project.read("done") == "done\n"


def test_cache_mounts(project: Project) -> None:
    text = """
        FROM $base AS seed
        RUN mkdir -p /s/in && echo seeded > /s/in/f
        FROM $base
        ARG N
        RUN --mount=type=cache,target=/c,id=plain echo $N >> /c/log && cp /c/log /plain
        RUN --mount=type=cache,target=/c echo $N >> /c/log && cp /c/log /by-target
        RUN --mount=type=cache,target=/c,id=owned,uid=1000,gid=50,mode=0711 stat -c '%u %g %a' /c > /owned
        RUN --mount=type=cache,target=/c,id=seeded,from=seed,source=/s cp /c/in/f /seeded && echo $N >> /c/in/f
        RUN --mount=type=cache,target=/c,id=plain,ro cp /c/log /again && ! touch /c/x
        RUN --mount=type=cache,target=/c,id=locked,sharing=locked echo $N >> /c/log && cp /c/log /locked
        RUN --mount=type=cache,target=/c,id=private,sharing=private echo $N >> /c/log && cp /c/log /private
        RUN --mount=type=cache,target=/root/.cache,id=deep true && ls -A /root > /root-listing
    """
    for number in ("1", "2"):
        project.run(text, "--build-arg", f"N={number}").ok()
    assert project.read("plain") == project.read("again") == "1\n2\n"
    assert project.read("by-target") == project.read("locked") == project.read("private") == "1\n2\n"
    assert project.read("owned") == "1000 50 711\n"
    assert project.read("seeded") == "seeded\n1\n"


def test_concurrent_builds_share_or_wait_for_cache_mounts(project: Project) -> None:
    script = {
        # both must be there at once
        "shared": "touch /c/$N; for i in $(seq 100); do [ $(ls /c | wc -l) = 2 ] && exit 0; sleep 0.1; done; exit 1",
        # never both at once
        "locked": "mkdir /c/lock && sleep 1 && rmdir /c/lock",
        "private": '[ -z "$(ls -A /c)" ] && touch /c/$N && sleep 2',
    }
    for sharing, command in script.items():
        project.dockerfile(
            f"""
            FROM $base
            ARG N
            RUN --mount=type=cache,target=/c,id=conc-{sharing},sharing={sharing} {command}
            """
        )
        running = [
            project.crossdock.start("build", "--progress=plain", "--build-arg", f"N={n}", project.folder)
            for n in (1, 2)
        ]
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, f"{sharing}: {out}\n{err}"


def test_tmpfs_mounts(project: Project) -> None:
    project.both(
        """
        FROM $base
        RUN --mount=type=tmpfs,target=/t,size=1m mount | grep ' /t ' | grep -q tmpfs && \
            dd if=/dev/zero of=/t/small bs=1k count=100 && ! dd if=/dev/zero of=/t/big bs=1M count=3
        RUN --mount=type=tmpfs,target=/t echo x > /t/file
        RUN [ ! -e /t/file ] && echo done > /done
        """
    )
    assert project.read("done") == "done\n"


def test_secret_mounts(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from-file")
    done = project.both(
        """
        FROM $base
        RUN --mount=type=secret,id=file [ "$(cat /run/secrets/file)" = from-file ] && \
            [ "$(stat -c '%u %g %a' /run/secrets/file)" = "0 0 400" ]
        RUN --mount=type=secret,id=file,target=/deep/er/s,uid=1000,gid=50,mode=0440 \
            [ "$(stat -c '%u %g %a' /deep/er/s)" = "1000 50 440" ]
        RUN --mount=type=secret,id=TOKEN,env=TOKEN [ "$TOKEN" = from-env ] && [ ! -e /run/secrets/TOKEN ]
        RUN --mount=type=secret,id=TOKEN,env=OTHER,target=/tok [ "$OTHER" = from-env ] && [ "$(cat /tok)" = from-env ]
        RUN --mount=type=secret,target=/x/file,required [ "$(cat /x/file)" = from-file ]
        RUN --mount=type=secret,source=file,target=/y,required=true [ "$(cat /y)" = from-file ]
        RUN --mount=type=secret,id=absent [ ! -e /run/secrets/absent ]
        RUN --mount=type=secret,id=absent,env=ABSENT [ -z "${ABSENT+set}" ]
        RUN [ ! -e /run/secrets/file ] && ! grep -r from-file /run /deep /x 2>/dev/null && echo done > /done
        """,
        "--secret",
        f"id=file,src={tmp_path}/file",
        "--secret",
        "id=TOKEN,env=THE_TOKEN",
        env={"THE_TOKEN": "from-env"},
    )
    assert project.read("done") == "done\n"
    assert "from-env" not in re.sub(r"= from-env", "", done.err)


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="needs openssh-client")
def test_agents_are_forwarded(project: Project, tmp_path: Path) -> None:
    text = """
        FROM $base
        RUN --mount=type=ssh [ -S "$SSH_AUTH_SOCK" ] && [ "$SSH_AUTH_SOCK" = /run/buildkit/ssh_agent.0 ] && \
            [ "$(stat -c '%u %g %a' $SSH_AUTH_SOCK)" = "0 0 600" ]
        RUN --mount=type=ssh,id=deploy,target=/a.sock,uid=1000,gid=50,mode=0660,required \
            [ "$SSH_AUTH_SOCK" = /a.sock ] && [ "$(stat -c '%u %g %a' /a.sock)" = "1000 50 660" ]
        RUN --mount=type=ssh,id=absent [ ! -e "$SSH_AUTH_SOCK" ]
        RUN [ -z "$SSH_AUTH_SOCK" ] && [ ! -e /a.sock ] && echo done > /done
    """
    client = """
        FROM $base
        COPY client /
        RUN --mount=type=ssh ssh-add -l > /default
        RUN --mount=type=ssh,id=deploy ssh-add -l > /deploy
    """
    copy_with_libraries("ssh-add", project.folder / "client")
    with ssh_agent(tmp_path) as sock:
        given = ("--ssh", "default", "--ssh", f"deploy={tmp_path}/id")
        project.both(text, *given, env={"SSH_AUTH_SOCK": sock})
        assert project.read("done") == "done\n"
        project.run(client, *given, env={"SSH_AUTH_SOCK": sock}).ok()
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(tmp_path / "id")], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    assert shown in project.read("default")
    assert shown in project.read("deploy")


def test_networks(project: Project) -> None:
    text = """
        FROM $base
        RUN --network=none ip addr > /none; ! ip addr | grep -q 'inet 1[0-9][0-9]*\\.[0-9]*\\.[0-9]*\\.[0-9]*.*scope global'
        RUN --network=default true
        RUN --network=host true
    """
    refused = project.run(text).failed(1)
    assert "network.host" in refused.err
    assert "Dockerfile:4" in refused.err
    project.both(text, "--allow", "network.host")
    project.run("FROM $base\nRUN true\n", "--network", "host").ok()


def test_insecure_steps(project: Project) -> None:
    text = """
        FROM $base
        RUN --security=sandbox grep CapEff /proc/self/status > /sandbox
        RUN --security=insecure grep CapEff /proc/self/status > /insecure && mkdir /m && mount -t tmpfs none /m
    """
    refused = project.run(text).failed(1)
    assert "security.insecure" in refused.err
    assert "Dockerfile:3" in refused.err
    project.both(text, "--allow", "security.insecure")
    sandboxed, insecure = (int(project.read(name).split()[1], 16) for name in ("sandbox", "insecure"))
    assert sandboxed == 0xA80425FB
    assert insecure & (1 << 21)
    assert insecure > sandboxed


class TestMissing:
    """Secrets and agents that are wanted and not given: an error with the place."""

    @pytest.mark.parametrize(
        ("mount", "words"),
        [
            ("type=secret,id=nope,required", ("nope", "--secret id=nope")),
            ("type=ssh,required", ("default", "--ssh default")),
            ("type=ssh,id=nope,required=true", ("nope", "--ssh nope")),
            ("type=bind,from=nosuch,target=/x", ("nosuch",)),
            ("type=bind,source=absent,target=/x", ("absent",)),
        ],
    )
    def test_each_names_what_and_where(self, project: Project, mount: str, words: tuple[str, ...]) -> None:
        done = project.run(f"FROM $base\n\nRUN --mount={mount} true\n").failed()
        assert "Dockerfile:3" in done.err, done.err
        for word in words:
            assert word in done.err

    def test_sources_of_secrets_are_looked_for_before_anything_runs(self, project: Project) -> None:
        done = project.run("FROM $base\nRUN true\n", "--secret", "id=a,src=absent").failed(1)
        assert "cannot read absent" in done.err
        assert "RUN" not in done.err
