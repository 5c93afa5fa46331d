"""Config, history and files equal to what BuildKit makes of the same Dockerfile."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from parity.conftest import Pair

pytestmark = [
    pytest.mark.needs("root", "docker", "docker26", "registry", "base", "crun", "userns", "overlay"),
    pytest.mark.slow,
]

FILES = {
    "a.txt": "a\n",
    "b.txt": "b\n",
    "d/x": "x\n",
    "d/y.md": "y\n",
    "d/sub/z": "z\n",
    "d/sub/.hidden": "h\n",
    "ignored/i": "i\n",
    ".dockerignore": "ignored\n**/*.md\n!d/y.md\n",
}


class Case(NamedTuple):
    """One Dockerfile; ``$base`` is the busybox image."""

    text: str
    args: tuple[str, ...] = ()
    #: needs more than BuildKit 0.8
    new: bool = False


CASES = {
    "config": Case(
        """
        FROM $base
        MAINTAINER me
        LABEL a=b "c d"='e f' multi="x\\
        y"
        LABEL legacy some words
        ENV A=1 B="two words" C=$A
        ENV LEGACY some more words
        EXPOSE 80 53/UDP 90-92
        VOLUME /v /w
        VOLUME ["/x"]
        USER nobody
        WORKDIR /work
        WORKDIR rel
        STOPSIGNAL SIGTERM
        SHELL ["/bin/sh", "-ec"]
        HEALTHCHECK --interval=1m30s --timeout=2s --start-period=3s --retries=5 CMD echo ok
        ONBUILD RUN echo triggered
        ENTRYPOINT echo entry
        CMD ["a", "b"]
        """
    ),
    "commands": Case(
        """
        FROM $base AS one
        CMD echo shell
        ENTRYPOINT ["e"]
        FROM one
        HEALTHCHECK NONE
        CMD []
        """
    ),
    "arguments": Case(
        """
        ARG TAG=x
        FROM $base
        ARG TAG
        ARG PLAIN
        ARG GIVEN=default
        ARG TARGETARCH
        RUN echo "$TAG|$PLAIN|$GIVEN|$TARGETARCH|$HTTP_PROXY" > /values
        ENV GIVEN=env
        RUN echo "$GIVEN" >> /values
        LABEL l="${GIVEN}-${PLAIN:-none}"
        """,
        ("--build-arg", "GIVEN=given", "--build-arg", "HTTP_PROXY=http://p"),
    ),
    "copies": Case(
        """
        FROM $base
        COPY a.txt /one
        COPY a.txt b.txt /two/
        COPY *.txt /wild/
        COPY nothing* a.txt /nothing/
        COPY d /dir
        COPY d/ /dir2/
        COPY . /all/
        COPY --chown=55:66 d /owned/deep
        COPY --chown=nobody a.txt /named/a
        COPY --chmod=600 a.txt /mode
        WORKDIR /w
        COPY a.txt .
        COPY a.txt sub/
        COPY ["a.txt", "/with space"]
        ADD a.txt /added
        COPY a.txt b.txt /dest
        """
    ),
    "links": Case(
        """
        FROM $base AS src
        RUN mkdir -p /s/d && echo f > /s/f && ln -s f /s/rel && ln -s /s/f /s/abs && ln -s d /s/dl && echo g > /s/d/g && ln /s/f /s/hard
        FROM $base
        RUN mkdir /real && ln -s real /sym
        COPY --from=src /s /s
        COPY --from=src /s/rel /copied
        COPY --from=src /s/dl /dirlink
        COPY --from=src /s/f /sym/f
        COPY --from=0 /s/d /sym
        COPY --from=src --chown=1:2 /s/d/ /own/
        """
    ),
    "archives": Case(
        """
        FROM $base
        ADD plain.tar /t/
        ADD plain.tar.gz /t2
        COPY plain.tar.gz /kept/
        ADD notatar.gz /n/
        """
    ),
    "odd copies": Case(
        """
        FROM $base
        RUN mkdir -p /merge/sub /real/in && echo old > /merge/sub/z && echo old > /merge/keep && \
            ln -s /real/in /abs && ln -s ../real/in /merge/up && echo t > /target && ln -s target /flink && chmod 700 /merge
        COPY d /merge
        COPY a.txt /abs/
        COPY a.txt /merge/up/
        COPY b.txt /flink
        COPY d/sub /abs
        ADD d /added
        COPY d/sub/ d/x /several/
        WORKDIR /abs/wd
        COPY . .
        COPY suid /suid
        COPY links /links
        COPY links/inner /deref
        COPY links/to-dir /dir-of-link/
        COPY ./d/../b.txt /clean
        ADD plain.tar /owned/
        """
    ),
    "odd runs": Case(
        """
        FROM $base
        RUN mkdir -p /a/b /c && echo 1 > /a/b/f && ln /a/b/f /a/hard && mknod /a/fifo p && chmod 4711 /a/b/f
        RUN rm -rf /a/b && ln -s /c /a/b && echo x > /a/b/through
        RUN rm /a/b && mkdir /a/b && chown 5:6 /a/b && chmod 1777 /a/b
        RUN mv /c /moved && touch -d '2001-02-03 04:05:06' /moved /moved/through
        VOLUME /moved
        RUN echo v > /moved/in-volume
        """
    ),
    "users": Case(
        """
        FROM $base
        RUN echo 'u:x:1234:1235::/home/u:/bin/sh' >> /etc/passwd
        USER u
        WORKDIR /home/u/dir
        RUN id -u > ids && id -g >> ids && echo $HOME >> ids
        COPY a.txt .
        USER 7:8
        RUN id -u > /tmp/ids && touch /tmp/f
        """
    ),
    "deletions": Case(
        """
        FROM $base
        RUN mkdir -p /a/b && touch /a/b/c /a/d
        RUN rm -r /a/b && touch /a/e
        RUN rm -r /a && mkdir /a && touch /a/new
        RUN chmod 700 /a && mv /a/new /a/moved && touch /bin/busybox
        """
    ),
    "empty": Case(
        """
        FROM scratch
        COPY a.txt /
        ENV X=1
        """
    ),
    # the tar exporter of 0.8 writes no archive for an empty image
    "nothing": Case("FROM scratch\nLABEL a=b\n", new=True),
    "targets": Case(
        """
        FROM $base AS first
        RUN echo 1 > /1
        FROM first AS second
        RUN echo 2 > /2
        FROM second
        RUN false
        """,
        ("--target", "second", "--label", "from=flag"),
    ),
    "mounts": Case(
        """
        FROM $base AS other
        RUN echo o > /o
        FROM $base
        RUN --mount=type=bind,from=other,target=/m cp /m/o /got
        RUN --mount=type=cache,target=/cache/deep touch /cache/deep/x
        RUN --mount=type=tmpfs,target=/tmp/t touch /tmp/t/x
        RUN --mount=type=secret,id=none,target=/sec/ret true
        RUN --mount=target=/ctx ls -A /ctx | sort > /names
        """,
        new=True,  # 0.8 leaves the mount points in the image
    ),
    "heredocs": Case(
        """
        FROM $base
        ARG W=word
        COPY <<a <<"b" /here/
        $W
        a
        $W
        b
        RUN <<EOF
        echo one > /one
        echo two > /two
        EOF
        RUN <<EOF
        #!/bin/sh
        echo "$0" > /name
        EOF
        RUN cat <<EOF > /cat
        text
        EOF
        COPY --chmod=755 <<-EOF /script
        \t#!/bin/sh
        \techo $W
        EOF
        """,
        new=True,
    ),
    "linked": Case(
        """
        FROM $base
        RUN mkdir /real && ln -s real /sym
        COPY --link a.txt /linked/deep/a
        COPY --link --chown=5:6 d /linked/d
        ADD --link a.txt /linked/
        WORKDIR /wd
        COPY --link a.txt .
        """,
        new=True,
    ),
    "networks": Case(
        """
        FROM $base
        RUN --network=none echo none > /n
        SHELL ["/bin/sh", "-c", "-x"]
        RUN echo x
        """,
        new=True,
    ),
}


def _write(pair: Pair, text: str) -> None:
    import gzip

    from integration.dockerfile.origins import archive

    packed = archive({"in/t.txt": "t\n", "top": "p\n"})
    files = {
        **{name: data.encode() for name, data in FILES.items()},
        "plain.tar": packed,
        "plain.tar.gz": gzip.compress(packed, mtime=0),
        "notatar.gz": gzip.compress(b"text\n", mtime=0),
        "Dockerfile": textwrap.dedent(text).lstrip("\n").replace("$base", pair.base).encode(),
    }
    for name, data in files.items():
        path = pair.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
    links = pair.folder / "links"
    links.mkdir()
    (links / "inner").symlink_to("../a.txt")
    (links / "to-dir").symlink_to("../d")
    (links / "dangling").symlink_to("nowhere")
    (pair.folder / "suid").write_text("s")
    (pair.folder / "suid").chmod(0o6755)
    for path in sorted(pair.folder.rglob("*"), reverse=True):
        os.utime(path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)


@pytest.mark.parametrize("name", CASES)
def test_equal(pair: Pair, name: str) -> None:
    case = CASES[name]
    if case.new and pair.old:
        pytest.skip("newer than BuildKit 0.8")
    _compare(pair, name)


@pytest.mark.parametrize("name", ["config", "copies"])  # nothing runs: not every host has handlers
def test_equal_for_another_platform(pair: Pair, name: str) -> None:
    if pair.old:
        pytest.skip("the classic image store has one platform")
    _compare(pair, name, "--platform=linux/arm64")


def _compare(pair: Pair, name: str, *args: str) -> None:
    case = CASES[name]
    _write(pair, case.text)
    theirs, ours = (build(name.replace(" ", "-"), *case.args, *args) for build in (pair.theirs, pair.ours))
    assert ours.config == theirs.config
    assert ours.history == theirs.history
    different = {
        path: (ours.tree.get(path), theirs.tree.get(path))
        for path in sorted(ours.tree.keys() | theirs.tree.keys())
        if ours.tree.get(path) != theirs.tree.get(path)
    }
    assert different == {}
