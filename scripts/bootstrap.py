"""Make this machine ready: missing system packages, the virtual environment, the editable install.

    python3 scripts/bootstrap.py [runtime|test|bench]

Each purpose includes the ones before it. Says what it does, does only what is missing, and is quick when nothing is.
On systems without apt it prints what to install. Only the standard library, and syntax that Python 3.8 reads, so that
an old ``python3`` can run it and find a newer one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
VENV = TOP / ".venv"
PURPOSES = ("runtime", "test", "bench")
MINIMUM = (3, 11)
EXTRAS = "dev"
#: what elsewhere is called differently: name for humans, program that shows it is there, package per manager
ELSEWHERE = (
    ("OCI runtime", ("crun", "runc"), {"dnf": "crun", "pacman": "crun", "apk": "crun", "zypper": "crun"}),
    (
        "id mapping tools",
        ("newuidmap",),
        {"dnf": "shadow-utils", "pacman": "shadow", "apk": "shadow-subids", "zypper": "shadow"},
    ),
    (
        "QEMU user emulators",
        ("qemu-aarch64-static", "qemu-aarch64"),
        {
            "dnf": "qemu-user-static",
            "pacman": "qemu-user-static",
            "apk": "qemu-aarch64 qemu-arm qemu-i386 qemu-ppc64le qemu-s390x qemu-x86_64",
            "zypper": "qemu-linux-user",
        },
    ),
)


class SetupError(Exception):
    """Setup cannot go on; the text says what to do."""


def main() -> int:
    """Command line."""
    purpose = sys.argv[1] if len(sys.argv) > 1 else "runtime"
    if purpose not in PURPOSES:
        print(f"usage: {sys.argv[0]} [{'|'.join(PURPOSES)}]", file=sys.stderr)
        return 2
    try:
        if shutil.which("apt-get") and shutil.which("dpkg-query"):
            install_packages(wanted_packages(purpose))
        else:
            check_elsewhere()
        python = choose_python()
        make_venv(python)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def say(text: str) -> None:
    """Tell the user what happens."""
    print(f"setup: {text}", flush=True)


def wanted_packages(purpose: str) -> list[str]:
    """The Debian packages of a purpose and of those before it."""
    names: list[str] = []
    for each in PURPOSES[: PURPOSES.index(purpose) + 1]:
        lines = (TOP / f"scripts/packages/{each}.txt").read_text().splitlines()
        names += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return names


def install_packages(names: list[str]) -> None:
    """Install the packages that dpkg does not know as installed; asks the mirror only when some are missing."""
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[0] for line in shown.stdout.splitlines() if line.endswith(" installed")}
    missing = [name for name in names if name not in present]
    if missing:
        say(f"installing {' '.join(missing)}")
        apt(["update"])
        apt(["install", "--yes", "--no-install-recommends", *missing])


def apt(arguments: list[str]) -> None:
    """Run apt-get as root, through sudo where needed."""
    command = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0", *arguments]
    env = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=a"]
    if os.geteuid() != 0:
        sudo = shutil.which("sudo")
        if not sudo:
            raise SetupError(f"not root and no sudo; run as root:\n  apt-get {' '.join(arguments)}")
        env = [sudo, *env]
    done = subprocess.run(
        [*env, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    # an unreachable third-party source makes `update` fail although the distribution's lists are there
    if done.returncode != 0 and arguments[0] != "update":
        raise SetupError(f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-3000:]}")


def check_elsewhere() -> None:
    """Without apt: say what is missing and what it is called here."""
    manager = next((name for name in ("dnf", "pacman", "apk", "zypper") if shutil.which(name)), None)
    missing = [
        (what, packages) for what, programs, packages in ELSEWHERE if not any(map(shutil.which, programs))
    ]
    if not missing:
        return
    lines = ["this is no Debian or Ubuntu; please install what is missing and run this again:"]
    for what, packages in missing:
        package = packages.get(manager or "", " or ".join(sorted(set(packages.values()))))
        lines.append(f"  {what}: {package}")
    if manager:
        install = {"pacman": "pacman -S", "apk": "apk add"}.get(manager, f"{manager} install")
        names = " ".join(packages[manager] for _, packages in missing)
        lines.append(f"that is: {install} {names}")
    raise SetupError("\n".join(lines))


def choose_python() -> str:
    """A Python that is new enough, has venv, and that every user of this machine can execute.

    The first ``python3`` on PATH may live under root's home, where the tests' ordinary user cannot run it.
    """
    names = ["python3", *(f"python3.{minor}" for minor in range(MINIMUM[1], 20))]
    folders = ["/usr/bin", "/usr/local/bin", *os.environ.get("PATH", "").split(os.pathsep)]
    found = [
        f"{folder}/{name}" for folder in folders for name in names if os.access(f"{folder}/{name}", os.X_OK)
    ]
    suitable = [path for path in dict.fromkeys(found) if _version(path) >= MINIMUM]
    shared = [path for path in suitable if _for_everybody(path)]
    if not shared and shutil.which("apt-get") and not suitable:
        version = ".".join(map(str, MINIMUM))
        install_packages([f"python{version}", f"python{version}-venv"])
        shared = [f"/usr/bin/python{version}"]
    for path in (*shared, *suitable):
        if _has_venv(path):
            return path
        if shutil.which("apt-get") and path.startswith("/usr/bin/"):
            plain = path == "/usr/bin/python3"
            install_packages(["python3-venv" if plain else f"{Path(path).name}-venv"])
            if _has_venv(path):
                return path
    raise SetupError(f"no Python {'.'.join(map(str, MINIMUM))} or newer with the venv module was found")


def _version(python: str) -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else (0,)


def _has_venv(python: str) -> bool:
    done = subprocess.run([python, "-I", "-c", "import venv, ensurepip"], capture_output=True, check=False)
    return done.returncode == 0


def _for_everybody(python: str) -> bool:
    # a shim may start an interpreter elsewhere, so ask it
    done = subprocess.run(
        [python, "-I", "-c", "import sys; print(sys.executable, sys.base_prefix, sep='\\n')"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        real = Path(line).resolve()
        if not all(path.stat().st_mode & stat.S_IXOTH for path in (real, *real.parents)):
            return False
    return bool(done.stdout)


def make_venv(python: str) -> None:
    """Make .venv and install the project into it, unless that was done for these very inputs."""
    stamp = VENV / ".crossdock-setup"
    inputs = f"{python} {_version(python)} {EXTRAS} {TOP}\n".encode() + (TOP / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(inputs).hexdigest()
    program = VENV / "bin/crossdock"
    if program.exists() and stamp.exists() and stamp.read_text() == wanted:
        compile_sources()
        say(f"ready: {program}")
        return
    if not _venv_is_of(python):
        say(f"making {VENV} with {python}")
        shutil.rmtree(VENV, ignore_errors=True)
        _run([python, "-I", "-m", "venv", str(VENV)])
    say("installing Crossdock and what it is developed with")
    pip = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", "--editable", f"{TOP}[{EXTRAS}]"])
    if not program.exists():
        raise SetupError(f"pip did not make {program}")
    stamp.write_text(wanted)
    compile_sources()
    say(f"ready: {program}")


def compile_sources() -> None:
    """Compile what changed, as pip does for an installed package; without it every start would, for 150 ms.

    Python does it by itself unless PYTHONDONTWRITEBYTECODE is set, as it is in many containers.
    """
    _run([str(VENV / "bin/python"), "-m", "compileall", "-q", str(TOP / "src/crossdock")])


def _venv_is_of(python: str) -> bool:
    """Whether .venv exists here, works, and was made with this interpreter."""
    mine = VENV / "bin/python"
    if not mine.exists() or not (VENV / "bin/pip").exists():
        return False
    first_line = (VENV / "bin/pip").read_bytes().split(b"\n", 1)[0]
    here = str(VENV / "bin").encode() in first_line  # a copied or moved environment points elsewhere
    return here and mine.resolve() == Path(python).resolve() and _version(str(mine)) >= MINIMUM


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SetupError(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
