#!/usr/bin/env python3
"""An OCI runtime in front of runc that asks for no capability which this machine does not grant.

``docker run --privileged`` asks for all that the kernel knows. Where root lacks one (in a virtual machine without
kernel modules, in a container), runc refuses. This takes away what is not in the bounding set, then becomes runc; for
Docker Engines that tests start (``services.DockerEngine(bounded=True)``).

Only the standard library; run by its path, so without a virtual environment.
"""

from __future__ import annotations

import json
import os
import sys

#: capabilities by number, from CHOWN = 0: linux/capability.h
NAMES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]


def bounding_set() -> frozenset[str]:
    """Names of the capabilities that processes here can have at all."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("CapBnd:"))
    bits = int(line.split()[1], 16)
    return frozenset(f"CAP_{name}" for number, name in enumerate(NAMES) if bits >> number & 1)


def restrict(process: dict[str, object], allowed: frozenset[str]) -> None:
    """Take away the capabilities of a process that are not ``allowed``."""
    capabilities = process.get("capabilities")
    if isinstance(capabilities, dict):
        for kind, names in capabilities.items():
            capabilities[kind] = [name for name in names if name in allowed]


def rewrite(path: str, *, container: bool) -> None:
    """Restrict the process of a container's ``config.json``, or that of an exec's file."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    restrict(data.get("process") or {} if container else data, bounding_set())
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file)


def main(argv: list[str]) -> None:
    """Look for the files among runc's arguments, then become runc."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, inline = flag.partition("=")
        path = inline if equals else value
        if name in ("--bundle", "-b") and {"create", "run"} & set(argv):
            rewrite(os.path.join(path, "config.json"), container=True)
        elif name in ("--process", "-p") and "exec" in argv:
            rewrite(path, container=False)
    os.execvp("runc", ["runc", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
