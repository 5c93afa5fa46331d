"""COPY and ADD: every flag and kind of source, on real builds."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from integration.dockerfile.origins import archive, make_repository

if TYPE_CHECKING:
    from pathlib import Path

    from integration.dockerfile.conftest import Project

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt")]


def test_owners_and_modes(project: Project) -> None:
    project.both(
        """
        FROM $base
        ARG WHO=nobody
        RUN echo 'tester:x:1234:' >> /etc/group && echo 'tester:x:1234:1234::/:/bin/sh' >> /etc/passwd
        COPY --chown=tester f /c/name
        COPY --chown=tester:root f /c/both
        COPY --chown=55 f /c/id
        COPY --chown=55:66 f /c/ids
        COPY --chown=$WHO f /c/arg
        COPY --chmod=640 f /c/octal
        COPY --chmod=u=rwX,go=rX d /c/d
        COPY --chmod=4755 f /c/suid
        COPY --chmod=a+x f /c/plus
        COPY --chown=7:8 d /c/tree
        ADD --chown=55:66 --chmod=0600 f /c/add
        COPY f /c/plain
        RUN cd /c && stat -c '%n %u %g %a' name both id ids arg octal d d/x suid plus tree tree/x add plain > /list
        """,
        files={"f": "f", "d/x": "x"},
    )
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in project.read("list").splitlines()}
    assert rows == {
        "name": "1234 1234 644",
        "both": "1234 0 644",
        "id": "55 55 644",
        "ids": "55 66 644",
        "arg": "65534 65534 644",
        "octal": "0 0 640",
        "d": "0 0 755",
        "d/x": "0 0 644",
        "suid": "0 0 4755",
        "plus": "0 0 755",
        "tree": "7 8 755",
        "tree/x": "7 8 644",
        "add": "55 66 600",
        "plain": "0 0 644",
    }


def test_links_wildcards_parents_and_excludes(project: Project) -> None:
    project.both(
        """
        FROM $base AS linked
        RUN mkdir /real && ln -s real /sym
        COPY --link a.txt /sym/
        FROM $base
        RUN mkdir /real && ln -s real /sym
        COPY a.txt /sym/
        COPY *.txt /wild/
        COPY d/[bc].md d/sub /multi/
        COPY --parents d/b.md d/sub/deep/z /parents/
        COPY --parents d/./sub/deep/z /pivot/
        COPY --parents **/*.md /globbed/
        COPY --exclude=*.md --exclude=sub/deep d /excluded/
        ADD --exclude=b.md d /added/
        COPY --from=linked /sym /from-linked
        COPY --link --chown=5:6 d /fresh/dir
        RUN [ -L /sym ] && [ -f /real/a.txt ] && \
            find /wild /multi /parents /pivot /globbed /excluded /added /from-linked /fresh -type f | sort > /list && \
            stat -c '%u:%g' /fresh /fresh/dir /fresh/dir/b.md > /owners
        """,
        files={
            "a.txt": "a",
            "b.txt": "b",
            "d/b.md": "b",
            "d/c.md": "c",
            "d/e": "e",
            "d/sub/s": "s",
            "d/sub/deep/z": "z",
        },
    )
    assert project.read("list").splitlines() == sorted(
        [
            "/added/c.md",
            "/added/e",
            "/added/sub/deep/z",
            "/added/sub/s",
            "/excluded/e",
            "/excluded/sub/s",
            "/fresh/dir/b.md",
            "/fresh/dir/c.md",
            "/fresh/dir/e",
            "/fresh/dir/sub/deep/z",
            "/fresh/dir/sub/s",
            "/from-linked/a.txt",
            "/globbed/d/b.md",
            "/globbed/d/c.md",
            "/multi/b.md",
            "/multi/c.md",
            "/multi/deep/z",
            "/multi/s",
            "/parents/d/b.md",
            "/parents/d/sub/deep/z",
            "/pivot/sub/deep/z",
            "/wild/a.txt",
            "/wild/b.txt",
        ]
    )
    assert project.read("owners").split() == ["5:6", "5:6", "5:6"]


def test_heredocs_archives_and_stages(project: Project) -> None:
    project.both(
        """
        FROM $base AS one
        RUN echo one > /one && ln -s one /lnk
        FROM one AS two
        FROM $base
        ARG WORD=hello
        COPY <<a <<"b" /here/
        $WORD
        a
        $WORD
        b
        COPY --chmod=755 <<-EOF /here/script
        	#!/bin/sh
        	echo ran
        EOF
        ADD plain.tar /t/
        ADD packed.tgz /t/
        ADD --unpack=false packed.tgz /kept/
        ADD packed.xz /t/
        COPY packed.tgz /copied/
        COPY --from=0 /one /lnk /by-index/
        COPY --from=two /one /by-name
        COPY --from=$base /bin/busybox /by-image
        RUN [ "$(/here/script)" = ran ] && [ -f /kept/packed.tgz ] && [ -f /copied/packed.tgz ] && \
            [ "$(stat -c '%u %g %a' /t/in.txt)" = "1000 50 640" ] && [ ! -L /by-index/lnk ] && \
            cat /here/a /here/b /t/in.txt /t/gz.txt /t/xz.txt /by-index/one /by-name > /list
        """,
        files={
            "plain.tar": archive({"in.txt": "tar\n"}),
            "packed.tgz": archive({"gz.txt": "gz\n"}, "w:gz"),
            "packed.xz": archive({"xz.txt": "xz\n"}, "w:xz"),
        },
    )
    assert project.read("list").splitlines() == ["hello", "$WORD", "tar", "gz", "xz", "one", "one"]


def test_remote_files(project: Project, served: tuple[Path, str]) -> None:
    www, url = served
    (www / "f.txt").write_text("remote\n")
    (www / "a.tgz").write_bytes(archive({"x": "unpacked\n"}, "w:gz"))
    os.utime(www / "f.txt", (1_000_000_000, 1_000_000_000))
    digest = hashlib.sha256(b"remote\n").hexdigest()
    text = f"""
        FROM $base
        ADD {url}/f.txt /r/
        ADD --checksum=sha256:{digest} --chmod=644 --chown=1:2 {url}/f.txt /r/named
        ADD {url}/a.tgz /r/
        ADD --unpack {url}/a.tgz /u/
        RUN stat -c '%n %u %g %a %Y' /r/f.txt /r/named > /list && [ -f /r/a.tgz ] && cat /r/named /u/x >> /list
    """
    project.both(text)
    assert project.read("list").splitlines() == [
        "/r/f.txt 0 0 600 1000000000",
        "/r/named 1 2 644 1000000000",
        "remote",
        "unpacked",
    ]
    wrong = project.run(text.replace(digest, "0" * 64)).failed(1)
    assert "Dockerfile:3" in wrong.err
    assert "digest mismatch" in wrong.err
    absent = project.run(f"FROM $base\nADD {url}/absent /\n").failed(1)
    assert "Dockerfile:2" in absent.err
    assert "404" in absent.err


def test_git_sources(project: Project, served: tuple[Path, str], tmp_path: Path) -> None:
    www, url = served
    commit = make_repository(tmp_path / "repo", {"top": "top\n", "sub/dir/f": "sub\n"}, www / "repo.git")
    text = f"""
        FROM $base
        ADD {url}/repo.git /plain
        ADD --keep-git-dir=true {url}/repo.git#main /kept
        ADD {url}/repo.git#main:sub/dir /sub
        ADD {url}/repo.git?branch=main&subdir=sub /query
        ADD --checksum={commit} {url}/repo.git#main /sum
        RUN [ ! -e /plain/.git ] && [ -d /kept/.git ] && cat /plain/top /sub/f /query/dir/f /sum/top > /list
    """
    project.both(text)
    assert project.read("list").splitlines() == ["top", "sub", "sub", "top"]
    wrong = project.run(text.replace(f"--checksum={commit}", f"--checksum={'0' * 40}")).failed(1)
    assert "Dockerfile:6" in wrong.err
    assert "expected checksum" in wrong.err
    for reference, message in (("#nosuch", "does not contain ref"), ("#main:nosuch", "nosuch")):
        done = project.run(f"FROM $base\nADD {url}/repo.git{reference} /x\n").failed(1)
        assert "Dockerfile:2" in done.err
        assert message in done.err


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("COPY absent /", ("absent", "not found")),
            ("COPY --from=nosuch f /", ("nosuch",)),
            ("ADD http://127.0.0.1:9/x /", ("127.0.0.1:9",)),
            ("ADD http://127.0.0.1:9/x.git /", ("127.0.0.1:9",)),
            ("ADD --checksum=sha256:12 http://127.0.0.1:9/x /", ("checksum",)),
            ("ADD bad.tar /", ("../out",)),
        ],
    )
    def test_each_has_a_place(self, project: Project, line: str, words: tuple[str, ...]) -> None:
        done = project.run(
            f"FROM $base\n\n{line}\n", files={"f": "f", "f2": "f", "bad.tar": archive({"../out": "x"})}
        ).failed(1)
        assert "Dockerfile:3" in done.err, done.err
        for word in words:
            assert word in done.err, done.err
