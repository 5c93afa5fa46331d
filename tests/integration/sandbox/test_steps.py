"""Steps in the real OCI runtime: what they see, how they end, what they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.stage import Stage, in_worker

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs("userns", "overlay", "crun", "base")


def _values(stage: Stage, rootfs: str, script: str, step: dict[str, Any]) -> str:
    return stage.sh(rootfs, script, **step)


def shell(tmp_path: Path, rootfs: Callable[..., str], script: str, **step: Any) -> str:
    result = in_worker(_values, tmp_path, rootfs=rootfs(), script=script, step=step)
    assert isinstance(result, str)
    return result


def test_a_step_runs_with_its_environment_and_directory(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    out = shell(
        tmp_path,
        rootfs,
        "env | sort; pwd; hostname; tty || true",
        env=["PATH=/bin", "A=x y"],
        cwd="/made/for/it",
    )
    assert out.splitlines() == [
        "A=x y",
        "HOME=/root",
        "PATH=/bin",
        "PWD=/made/for/it",
        "SHLVL=1",
        "/made/for/it",
        "buildkitsandbox",
        "not a tty",
    ]


def test_hosts_and_resolver_are_generated(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    out = in_worker(hosts, tmp_path, rootfs=rootfs())
    assert out.splitlines() == [
        "127.0.0.1\tlocalhost box",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.1.2.3\tdb",
        "box",
        "resolv",
    ]


def hosts(stage: Stage, rootfs: str) -> str:
    from crossdock.llb.ops import HostIP

    script = "cat /etc/hosts; hostname; grep -q nameserver /etc/resolv.conf && echo resolv"
    return stage.sh(rootfs, script, hostname="box", extra_hosts=(HostIP("db", "10.1.2.3"),))


@pytest.mark.needs("subids")
@pytest.mark.parametrize(
    ("user", "line"),
    [
        pytest.param("", "uid=0(root) gid=0(root) /root", id="root by default"),
        pytest.param(
            "user", "uid=1000(user) gid=1000(user) groups=50(staff) /home/user", id="a name, with its groups"
        ),
        pytest.param("user:staff", "uid=1000(user) gid=50(staff) /home/user", id="a name and a group"),
        pytest.param("1234:50", "uid=1234 gid=50(staff) /", id="numbers nobody has"),
        pytest.param(
            "65534", "uid=65534(nobody) gid=65534(nogroup) groups=50(staff) /", id="a number somebody has"
        ),
    ],
)
def test_the_user_is_looked_up_in_the_image(
    tmp_path: Path, rootfs: Callable[..., str], user: str, line: str
) -> None:
    assert shell(tmp_path, rootfs, 'echo "$(id) $HOME"', user=user).strip() == line


def test_exit_codes_and_signals_are_told(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    script = in_worker(ends, tmp_path, rootfs=rootfs())
    assert script == [[3, None], [128 + signal.SIGSEGV, signal.SIGSEGV], [0, None]]


def ends(stage: Stage, rootfs: str) -> list[list[int | None]]:
    out = []
    for command in ("exit 3", "sh -c 'kill -SEGV $$'; exit $?", "sleep 100 & exit 0"):
        result, _ = stage.run(rootfs, "/bin/sh", "-c", command)
        out.append([result.exit_code, result.signal])
    return out


@pytest.mark.parametrize(
    ("files", "command", "code", "failure", "text"),
    [
        pytest.param({}, "nope", 127, "not-found", "nope: not found in the PATH of the step (/bin:/sbin:/usr/bin)", id="not in PATH"),
        pytest.param({}, "/no/such", 127, "not-found", "/no/such: no such file in the image", id="no such file"),
        pytest.param({"data": "x"}, "/data", 126, "not-executable", "/data: permission denied, the file is not executable (mode 0644)", id="not executable"),
        pytest.param({"+x": "hello"}, "/x", 126, "wrong-format", "/x: exec format error, it is neither an ELF file nor a script with a #! line", id="no format"),
        pytest.param({"+x": "#!/bin/nosh\n"}, "/x", 127, "missing-interpreter", "/x is there, but the interpreter of its #! line '/bin/nosh' is not", id="no interpreter"),
        pytest.param({"+x": "#!/bin/sh\r\n"}, "/x", 127, "missing-interpreter", "/x is there, but the interpreter of its #! line '/bin/sh\\r' is not", id="windows line ends"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_start_says_why(
    tmp_path: Path,
    rootfs: Callable[..., str],
    files: dict[str, str],
    command: str,
    code: int,
    failure: str,
    text: str,
) -> None:
    result = in_worker(failing, tmp_path, rootfs=rootfs(), files=files, command=command)
    assert result["exit_code"] == code
    assert result["failure"] == failure
    assert result["explanation"] == text
    assert result["hint"]


def failing(stage: Stage, rootfs: str, files: dict[str, str], command: str) -> dict[str, Any]:
    layer = stage.layer()
    for name, text in files.items():
        path = layer / name.removeprefix("+")
        path.write_text(text)
        if name.startswith("+"):
            path.chmod(0o755)
    result, _ = stage.run(f"{rootfs}|{layer}", command)
    return {
        "exit_code": result.exit_code,
        "failure": result.failure.value if result.failure else None,
        "explanation": result.explanation,
        "hint": result.hint,
    }


def test_a_dynamic_program_without_its_loader_says_which(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    result = in_worker(no_loader, tmp_path, rootfs=rootfs())
    assert result[0] == 127
    assert "/tool is there, but the dynamic loader '/lib" in result[1]


def no_loader(stage: Stage, rootfs: str) -> list[Any]:
    layer = stage.layer()
    (layer / "tool").write_bytes(Path("/bin/ls").read_bytes())
    (layer / "tool").chmod(0o755)
    result, _ = stage.run(f"{rootfs}|{layer}", "/tool")
    return [result.exit_code, result.explanation]


def test_mounts_show_what_they_should_and_leave_no_trace(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    assert in_worker(mounted_things, tmp_path, rootfs=rootfs()) == {
        "out": "data\ns3cret\n-r-------- 0 0\nread-only\n1024 /dev/shm\nwritten\n",
        "left": ["etc", "run", "run/secrets", "w"],
        "cache": "kept\n",
        "secret on disk": [],
    }


def mounted_things(stage: Stage, rootfs: str) -> dict[str, Any]:
    from crossdock.engine.sandbox.step import BindMount, SecretMount, TmpfsMount
    from crossdock.secret import Secret

    read, write, upper = stage.layer(file="data\n"), stage.layer(), stage.layer()
    script = """
