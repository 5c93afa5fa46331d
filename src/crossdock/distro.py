"""Which package of which Linux distribution has a program, said as the command to type.

Imported only when something is missing.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["family", "install_command", "install_hint", "package_of"]

_ROOT = Path("/")
_FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "fedora": "fedora",
    "rhel": "fedora",
    "centos": "fedora",
    "arch": "arch",
    "alpine": "alpine",
    "suse": "suse",
    "opensuse": "suse",
}
_INSTALL = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "alpine": "apk add",
    "suse": "zypper install",
}
#: program -> family -> package
_PACKAGES: dict[str, dict[str, str]] = {
    "newuidmap": {
        "debian": "uidmap",
        "fedora": "shadow-utils",
        "arch": "shadow",
        "alpine": "shadow-uidmap",
        "suse": "shadow",
    },
    "qemu": {
        "debian": "qemu-user-static",
        "fedora": "qemu-user-static",
        "arch": "qemu-user-static",
        "alpine": "qemu-{machine}",
        "suse": "qemu-linux-user",
    },
    "docker-credential-helpers": {"debian": "golang-docker-credential-helpers"},
}


def family(root: Path = _ROOT) -> str:
    """Return ``debian``, ``fedora``, ``arch``, ``alpine``, ``suse`` or ``""``, from os-release below ``root``."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            text = (root / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        words: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, _, value = line.partition("=")
            words[key] = value.strip().strip("\"'").lower().split()
        for word in (*words.get("ID", ()), *words.get("ID_LIKE", ())):
            if word.partition("-")[0] in _FAMILIES:
                return _FAMILIES[word.partition("-")[0]]
        return ""
    return ""


def package_of(program: str, *, machine: str = "", root: Path = _ROOT) -> str:
    """Return the package with ``program``; for ``qemu``, ``machine`` is QEMU's name of the architecture."""
    names = _PACKAGES.get(program, {})
    return names.get(family(root), program).format(machine=machine or "aarch64")


def install_command(program: str, *, machine: str = "", root: Path = _ROOT) -> str:
    """Return the command that installs ``program``, or ``""`` on a distribution we do not know."""
    command = _INSTALL.get(family(root))
    return f"sudo {command} {package_of(program, machine=machine, root=root)}" if command else ""


def install_hint(program: str, *, machine: str = "", root: Path = _ROOT) -> str:
    """Return one sentence that says how to get ``program``."""
    command = install_command(program, machine=machine, root=root)
    return f"run `{command}`" if command else f"install {program}"
