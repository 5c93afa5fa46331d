"""Stages, arguments, users, config instructions and caching, on real builds."""

from __future__ import annotations

import json
import re
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from integration.dockerfile.conftest import Project

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt")]


def config_of(archive: Path) -> dict[str, Any]:
    """The image config in a docker archive."""
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config: dict[str, Any] = json.load(tar.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
    return config


def steps(text: str, command: str) -> list[str]:
    """The names of the steps that have ``command`` in them, each once."""
    return sorted({m[1] for m in re.finditer(r"^#\d+ (\[.*)$", text, re.MULTILINE) if command in m[1]})


def test_a_build_platform_stage_runs_once_for_all_targets(project: Project) -> None:
    done = project.both(
        """
        FROM --platform=$BUILDPLATFORM $base AS cross
        RUN uname -m > /built-on && cat /proc/sys/kernel/random/uuid > /once
        FROM cross AS per
        ARG TARGETARCH
        RUN echo $TARGETARCH > /for
        FROM $base
        COPY --from=cross /built-on /once /
        COPY --from=per /for /for
        RUN uname -m > /runs-on
        """
    )
    assert len(steps(done.err, "RUN uname -m > /built-on")) == 1
    assert len(steps(done.err, "RUN echo a")) == 2
    roots = {name: project.out / f"linux_{name}" for name in ("amd64", "arm64")}
    assert {n: (r / "for").read_text() for n, r in roots.items()} == {"amd64": "amd64\n", "arm64": "arm64\n"}
    assert {n: (r / "runs-on").read_text() for n, r in roots.items()} == {
        "amd64": "x86_64\n",
        "arm64": "aarch64\n",
    }
    assert project.read("built-on") == "x86_64\n"
    assert project.read("once")


def test_stages_are_chosen_by_argument_and_others_do_not_run(project: Project) -> None:
    text = """
        ARG VARIANT=plain
        FROM $base AS plain
        RUN echo plain > /kind
        FROM $base AS debug
        RUN echo debug > /kind
        FROM scratch AS for-amd64
        COPY <<kind /arch
        amd64
        kind
        FROM scratch AS for-arm64
        COPY <<kind /arch
        arm64
        kind
        FROM for-$TARGETARCH AS picked
        FROM $base AS unused
        RUN false
        FROM ${VARIANT}
        COPY --from=picked /arch /arch
        RUN cat /kind
    """
    project.run(text, "--build-arg", "VARIANT=debug", platforms=("linux/amd64", "linux/arm64")).ok()
    for name in ("amd64", "arm64"):
        assert (project.out / f"linux_{name}/arch").read_text() == name + "\n"
        assert (project.out / f"linux_{name}/kind").read_text() == "debug\n"
    project.run(None, "--target", "plain").ok()
    assert project.read("kind") == "plain\n"
    assert not (project.out / "arch").exists()
    project.run(None, "--target", "0").ok()
    failed = project.run(None, "--target", "pln").failed(1)
    assert "target stage" in failed.err
    assert "plain" in failed.err


def test_no_cache_and_no_cache_filter(project: Project) -> None:
    text = """
        FROM $base AS one
        RUN cat /proc/sys/kernel/random/uuid > /one
        FROM $base AS two
        RUN cat /proc/sys/kernel/random/uuid > /two
        FROM $base
        COPY --from=one /one /
        COPY --from=two /two /
    """
    seen = []
    for args in ((), (), ("--no-cache-filter", "two"), ("--no-cache",)):
        project.run(text, *args).ok()
        seen.append((project.read("one"), project.read("two")))
    assert seen[0] == seen[1]
    assert seen[2][0] == seen[0][0]
    assert seen[2][1] != seen[0][1]
    assert seen[3][0] != seen[2][0]
    assert seen[3][1] != seen[2][1]


def test_arguments_and_environment(project: Project) -> None:
    text = """
        ARG GLOBAL=g
        ARG DERIVED=${GLOBAL}-derived
        FROM $base AS parent
        ARG GLOBAL
        ARG OWN=own
        ENV FROM_ENV=$OWN-env
        FROM parent
        ARG DERIVED
        ARG OWN=ignored
        ENV OWN=env-wins
        ARG EMPTY
        RUN echo "$GLOBAL|$DERIVED|$OWN|$FROM_ENV|${EMPTY-unset}|$HTTP_PROXY|${UNDECLARED-none}" > /values
        ENV A=${DERIVED%-*} B=${FROM_ENV/own/new} C=${NOPE:-default} D=${OWN:+set}
        ENV A=changed E=$A
        RUN echo "$A|$B|$C|$D|$E" >> /values
    """
    project.both(text, "--build-arg", "HTTP_PROXY=http://p", "--build-arg", "UNDECLARED=x")
    # arguments of a parent stage are inherited, those before the first FROM are not
    assert project.read("values").splitlines() == [
        "g|g-derived|env-wins|own-env|unset|http://p|none",
        "changed|new-env|default|set|g",
    ]


def test_shells_users_and_directories(project: Project) -> None:
    project.both(
        """
        FROM $base
        RUN echo 'u:x:1234:1235::/home/u:/bin/sh' >> /etc/passwd && echo 'grp:x:777:u' >> /etc/group
        RUN <<one
        echo first > /list
        false || echo second >> /list
        one
        RUN <<EOF
        #!/bin/sh -e
        echo "shebang $0" >> /list
        EOF
        RUN cat <<a >> /list && cat <<b >> /list
        here a
        a
        here b
        b
        SHELL ["/bin/sh", "-euc"]
        RUN echo "$0 $-" | grep -q u && echo strict >> /list
        RUN ["/bin/sh", "-c", "echo exec >> /list"]
        WORKDIR /w/a
        WORKDIR b
        RUN pwd >> /list
        USER u
        WORKDIR /home/u/dir
        RUN touch f && id -u >> /home/u/dir/ids && id -g >> ids && id -G >> ids && echo $HOME >> ids
        USER 55:66
        RUN id -u > /tmp/ids && id -g >> /tmp/ids
        USER root
        RUN stat -c '%u:%g' /w/a/b /home/u/dir /home/u/dir/f >> /list && cat /home/u/dir/ids /tmp/ids >> /list
        """
    )
    lines = project.read("list").splitlines()
    assert lines[:2] == ["first", "second"]
    assert lines[2].startswith("shebang /")
    assert lines[3:] == [
        *("here a", "here b", "strict", "exec", "/w/a/b"),
        *("0:0", "1234:1235", "1234:1235"),
        *("1234", "1235", "1235 777", "/home/u"),
        *("55", "66"),
    ]


def test_triggers_and_config(project: Project, tmp_path: Path) -> None:
    project.dockerfile(
        """
        FROM $base
        ONBUILD COPY f /triggered
        ONBUILD RUN echo ran >> /triggered
        ONBUILD ENV T=1
        """,
        "parent.Dockerfile",
    )
    project.run(None, "-f", project.folder / "parent.Dockerfile", "-o", f"type=oci,dest={tmp_path}/layout,tar=false", output=False).ok()  # fmt: skip
    project.run(
        """
        FROM parent
        HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5 CMD ["/ok"]
        EXPOSE 80 53/UDP 90-92
        VOLUME /v ["/odd"]
        LABEL a=b "c d"="e f"
        STOPSIGNAL SIGKILL
        ENTRYPOINT ["/e"]
        CMD echo hi
        """,
        "--build-context", f"parent=oci-layout://{tmp_path}/layout", "-o", f"type=docker,dest={tmp_path}/image.tar",
        files={"f": "f\n"},
    ).ok()  # fmt: skip
    assert project.read("triggered") == "f\nran\n"
    config = config_of(tmp_path / "image.tar")["config"]
    assert "T=1" in config["Env"]
    assert "OnBuild" not in config
    assert config["Healthcheck"] == {
        "Test": ["CMD", "/ok"],
        "Interval": 60_000_000_000,
        "Timeout": 2_000_000_000,
        "StartPeriod": 3_000_000_000,
        "StartInterval": 4_000_000_000,
        "Retries": 5,
    }
    assert set(config["ExposedPorts"]) == {"80/tcp", "53/udp", "90/tcp", "91/tcp", "92/tcp"}
    assert config["Labels"] == {"a": "b", "c d": "e f"}
    assert (config["StopSignal"], config["Entrypoint"]) == ("SIGKILL", ["/e"])
    assert config["Cmd"] == ["/bin/sh", "-c", "echo hi"]


def test_an_epoch_makes_two_builds_equal(project: Project, tmp_path: Path) -> None:
    text = """
        FROM $base
        ARG SOURCE_DATE_EPOCH
        RUN echo $SOURCE_DATE_EPOCH > /epoch && date > /when && rm /when
        RUN rm /bin/false
        COPY f /f
    """
    digests = []
    for number in (1, 2):
        meta = tmp_path / f"meta{number}"
        project.run(
            text, "--no-cache", "--metadata-file", meta, "-o", f"type=oci,dest={tmp_path}/i{number}.tar",
            env={"SOURCE_DATE_EPOCH": "1700000000"}, files={"f": "f"}, output=False,
        ).ok()  # fmt: skip
        digests.append(json.loads(meta.read_text())["containerimage.digest"])
    assert digests[0] == digests[1]
