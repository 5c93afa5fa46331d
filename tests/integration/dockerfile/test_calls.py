"""``--check`` and ``--call``: answers, their forms, exit codes; nothing is built."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from integration.dockerfile.origins import archive
from support.scripted import Reply, ScriptedServer

if TYPE_CHECKING:
    from integration.dockerfile.conftest import Project

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay")]

WARNS = "FROM $base as one\nRUN false\nMAINTAINER me\n"
CLEAN = "FROM scratch\nLABEL a=b\n"


def test_findings_are_listed_and_fail(project: Project) -> None:
    done = project.run(WARNS, "--check", output=False).failed(1)
    assert done.out.startswith(
        "Check complete, 2 warnings have been found!\n\nWARNING: FromAsCasing - https://"
    )
    assert "MaintainerDeprecated" in done.out
    assert "RUN false" not in done.err
    assert project.run(None, "--call=check,ignorestatus=true", output=False).code == 0
    one = project.run("FROM scratch as one\n", "--call=lint", output=False).failed(1)
    assert one.out.startswith("Check complete, 1 warning has been found!\n")


def test_nothing_found(project: Project) -> None:
    assert project.run(CLEAN, "--check", output=False).ok().out == "Check complete, no warnings found.\n"


def test_what_would_fail_the_build_is_told_with_its_place(project: Project) -> None:
    done = project.run("FROM scratch as a\nCOPY --from=nosuch /x /\nRUN\n", "--check", output=False).failed(1)
    assert "Dockerfile:" in done.err
    answer = json.loads(project.run(None, "--call=check,format=json", output=False).failed(1).out)
    assert answer["buildError"]["message"]


def test_rules_are_skipped_and_findings_made_errors(project: Project) -> None:
    project.run("# check=skip=all\n" + WARNS, "--check", output=False).ok()
    skipped = ("--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=FromAsCasing,MaintainerDeprecated")
    project.run(WARNS, "--check", *skipped, output=False).ok()
    failed = project.run("# check=error=true\nFROM scratch as a\nLABEL a=b\n", output=False).failed(1)
    assert "lint violation found for rules: FromAsCasing" in failed.err


def test_warnings_of_a_build_come_once_with_their_lines(project: Project) -> None:
    done = project.run(
        "FROM scratch as a\nLABEL x=y\n", platforms=("linux/amd64", "linux/arm64"), output=False
    ).ok()
    assert done.err.count("FromAsCasing") <= 2  # while it builds, and at the end
    assert "1 warning found" in done.err


@pytest.mark.parametrize("method", ["outline", "targets", "subrequests.describe", "check"])
def test_json(project: Project, method: str) -> None:
    text = "# first stage\nFROM scratch AS first\nARG A=1\nFROM first\nLABEL x=$A\n"
    done = project.run(text, f"--call={method},format=json", output=False).ok()
    answer = json.loads(done.out)
    assert answer
    assert project.run(None, f"--call={method}", output=False).ok().out != done.out


def test_remote_contexts_are_asked_too(project: Project) -> None:
    with ScriptedServer() as server:
        server.on("GET", "/c.tar", Reply(200, archive({"Dockerfile": "FROM scratch AS only\n"})))
        done = project.run(None, "--call=targets", context=f"http://{server.host}/c.tar", output=False).ok()
    assert "only" in done.out


def test_unknown_methods_are_named(project: Project) -> None:
    done = project.run(CLEAN, "--call=nosuch", output=False).failed(1)
    assert "nosuch" in done.err
    assert "outline" in done.err