cat /in/file; cat /run/secrets/s; echo; stat -c '%A %u %g' /run/secrets/s
touch /in/new 2>/dev/null || echo read-only
df -k /dev/shm | awk 'NR==2{print $2, $6}'
echo kept > /cache/f; echo x > /scratch/t; echo x > /w; echo written
"""
    out = stage.sh(
        rootfs,
        script,
        upper=upper,
        mounts=(
            BindMount(source=read, dest="/in", readonly=True),
            BindMount(source=write, dest="/cache"),
            TmpfsMount(dest="/scratch"),
            TmpfsMount(dest="/dev/shm", size_bytes=1 << 20),
            SecretMount(dest="/run/secrets/s", data=Secret("s3cret")),
        ),
    )
    left = sorted(str(p.relative_to(upper)) for p in upper.rglob("*"))
    files = (p for p in stage.folder.rglob("*") if p.is_file() and stage.info.run_dir not in p.parents)
    on_disk = [str(p) for p in files if b"s3cret" in p.read_bytes()]
    ignored = {"dev", "proc", "sys"}  # the runtime's own mount points, as BuildKit leaves them
    return {
        "out": out,
        "left": [name for name in left if name not in ignored],
        "cache": (write / "f").read_text(),
        "secret on disk": on_disk,
    }


def test_a_made_mount_point_does_not_change_its_directory(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    before, after = in_worker(stub_times, tmp_path, rootfs=rootfs())
    assert before == after


def stub_times(stage: Stage, rootfs: str) -> list[int]:
    from crossdock.engine.sandbox.step import TmpfsMount

    layer, upper = stage.layer(var__lib__f="x"), stage.layer()
    os.utime(layer / "var/lib", ns=(10**18, 10**18))
    stage.sh(f"{rootfs}|{layer}", "true", upper=upper, mounts=(TmpfsMount(dest="/var/lib/made"),))
    return [10**18, (upper / "var/lib").stat().st_mtime_ns]


def test_an_ssh_agent_socket_has_the_asked_owner_and_mode(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    assert in_worker(with_agent, tmp_path, rootfs=rootfs()) == "srw-rw---- 0 0\n"


def with_agent(stage: Stage, rootfs: str) -> str:
    from crossdock.engine.sandbox.step import SshMount

    mount = SshMount(dest="/run/agent", agent=stage.folder / "absent", mode=0o660)
    return stage.sh(rootfs, "stat -c '%A %u %g' /run/agent", mounts=(mount,))


@pytest.mark.parametrize("deaf", [False, True], ids=["obedient", "deaf to SIGTERM"])
def test_a_cancelled_step_ends_within_a_second(
    tmp_path: Path, rootfs: Callable[..., str], deaf: bool
) -> None:
    took, left = in_worker(cancelled, tmp_path, rootfs=rootfs(), deaf=deaf)
    assert took < 1.0
    assert left == 0


def cancelled(stage: Stage, rootfs: str, deaf: bool) -> list[float]:
    from crossdock.cancel import CancelToken
    from crossdock.engine.sandbox.step import StepSpec
    from crossdock.errors import Cancelled

    token = CancelToken()
    at: list[float] = []

    def cancel() -> None:
        at.append(time.monotonic())
        token.cancel()

    def log(_stream: int, data: bytes) -> None:
        if b"ready" in data:
            threading.Timer(0.05, cancel).start()

    ignore = "trap '' TERM INT HUP;" if deaf else ""
    command = f"{ignore} (sleep 77 & setsid sleep 77 & sleep 77) & echo ready; sleep 77"
    with stage.sandbox.mounted([Path(rootfs)], upper=stage.layer(), work=stage.layer()) as root:
        step = StepSpec(rootfs=root, args=("/bin/sh", "-c", command), env=("PATH=/bin",))
        with pytest.raises(Cancelled):
            stage.sandbox.run(step, log=log, cancel=token)
    took = time.monotonic() - at[0]
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            lines.append(path.read_bytes())
    return [took, lines.count(b"sleep\0" + b"77\0")]


def test_many_steps_at_once_do_not_meet(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    assert in_worker(at_once, tmp_path, rootfs=rootfs()) == [f"{n}\n" for n in range(12)]


def at_once(stage: Stage, rootfs: str) -> list[str]:
    from concurrent.futures import ThreadPoolExecutor

    assert stage.sandbox.runtime
    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(lambda n: stage.sh(rootfs, f"echo {n} > /f; sleep 0.05; cat /f"), range(12)))


@pytest.mark.parametrize("count", [1, 2, 60, 320])
def test_root_file_systems_of_many_layers(tmp_path: Path, rootfs: Callable[..., str], count: int) -> None:
    assert in_worker(many_layers, tmp_path, rootfs=rootfs(), count=count) == [str(count - 1), count]


def many_layers(stage: Stage, rootfs: str, count: int) -> list[Any]:
    layers = [stage.layer(**{"top": str(n), f"f{n}": ""}) for n in range(count)]
    out = stage.sh("|".join([rootfs, *map(str, layers)]), "cat /top; echo; ls / | grep -c '^f[0-9]'")
    top, files = out.split()
    return [top, int(files)]


def test_layer_paths_may_hold_any_character(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    odd = tmp_path / "a:b,c\\d e=f\nü" / ("long" * 50) / ("er" * 100)
    odd.mkdir(parents=True)
    assert in_worker(odd_paths, tmp_path, rootfs=rootfs(), odd=str(odd)) == "hello\n"


def odd_paths(stage: Stage, rootfs: str, odd: str) -> str:
    stage.folder = Path(odd)
    layer, upper = stage.layer(), stage.layer()
    (layer / "f").write_text("hello\n")
    stage.sh(f"{rootfs}|{layer}", "cat /f > /g", upper=upper)
    return (upper / "g").read_text()


def test_a_read_only_root_refuses_writes(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    out = shell(tmp_path, rootfs, "touch /x 2>&1 || true", readonly_rootfs=True)
    assert "Read-only file system" in out


@pytest.mark.parametrize("way", ["fuse-overlayfs", "native"])
def test_without_overlay_the_upper_directory_is_the_same(
    tmp_path: Path, rootfs: Callable[..., str], way: str
) -> None:
    if way == "fuse-overlayfs" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse")
    overlay, other = in_worker(two_ways, tmp_path, rootfs=rootfs(), way=way)
    assert other == overlay


def two_ways(stage: Stage, rootfs: str, way: str) -> list[list[str]]:
    script = """
