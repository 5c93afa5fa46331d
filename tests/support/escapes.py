"""What a step must not be able to do: shell commands that try, and what they say when they are held back.

``{marker}`` is a file of the host that holds the word OUT. The list is that of docs/dev/security.md.
"""

from __future__ import annotations

#: a step's attempt -> what it prints when it is held back
ATTEMPTS = {
    "host files are not there": ("cat {marker}", "No such file"),
    "the way up is a dead end": ("cat ../../../../../../..{marker}", "No such file"),
    "its root's parent is its root": ("cat /proc/1/root/..{marker}", "No such file"),
    "the worker's working directory is not reachable": ("cat /proc/1/cwd{marker}", "No such file"),
    "an opened directory does not lead out": ("cat /proc/self/fd/*/..{marker} 2>&1", "No such file"),
    "the kernel's memory is masked": (
        "head -c1 /proc/kcore | wc -c; test -s /proc/kcore && echo OUT || echo masked",
        "masked",
    ),
    "kernel keys are masked": ("wc -c < /proc/keys", "0"),
    "kernel timers are masked": ("wc -c < /proc/timer_list", "0"),
    "firmware tables are masked": ("ls /sys/firmware | wc -l", "0"),
    "sysctls cannot be written": ("echo 1 > /proc/sys/vm/drop_caches", "Read-only"),
    "core dumps cannot be redirected": ("echo '|/bin/x' > /proc/sys/kernel/core_pattern", "Read-only"),
    "handlers for all cannot be registered": (
        "echo x > /proc/sys/fs/binfmt_misc/register",
        "can't create|Read-only|No such",
    ),
    "the machine cannot be rebooted by sysrq": ("echo b > /proc/sysrq-trigger", "Read-only|can't create"),
    "sysfs cannot be written": ("echo 1 > /sys/kernel/mm/ksm/run", "Read-only|can't create"),
    "devices in sysfs cannot be written": (
        "for f in $(find /sys -type f -perm -200 2>/dev/null | head -300); do "
        "(: >> $f) 2>/dev/null && echo OUT $f; done; echo none",
        "^none$",
    ),
    "control groups cannot be written": ("mkdir /sys/fs/cgroup/x", "Read-only|Permission|No such"),
    "nothing can be mounted": ("mount -t tmpfs x /tmp", "Operation not permitted|permission denied"),
    "nothing can be bound": ("mount --bind / /tmp", "Operation not permitted|permission denied"),
    "the root cannot be remounted": ("mount -o remount,rw /", "Operation not permitted|permission denied"),
    "masks cannot be taken off": ("umount /proc/keys", "Operation not permitted|Invalid argument"),
    "no new namespaces": ("unshare -U true", "Operation not permitted"),
    "no new mount namespace": ("unshare -m true", "Operation not permitted"),
    "block devices cannot be made": (
        "mknod /d b 8 0 && head -c1 /d && echo OUT",
        "Operation not permitted|Permission",
    ),
    "kernel log is not readable": ("dmesg", "Operation not permitted"),
    "the clock cannot be set": ("date -s 2000-01-01", "Operation not permitted"),
    "the host name cannot be changed": ("hostname evil", "Operation not permitted"),
    "modules cannot be loaded": ("insmod /bin/busybox", "Operation not permitted"),
    "swap cannot be turned off": ("swapoff -a; swapoff /dev/x", "Operation not permitted|No such"),
    "raw device access is not there": ("ls /dev/mem /dev/kmsg /dev/vda /dev/sda /dev/kvm", "No such file"),
    "only its own processes are seen": (
        'ls -d /proc/[0-9]* | wc -l | awk \'{{print ($1 < 8) ? "few" : "OUT"}}\'',
        "few",
    ),
    "its init is itself": ("readlink /proc/1/exe", "busybox"),
}