rm -r /gone; rm /keep/f; echo y >> /keep/g; mkdir -p /new/er; echo x > /new/er/x; ln /new/er/x /new/link
chmod 700 /keep; ln -s foo /sl; mkfifo /pipe; rm /bin/zcat; rm -r /swap; echo now-a-file > /swap
"""
    layer = stage.layer(gone__a="1", keep__f="1", keep__g="1", keep__h="1", swap__x="1", untouched__f="1")
    found = []
    for mounts in ("overlay", way):
        stage.sandbox.roots.way = mounts
        upper = stage.layer()
        stage.sh(f"{rootfs}|{layer}", script, upper=upper)
        found.append(sorted(_describe(path, upper) for path in upper.rglob("*")))
    return found


def _describe(path: Path, upper: Path) -> str:
    entry = path.lstat()
    text = path.read_text() if path.is_file() and not path.is_symlink() else ""
    links = entry.st_nlink if path.is_file() else 0
    return f"{path.relative_to(upper)} {entry.st_mode:o} {entry.st_uid} {entry.st_rdev} {links} {text}"


@pytest.mark.parametrize(
    ("script", "hung"),
    [
        pytest.param("sleep 60", True, id="asleep"),
        pytest.param("for i in 1 2 3 4 5; do sleep 1; echo x; done", False, id="printing"),
        pytest.param("timeout 4 sh -c 'while :; do :; done'; exit 0", False, id="computing"),
    ],
)
def test_a_step_that_does_nothing_is_ended_at_its_deadline(
    tmp_path: Path, rootfs: Callable[..., str], script: str, hung: bool
) -> None:
    result = in_worker(idling, tmp_path, rootfs=rootfs(), script=script)
    text = "the step did nothing for 2 s: no output and no CPU time"
    assert result == (["hung", text, 137] if hung else [None, "", 0])


def idling(stage: Stage, rootfs: str, script: str) -> list[Any]:
    result, _ = stage.run(rootfs, "/bin/sh", "-c", script, hang_deadline_s=2.0)
    return [result.failure.value if result.failure else None, result.explanation, result.exit_code]


@pytest.mark.needs("root")
def test_a_step_that_uses_too_much_memory_says_so(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    result = in_worker(memory_hog, tmp_path, rootfs=rootfs())
    if result["warnings"]:
        pytest.skip(result["warnings"][0])
    assert result["code"] == 137
    assert result["text"] == "a process of the step was killed because it used more than 32 MiB of memory"


def memory_hog(stage: Stage, rootfs: str) -> dict[str, Any]:
    from crossdock.llb.ops import LinuxResources

    result, _ = stage.run(
        rootfs, "/bin/sh", "-c", "head -c 80m /dev/zero | tail", resources=LinuxResources(memory=32 << 20)
    )
    return {"code": result.exit_code, "text": result.explanation, "warnings": result.warnings}


@pytest.mark.needs("user")
def test_with_one_id_other_owners_and_users_are_refused_clearly(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    options = {"id_ranges": False}
    user, secret = in_worker(foreign_ids, tmp_path, rootfs=rootfs(), options=options)
    assert user == "user nobody (65534:65534) does not exist in the worker namespace"
    assert secret == "the owner 7:0 of /s does not exist in the worker namespace"


def foreign_ids(stage: Stage, rootfs: str) -> list[str]:
    from crossdock.engine.sandbox.step import SecretMount
    from crossdock.errors import SandboxError
    from crossdock.secret import Secret

    found = []
    for step in ({"user": "nobody"}, {"mounts": (SecretMount(dest="/s", data=Secret("x"), uid=7),)}):
        with pytest.raises(SandboxError) as caught:
            stage.run(rootfs, "true", **step)
        found.append(caught.value.summary)
    return found


def test_a_file_where_the_working_directory_should_be_is_an_error(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    text = in_worker(bad_cwd, tmp_path, rootfs=rootfs())
    assert text == "cannot prepare the step: /etc/passwd: Not a directory"


def bad_cwd(stage: Stage, rootfs: str) -> str:
    from crossdock.errors import SandboxError

    with pytest.raises(SandboxError) as caught:
        stage.run(rootfs, "true", cwd="/etc/passwd/x")
    return caught.value.summary


@pytest.mark.needs("runc")
def test_runc_runs_steps_too(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    result = in_worker(with_runc, tmp_path, rootfs=rootfs())
    assert result == [
        "Seccomp:\t2\n",
        4,
        [127, "nope: not found in the PATH of the step (/bin:/sbin:/usr/bin)"],
    ]


def with_runc(stage: Stage, rootfs: str) -> list[Any]:
    import shutil

    from crossdock.engine.sandbox.runtime import Runtime

    stage.sandbox.runtime = Runtime("runc", shutil.which("runc") or "/usr/sbin/runc")
    out = stage.sh(rootfs, "grep Seccomp: /proc/self/status")
    code = stage.run(rootfs, "/bin/sh", "-c", "exit 4")[0].exit_code
    missing, _ = stage.run(rootfs, "nope")
    return [out, code, [missing.exit_code, missing.explanation]]


def test_ulimits_are_set(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    assert in_worker(limited, tmp_path, rootfs=rootfs()) == "100\n200\n"


def limited(stage: Stage, rootfs: str) -> str:
    from crossdock.llb.ops import Ulimit

    return stage.sh(rootfs, "ulimit -n; ulimit -Hn", ulimits=(Ulimit("nofile", 100, 200),))


def test_a_step_costs_little(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    assert in_worker(cost, tmp_path, rootfs=rootfs()) < 0.025


def cost(stage: Stage, rootfs: str) -> float:
    """Seconds of the quickest of many: other tests share the processors. Mounting is part of it."""
    stage.sh(rootfs, "true")
    best = 1.0
    for _ in range(60):
        started = time.perf_counter()
        stage.sh(rootfs, "true")
        best = min(best, time.perf_counter() - started)
        if best < 0.025:
            break
    return best
